#!/usr/bin/env python3
"""Check that llama.cpp computes with the tiny GGUF files what Transformers computes with the checkpoints they are made of.

    pip install llama-cpp-python==0.3.36 safetensors numpy
    python check_gguf.py

It reads bfloat16 weights and rounds activations on the way, so its logits are near the reference's, not equal to them.
"""

from pathlib import Path

import llama_cpp
import numpy as np
from safetensors.numpy import load_file

FOLDER = Path(__file__).resolve().parent
CONTEXT = 256  # llama.cpp's smallest
# file -> (golden, changes of its metadata)
FILES = {
    "tiny-gpt-2": ("tiny-gpt-2", {}),
    "tiny-mixtral": ("tiny-mixtral", {}),
    # Short factors in spite of the context's size.
    "tiny-phi-4-mini": ("tiny-phi-4-mini.short", {"phi3.rope.scaling.original_context_length": CONTEXT}),
    "tiny-qwen-1.5-moe": ("tiny-qwen-1.5-moe", {}),
    "tiny-qwen-3-moe": ("tiny-qwen-3-moe", {}),
    "tiny-smollm-3": ("tiny-smollm-3", {}),
}
TOLERANCE = 0.05  # of the largest logit; a wrong permutation or set of factors is off by about 1


def main() -> None:
    for name, (golden, overrides) in FILES.items():
        model = llama_cpp.Llama(
            str(FOLDER / f"{name}.gguf"), n_ctx=CONTEXT, kv_overrides=overrides, logits_all=True, verbose=False
        )
        tensors = load_file(FOLDER / f"{golden}.golden.safetensors")
        worst = 0.0
        for key, expected in tensors.items():
            if not key.endswith("prompt_logits"):
                continue
            model.reset()
            model.eval(tensors[key.replace("prompt_logits", "input_ids")].tolist())
            found = np.array(model.scores[: len(expected)])
            worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
        print(f"{name}: {worst:.5f} of the largest logit")
        assert 0 < worst < TOLERANCE, name


if __name__ == "__main__":
    main()
