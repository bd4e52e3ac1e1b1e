"""The ASGI application: routes, from a request to a call and from a reply to JSON, and how it starts and ends."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import mimetypes
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from importlib.resources import files
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from foveate.core.errors import nearest
from foveate.serve import bodies, replies
from foveate.serve.calls import Adapter, ChatReply, Endpoint, Refused, Worker
from foveate.serve.guard import Guard, Receive, Scope, Send
from foveate.serve.media import ImageDecoder
from foveate.serve.metrics import Metrics
from foveate.serve.settings import ServeSettings
from foveate.serve.work import ModelWorker

T = TypeVar("T")
# Larger bodies and replies are read and written in a thread: 24 MB take as long as many requests.
_MAX_LOOP_BYTES = 64 * 1024
_MAX_LOOP_VALUES = 16 * 1024
_ENDPOINTS: dict[str, tuple[Endpoint, type[bodies.Body], str]] = {
    "/v1/chat/completions": ("chat", bodies.ChatBody, "messages"),
    "/v1/embeddings": ("embeddings", bodies.EmbeddingsBody, "images"),
    "/v1/locate": ("locate", bodies.LocateBody, "image"),
    "/v1/search": ("search", bodies.SearchBody, "image"),
    "/v1/classify": ("classify", bodies.ClassifyBody, "image"),
}
# Of a client that has gone: nobody reads it but the log. As nginx counts them.
_GONE = 499


class Application:
    """Models and indexes behind an ASGI application.

    Args:
        key: what clients must send as bearer token; "" for none.
    """

    def __init__(self, adapters: Sequence[Adapter], settings: ServeSettings, *, key: str = "") -> None:
        self.adapters = {adapter.name: adapter for adapter in adapters}
        self.settings, self.created = settings, int(time.time())
        self.metrics, self.workers, self.is_closing = Metrics(), dict[str, Worker](), False
        self.decoder = ImageDecoder(max_pixels=settings.max_pixels)
        routes = [
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._list_models),
            Route("/v1/models/{name:path}", self._describe_model),
            Route("/images/{key:path}", self._image),
            *(Route(path, self._answer, methods=["POST"]) for path in _ENDPOINTS),
        ]
        if settings.page:
            # Read once: no path of a request ever opens a file.
            folder = files("foveate.serve") / "page"
            self.page = {file.name: file.read_bytes() for file in folder.iterdir()} if folder.is_dir() else {}
            routes += [Route("/", self._page_file), Route("/page/{name}", self._page_file)]
        self.paths = [route.path for route in routes]
        handlers = {Refused: _refuse, HTTPException: self._refuse_path, Exception: _fail}
        starlette = Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=handlers)
        starlette.router.redirect_slashes = False
        self._guard = Guard(starlette, settings, key=key, finished=self._finished)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._guard(scope, receive, send)

    def start(self) -> None:
        """Start the threads of the models; within the event loop that serves."""
        if not self.workers:
            sizes = {"max_batch": self.settings.batch, "max_waiting": self.settings.queue}
            self.workers = {name: ModelWorker(adapter, **sizes) for name, adapter in self.adapters.items()}

    async def close(self) -> None:
        """Take no more calls, and let those at work end within the grace time."""
        self.is_closing = True
        grace = self.settings.grace_seconds
        await asyncio.gather(*(worker.close(grace_seconds=grace) for worker in self.workers.values()))

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.start()
        yield
        if not self.is_closing:
            await self.close()
        self.decoder.close()

    async def _answer(self, request: Request) -> Response:
        self.start()  # some servers run no lifespan
        endpoint, model, param = _ENDPOINTS[request.scope["path"]]
        data = await _read_body(request.receive, self.settings.max_body_bytes)
        read = functools.partial(bodies.parse_body, model, data)
        body = read() if len(data) <= _MAX_LOOP_BYTES else await self._in_thread(read)
        record = request.scope["foveate"]
        worker = self._find_worker(body.model, endpoint)
        record["model"] = body.model
        images = await self.decoder.read(bodies.image_urls(body), param=param)
        call = bodies.make_call(body, images)
        if self.settings.log_content:
            record["request"] = bodies.without_images(body)
        if isinstance(body, bodies.ChatBody):
            writer = replies.ChatWriter(body.model, images, include_usage=body.includes_usage)
            if body.stream:
                return await self._stream(request, writer, worker.write(call), record)
        reply = await self._while_connected(worker.answer(call), request.receive)
        if isinstance(body, bodies.ChatBody):
            self._count(record, reply)
            return _json(writer.completion(reply))
        if isinstance(body, bodies.EmbeddingsBody):
            record["prompt_tokens"] = reply.num_tokens
            write = functools.partial(
                replies.embeddings_body, body.model, reply.vectors, reply.num_tokens, body.encoding_format
            )
            is_small = reply.vectors.size <= _MAX_LOOP_VALUES
            return _json(write()) if is_small else await self._in_thread(lambda: _json(write()))
        if isinstance(body, bodies.LocateBody):
            return _json(replies.located_body(body.model, images[0], reply))
        write_rows = replies.hits_body if isinstance(body, bodies.SearchBody) else replies.classes_body
        return _json(write_rows(body.model, reply))

    async def _stream(
        self,
        request: Request,
        writer: replies.ChatWriter,
        pieces: AsyncGenerator[str | ChatReply, None],
        record: dict[str, Any],
    ) -> Response:
        deadline = asyncio.get_running_loop().time() + self.settings.timeout_seconds
        # A refusal before the first piece still gets its status: the head of the reply waits for it.
        first = await self._while_connected(anext(pieces), request.receive)
        seconds = time.perf_counter() - record["start"]
        self.metrics.observe("foveate_first_piece_seconds", seconds, model=writer.model)
        record["first_piece_seconds"] = round(seconds, 4)

        async def events() -> AsyncIterator[bytes]:
            yield _event(writer.start())
            piece = first
            try:
                while isinstance(piece, str):
                    yield _event(writer.piece(piece))
                    async with asyncio.timeout_at(deadline):
                        piece = await anext(pieces)
                self._count(record, piece)
                for chunk in writer.end(piece):
                    yield _event(chunk)
                yield b"data: [DONE]\n\n"
            except Refused as refusal:
                record["status"] = refusal.status
                yield _event(replies.error_body(refusal))
            except TimeoutError:
                record["status"] = 504
                yield _event(replies.error_body(self._late()))
            finally:
                await pieces.aclose()

        # nginx would hold the pieces back until its buffer is full.
        return StreamingResponse(events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    async def _while_connected(self, work: Awaitable[T], receive: Receive) -> T:
        """Wait for a reply no longer than the client does, or the server's limit."""

        async def leave() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        async def wait() -> T:
            return await work

        reply, gone = asyncio.create_task(wait()), asyncio.create_task(leave())
        try:
            await asyncio.wait(
                {reply, gone}, timeout=self.settings.timeout_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if reply.done():
                return reply.result()
            raise Refused("the client has gone", status=_GONE) if gone.done() else self._late()
        finally:
            reply.cancel()
            gone.cancel()

    async def _in_thread(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.decoder.pool, work)

    def _late(self) -> Refused:
        seconds = self.settings.timeout_seconds
        return Refused(f"the reply took longer than {seconds:g} s; see --timeout-seconds", status=504, code="timeout")

    def _find_worker(self, name: str, endpoint: Endpoint) -> Worker:
        adapter = self._find_adapter(name)
        if endpoint not in adapter.endpoints:
            able = [other.name for other in self.adapters.values() if endpoint in other.endpoints]
            raise Refused(
                f"model: '{name}' ({adapter.kind}) does not answer {endpoint}; expected {', '.join(able) or 'no model'}"
                f", or for '{name}': {', '.join(sorted(adapter.endpoints))}",
                code="unsupported_endpoint",
                param="model",
            )
        return self.workers[name]

    def _find_adapter(self, name: str) -> Adapter:
        if name not in self.adapters:
            message = f"model: '{name[:80]}' is not served; expected {', '.join(self.adapters)}"
            message += nearest(name[:80], self.adapters)
            raise Refused(message, status=404, code="model_not_found", param="model")
        return self.adapters[name]

    async def _health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        full = [worker.adapter.name for worker in self.workers.values() if worker.num_waiting >= worker.max_waiting]
        status = "stopping" if self.is_closing else "full" if full else "ready"
        return _json({"status": status, "full": full}, 200 if status == "ready" else 503)

    async def _metrics(self, request: Request) -> Response:
        waiting = {(("model", name),): float(worker.num_waiting) for name, worker in self.workers.items()}
        text = self.metrics.render({"foveate_waiting": waiting})
        return Response(text, media_type="text/plain; version=0.0.4")

    async def _list_models(self, request: Request) -> Response:
        data = [self._model_body(adapter) for adapter in self.adapters.values()]
        return _json({"object": "list", "data": data})

    async def _describe_model(self, request: Request) -> Response:
        return _json(self._model_body(self._find_adapter(request.path_params["name"])))

    def _model_body(self, adapter: Adapter) -> dict[str, Any]:
        about = {"kind": adapter.kind, "endpoints": sorted(adapter.endpoints), "bytes": adapter.num_bytes}
        head = {"id": adapter.name, "object": "model", "created": self.created, "owned_by": "foveate"}
        return head | {"foveate": about}

    async def _image(self, request: Request) -> Response:
        name = request.query_params.get("model")
        indexes = [adapter for adapter in self.adapters.values() if hasattr(adapter, "thumbnail")]
        adapter: Any = self._find_adapter(name) if name else next(iter(indexes), None)
        if adapter not in indexes:
            raise Refused("model: expected the name of an index", status=404, param="model")
        key = request.path_params["key"]
        return Response(await self._in_thread(lambda: adapter.thumbnail(key)), media_type="image/webp")

    async def _page_file(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in self.page:
            raise HTTPException(404)
        return Response(self.page[name], media_type=mimetypes.guess_type(name)[0])

    async def _refuse_path(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.scope["path"][:80]
        message = (
            f"'{path}': nothing is served here; expected one of {', '.join(self.paths)}{nearest(path, self.paths)}"
        )
        if error.status_code == 405:
            message = f"'{path}' takes {(error.headers or {}).get('Allow')} (got {request.method[:20]})"
        return _json(replies.error_body(Refused(message, status=error.status_code)), error.status_code, error.headers)

    def _count(self, record: dict[str, Any], reply: ChatReply) -> None:
        record["prompt_tokens"], record["completion_tokens"] = reply.num_prompt_tokens, reply.num_tokens
        if self.settings.log_content:
            record["reply"] = reply.text

    def _finished(self, record: dict[str, Any]) -> None:
        # Paths that do not exist share a label, or a client could make any number of them.
        path = record["path"] if record["path"] in self.paths else "other"
        path = "/images" if record["path"].startswith("/images/") else path
        self.metrics.count("foveate_requests_total", path=path, status=str(record["status"]))
        self.metrics.observe("foveate_request_seconds", record["seconds"], path=path)
        for kind in ("prompt", "completion"):
            if (number := record.get(f"{kind}_tokens")) is not None:
                self.metrics.count("foveate_tokens_total", number, model=record["model"], kind=kind)


async def _read_body(receive: Receive, max_bytes: int) -> bytes:
    """Read a body whose declared length has been checked; another server may let it be longer."""
    parts, length = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused("the client has gone", status=_GONE)
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        if length > max_bytes:
            raise Refused(f"body: at most {max_bytes:,} bytes", status=413, code="too_large")
        if not message.get("more_body", False):
            return b"".join(parts)


def _json(content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    # In ASCII: a text may hold a lone surrogate, which UTF-8 cannot. No NaN, which JSON has not.
    return Response(json.dumps(content, allow_nan=False), status, headers, "application/json")


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, allow_nan=False).encode() + b"\n\n"


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    headers = {} if error.retry_after is None else {"Retry-After": str(max(1, round(error.retry_after)))}
    return _json(replies.error_body(error), error.status, headers)


async def _fail(request: Request, error: Exception) -> Response:
    """Answer for a mistake of this server; the server that runs it logs the error."""
    return _json(replies.error_body(Refused("the server failed on this request", status=500)), 500)
