"""The line protocol between `roundhouse bench cpu` and a peer, so that both are timed in turns on one machine.

The peer loads its model, prints one JSON object that says what it is, then answers each line of standard input with one
JSON object on standard output:

    prefill N   forget everything, run a prompt of N tokens in one call    {"seconds": 0.12, "token_ids": [first token]}
    decode N    N more greedy tokens, one call each                        {"seconds": 0.85, "token_ids": [N tokens]}
    quit        (or end of input) leave

Only the model's forward calls are timed: no sampling, no text, no protocol. A request that cannot be done is answered with
{"error": "…"}. `prompt_token_ids` is the prompt that every side of a comparison runs.
"""

import json
import sys
from typing import Protocol


class RequestError(ValueError):
    """The request is wrong, or does not fit in the context: told to the client, and the peer goes on."""


class Peer(Protocol):
    def prefill(self, token_ids: list[int]) -> tuple[float, list[int]]:
        """Start anew with this prompt. Returns the seconds it took and the next token."""
        ...

    def decode(self, count: int) -> tuple[float, list[int]]:
        """Generate count tokens more. Returns the seconds of all the forward calls and the tokens."""
        ...


def prompt_token_ids(length: int, vocab_size: int) -> list[int]:
    """Token i is 100 + (i * 7907) mod (vocab_size - 100): ordinary tokens of the whole vocabulary, in a fixed order."""
    return [100 + i * 7907 % (vocab_size - 100) for i in range(length)]


def answer(peer: Peer, vocab_size: int, line: str) -> dict:
    try:
        request, argument = line.split()
        count = int(argument)
    except ValueError:
        raise RequestError(f"expected 'prefill N' or 'decode N', found {line!r}") from None
    if count < 1:
        raise RequestError(f"expected a positive number of tokens, found {count}")
    if request == "prefill":
        seconds, token_ids = peer.prefill(prompt_token_ids(count, vocab_size))
    elif request == "decode":
        seconds, token_ids = peer.decode(count)
    else:
        raise RequestError(f"unknown request {request!r}: expected 'prefill' or 'decode'")
    return {"seconds": seconds, "token_ids": token_ids}


def serve(peer: Peer, vocab_size: int, description: dict) -> None:
    print(json.dumps(description | {"vocab_size": vocab_size}), flush=True)
    for line in map(str.strip, sys.stdin):
        if line == "quit":
            return
        if not line:
            continue
        try:
            reply = answer(peer, vocab_size, line)
        except RequestError as error:
            reply = {"error": str(error)}
        print(json.dumps(reply), flush=True)
