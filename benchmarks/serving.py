"""Servers of benchmarks: started as a process, asked over plain connections, and measured by what the system counts.

`python -m benchmarks.serving NAME --port-file FILE` serves `foveate` or `fastapi` with a model that answers at once,
or `uvicorn` without one.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import io
import json
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveate.serve.calls import Call, ChatCall, ChatReply, Endpoint, Listener

ROOT = Path(__file__).resolve().parents[1]
TOKENS = 32
_START_SECONDS = 900


class InstantAdapter:
    """Writes 32 pieces at once: what is left of a request is the server's own work."""

    name, kind, num_bytes = "instant", "multimodal", 0
    decode_side: int | None = None
    endpoints: frozenset[Endpoint] = frozenset({"chat"})

    def check(self, call: Call) -> None:
        """Every call can be answered."""

    def compile(self, call: Call) -> None:
        """Answers are texts without a schema."""

    def group(self, call: Call) -> None:
        """All calls may share a batch."""

    def answer(self, calls: Sequence[Call]) -> list[Any]:
        raise NotImplementedError

    def write(self, calls: Sequence[ChatCall], listener: Listener) -> None:
        for row in range(len(calls)):
            for _ in range(TOKENS if listener.is_streamed(row) else 0):
                listener.push(row, " word")
            listener.end(row, ChatReply(" word" * TOKENS, True, 20, TOKENS))


@dataclass(frozen=True)
class Server:
    """A server that runs in a process of its own."""

    pid: int
    port: int

    def processor_seconds(self) -> float:
        """Return what the threads of the process have computed so far; of a server none ends while it serves."""
        # In nanoseconds: the ticks of /proc/PID/stat are a twentieth of a round.
        files = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(file.read_text().split()[0]) for file in files) / 1e9

    def resident_bytes(self) -> int:
        """Return the memory that the process holds."""
        return int(Path(f"/proc/{self.pid}/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def run_server(command: Sequence[str], *, port: int | None = None, log: Path | None = None) -> Iterator[Server]:
    """Run a server until the end of the block.

    Args:
        command: takes `--port-file FILE` behind it; or any other with the `port` that it listens on.
    """
    with tempfile.TemporaryDirectory() as folder, (log or Path(os.devnull)).open("w") as output:
        file = Path(folder) / "port"
        arguments = [*command, *(["--port-file", str(file)] if port is None else [])]
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=output, stderr=output)
        try:
            limit = time.monotonic() + _START_SECONDS
            while not _listens(file if port is None else port):
                if process.poll() is not None or time.monotonic() > limit:
                    raise SystemExit(f"{' '.join(arguments)}: did not start (exit {process.poll()})")
                time.sleep(0.2)
            yield Server(process.pid, int(file.read_text()) if port is None else port)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _listens(where: Path | int) -> bool:
    if isinstance(where, Path):
        return where.is_file() and bool(where.read_text().strip())
    with contextlib.suppress(OSError):
        connection = http.client.HTTPConnection("127.0.0.1", where, timeout=5)
        connection.connect()
        connection.close()
        return True
    return False


class Client:
    """One connection that stays open."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def post(self, path: str, body: bytes) -> bytes:
        """Return the body of a reply."""
        self.connection.request("POST", path, body, {"Content-Type": "application/json"})
        reply = self.connection.getresponse()
        content = reply.read()
        if reply.status != 200:
            raise SystemExit(f"{path}: status {reply.status}: {content[:300]!r}")
        return content

    def stream(self, body: bytes) -> tuple[str, float]:
        """Return the text of a streamed answer, and the seconds to its first piece."""
        began = time.perf_counter()
        self.connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        reply = self.connection.getresponse()
        pieces, first = list[str](), 0.0
        for line in reply:
            if not line.startswith(b"data: {"):
                continue
            choices = json.loads(line[6:]).get("choices") or [{}]
            if piece := (choices[0].get("delta") or {}).get("content"):
                first = first or time.perf_counter() - began
                pieces.append(piece)
        if not pieces:
            raise SystemExit("an answer without text has no first piece; expected a model that writes")
        return "".join(pieces), first


def ask_at_once(port: int, bodies: Sequence[bytes], *, clients: int, streamed: bool = False) -> list[Any]:
    """Send requests from several clients; return the replies, or (text, seconds to the first piece), in order."""
    connections = [Client(port) for _ in range(clients)]
    parts = [list(range(number, len(bodies), clients)) for number in range(clients)]

    def work(number: int) -> list[tuple[int, Any]]:
        client = connections[number]
        send: Callable[[bytes], Any] = client.stream if streamed else lambda body: client.post(CHAT, body)
        return [(index, send(bodies[index])) for index in parts[number]]

    with ThreadPoolExecutor(clients) as pool:
        replies = dict(pair for part in pool.map(work, range(clients)) for pair in part)
    return [replies[index] for index in range(len(bodies))]


CHAT = "/v1/chat/completions"


def encode_image(width: int, height: int, *, seed: int = 0, smooth: bool = True) -> bytes:
    """Draw an image from a seed as JPEG; not smooth, it is as large as noise."""
    generator = np.random.default_rng(seed)
    shape = (8, 8, 3) if smooth else (height, width, 3)
    image = Image.fromarray(generator.integers(0, 255, shape, dtype=np.uint8)).resize((width, height))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def chat_body(model: str, text: str, *, image: bytes | None = None, max_tokens: int = TOKENS, **fields: Any) -> bytes:
    """Write a chat request with at most one image."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
        url = "data:image/jpeg;base64," + base64.b64encode(image).decode()
        parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
    messages = [{"role": "user", "content": parts}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": max_tokens, **fields}).encode()


def _serve_foveate(port_file: Path) -> None:
    from foveate.serve.application import Application
    from foveate.serve.run import serve
    from foveate.serve.settings import ServeSettings

    settings = ServeSettings(port=0, port_file=port_file, page=False, queue=1024, max_connections=1025)
    serve(Application([InstantAdapter()], settings), ready=lambda port: None)


def _serve_fastapi(port_file: Path) -> None:
    """Serve the same route by FastAPI: its routing, its reading of bodies and its replies around the same parts."""
    import uvicorn
    from fastapi import FastAPI, Request  # pyrefly: ignore[missing-import]
    from fastapi.responses import StreamingResponse  # pyrefly: ignore[missing-import]

    from foveate.serve import bodies, replies
    from foveate.serve import bodies as parsing
    from foveate.serve.media import ImageDecoder
    from foveate.serve.run import listen
    from foveate.serve.settings import ServeSettings
    from foveate.serve.work import ModelWorker

    settings, app = ServeSettings(), FastAPI()
    decoder, workers = ImageDecoder(max_pixels=settings.max_pixels), list[ModelWorker]()

    async def chat(body: Any, request: Any) -> Any:
        if not workers:
            workers.append(ModelWorker(InstantAdapter(), max_waiting=1024))
        images = await decoder.read(parsing.image_urls(body), param="messages")
        call = parsing.make_call(body, images)
        assert isinstance(call, ChatCall)
        options = {"request_id": uuid.uuid4().hex, "include_usage": body.includes_usage}
        writer = replies.ChatWriter(body.model, images, **options)
        if not body.stream:
            return writer.completion(await workers[0].answer(call))

        async def events() -> Any:
            yield f"data: {json.dumps(writer.start())}\n\n"
            async for piece in workers[0].write(call):
                chunks = [writer.piece(piece)] if isinstance(piece, str) else writer.end(piece)
                for chunk in chunks:
                    yield f"data: {json.dumps(chunk)}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    chat.__annotations__ = {"body": bodies.ChatBody, "request": Request}
    app.post(CHAT, response_model=None)(chat)
    listener = listen("127.0.0.1", 0)
    port_file.write_text(f"{listener.getsockname()[1]}\n", encoding="utf-8")
    uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning")).run([listener])


def _serve_uvicorn(port_file: Path) -> None:
    """Serve by uvicorn alone, which reads a body and writes a reply of the same length: no server here needs less."""
    import uvicorn

    from foveate.serve.run import listen

    content = b" " * 500
    headers = [(b"content-type", b"application/json"), (b"content-length", b"500")]

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    listener = listen("127.0.0.1", 0)
    port_file.write_text(f"{listener.getsockname()[1]}\n", encoding="utf-8")
    config = uvicorn.Config(answer, access_log=False, log_level="warning", lifespan="off")
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["foveate", "fastapi", "uvicorn"])
    parser.add_argument("--port-file", type=Path, required=True)
    options = parser.parse_args()
    servers = {"foveate": _serve_foveate, "fastapi": _serve_fastapi, "uvicorn": _serve_uvicorn}
    servers[options.name](options.port_file)
