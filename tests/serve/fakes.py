"""A model without weights behind the server: what it writes is plain from the call, so that tests can expect it."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np

from foveate.records.boxes import Box, PixelBox
from foveate.serve.application import Application
from foveate.serve.calls import (
    ChatBox,
    ChatCall,
    ChatReply,
    Classified,
    ClassifyCall,
    EmbeddingsCall,
    EmbeddingsReply,
    Listener,
    LocateCall,
    Located,
    Refused,
    SearchCall,
    SearchReply,
    TokenLogprob,
)
from foveate.serve.run import Server, listen, serve
from foveate.serve.settings import ServeSettings

# A busy machine may take longer than the 5 s of a client by default.
HTTP = httpx2.Client(timeout=60)


class FakeAdapter:
    """Answers "word0 word1 ..." with a word a token.

    In the last turn "broken" raises, "breaks" raises after two words, and "slow" takes 20 ms a token.
    """

    kind, num_bytes, answers_clips = "multimodal", 0, False
    decode_side: int | None = None
    endpoints = frozenset({"chat", "embeddings", "locate", "search", "classify"})

    def __init__(self, name: str = "fake", *, endpoints: Sequence[Any] = ()) -> None:
        self.name, self.num_written = name, 0
        self.endpoints = frozenset(endpoints) or self.endpoints

    def check(self, call: Any) -> None:
        if isinstance(call, ChatCall) and sum(len(turn.images) for turn in call.turns) > 4:
            raise Refused("messages: at most 4 images", param="messages")

    def compile(self, call: ChatCall) -> None:
        if "refused" in call.json_schema:
            raise Refused("response_format: the schema cannot be followed", param="response_format")

    def group(self, call: Any) -> Any:
        return None

    def answer(self, calls: Sequence[Any]) -> list[Any]:
        return [self._answer(call) for call in calls]

    def _answer(self, call: Any) -> Any:
        if isinstance(call, EmbeddingsCall):
            count = len(call.texts or call.boxes or call.images)
            vectors = np.arange(1, 4 * count + 1, dtype=np.float32).reshape(count, 4)
            return EmbeddingsReply(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), num_tokens=count)
        if isinstance(call, LocateCall):
            box = Box(0.1, 0.2, 0.5, 0.6)
            return tuple(Located(phrase, box, 0.5, self._judge()) for phrase in call.phrases)
        if isinstance(call, ClassifyCall):
            return (Classified("cat", 0.75, 0.5), Classified("dog", 0.25, 0.5))[: call.count]
        assert isinstance(call, SearchCall)
        # What `hits_body` reads of a hit, whose module loads torch.
        hit = {"key": "a b/c", "kind": "regions", "score": 0.5, "z": None, "phrase": "red", "caption": "a red disc"}
        hits = (SimpleNamespace(**hit, box=Box(0.1, 0.2, 0.5, 0.6), path="/secret/a.png"),)
        return SearchReply(hits, self._judge("wug"), {"score": 0.7})

    def _judge(self, *words: str) -> SimpleNamespace:
        return SimpleNamespace(has_match=False, reason="too low", floor=0.7, unknown_words=words)

    def write(self, calls: Sequence[ChatCall], listener: Listener) -> None:
        rows = {row: 0 for row in range(len(calls))}
        texts = [""] * len(calls)
        while rows:
            for row in list(rows):
                call, last = calls[row], calls[row].turns[-1]
                if "broken" in last.text or ("breaks" in last.text and rows[row] == 2):
                    raise LookupError("a secret of the model")
                if "slow" in last.text:
                    time.sleep(0.02)
                count = call.max_tokens or 5
                if rows[row] == count or listener.is_gone(row):
                    del rows[row]
                    boxes = (ChatBox(PixelBox(2, 0, 10, 5), 0, "disc", 0.5),) if last.images else ()
                    tokens = [TokenLogprob(f"word{number} ", -0.5, (("a", -0.5),)) for number in range(count)]
                    logprobs = None if call.top_logprobs is None else tuple(tokens)
                    reply = ChatReply(texts[row], count == 5, len(last.text), count, boxes, logprobs=logprobs)
                    listener.end(row, reply)
                    continue
                piece = f"word{rows[row]} "
                texts[row] += piece
                rows[row] += 1
                self.num_written += 1
                listener.push(row, piece)

    def thumbnail(self, key: str) -> bytes:
        if key != "a b/c":
            raise Refused(f"image: '{key}' is not in the index", status=404)
        return b"RIFF"


class Address(str):
    """The address of a server that runs in this process."""

    server: Server


@contextlib.contextmanager
def serving(*adapters: FakeAdapter, key: str = "", parser: str = "h11", **settings: Any) -> Iterator[Address]:
    """Serve adapters on a free port, in a thread."""
    application = Application(adapters or (FakeAdapter(),), ServeSettings(**settings), key=key)
    listener, started = listen("127.0.0.1", 0), threading.Event()
    server = Server(application, parser=parser, started=started.set)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    assert started.wait(20)
    try:
        address = Address("http://{}:{}".format(*listener.getsockname()))
        address.server = server
        yield address
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


if __name__ == "__main__":
    # A server of its own process, for tests that send signals; the port comes as the first line.
    options = {"parser": "auto", "port": 0, **json.loads(sys.argv[1])}
    parser = options.pop("parser")
    application = Application([FakeAdapter()], ServeSettings(**options))
    serve(application, parser=parser, ready=lambda port: print(port, flush=True))
