"""Tiny Llamas, one for each way that the family differs."""

import torch

from tiny import Checkpoint, Golden

SHAPE = dict(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    rms_norm_eps=1e-5,
)


def llama(name: str, seed: int, config: dict, **changes) -> Checkpoint:
    rope = config["rope_parameters"]
    plain = dict(rope_parameters=dict(rope_type="default", rope_theta=rope["rope_theta"]))
    return Checkpoint(
        name=name,
        model_type="llama",
        config=SHAPE | config,
        features={} if rope["rope_type"] == "default" else {"rotary scaling": plain},
        goldens=(Golden((1, 7, 33, 130)),),
        dtype=torch.float32,
        seed=seed,
        **changes,
    )


def write_as_before_transformers_5(config: dict) -> None:
    """The keys that Llama checkpoints were published with: rope_theta, rope_scaling, torch_dtype."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config.pop("head_dim", None)


CHECKPOINTS = [
    # Rotary default, untied head, grouped queries.
    llama(
        "tiny-llama-2",
        1,
        dict(
            max_position_embeddings=256,
            tie_word_embeddings=False,
            rope_parameters=dict(rope_type="default", rope_theta=10_000.0),
        ),
        rewrite=write_as_before_transformers_5,
    ),
    # Wavelengths are 6.3, 20, 63, 199, …: kept below 16, blended between 16 and 64, divided above 64.
    llama(
        "tiny-llama-3.1",
        2,
        dict(
            max_position_embeddings=512,
            tie_word_embeddings=True,
            rope_parameters=dict(
                rope_type="llama3",
                rope_theta=10_000.0,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
        rewrite=write_as_before_transformers_5,
    ),
    # One key-value head for each query head, biases everywhere.
    llama(
        "tiny-llama-bias-yarn",
        3,
        dict(
            num_key_value_heads=4,
            attention_bias=True,
            mlp_bias=True,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            rope_parameters=dict(
                rope_type="yarn", rope_theta=10_000.0, factor=4.0, original_max_position_embeddings=64
            ),
        ),
    ),
    # A head size that hidden_size / num_attention_heads does not give, one key-value head, two weight files.
    llama(
        "tiny-llama-linear",
        4,
        dict(
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=24,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            rope_parameters=dict(rope_type="linear", rope_theta=10_000.0, factor=4.0),
        ),
        shard="200KB",
    ),
]
