"""Writes families.json: logits that Transformers computes for tiny models of every family, one for each way that its
configs differ. Weights follow from their names, as in make_llama.py; experts have their tensors as in published
checkpoints, or stacked where the case's name says so, as Transformers 5 writes them with `save_original_format=False`.

    python make_families.py > families.json    (transformers 5, torch for CPU)
"""

import json

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gemma3 import modeling_gemma3

from make_llama import numbers

BASE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {
    "vocab_size": 32,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LONGROPE = {"type": "longrope", "short_factor": [1.1, 1.3, 1.7], "long_factor": [1.5, 4.0, 9.0]}
PARTIAL = {"hidden_size": 32, "partial_rotary_factor": 0.75, "rope_theta": 100.0}
EXPERTS = {"moe_intermediate_size": 12, "num_experts": 5, "num_experts_per_tok": 3, "tie_word_embeddings": False}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 20}
MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False}
GEMMA = {"head_dim": 6, "num_key_value_heads": 1, "sliding_window": 5, "query_pre_attn_scalar": 9}

ARCHITECTURES = {
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}

# (model_type, name, config.json beside BASE)
CASES = [
    ("gemma3_text", "before_transformers_5", {
        **GEMMA,
        "sliding_window_pattern": 2,
        "rope_theta": 1000.0,
        "rope_local_base_freq": 50.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    }),
    ("gemma3_text", "nested_rope_parameters", {
        **GEMMA,
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "_sliding_window_pattern": 6,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
        },
    }),
    ("gemma3_text", "soft_caps", {
        **GEMMA,
        "sliding_window_pattern": 2,
        "attn_logit_softcapping": 0.5,
        "final_logit_softcapping": 4.0,
        "attention_bias": True,
        "tie_word_embeddings": False,
    }),
    ("gpt2", "plain", {}),
    ("gpt2", "without_prefix", {"n_inner": 40, "layer_norm_epsilon": 1e-3}),
    ("gpt2", "unscaled_scores", {"scale_attn_weights": False, "activation_function": "gelu"}),
    ("gpt2", "scores_by_layer", {"scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False}),
    ("llama", "gelu", {"hidden_act": "gelu"}),
    ("llama", "gelu_tanh", {"hidden_act": "gelu_new"}),
    ("mistral", "window", {"sliding_window": 5, "head_dim": 6}),
    ("mistral", "no_window", {"sliding_window": None, "tie_word_embeddings": False}),
    ("mixtral", "window", {**MIXTRAL, "sliding_window": 5}),
    ("mixtral", "stacked", {**MIXTRAL, "head_dim": 6, "num_experts_per_tok": 1, "rope_theta": 100.0}),
    ("olmo2", "grouped", {"rope_theta": 500.0}),
    ("olmo2", "biases_untied", {"attention_bias": True, "tie_word_embeddings": False, "head_dim": 6}),
    ("phi3", "plain", {"num_key_value_heads": None, "tie_word_embeddings": False}),
    ("phi3", "window", {"sliding_window": 5}),
    ("phi3", "longrope_short", {
        **PARTIAL,
        "rope_scaling": LONGROPE,
        "original_max_position_embeddings": 16,
    }),
    ("phi3", "longrope_long", {
        **PARTIAL,
        "rope_scaling": {**LONGROPE, "type": "su", "original_max_position_embeddings": 8},
        "original_max_position_embeddings": 8,
    }),
    ("phi3", "longrope_rope_parameters", {
        "original_max_position_embeddings": 8,
        "rope_parameters": {
            **{name: value[:2] for name, value in LONGROPE.items() if name != "type"},
            "rope_type": "longrope",
            "rope_theta": 30.0,
            "attention_factor": 1.2,
            "original_max_position_embeddings": 8,
        },
    }),
    ("qwen2", "plain", {}),
    ("qwen2", "windows", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ("qwen2", "layer_types", {
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": False,
    }),
    ("qwen2_moe", "plain", SHARED),
    ("qwen2_moe", "windows_and_dense_layers", {
        **SHARED,
        "num_hidden_layers": 4,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
        "norm_topk_prob": True,
        "qkv_bias": False,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 2,
    }),
    ("qwen2_moe", "stacked", {
        **SHARED,
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention"],
    }),
    ("qwen3", "plain", {"head_dim": 6}),
    ("qwen3", "windows_and_biases", {
        "head_dim": 8,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 0,
    }),
    ("qwen3_moe", "plain", {**EXPERTS, "head_dim": 6}),
    ("qwen3_moe", "window_biases_and_dense_layers", {
        **EXPERTS,
        "num_hidden_layers": 3,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [0],
        "norm_topk_prob": True,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    }),
    ("qwen3_moe", "stacked", {
        **{name: value for name, value in EXPERTS.items() if name != "num_experts"},
        "num_local_experts": 4,
        "norm_topk_prob": True,
    }),
    ("smollm3", "plain", {"num_hidden_layers": 4, "rope_theta": 500.0}),
    ("smollm3", "windows_and_biases", {
        "no_rope_layers": [0, 1, 0],
        "use_sliding_window": True,
        "sliding_window": 5,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
    }),
    ("smollm3", "layer_types", {
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
    }),
]

INPUT_IDS = [[1, 17, 5, 24, 9, 23, 0, 31, 12, 7, 7, 30], [20, 3, 3, 28, 13, 11, 6, 19, 2, 8, 29, 4]]


def cap_scores():
    """Gemma3Attention keeps `attn_logit_softcapping` and does not hand it on to the function that would apply it."""
    attend = modeling_gemma3.eager_attention_forward

    def capped(module, *args, **kwargs):
        return attend(module, *args, softcap=module.attn_logit_softcapping, **kwargs)

    modeling_gemma3.eager_attention_forward = capped


def model_of(fields):
    fields = json.loads(json.dumps(fields))
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    # Some classes read head_dim without declaring it.
    if "head_dim" in fields:
        assert config.head_dim == fields["head_dim"]
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()


def tensors_of(model_type, name, parameter, stacked):
    """The tensors of a checkpoint that a parameter is made of: their names and its parts."""
    layer, _, part = name.partition(".mlp.")
    if stacked or not part:
        return [(name, parameter)]
    module, gate, up, down = ("mlp", "gate_proj", "up_proj", "down_proj")
    if model_type == "mixtral":
        module, gate, up, down = ("block_sparse_moe", "w1", "w3", "w2")
    tensors = []
    for expert in range(len(parameter)):
        prefix = f"{layer}.{module}.experts.{expert}"
        if part == "experts.gate_up_proj":
            halves = parameter[expert].chunk(2)
            tensors += [(f"{prefix}.{gate}.weight", halves[0]), (f"{prefix}.{up}.weight", halves[1])]
        elif part == "experts.down_proj":
            tensors.append((f"{prefix}.{down}.weight", parameter[expert]))
    return tensors or [(f"{layer}.{module}.{part}", parameter)]


def main():
    cap_scores()
    cases = []
    for model_type, name, changes in CASES:
        base = GPT2 if model_type == "gpt2" else BASE
        fields = {"architectures": [ARCHITECTURES[model_type]], "model_type": model_type, **base, **changes}
        stored = {key: value for key, value in fields.items() if (key, value) != ("num_key_value_heads", None)}
        model = model_of(fields)
        strip = "transformer." if name == "without_prefix" else ""
        shapes = {}
        with torch.no_grad():
            for name_in_memory, parameter in model.named_parameters():
                for tensor, part in tensors_of(model_type, name_in_memory, parameter, name == "stacked"):
                    tensor = tensor.removeprefix(strip)
                    part.copy_(torch.from_numpy(numbers(tensor, part.numel())).reshape(part.shape))
                    shapes[tensor] = list(part.shape)
            logits = model(torch.tensor(INPUT_IDS)).logits
        cases.append(
            {
                "name": f"{model_type}/{name}",
                "config": stored,
                "tensors": shapes,
                "input_ids": INPUT_IDS,
                "logits": [round(x, 5) for x in logits.flatten().tolist()],
            }
        )
    logits = [case["logits"] for case in cases]
    assert all(a != b for i, a in enumerate(logits) for b in logits[:i])
    lines = ",\n".join("  " + json.dumps(case) for case in cases)
    print(f"[\n{lines}\n]")


if __name__ == "__main__":
    main()
