"""Gemma 3 270M in float32 through Transformers: 64 greedy tokens for each prompt, with the top of the logits."""

from pathlib import Path

import reference
from prompts import PROMPTS, station_log

GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"

# It is no chat model: all are plain text. The log is past the window of 512 tokens, twice over.
TEXTS = {name: prompt for name, prompt in PROMPTS.items() if isinstance(prompt, str)} | {
    "long_log": station_log(26),
    "german": "Erkläre in zwei Sätzen, warum Österreich keine Küste hat. Antwort:",
    "emoji_accents": "A birthday card for Zoë, my naïve café-loving friend! 🎉🎂 👩‍🚀 ¿Qué tal?\n\nDear Zoë,",
}


def load(gguf: Path):
    """The model and its tokenizer."""
    model, tokenizer = reference.load(gguf, GGUF_SHA256)
    # What the conversion from GGUF has to keep.
    config = model.config
    rope = {kind: (rope["rope_type"], rope["rope_theta"]) for kind, rope in config.rope_parameters.items()}
    assert rope == {"full_attention": ("default", 1_000_000.0), "sliding_attention": ("default", 10_000.0)}
    assert config.sliding_window == 512 and config.query_pre_attn_scalar == config.head_dim == 256
    assert [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"] == [5, 11, 17]
    assert config.attn_logit_softcapping is config.final_logit_softcapping is None
    return model, tokenizer


def make(gguf: Path, output: Path) -> None:
    assert len(TEXTS) == 8
    model, tokenizer = load(gguf)
    prompts = []
    for name, text in TEXTS.items():
        prompt_ids = tokenizer.encode(text)
        assert prompt_ids[0] == tokenizer.bos_token_id == 2
        prompts.append(reference.generate(model, tokenizer, name, None, text, prompt_ids))
    reference.write(output, gguf, GGUF_SHA256, model, tokenizer, prompts)
