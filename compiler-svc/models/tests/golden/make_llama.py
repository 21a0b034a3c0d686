"""Writes llama.json: logits that Transformers computes for tiny Llamas whose weights follow from their names.

    python make_llama.py > llama.json    (transformers 5, torch for CPU)

A weight's element i is a number of 24 bits out of splitmix64, seeded with the FNV-1a hash of the tensor's name; the
Rust tests make the same ones (support/mod.rs), so that no weights have to be stored.
"""

import json

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

MASK = (1 << 64) - 1

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 48,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

CASES = {
    "llama2_multi_head": {},
    "llama32_grouped_tied": {"num_key_value_heads": 2, "tie_word_embeddings": True, "rope_scaling": LLAMA3},
    "smollm2_one_key_value_head": {"num_key_value_heads": 1, "tie_word_embeddings": True, "rope_theta": 100000},
    "biases_and_head_dim": {"head_dim": 8, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
}

INPUT_IDS = [[1, 17, 5, 44, 9, 23, 0, 31, 12], [40, 3, 3, 28, 47, 11, 6, 19, 2]]


def numbers(name, count):
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & MASK
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    uniform = (z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)
    return np.float32(1.0) + uniform if name.endswith("norm.weight") else uniform


def main():
    cases = []
    for name, changes in CASES.items():
        fields = {**BASE, **changes}
        if "rope_parameters" in fields:
            del fields["rope_theta"]
        model = LlamaForCausalLM(LlamaConfig.from_dict(json.loads(json.dumps(fields)))).eval()
        with torch.no_grad():
            for tensor, parameter in model.named_parameters():
                values = numbers(tensor, parameter.numel())
                parameter.copy_(torch.from_numpy(values).reshape(parameter.shape))
            logits = model(torch.tensor(INPUT_IDS)).logits
        shapes = {tensor: list(parameter.shape) for tensor, parameter in model.named_parameters()}
        cases.append(
            {
                "name": name,
                "config": fields,
                "tensors": shapes,
                "input_ids": INPUT_IDS,
                "logits": [round(x, 6) for x in logits.flatten().tolist()],
            }
        )
    lines = ",\n".join("  " + json.dumps(case) for case in cases)
    print(f"[\n{lines}\n]")


if __name__ == "__main__":
    main()
