"""A server of fixed answers behind the playground's page, in a thread."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import foveate.serve

PAGE = Path(foveate.serve.__file__).parent / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MODELS = {
    "mini": ("multimodal", ["chat", "locate"]),
    "cloc": ("localizer", ["embeddings", "locate"]),
    "my-index": ("index", ["search"]),
    "birds": ("classifier", ["classify"]),
}


@dataclass
class FakeServer:
    """Answers to give, and the requests that came: (path, body).

    Attributes:
        text: of the next answer, streamed word by word. seconds: between words. key: that clients must send.
        num_gone: streams whose client left before their end.
    """

    text: str = "a keyboard"
    boxes: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    key: str = ""
    refusal: tuple[int, str] | None = None
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    num_gone: int = 0
    url: str = ""

    def app(self) -> Starlette:
        routes = [
            Route("/", self.page),
            Route("/page/{name}", self.page),
            Route("/v1/models", self.models),
            Route("/images/{key}", self.image),
            *(Route(f"/v1/{path}", self.answer, methods=["POST"]) for path in ("chat/completions", *REPLIES)),
        ]
        return Starlette(routes=routes)

    async def page(self, request: Request) -> Response:
        file = PAGE / request.path_params.get("name", "index.html")
        return FileResponse(file, headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"})

    def refuse(self, request: Request) -> Response | None:
        status, message = self.refusal or (200, "")
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            status, message = 401, "Authorization: missing or wrong key; expected 'Bearer KEY'"
        return JSONResponse({"error": {"message": message}}, status_code=status) if status != 200 else None

    async def models(self, request: Request) -> Response:
        rows = [
            {"id": name, "object": "model", "foveate": {"kind": kind, "endpoints": endpoints, "clips": name == "mini"}}
            for name, (kind, endpoints) in MODELS.items()
        ]
        return self.refuse(request) or JSONResponse({"object": "list", "data": rows})

    async def image(self, request: Request) -> Response:
        if refusal := self.refuse(request):
            return refusal
        data = io.BytesIO()
        Image.new("RGB", (120, 90), (40, 120, 200)).save(data, "JPEG")
        return Response(data.getvalue(), media_type="image/jpeg")

    async def answer(self, request: Request) -> Response:
        body, path = await request.json(), request.url.path.removeprefix("/v1/")
        self.requests.append((path, body))
        if refusal := self.refuse(request):
            return refusal
        if path == "chat/completions":
            return StreamingResponse(self.stream("video_url" in str(body)), media_type="text/event-stream")
        await asyncio.sleep(self.seconds)
        content = {"object": "list", "data": REPLIES[path](body)}
        return JSONResponse(content | (verdict(body.get("text") or "") if path == "search" else {}))

    async def stream(self, has_clip: bool) -> AsyncIterator[str]:
        words = self.text.split(" ")
        try:
            for number, word in enumerate(words):
                yield event({"choices": [{"index": 0, "delta": {"content": word if number == 0 else f" {word}"}}]})
                await asyncio.sleep(self.seconds)
            last = {"index": 0, "delta": {}, "finish_reason": "stop"}
            yield event({"choices": [last], "foveate": {"boxes": self.boxes, **({"clip": clip()} if has_clip else {})}})
            yield event({"choices": [], "usage": {"completion_tokens": len(words)}})
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.num_gone += 1
            raise


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def clip() -> dict[str, Any]:
    data = io.BytesIO()
    Image.new("RGB", (160, 120), (90, 140, 90)).save(data, "WEBP")
    image = f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
    frames = [{"index": 3 * row, "time": 1.5 * row, "is_slow": row % 3 == 0, "image": image} for row in range(12)]
    return {"how": "slowfast", "num_decoded": 36, "fitted": ["fast 4x4 -> 2x2"], "warnings": [], "frames": frames}


def hit(number: int) -> dict[str, Any]:
    box = [0.1, 0.2, 0.5, 0.6] if number % 2 == 0 else None
    head = {"key": f"img{number}", "score": 0.4 - number / 20, "z": 6.0 - number, "box": box}
    return head | {"phrase": "", "caption": f"a boat {number}", "image": f"/images/img{number}?model=my-index"}


def verdict(text: str) -> dict[str, Any]:
    words = [word for word in text.split() if word in ("wug", "blicket")]
    reason = "the text is like random letters" if words else ""
    return {"has_match": not reason, "reason": reason, "unknown_words": words}


REPLIES: dict[str, Any] = {
    "locate": lambda body: [
        {"phrase": phrase, "box": [0.2, 0.3, 0.6, 0.7], "score": 0.31, **verdict(phrase)} for phrase in body["phrases"]
    ],
    "search": lambda body: [hit(number) for number in range(3)],
    "classify": lambda body: [
        {"name": "heron", "probability": 0.7, "calibrated": 0.6},
        {"name": "stork", "probability": 0.2, "calibrated": 0.3},
    ],
    "embeddings": lambda body: [
        {"index": index, "embedding": [1.0 if index % 3 == 1 or "images" in body else 0.2, 0.0]}
        for index in range(max(1, len(body.get("input", []))))
    ],
}


@contextmanager
def serve(server: FakeServer) -> Iterator[FakeServer]:
    """Run a fake server on a free port of this machine."""
    runner = uvicorn.Server(uvicorn.Config(server.app(), port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=runner.run, daemon=True)
    thread.start()
    while not runner.started:
        assert thread.is_alive(), "the server starts"
    port = runner.servers[0].sockets[0].getsockname()[1]
    server.url = f"http://127.0.0.1:{port}/"
    try:
        yield server
    finally:
        runner.should_exit = True
        thread.join(10)
