"""A chat-completions server that only waits: `python -m benchmarks.caption_server --median 0.5 --sigma 0.5`.

Each answer comes after a lognormal time, drawn in the order of arrival from a seed. It prints its port, and on the end
of its standard input, as one line of JSON, how many requests came, how long it made them wait in all, and how long it
took from the first of them to the last answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import threading
import time

import numpy as np

_DSC = (
    "A photograph of a brown dog on wet grass. The dog has a red collar and a white patch on its chest. Behind it are "
    "two trees and a low wall under a gray sky."
)
# By the wording of the prompts; each fits its gate, so that nothing is asked twice.
_ANSWERS = {
    b"one sentence about": "A brown dog runs over wet grass in a park.",
    b"so exhaustively": " ".join(
        f"{place} stands a {thing} with green leaves and a thick gray trunk."
        for place, thing in zip(
            (
                "To the left",
                "To the right",
                "Behind it",
                "In front",
                "Far behind",
                "Beside it",
                "Between them",
                "Above",
            ),
            ("tall tree", "small tree", "round bush", "low hedge", "young birch", "dry pine", "old oak", "bare ash"),
            strict=True,
        )
    ),
}


def _response(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": json.dumps({"caption": text})}}
    usage = {"prompt_tokens": 800, "completion_tokens": 60}
    body = json.dumps({"choices": [{**choice, "finish_reason": "stop"}], "usage": usage}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


_BY_WORDS = {words: _response(text) for words, text in _ANSWERS.items()}
_OTHER = _response(_DSC)


class Waiting:
    """Draws the times and adds them up."""

    def __init__(self, median: float, sigma: float, seed: int) -> None:
        self._median, self._sigma = median, sigma
        self._random = np.random.default_rng(seed)
        self.requests, self.seconds, self.in_flight, self.most = 0, 0.0, 0, 0
        self.began = self.ended = 0.0

    def draw(self) -> float:
        seconds = self._median * math.exp(self._sigma * float(self._random.standard_normal()))
        self.requests += 1
        self.seconds += seconds
        return seconds


class _Connection(asyncio.Protocol):
    """One keep-alive connection; requests on it come one after the other."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._received = bytearray()
        self._wanted = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._wanted < 0:
            head = self._received.find(b"\r\n\r\n")
            if head < 0:
                return
            lines = bytes(self._received[:head]).lower().split(b"\r\n")
            length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
            self._wanted = head + 4 + length
        if len(self._received) >= self._wanted:
            answer = next((said for words, said in _BY_WORDS.items() if words in self._received), _OTHER)
            self._received, self._wanted = bytearray(), -1
            self._waiting.in_flight += 1
            self._waiting.began = self._waiting.began or time.monotonic()
            self._waiting.most = max(self._waiting.most, self._waiting.in_flight)
            asyncio.get_running_loop().call_later(self._waiting.draw(), self._answer, answer)

    def _answer(self, answer: bytes) -> None:
        self._waiting.in_flight -= 1
        self._transport.write(answer)  # type: ignore[attr-defined]
        self._waiting.ended = time.monotonic()


async def _serve(waiting: Waiting) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(waiting), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    await ended.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--median", type=float, default=0.5, help="seconds")
    parser.add_argument("--sigma", type=float, default=0.5, help="of the logarithm; 0 for always the median")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    waiting = Waiting(given.median, given.sigma, given.seed)
    asyncio.run(_serve(waiting))
    said = {"requests": waiting.requests, "seconds": waiting.seconds, "most_in_flight": waiting.most}
    said["from_first_to_last"] = waiting.ended - waiting.began
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
