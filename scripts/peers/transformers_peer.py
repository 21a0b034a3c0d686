#!/usr/bin/env python3
"""Hugging Face Transformers on the CPU as a peer that `roundhouse bench cpu` drives (see line_protocol.py).

    pip install torch==2.15.0 transformers==5.24.0 accelerate==1.15.0 gguf==0.19.0
    python scripts/peers/transformers_peer.py --model FOLDER_OR_GGUF --threads 2 [--dtype float32]
"""

import argparse
import os
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache, GgufConfig

from line_protocol import RequestError, serve


class Transformers:
    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        source = {}
        if path.is_file():
            # Plain matrices of the asked dtype, never packed kernels: what the description says is what is timed.
            source = dict(gguf_file=path.name, quantization_config=GgufConfig(dequantize=True))
        folder = path.parent if path.is_file() else path
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **source).eval()
        self.capacity = self.model.config.max_position_embeddings
        self.cache = DynamicCache(config=self.model.config)
        self.next_token: int | None = None

    def forward(self, token_ids: list[int]) -> float:
        if self.cache.get_seq_length() + len(token_ids) > self.capacity:
            raise RequestError(f"the model takes at most {self.capacity} tokens")
        input_ids = torch.tensor([token_ids])
        start = time.perf_counter()
        output = self.model(input_ids=input_ids, cache=self.cache, use_cache=True, logits_to_keep=1)
        seconds = time.perf_counter() - start
        self.next_token = int(output.logits[0, -1].argmax())
        return seconds

    def prefill(self, token_ids: list[int]) -> tuple[float, list[int]]:
        self.cache = DynamicCache(config=self.model.config)
        self.next_token = None
        seconds = self.forward(token_ids)
        return seconds, [self.next_token]

    def decode(self, count: int) -> tuple[float, list[int]]:
        if self.next_token is None:
            raise RequestError("decode comes after prefill")
        seconds, token_ids = 0.0, []
        for _ in range(count):
            seconds += self.forward([self.next_token])
            token_ids.append(self.next_token)
        return seconds, token_ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="checkpoint folder or GGUF file")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    transformers.utils.logging.disable_progress_bar()
    peer = Transformers(arguments.model, getattr(torch, arguments.dtype))
    description = {
        "peer": "transformers",
        "version": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}",
        "model": arguments.model.name,
        "precision": arguments.dtype,
        "threads": arguments.threads,
        "context": peer.capacity,
    }
    serve(peer, peer.model.config.vocab_size, description)


if __name__ == "__main__":
    main()
