"""The ASGI application: its routes, how it starts and ends, and what needs no model."""

from __future__ import annotations

import contextlib
import mimetypes
import time
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from foveate.core.errors import nearest
from foveate.serve import replies
from foveate.serve.answering import ENDPOINTS, Answerer, Labels, Metrics, to_json
from foveate.serve.calls import Adapter, ChatAdapter, ImageSource, Refused
from foveate.serve.guard import Guard, Receive, Scope, Send
from foveate.serve.settings import ServeSettings


class Application:
    """Models and indexes behind an ASGI application.

    Args:
        key: what clients must send as bearer token; "" for none.
    """

    def __init__(self, adapters: Sequence[Adapter], settings: ServeSettings, *, key: str = "") -> None:
        self.settings, self.created, self.metrics = settings, int(time.time()), Metrics()
        self.answerer = Answerer(adapters, settings, self.metrics)
        routes = [
            # First: they are compared with a path one after the other.
            *(Route(path, self.answerer.answer, methods=["POST"]) for path in ENDPOINTS),
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._list_models),
            Route("/v1/models/{name:path}", self._describe_model),
            Route("/images/{key:path}", self._image),
        ]
        if settings.page:
            routes += page_routes("index.html")
        self.paths = [route.path for route in routes]
        starlette = build_starlette(routes, self._lifespan)
        self._guard = Guard(starlette, settings, key=key, finished=self._finished)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._guard(scope, receive, send)

    async def close(self) -> None:
        """Take no more calls, and let those at work end within the grace time."""
        await self.answerer.close()

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.answerer.start()
        yield
        if not self.answerer.is_closing:
            await self.answerer.close()
        # Only now: requests that came before may still have had images to decode.
        self.answerer.decoder.close()

    async def _health(self, request: Request) -> Response:
        return to_json({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        # For load balancers, which do not know the model of a request: one full queue is enough.
        full = [
            worker.adapter.name for worker in self.answerer.workers.values() if worker.num_waiting >= worker.max_waiting
        ]
        status = "stopping" if self.answerer.is_closing else "full" if full else "ready"
        return to_json({"status": status, "full": full}, 200 if status == "ready" else 503)

    async def _metrics(self, request: Request) -> Response:
        waiting: dict[Labels, float] = {
            (("model", name),): float(worker.num_waiting) for name, worker in self.answerer.workers.items()
        }
        text = self.metrics.render({"foveate_waiting": waiting})
        return Response(text, media_type="text/plain; version=0.0.4")

    async def _list_models(self, request: Request) -> Response:
        data = [self._model_body(adapter) for adapter in self.answerer.adapters.values()]
        return to_json({"object": "list", "data": data})

    async def _describe_model(self, request: Request) -> Response:
        return to_json(self._model_body(self.answerer.find_adapter(request.path_params["name"])))

    def _model_body(self, adapter: Adapter) -> dict[str, Any]:
        about = {"kind": adapter.kind, "endpoints": sorted(adapter.endpoints), "bytes": adapter.num_bytes}
        about |= {"clips": adapter.answers_clips} if isinstance(adapter, ChatAdapter) else {}
        head = {"id": adapter.name, "object": "model", "created": self.created, "owned_by": "foveate"}
        return head | {"foveate": about}

    async def _image(self, request: Request) -> Response:
        name = request.query_params.get("model")
        adapters = [self.answerer.find_adapter(name)] if name else self.answerer.adapters.values()
        source = next((adapter for adapter in adapters if isinstance(adapter, ImageSource)), None)
        if source is None:
            raise Refused("model: expected the name of an index", status=404, param="model")
        key = request.path_params["key"]
        # In a thread, because an image of an index is decoded and encoded again.
        reading = self.answerer.in_thread(lambda: source.thumbnail(key))
        return Response(await self.answerer.while_connected(reading, request.receive), media_type="image/webp")

    def _finished(self, record: dict[str, Any]) -> None:
        # Paths that do not exist share a label, or a client could make any number of them.
        path = record["path"] if record["path"] in self.paths else "other"
        path = "/images" if record["path"].startswith("/images/") else path
        self.metrics.count("foveate_requests_total", path=path, status=str(record["status"]))
        self.metrics.observe("foveate_request_seconds", record["seconds"], path=path)
        for kind in ("prompt", "completion"):
            if (number := record.get(f"{kind}_tokens")) is not None:
                self.metrics.count("foveate_tokens_total", number, model=record["model"], kind=kind)


def page_routes(index: str) -> list[Route]:
    """Return the routes of a page's files, with `index` at /."""
    # Read once: no path of a request ever opens a file.
    folder = files("foveate.serve") / "page"
    page = {file.name: file.read_bytes() for file in folder.iterdir()} if folder.is_dir() else {}

    async def send(request: Request) -> Response:
        name = request.path_params.get("name", index)
        # Looked up among the files read at startup, so that no name in a request can lead to another file.
        if name not in page:
            raise HTTPException(404)
        return Response(page[name], media_type=mimetypes.guess_type(name)[0])

    return [Route("/", send), Route("/page/{name}", send)]


def build_starlette(routes: Sequence[Route], lifespan: Callable[[Starlette], Any]) -> Starlette:
    """Return an application of these routes whose errors are JSON."""
    paths = [route.path for route in routes]

    async def refuse_path(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.scope["path"][:80]
        message = f"'{path}': nothing is served here; expected one of {', '.join(paths)}{nearest(path, paths)}"
        if error.status_code == 405:
            message = f"'{path}' takes {(error.headers or {}).get('Allow')} (got {request.method[:20]})"
        return to_json(replies.error_body(Refused(message, status=error.status_code)), error.status_code, error.headers)

    handlers = {Refused: _refuse, HTTPException: refuse_path, Exception: _fail}
    starlette = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    starlette.router.redirect_slashes = False
    return starlette


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return to_json(replies.error_body(error), error.status, replies.error_headers(error))


async def _fail(request: Request, error: Exception) -> Response:
    """Answer for a mistake of this server; the server that runs it logs the error."""
    return to_json(replies.error_body(Refused("the server failed on this request", status=500)), 500)
