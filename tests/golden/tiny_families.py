"""A tiny checkpoint or two of every family beside Llama, with all that sets the family apart switched on."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.gemma3 import modeling_gemma3

from tiny import Checkpoint, Golden

SHAPE = dict(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    max_position_embeddings=256,
)
WINDOW = 16
LONGROPE = dict(
    rope_type="longrope",
    rope_theta=10_000.0,
    partial_rotary_factor=0.75,
    short_factor=[1.0, 1.05, 1.1, 1.3, 1.4, 1.6],
    long_factor=[1.0, 1.6, 2.7, 4.0, 7.0, 12.0],
    original_max_position_embeddings=64,
)


def default_rope(theta: float) -> dict:
    return dict(rope_parameters=dict(rope_type="default", rope_theta=theta))


def without(*names: str):
    """Sets the parameters to zero whose names end so."""

    def change(model: PreTrainedModel) -> None:
        found = [parameter for name, parameter in model.named_parameters() if name.endswith(names)]
        assert found
        for parameter in found:
            parameter.zero_()

    return change


def without_modules(*names: str):
    """Leaves out the modules whose names end so."""

    def change(model: PreTrainedModel) -> None:
        found = [name for name, _ in model.named_modules() if name.endswith(names)]
        assert found
        for name in found:
            model.set_submodule(name, nn.Identity())

    return change


def write_as_before_transformers_5(config: dict) -> None:
    """`rope_theta` and `rope_scaling` beside the other fields."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")


def write_as_phi_4_mini(config: dict) -> None:
    write_as_before_transformers_5(config)
    scaling = config["rope_scaling"]
    scaling["type"] = scaling.pop("rope_type")
    config["original_max_position_embeddings"] = scaling.pop("original_max_position_embeddings")
    config["auto_map"] = {"AutoConfig": "configuration_phi3.Phi3Config"}
    config |= dict(attention_bias=False, mlp_bias=False, lm_head_bias=False, full_attn_mod=1, interpolate_factor=1)
    config.pop("head_dim", None)


def write_as_gemma_3_270m(config: dict) -> None:
    """Two bases side by side."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope["full_attention"]["rope_theta"]
    config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    config["rope_scaling"] = None
    config["torch_dtype"] = config.pop("dtype")


def write_as_gemma_3_1b(config: dict) -> None:
    """Which layers slide is left to the pattern."""
    write_as_gemma_3_270m(config)
    assert config.pop("layer_types") == ["sliding_attention", "full_attention"]
    config.pop("_sliding_window_pattern", None)
    config["sliding_window_pattern"] = 2


def rename_as_gpt2(tensors: dict) -> dict:
    """The first checkpoints are of the model without its head, with the causal mask in every layer."""
    named = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for layer in range(2):
        named[f"h.{layer}.attn.bias"] = torch.ones(8, 8).tril().view(1, 1, 8, 8)
    return named


def write_as_gpt2(config: dict) -> None:
    config["n_ctx"] = config["n_positions"]
    config.pop("dtype")


def cap_scores() -> None:
    """Gemma3Attention keeps `attn_logit_softcapping` and does not hand it on to the function that would apply it."""
    attend = modeling_gemma3.eager_attention_forward

    def capped(module, *args, **kwargs):
        return attend(module, *args, softcap=module.attn_logit_softcapping, **kwargs)

    modeling_gemma3.eager_attention_forward = capped


GEMMA = SHAPE | dict(num_key_value_heads=1, head_dim=24, sliding_window=WINDOW, query_pre_attn_scalar=20)


def gemma_rope(full: float, sliding: float) -> dict:
    bases = {"full_attention": full, "sliding_attention": sliding}
    return dict(
        rope_parameters={name: dict(rope_type="default", rope_theta=theta) for name, theta in bases.items()}
    )


CHECKPOINTS = [
    Checkpoint(
        name="tiny-mistral",
        model_type="mistral",
        config=SHAPE
        | dict(sliding_window=WINDOW, head_dim=24, tie_word_embeddings=False)
        | default_rope(10_000.0),
        features={"window": dict(sliding_window=None), "window's edge": dict(sliding_window=WINDOW + 1)},
        rewrite=write_as_before_transformers_5,
        seed=11,
    ),
    # Experts as in published checkpoints.
    Checkpoint(
        name="tiny-mixtral",
        model_type="mixtral",
        config=SHAPE
        | dict(
            intermediate_size=24,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=3 * WINDOW,
            tie_word_embeddings=False,
        )
        | default_rope(1_000_000.0),
        features={
            "window": dict(sliding_window=None),
            "second expert": dict(num_experts_per_tok=1),
            "router": without("mlp.gate.weight"),
        },
        rewrite=write_as_before_transformers_5,
        clear_choices=12.0,
        seed=21,
    ),
    Checkpoint(
        name="tiny-qwen-1.5-moe",
        model_type="qwen2_moe",
        config=SHAPE
        | dict(
            num_key_value_heads=4,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=32,
            num_experts=8,
            num_experts_per_tok=4,
            norm_topk_prob=False,
            tie_word_embeddings=False,
        )
        | default_rope(1_000_000.0),
        features={
            "fourth expert": dict(num_experts_per_tok=3),
            "weights as they are": dict(norm_topk_prob=True),
            "shared expert": without("shared_expert.down_proj.weight"),
            "gate of the shared expert": without("shared_expert_gate.weight"),
            "biases": without("_proj.bias"),
        },
        rewrite=write_as_before_transformers_5,
        clear_choices=12.0,
        seed=22,
    ),
    # A window in the first layer, no experts in the second.
    Checkpoint(
        name="tiny-qwen-2-moe",
        model_type="qwen2_moe",
        config=SHAPE
        | dict(
            num_hidden_layers=3,
            mlp_only_layers=[1],
            moe_intermediate_size=16,
            shared_expert_intermediate_size=32,
            num_experts=4,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            use_sliding_window=True,
            sliding_window=WINDOW,
            max_window_layers=1,
            tie_word_embeddings=False,
        )
        | default_rope(1_000_000.0),
        features={
            "window": dict(layer_types=["full_attention"] * 3),
            "full layers": dict(layer_types=["sliding_attention"] * 3),
            "normalised weights": dict(norm_topk_prob=False),
            "shared expert": without("shared_expert.down_proj.weight"),
            "experts": without("experts.down_proj"),
        },
        rewrite=lambda config: config.pop("layer_types"),
        clear_choices=16.0,
        seed=23,
    ),
    Checkpoint(
        name="tiny-qwen-2.5",
        model_type="qwen2",
        config=SHAPE
        | dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1, tie_word_embeddings=True)
        | default_rope(1_000_000.0),
        features={
            "windows": dict(layer_types=["full_attention"] * 2),
            "full layer": dict(layer_types=["sliding_attention"] * 2),
            "biases": without("_proj.bias"),
            "base": default_rope(10_000.0),
        },
        rewrite=lambda config: (write_as_before_transformers_5(config), config.pop("layer_types")),
        embedding=0.4,
        seed=12,
    ),
    Checkpoint(
        name="tiny-qwen-3",
        model_type="qwen3",
        config=SHAPE
        | dict(
            head_dim=24,
            use_sliding_window=True,
            sliding_window=WINDOW,
            layer_types=["full_attention", "sliding_attention"],
            tie_word_embeddings=True,
        )
        | default_rope(1_000_000.0),
        features={
            "windows": dict(layer_types=["full_attention"] * 2),
            "norms": without_modules("q_norm", "k_norm"),
        },
        embedding=0.4,
        seed=13,
    ),
    Checkpoint(
        name="tiny-qwen-3-moe",
        model_type="qwen3_moe",
        config=SHAPE
        | dict(
            head_dim=24,
            moe_intermediate_size=16,
            num_experts=6,
            num_experts_per_tok=3,
            norm_topk_prob=True,
            tie_word_embeddings=False,
        )
        | default_rope(1_000_000.0),
        features={
            "third expert": dict(num_experts_per_tok=2),
            "normalised weights": dict(norm_topk_prob=False),
            "norms": without_modules("q_norm", "k_norm"),
        },
        clear_choices=12.0,
        stacked=True,
        seed=24,
    ),
    Checkpoint(
        name="tiny-smollm-3",
        model_type="smollm3",
        config=SHAPE
        | dict(
            num_hidden_layers=4,
            no_rope_layers=[1, 1, 1, 0],
            layer_types=["full_attention"] * 4,
            tie_word_embeddings=True,
        )
        | default_rope(5_000_000.0),
        features={
            "layers without positions": dict(no_rope_layers=[1, 1, 1, 1]),
            "layers with positions": dict(no_rope_layers=[1, 1, 0, 0]),
        },
        embedding=0.4,
        goldens=(Golden((1, 33, 130)),),
        seed=14,
    ),
    # As Phi-4-mini: 12 of 16 dimensions rotated, two sets of factors, here with a window. Prompts of the first golden
    # stay within the original context, those of the second begin beyond it.
    Checkpoint(
        name="tiny-phi-4-mini",
        model_type="phi3",
        config=SHAPE
        | dict(
            tie_word_embeddings=True,
            original_max_position_embeddings=64,
            rope_parameters=LONGROPE,
            sliding_window=3 * WINDOW,
        ),
        features={
            "window": dict(sliding_window=None),
            "long factors": dict(rope_parameters=LONGROPE | dict(long_factor=LONGROPE["short_factor"])),
            "attention factor": dict(rope_parameters=LONGROPE | dict(attention_factor=1.0)),
            "rotated part": dict(
                rope_parameters=LONGROPE
                | dict(partial_rotary_factor=0.5)
                | {name: LONGROPE[name][:4] for name in ("short_factor", "long_factor")}
            ),
        },
        goldens=(Golden((1, 32), ".short", 64), Golden((65, 130), ".long", 256)),
        rewrite=write_as_phi_4_mini,
        embedding=0.4,
        seed=16,
    ),
    Checkpoint(
        name="tiny-gemma-3",
        model_type="gemma3_text",
        config=GEMMA
        | dict(num_hidden_layers=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
        | gemma_rope(10_000.0, 100.0),
        features={
            "windows": dict(layer_types=["full_attention"] * 3),
            "base of full layers": gemma_rope(100.0, 100.0),
            "base of sliding layers": gemma_rope(10_000.0, 10_000.0),
            "scale": dict(query_pre_attn_scalar=24),
            "head norms": without_modules("q_norm", "k_norm"),
            "norm after attention": without("post_attention_layernorm.weight"),
            "norm after feed-forward": without("post_feedforward_layernorm.weight"),
        },
        unit_offset=True,
        embedding=0.1,
        last_norm=3.0,
        rewrite=write_as_gemma_3_270m,
        goldens=(Golden((1, 33, 130)),),
        seed=17,
    ),
    Checkpoint(
        name="tiny-gemma-3-soft-caps",
        model_type="gemma3_text",
        config=GEMMA
        | dict(
            num_key_value_heads=2,
            layer_types=["sliding_attention", "full_attention"],
            attn_logit_softcapping=2.0,
            final_logit_softcapping=12.0,
        )
        | gemma_rope(10_000.0, 100.0),
        features={
            "cap of scores": dict(attn_logit_softcapping=None),
            "cap of logits": dict(final_logit_softcapping=None),
        },
        unit_offset=True,
        embedding=0.1,
        last_norm=3.0,
        rewrite=write_as_gemma_3_1b,
        seed=18,
    ),
    Checkpoint(
        name="tiny-gpt-2",
        model_type="gpt2",
        config=dict(n_embd=64, n_layer=2, n_head=4, n_inner=80, n_positions=256),
        features={
            "positions": without("wpe.weight"),
            "biases": without("c_attn.bias", "c_proj.bias", "c_fc.bias"),
            "biases of norms": without("ln_1.bias", "ln_2.bias", "ln_f.bias"),
            "scale": dict(scale_attn_weights=False),
        },
        rewrite=write_as_gpt2,
        rename=rename_as_gpt2,
        embedding=0.4,
        goldens=(Golden((1, 33, 130)),),
        seed=19,
    ),
    Checkpoint(
        name="tiny-olmo-2",
        model_type="olmo2",
        config=SHAPE | dict(tie_word_embeddings=False, rms_norm_eps=1e-6) | default_rope(500_000.0),
        features={
            "norms of queries and keys": without_modules("q_norm", "k_norm"),
            "norm after attention": without_modules("post_attention_layernorm"),
        },
        rewrite=write_as_before_transformers_5,
        seed=20,
    ),
]
