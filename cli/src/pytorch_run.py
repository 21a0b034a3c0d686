"""Greedy generation by Hugging Face Transformers, with its KV cache, for `run-llm --enable-pytorch-run`.

Reads one JSON object from standard input: {"model", "dtype", "prompt_token_ids", "num_tokens", "ignore_eos",
"eos_token_ids", "iterations"}; prints one: {"version", "output_token_ids", "ttft_ms", "tpot_ms"}, medians over the
iterations.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache


def load(name: str, dtype: torch.dtype):
    path = Path(name)
    source = {}
    if path.is_file():
        from transformers import GgufConfig

        source = {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}
        name = str(path.parent)
    return AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **source).eval()


@torch.inference_mode()
def generate(model, request: dict) -> tuple[list[int], float, float]:
    stop = set() if request["ignore_eos"] else set(request["eos_token_ids"])
    cache = DynamicCache(config=model.config)
    tokens, new = [], request["prompt_token_ids"]
    start = time.perf_counter()
    first = start
    while len(tokens) < request["num_tokens"] and not (tokens and tokens[-1] in stop):
        output = model(input_ids=torch.tensor([new]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        new = [int(output.logits[0, -1].argmax())]
        tokens += new
        if len(tokens) == 1:
            first = time.perf_counter()
    end = time.perf_counter()
    return tokens, (first - start) * 1e3, (end - first) * 1e3 / max(len(tokens) - 1, 1)


def main() -> None:
    request = json.load(sys.stdin)
    model = load(request["model"], getattr(torch, request["dtype"]))
    runs = [generate(model, request) for _ in range(request["iterations"])]
    print(json.dumps({
        "version": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "output_token_ids": runs[0][0],
        "ttft_ms": statistics.median(run[1] for run in runs),
        "tpot_ms": statistics.median(run[2] for run in runs),
    }))


if __name__ == "__main__":
    main()
