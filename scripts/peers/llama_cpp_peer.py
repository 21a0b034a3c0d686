#!/usr/bin/env python3
"""llama.cpp, built for this machine's CPU, as a peer that `roundhouse bench cpu` drives (see line_protocol.py).

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python==0.3.36
    python scripts/peers/llama_cpp_peer.py --model FILE.gguf --threads 2 [--context 2048]

Greedy: the arg-max of the logits is taken outside the timed llama_decode calls. Everything is llama.cpp's default but the
number of threads, the context, and a batch large enough to take a prompt in one call.
"""

import argparse
import ctypes
import os
import time

import llama_cpp
import numpy as np

from line_protocol import RequestError, serve


class LlamaCpp:
    def __init__(self, path: str, threads: int, context: int) -> None:
        # Held by the object: the library calls it for as long as it lives.
        self.silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model_parameters = llama_cpp.llama_model_default_params()
        model_parameters.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), model_parameters)
        if not self.model:
            raise SystemExit(f"{path}: llama.cpp cannot load this file")
        context_parameters = llama_cpp.llama_context_default_params()
        context_parameters.n_ctx = context
        context_parameters.n_batch = context_parameters.n_ubatch = context
        context_parameters.n_threads = context_parameters.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, context_parameters)
        if not self.context:
            raise SystemExit(f"{path}: llama.cpp cannot make a context of {context} tokens")
        self.capacity = llama_cpp.llama_n_ctx(self.context)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(context, 0, 1)
        self.position = 0
        self.next_token: int | None = None

    def description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        llama_cpp.llama_model_desc(self.model, buffer, len(buffer))
        return buffer.value.decode()

    def forward(self, token_ids: list[int]) -> float:
        """Run the tokens after those in the cache, keep the greedy choice of the last one. Returns seconds."""
        if self.position + len(token_ids) > self.capacity:
            raise RequestError(f"the context of {self.capacity} tokens is full: restart with a larger --context")
        self.batch.n_tokens = len(token_ids)
        for i, token in enumerate(token_ids):
            self.batch.token[i] = token
            self.batch.pos[i] = self.position + i
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = 0
            self.batch.logits[i] = i + 1 == len(token_ids)
        start = time.perf_counter()
        status = llama_cpp.llama_decode(self.context, self.batch)
        seconds = time.perf_counter() - start
        if status != 0:
            raise RequestError(f"llama_decode returned {status}")
        self.position += len(token_ids)
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, -1), shape=(self.vocab_size,))
        self.next_token = int(logits.argmax())
        return seconds

    def prefill(self, token_ids: list[int]) -> tuple[float, list[int]]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.position, self.next_token = 0, None
        seconds = self.forward(token_ids)
        return seconds, [self.next_token]

    def decode(self, count: int) -> tuple[float, list[int]]:
        if self.next_token is None:
            raise RequestError("decode comes after prefill")
        if self.position + count > self.capacity:
            raise RequestError(f"{count} more tokens do not fit in the context of {self.capacity}")
        seconds, token_ids = 0.0, []
        for _ in range(count):
            seconds += self.forward([self.next_token])
            token_ids.append(self.next_token)
        return seconds, token_ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--context", type=int, default=2048, help="most tokens of prompt and answer together")
    arguments = parser.parse_args()
    peer = LlamaCpp(arguments.model, arguments.threads, arguments.context)
    description = {
        "peer": "llama.cpp",
        "version": f"llama-cpp-python {llama_cpp.__version__}",
        "model": os.path.basename(arguments.model),
        "precision": peer.description(),
        "threads": arguments.threads,
        "context": peer.capacity,
    }
    serve(peer, peer.vocab_size, description)


if __name__ == "__main__":
    main()
