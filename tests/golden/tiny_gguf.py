"""Some tiny checkpoints as GGUF files, with the tensor names, permutations and keys that llama.cpp's converter writes.

The weights are those of the safetensors files, bit for bit, so the golden logits hold for both. That llama.cpp reads them
as the same models is checked by check_gguf.py.
"""

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

BF16 = gguf.GGMLQuantizationType.BF16


def heads_interleaved(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """ggml rotates neighbours where Hugging Face rotates halves."""
    return tensor.reshape(heads, 2, -1, tensor.shape[-1]).transpose(1, 2).reshape(tensor.shape)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict) -> None:
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_token_types([kinds[index in special] for index in range(len(vocabulary))])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_add_bos_token(False)


def add_tensor(writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor) -> None:
    if tensor.dim() < 2 or "ffn_gate_inp" in name:  # the converter keeps routers in single precision
        writer.add_tensor(name, tensor.float().numpy())
        return
    values = tensor.float().contiguous().numpy()
    packed = gguf.quants.quantize(values, BF16)
    assert np.array_equal(gguf.quants.dequantize(packed, BF16), values), f"{name} is not exact in bfloat16"
    writer.add_tensor(name, packed, raw_dtype=BF16)


def add_llama_sizes(writer: gguf.GGUFWriter, config: dict) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def llama(writer: gguf.GGUFWriter, config: dict, name: str, tensor: torch.Tensor) -> torch.Tensor:
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    module = name.split(".")[-2]
    return heads_interleaved(tensor, config[heads[module]]) if module in heads else tensor


def smollm3_keys(writer: gguf.GGUFWriter, config: dict) -> None:
    add_llama_sizes(writer, config)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])


def phi3_keys(writer: gguf.GGUFWriter, config: dict) -> None:
    add_llama_sizes(writer, config)
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    original, longest = config["original_max_position_embeddings"], config["max_position_embeddings"]
    writer.add_rope_dimension_count(int(config["partial_rotary_factor"] * head_dim))
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_sliding_window(config["sliding_window"] or 0)
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_rope_scaling_attn_factors((1 + np.log(longest / original) / np.log(original)) ** 0.5)
    for kind in ("long", "short"):
        factors = np.array(config["rope_scaling"][f"{kind}_factor"], dtype=np.float32)
        writer.add_tensor(f"rope_factors_{kind}.weight", factors)


def gpt2(writer: gguf.GGUFWriter, config: dict, name: str, tensor: torch.Tensor) -> torch.Tensor:
    conv1d = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
    return tensor.T if conv1d else tensor


def gpt2_keys(writer: gguf.GGUFWriter, config: dict) -> None:
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_feed_forward_length(config["n_inner"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def mixtral_keys(writer: gguf.GGUFWriter, config: dict) -> None:
    add_llama_sizes(writer, config)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_sliding_window(config["sliding_window"])


def qwen_moe_keys(writer: gguf.GGUFWriter, config: dict) -> None:
    add_llama_sizes(writer, config)
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writer.add_expert_count(config.get("num_experts") or config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def stack_experts(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A tensor for each projection of all experts of a layer, named as the converter names it for the name map."""
    stacked, of_experts = {}, {}
    for name, tensor in sorted(tensors.items()):
        module, experts, part = name.partition(".experts.")
        if not experts:
            stacked[name] = tensor
        elif part == "gate_up_proj":
            gate, up = tensor.chunk(2, dim=1)
            stacked |= {f"{module}.experts.gate_proj.weight": gate, f"{module}.experts.up_proj.weight": up}
        elif part == "down_proj":
            stacked[f"{module}.experts.down_proj.weight"] = tensor
        else:
            expert, projection = part.split(".", 1)
            projection = projection.replace("w1", "gate_proj").replace("w3", "up_proj").replace("w2", "down_proj")
            module = module.replace("block_sparse_moe", "mlp")
            of_experts.setdefault(f"{module}.experts.{projection}", {})[int(expert)] = tensor
    for name, parts in of_experts.items():
        stacked[name] = torch.stack([parts[expert] for expert in range(len(parts))])
    return stacked


def unchanged(writer: gguf.GGUFWriter, config: dict, name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


# checkpoint -> (architecture, its keys, what is done to a tensor)
FILES: dict[str, tuple[gguf.MODEL_ARCH, Callable, Callable]] = {
    "tiny-gpt-2": (gguf.MODEL_ARCH.GPT2, gpt2_keys, gpt2),
    "tiny-mixtral": (gguf.MODEL_ARCH.LLAMA, mixtral_keys, llama),
    "tiny-phi-4-mini": (gguf.MODEL_ARCH.PHI3, phi3_keys, unchanged),
    "tiny-qwen-1.5-moe": (gguf.MODEL_ARCH.QWEN2MOE, qwen_moe_keys, unchanged),
    "tiny-qwen-3-moe": (gguf.MODEL_ARCH.QWEN3MOE, qwen_moe_keys, unchanged),
    "tiny-smollm-3": (gguf.MODEL_ARCH.SMOLLM3, smollm3_keys, llama),
}


def make(folder: Path, name: str) -> None:
    architecture, keys, change = FILES[name]
    config = json.loads((folder / name / "config.json").read_text())
    output = folder / f"{name}.gguf"
    writer = gguf.GGUFWriter(output, gguf.MODEL_ARCH_NAMES[architecture])
    keys(writer, config)
    add_tokenizer(writer, json.loads((folder / name / "tokenizer.json").read_text()))
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    names = gguf.get_tensor_name_map(architecture, 4)
    for tensor_name, tensor in sorted(stack_experts(load_file(folder / name / "model.safetensors")).items()):
        if tensor_name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        renamed = names.get_name(tensor_name, try_suffixes=(".weight", ".bias"))
        add_tensor(writer, renamed, change(writer, config, tensor_name, tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{output.name}: {output.stat().st_size} bytes")
