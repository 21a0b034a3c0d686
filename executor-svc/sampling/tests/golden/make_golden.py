"""Makes the golden data of the sampling tests with Transformers' logits processors.

Run from this folder with Transformers installed: `python make_golden.py`. Writes `sampling.json`: for logits and
parameters, the tokens left with their probabilities, the model's own log-probabilities, and the tokens that a seed draws.

Frequency and presence penalty, which Transformers lacks, are OpenAI's formula
(https://platform.openai.com/docs/advanced-usage#frequency-and-presence-penalties). ChaCha is written out from its
specification (D. J. Bernstein, 2008) with 12 rounds.
"""

import json
import struct
from pathlib import Path

import torch
import transformers
from transformers.generation.logits_process import (MinPLogitsWarper, RepetitionPenaltyLogitsProcessor,
                                                    TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)

HERE = Path(__file__).parent
VOCAB = 64
DRAWS = 16


def chacha12(seed):
    """The 64-bit numbers of the key stream, low word first."""
    constants = struct.unpack("<4I", b"expand 32-byte k")
    key = struct.unpack("<8I", struct.pack("<Q", seed) + bytes(24))

    def rotate(x, n):
        return ((x << n) | (x >> (32 - n))) & 0xFFFFFFFF

    def quarter(s, a, b, c, d):
        for x, y, z, n in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[x] = (s[x] + s[y]) & 0xFFFFFFFF
            s[z] = rotate(s[z] ^ s[x], n)

    counter = 0
    while True:
        start = [*constants, *key, counter & 0xFFFFFFFF, counter >> 32, 0, 0]
        s = start.copy()
        for _ in range(6):
            for column in range(4):
                quarter(s, column, 4 + column, 8 + column, 12 + column)
            for diagonal in range(4):
                quarter(s, diagonal, 4 + (diagonal + 1) % 4, 8 + (diagonal + 2) % 4, 12 + (diagonal + 3) % 4)
        words = [(x + y) & 0xFFFFFFFF for x, y in zip(s, start)]
        for low, high in zip(words[::2], words[1::2]):
            yield low | high << 32
        counter += 1


def process(logits, case):
    scores = logits.unsqueeze(0).clone()
    seen = torch.tensor([case["prompt"] + case["output"]], dtype=torch.long)
    if case.get("repetition_penalty") is not None and seen.numel():
        scores = RepetitionPenaltyLogitsProcessor(case["repetition_penalty"])(seen, scores)
    counts = torch.bincount(torch.tensor(case["output"], dtype=torch.long), minlength=VOCAB)
    scores = scores - case.get("frequency_penalty", 0.0) * counts - case.get("presence_penalty", 0.0) * (counts > 0)
    # In the order of GenerationMixin._get_logits_processor.
    if case["temperature"] != 1.0:
        scores = TemperatureLogitsWarper(case["temperature"])(seen, scores)
    if case.get("top_k"):
        scores = TopKLogitsWarper(case["top_k"])(seen, scores)
    if case.get("top_p", 1.0) < 1.0:
        scores = TopPLogitsWarper(case["top_p"])(seen, scores)
    if case.get("min_p") is not None:
        scores = MinPLogitsWarper(case["min_p"])(seen, scores)
    return scores[0]


def finish(logits, case):
    scores = process(logits, case)
    probabilities = scores.double().softmax(-1)
    left = [token for token in range(VOCAB) if scores[token] > -torch.inf]
    case["left"] = [[token, round(probabilities[token].item(), 9)] for token in left]
    case["logprobs"] = [round(x, 6) for x in logits.double().log_softmax(-1).tolist()]
    case["logits"] = [round(x, 6) for x in logits.tolist()]
    stream = chacha12(case["seed"])
    cumulative = probabilities.cumsum(-1)
    points = [(next(stream) >> 11) / 2**53 for _ in range(DRAWS)]
    case["draws"] = [int((cumulative <= point).sum()) for point in points]
    return case


def main():
    generator = torch.Generator().manual_seed(1)
    parameters = [{}]
    parameters += [{"top_k": k} for k in (1, 5, 63, 64, 1000)]
    parameters += [{"top_p": p} for p in (0.01, 0.5, 0.9, 0.99)]
    parameters += [{"min_p": p} for p in (0.0, 0.05, 0.5, 1.0)]
    parameters += [{"repetition_penalty": r} for r in (0.8, 1.3)]
    parameters += [{"frequency_penalty": 0.7}, {"presence_penalty": -0.6}, {"frequency_penalty": -1.5}]
    parameters += [
        {"top_k": 20, "top_p": 0.8},
        {"top_k": 30, "top_p": 0.95, "min_p": 0.1},
        {"top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.1},
        {"top_k": 10, "top_p": 0.7, "min_p": 0.2, "repetition_penalty": 1.2, "frequency_penalty": 0.3,
         "presence_penalty": 0.4},
    ]
    cases = []
    for index, parameter in enumerate(parameters):
        for temperature in (1.0, 0.6, 1.7):
            logits = torch.randn(VOCAB, generator=generator) * 3
            # Equal logits are common in half precision; which of equal ones top-p keeps is not defined there, so those
            # cases have none.
            step = 1000 if "top_p" in parameter else 4
            logits = ((logits * step).round() / step).float()
            prompt = torch.randint(VOCAB, (6,), generator=generator).tolist()
            output = torch.randint(VOCAB // 4, (9,), generator=generator).tolist()
            cases.append(finish(logits, {"temperature": temperature, **parameter, "prompt": prompt, "output": output,
                                         "seed": index * 1_000_003 + int(temperature * 10)}))
    lines = ",\n".join(json.dumps(case) for case in cases)
    (HERE / "sampling.json").write_text(
        f'{{"transformers": "{transformers.__version__}", "cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
