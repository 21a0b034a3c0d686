#!/usr/bin/env python3
"""Make the golden files of this folder again, with Hugging Face Transformers as the reference (see README.md).

    python make_golden.py [smollm2] [gemma3] [perplexity] [tiny] [tiny-NAME …] [vision]
"""

import argparse
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch

FOLDER = Path(__file__).resolve().parent
MODELS = FOLDER.parents[1] / ".roundhouse" / "models"
TEXT = FOLDER.parents[1] / "cli" / "texts" / "alice.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="WHAT", help="what to make, by default everything")
    parser.add_argument("--models", type=Path, default=MODELS, help="the folder that scripts/fetch_models.py fills")
    arguments = parser.parse_args()
    # One thread and deterministic kernels: sums are made in the same order every time.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)

    import tiny
    import tiny_eagle2
    import tiny_families
    import tiny_gguf
    import tiny_llama
    import tiny_vision_language

    checkpoints = {checkpoint.name: checkpoint for checkpoint in tiny_llama.CHECKPOINTS + tiny_families.CHECKPOINTS}
    vision_language = {module.NAME: module for module in (tiny_vision_language, tiny_eagle2)}
    what = set(arguments.what or ["smollm2", "gemma3", "perplexity", "tiny", "vision"])
    known = {"smollm2", "gemma3", "perplexity", "tiny", "vision"} | set(checkpoints) | set(vision_language)
    if unknown := what - known:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if "smollm2" in what:
        import smollm2

        smollm2.make(arguments.models / "SmolLM2-135M-Instruct.Q4_1.gguf", FOLDER / "smollm2-135m-instruct.json")
    if "gemma3" in what:
        import gemma3

        gemma3.make(arguments.models / "gemma-3-270m-q4_k_m.gguf", FOLDER / "gemma-3-270m.json")
    if "perplexity" in what:
        import gemma3
        import perplexity
        import smollm2

        for module, file, name in [
            (smollm2, "SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-perplexity.json"),
            (gemma3, "gemma-3-270m-q4_k_m.gguf", "gemma3-perplexity.json"),
        ]:
            model, tokenizer = module.load(arguments.models / file)
            perplexity.make(model, tokenizer, arguments.models / file, module.GGUF_SHA256, TEXT, FOLDER / name)
    if "vision" in what:
        import vision_preprocessing

        vision_preprocessing.make(FOLDER / "vision")
    tiny_families.cap_scores()
    for name, checkpoint in checkpoints.items():
        if what & {"tiny", name}:
            tiny.make(FOLDER, checkpoint)
            if name in tiny_gguf.FILES:
                tiny_gguf.make(FOLDER, name)
    for name, module in vision_language.items():
        if what & {"tiny", name}:
            module.make(FOLDER)


if __name__ == "__main__":
    main()
