"""Writes rope.json: the rotary angles that Transformers computes for configs of each supported kind.

    python make_rope.py > rope.json    (transformers 5, torch for CPU)
"""

import json

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

SHORT = [1.0 + 0.015 * i for i in range(32)]
LONG = [1.0 + 0.21 * i * i / 7 for i in range(32)]
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}
LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

CASES = {
    "default_llama2": {"head_dim": 128},
    "default_smollm2": {"head_dim": 64, "rope_theta": 100000, "rope_scaling": None, "max_position_embeddings": 8192},
    "default_llama3": {"head_dim": 128, "rope_theta": 500000.0, "max_position_embeddings": 8192},
    "default_odd_theta": {"head_dim": 80, "rope_theta": 123456.789},
    "default_rope_parameters": {"head_dim": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 130000.0}},
    "theta_inside_wins": {"head_dim": 32, "rope_theta": 10.0, "rope_parameters": {"rope_theta": 20000.0}},
    "linear_legacy": {"head_dim": 128, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "linear_uneven": {"head_dim": 96, "rope_theta": 50000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.7}},
    "linear_rope_parameters": {
        "head_dim": 64,
        "rope_parameters": {"rope_type": "linear", "factor": 8, "rope_theta": 10000.0},
    },
    "llama31": {
        "head_dim": 128,
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "rope_scaling": {**LLAMA3, "factor": 8.0, "rope_type": "llama3"},
    },
    "llama32": {
        "head_dim": 64,
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "rope_scaling": {**LLAMA3, "rope_type": "llama3"},
    },
    "llama32_rope_parameters": {
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rope_parameters": {**LLAMA3, "rope_type": "llama3", "rope_theta": 500000.0},
    },
    "llama3_original_beside": {
        "head_dim": 64,
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {**LLAMA3, "rope_type": "llama3"},
    },
    "yarn_plain": {
        "head_dim": 128,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 131072,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    },
    "yarn_attention_factor": {
        "head_dim": 64,
        "max_position_embeddings": 65536,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 4096,
            "attention_factor": 0.83,
            "beta_fast": 24,
            "beta_slow": 2,
        },
    },
    "yarn_not_truncated": {
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "truncate": False,
        },
    },
    "yarn_mscale": {
        "head_dim": 64,
        "max_position_embeddings": 163840,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 40,
            "original_max_position_embeddings": 4096,
            "mscale": 0.707,
            "mscale_all_dim": 1.2,
        },
    },
    "yarn_mscale_zero": {
        "head_dim": 64,
        "max_position_embeddings": 163840,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 40,
            "original_max_position_embeddings": 4096,
            "mscale": 1.0,
            "mscale_all_dim": 0,
        },
    },
    "yarn_factor_null": {
        "head_dim": 64,
        "max_position_embeddings": 32768,
        "rope_scaling": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 4096},
    },
    "yarn_original_left_out": {
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
    },
    "longrope_within_the_original_context": {
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": LONGROPE,
        "max_seq_len": 4096,
    },
    "longrope_beyond_it": {
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": LONGROPE,
        "max_seq_len": 4097,
    },
    "longrope_factor": {
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rope_parameters": {
            **LONGROPE,
            "rope_theta": 50000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 8192,
        },
        "max_seq_len": 9000,
    },
    "longrope_attention_factor": {
        "head_dim": 64,
        "max_position_embeddings": 16384,
        "rope_parameters": {**LONGROPE, "attention_factor": 1.25, "original_max_position_embeddings": 8192},
        "max_seq_len": 100,
    },
}


def angles(fields, max_seq_len):
    """As LlamaRotaryEmbedding has them while it computes a sequence of this length."""
    config = LlamaConfig.from_dict(json.loads(json.dumps(fields)))
    rotary = LlamaRotaryEmbedding(config)
    rotary(torch.zeros(1), torch.arange(max_seq_len)[None])
    return rotary.inv_freq.tolist(), float(rotary.attention_scaling)


def main():
    cases = []
    for name, fields in CASES.items():
        fields = {"hidden_size": 2 * fields["head_dim"], "num_attention_heads": 2, **fields}
        fields.setdefault("max_position_embeddings", 2048)
        max_seq_len = fields.pop("max_seq_len", 16)
        inv_freq, attention_factor = angles(fields, max_seq_len)
        case = {"name": name, "config": fields, "max_seq_len": max_seq_len}
        cases.append({**case, "inv_freq": inv_freq, "attention_factor": attention_factor})
    lines = ",\n".join("  " + json.dumps(case) for case in cases)
    print(f"[\n{lines}\n]")


main()
