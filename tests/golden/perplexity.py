"""Perplexity of a text in float32 through Transformers, by the definition of `roundhouse eval perplexity`.

A window is a sequence of its own: the tokens that the tokenizer puts before a text (Gemma's <bos>; SmolLM2's has none), then
the text's, CONTEXT in all. Windows begin every STRIDE tokens of the text, as far as there are tokens that none before had.
Each token of the text is counted once, in the first window that has it, and the first token of a sequence not at all.
Perplexity is exp of the mean negative log-likelihood of all counted tokens.
"""

import hashlib
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers

CONTEXT = 512
STRIDE = 256


def windows(prefix: int, length: int):
    """For each window: its first text token, its end, and the first text token that it counts."""
    begin = counted = 0
    while counted < length:
        end = min(begin + CONTEXT - prefix, length)
        yield begin, end, max(counted, 0 if prefix else begin + 1)
        begin, counted = begin + STRIDE, end


def make(model, tokenizer, gguf: Path, sha256: str, text: Path, output: Path) -> None:
    content = text.read_text(encoding="utf-8")
    ids = tokenizer.encode(content, add_special_tokens=False)
    prefix = tokenizer.encode(content)[: -len(ids)]
    assert prefix + ids == tokenizer.encode(content)
    rows = []
    for begin, end, first in windows(len(prefix), len(ids)):
        sequence = torch.tensor([prefix + ids[begin:end]])
        logits = model(sequence).logits[0, :-1].float()
        # In double precision: what is summed is as exact as the logits are.
        losses = F.cross_entropy(logits.double(), sequence[0, 1:], reduction="none")
        counted = losses[len(prefix) + first - begin - 1 :]
        assert len(counted) == end - first
        rows.append({"tokens": sequence.shape[1], "counted": len(counted), "nll_sum": float(counted.sum())})
        print(f"{gguf.name}: text tokens {begin} to {end}: {rows[-1]}", flush=True)
    counted = sum(row["counted"] for row in rows)
    mean = sum(row["nll_sum"] for row in rows) / counted
    golden = {
        "model": gguf.name,
        "model_sha256": sha256,
        "made_with": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__},
        "dtype": "float32",
        "text_sha256": hashlib.sha256(content.encode()).hexdigest(),
        "text_tokens": len(ids),
        "context": CONTEXT,
        "stride": STRIDE,
        "counted": counted,
        "mean_nll": mean,
        "perplexity": math.exp(mean),
        "windows": rows,
    }
    output.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    print(f"{output}: perplexity {golden['perplexity']:.4f} of {counted} tokens")
