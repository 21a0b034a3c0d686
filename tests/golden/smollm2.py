"""SmolLM2-135M-Instruct in float32 through Transformers: 64 greedy tokens for each prompt, with the top of the logits."""

from pathlib import Path

from tokenizers import pre_tokenizers

import reference
from prompts import PROMPTS

GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def load(gguf: Path):
    """The model and its tokenizer."""
    model, tokenizer = reference.load(gguf, GGUF_SHA256)
    # Transformers drops the pre-tokenizer named in the file ("smollm"): single digits, then the GPT-2 expression.
    # Without the first, blanks before a digit are grouped as in no published SmolLM2 tokenizer.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # What the conversion from GGUF has to keep.
    config = model.config
    assert config.rope_parameters["rope_theta"] == 100_000.0 and config.rope_parameters["rope_type"] == "default"
    assert abs(config.rms_norm_eps - 1e-5) < 1e-12
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    return model, tokenizer


def make(gguf: Path, output: Path) -> None:
    model, tokenizer = load(gguf)
    prompts = []
    for name, prompt in PROMPTS.items():
        messages = prompt if isinstance(prompt, list) else None
        text = prompt
        if messages:
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer.encode(text, add_special_tokens=False)
        prompts.append(reference.generate(model, tokenizer, name, messages, text, prompt_ids))
    reference.write(output, gguf, GGUF_SHA256, model, tokenizer, prompts)
