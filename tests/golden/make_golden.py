#!/usr/bin/env python3
"""Make the golden files of this folder again, with Hugging Face Transformers as the reference (see README.md).

    python make_golden.py [smollm2] [tiny]
"""

import argparse
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch

FOLDER = Path(__file__).resolve().parent
GGUF = FOLDER.parents[1] / ".roundhouse" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="WHAT", help="smollm2, tiny, or both (default)")
    parser.add_argument("--gguf", type=Path, default=GGUF, help="the SmolLM2 file (scripts/fetch_models.py gets it)")
    arguments = parser.parse_args()
    what = arguments.what or ["smollm2", "tiny"]
    if unknown := set(what) - {"smollm2", "tiny"}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    # One thread and deterministic kernels: sums are made in the same order every time.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    if "smollm2" in what:
        import smollm2

        smollm2.make(arguments.gguf, FOLDER / "smollm2-135m-instruct.json")
    if "tiny" in what:
        import tiny_llama

        tiny_llama.make_all(FOLDER)


if __name__ == "__main__":
    main()
