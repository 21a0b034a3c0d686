"""What is common to the golden files of real models: greedy tokens in float32 through Transformers, with the top of the
logits."""

import hashlib
import json
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

NEW_TOKENS = 64
TOP = 5


def load(gguf: Path, sha256: str):
    """The model of a GGUF file and its tokenizer, after checking that it is the file that was meant."""
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise SystemExit(f"{gguf}: SHA-256 is {digest}, expected {sha256}: run scripts/fetch_models.py")
    source = dict(pretrained_model_name_or_path=str(gguf.parent), gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        **source,
        dtype=torch.float32,
        attn_implementation="eager",
        quantization_config=GgufConfig(dequantize=True),  # plain float32 matrices, never packed kernels
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(**source)
    linears = [module for module in model.modules() if "Linear" in type(module).__name__]
    assert all(type(module) is torch.nn.Linear and module.weight.dtype == torch.float32 for module in linears)
    assert model.config.tie_word_embeddings and model.lm_head.weight is model.model.embed_tokens.weight
    # Generation goes on after the end-of-sequence token, so that every prompt gives the same number of steps.
    model.generation_config.eos_token_id = None
    return model, tokenizer


def generate(model, tokenizer, name: str, messages: list | None, text: str, prompt_ids: list[int]) -> dict:
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


def write(output: Path, gguf: Path, sha256: str, model, tokenizer, prompts: list[dict]) -> None:
    for prompt in prompts:
        print(
            f"{prompt['name']}: {len(prompt['prompt_token_ids'])} prompt tokens, "
            f"smallest margin {min(prompt['margins'])}\n    {prompt['output_text'][:160]!r}"
        )
    assert max(len(prompt["prompt_token_ids"]) for prompt in prompts) > 1000
    golden = {
        "model": gguf.name,
        "model_sha256": sha256,
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
