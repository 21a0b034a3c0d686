"""SmolLM2-135M-Instruct in float32 through Transformers: 64 greedy tokens for each prompt, with the top of the logits."""

import hashlib
import json
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from prompts import PROMPTS

GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NEW_TOKENS = 64
TOP = 5


def load(gguf: Path):
    """The model and tokenizer, after checking that the conversion from GGUF kept what the golden file depends on."""
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise SystemExit(f"{gguf}: SHA-256 is {digest}, expected {GGUF_SHA256}: run scripts/fetch_models.py")
    source = dict(pretrained_model_name_or_path=str(gguf.parent), gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        **source,
        dtype=torch.float32,
        attn_implementation="eager",
        quantization_config=GgufConfig(dequantize=True),  # plain float32 matrices, never packed kernels
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # Transformers drops the pre-tokenizer named in the file ("smollm"): single digits, then the GPT-2 expression.
    # Without the first, blanks before a digit are grouped as in no published SmolLM2 tokenizer.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    linears = [module for module in model.modules() if "Linear" in type(module).__name__]
    assert all(type(module) is torch.nn.Linear and module.weight.dtype == torch.float32 for module in linears)
    config = model.config
    assert config.rope_parameters["rope_theta"] == 100_000.0 and config.rope_parameters["rope_type"] == "default"
    assert abs(config.rms_norm_eps - 1e-5) < 1e-12
    assert config.tie_word_embeddings and model.lm_head.weight is model.model.embed_tokens.weight
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    # Generation goes on after the end-of-sequence token, so that every prompt gives the same number of steps.
    model.generation_config.eos_token_id = None
    return model, tokenizer


def generate(model, tokenizer, name: str, prompt) -> dict:
    messages = prompt if isinstance(prompt, list) else None
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) if messages else prompt
    prompt_ids = tokenizer.encode(text, add_special_tokens=False)
    ids = torch.tensor([prompt_ids])
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    output_ids = made.sequences[0, len(prompt_ids) :].tolist()
    logits = torch.cat(made.logits).float()  # [steps, vocab]
    top = logits.topk(TOP)
    assert len(output_ids) == NEW_TOKENS and output_ids == top.indices[:, 0].tolist()
    eos = tokenizer.eos_token_id
    return {
        "name": name,
        "messages": messages,
        "text": text,
        "prompt_token_ids": prompt_ids,
        "output_token_ids": output_ids,
        "output_text": tokenizer.decode(output_ids, clean_up_tokenization_spaces=False),
        "first_eos_step": output_ids.index(eos) if eos in output_ids else None,
        "top_token_ids": top.indices.tolist(),
        "top_logits": shortest(top.values),
        "margins": shortest(top.values[:, 0] - top.values[:, 1]),
        "log_sum_exp": shortest(logits.logsumexp(dim=-1)),
    }


def shortest(values: torch.Tensor):
    """Nested lists of the shortest decimals that read back as the same float32."""
    if values.dim() > 1:
        return [shortest(row) for row in values]
    return [float(np.format_float_positional(value, unique=True)) for value in values.numpy()]


def make(gguf: Path, output: Path) -> None:
    model, tokenizer = load(gguf)
    prompts = []
    for name, prompt in PROMPTS.items():
        prompts.append(generate(model, tokenizer, name, prompt))
        last = prompts[-1]
        print(f"{name}: {len(last['prompt_token_ids'])} prompt tokens, smallest margin {min(last['margins'])}")
        print(f"    {last['output_text'][:160]!r}")
    assert max(len(prompt["prompt_token_ids"]) for prompt in prompts) > 1000
    golden = {
        "model": gguf.name,
        "model_sha256": GGUF_SHA256,
        "made_with": {
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "dtype": "float32",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "vocab_size": model.config.vocab_size,
    }
    # One prompt a line: compact, and a changed prompt is a changed line.
    lines = ",\n".join(json.dumps(prompt, ensure_ascii=False, separators=(",", ":")) for prompt in prompts)
    head = json.dumps(golden, separators=(",", ":"))[:-1]
    output.write_text(f'{head},"prompts":[\n{lines}\n]}}\n', encoding="utf-8")
    print(f"{output}: {output.stat().st_size} bytes")
