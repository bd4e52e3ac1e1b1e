"""A chat-completions server of our own that can misbehave, for tests of what asks it.

It runs in a thread with its own event loop. What it does with each request is decided by `behave`, which is called with
the number of the request and its content, and returns a `Say`. By default it answers every format well.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

SSC = "A {0} dog runs over wet grass in a park."
DSC = (
    "A photograph of a {0} dog on wet grass. The dog has a red collar and a white patch on its chest. Behind it are "
    "two trees and a low wall under a grey sky."
)
PLUS = (
    "A wide view from a low angle of a {0} dog that runs over wet green grass in the middle of the picture. The dog "
    "has a red leather collar, a white patch on its chest and long brown ears. To the left stands a tall tree with a "
    "thick trunk, and to the right a smaller one with yellow leaves. Behind the dog a low wall of grey stone goes from "
    'side to side. In front of the wall lies a blue ball beside a short stick. A sign on it says "no ball games". '
    "Far behind the wall three roofs can be seen, two red and one black. The sky above is grey, with a small patch of "
    "blue in the top left corner, and the light is soft and comes from the right."
)


@dataclass(frozen=True)
class Say:
    """One response: status, headers and body; after `seconds`; `cut` sends half of it, `close` nothing at all."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    cut: bool = False
    close: bool = False


def kind_of(body: dict[str, Any]) -> str:
    """Which format a request asks for, by the prompt's wording."""
    prompt = prompt_of(body)
    for words, kind in (
        ("is too long", "shorten"),
        ("is too short", "lengthen"),
        ("stood beside the", "afc"),
        ("one sentence about", "ssc"),
        ("so exhaustively", "dsc_plus"),
    ):
        if words in prompt:
            return kind
    return "dsc"


def prompt_of(body: dict[str, Any]) -> str:
    return next(part["text"] for part in body["messages"][0]["content"] if part["type"] == "text")


def image_of(body: dict[str, Any]) -> str:
    """The image's data URL."""
    return next(part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url")


def good(body: dict[str, Any]) -> str:
    """A caption of the asked format that depends on the image alone."""
    colors = ("red", "brown", "black", "white", "grey", "golden", "spotted", "small")
    color = colors[hashlib.sha256(image_of(body).encode()).digest()[0] % len(colors)]
    text = {"ssc": SSC, "shorten": SSC, "dsc_plus": PLUS, "lengthen": PLUS}.get(kind_of(body), DSC).format(color)
    return json.dumps({"caption": text})


def says(text: str, *, seconds: float = 0.0, finish: str = "stop", **message: Any) -> Say:
    """A chat completion with this text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    body = {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}
    return Say(body=json.dumps(body).encode(), seconds=seconds)


def fails(status: int, text: str = "no", **headers: str) -> Say:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Say(status, json.dumps({"error": {"message": text}}).encode(), named)


class ChatServer:
    """A context manager; `requests` are the contents that came, `headers` their headers; `most_in_flight` and
    `connections` are counts."""

    def __init__(self, behave: Callable[[int, dict[str, Any]], Say] | None = None, *, port: int = 0) -> None:
        self.behave = behave or (lambda number, body: says(good(body)))
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = self.connections = 0
        self.port = port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, limit=2**24)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await asyncio.sleep(0.01)
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
        await asyncio.sleep(0.01)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
                body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))))
                number = len(self.requests)
                self.requests.append(body)
                self.headers.append(headers)
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    said = self.behave(number, body)
                    await asyncio.sleep(said.seconds)
                    if not await self._send(writer, said):
                        return
                finally:
                    self.in_flight -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _send(self, writer: asyncio.StreamWriter, said: Say) -> bool:
        if said.close:
            return False
        lines = [f"HTTP/1.1 {said.status} X", f"Content-Length: {len(said.body)}", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in said.headers.items()]
        data = "\r\n".join([*lines, "", ""]).encode() + said.body
        writer.write(data[: len(data) - len(said.body) // 2] if said.cut else data)
        await writer.drain()
        return not said.cut
