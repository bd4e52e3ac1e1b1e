"""The ASGI application: its routes, how it starts and ends, and what needs no model."""

from __future__ import annotations

import contextlib
import mimetypes
import time
from collections.abc import AsyncIterator, Sequence
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

    async def _page_file(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        # Looked up among the files read at startup, so that no name in a request can lead to another file.
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
        return to_json(replies.error_body(Refused(message, status=error.status_code)), error.status_code, error.headers)

    def _finished(self, record: dict[str, Any]) -> None:
        # Paths that do not exist share a label, or a client could make any number of them.
        path = record["path"] if record["path"] in self.paths else "other"
        path = "/images" if record["path"].startswith("/images/") else path
        self.metrics.count("foveate_requests_total", path=path, status=str(record["status"]))
        self.metrics.observe("foveate_request_seconds", record["seconds"], path=path)
        for kind in ("prompt", "completion"):
            if (number := record.get(f"{kind}_tokens")) is not None:
                self.metrics.count("foveate_tokens_total", number, model=record["model"], kind=kind)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return to_json(replies.error_body(error), error.status, replies.error_headers(error))


async def _fail(request: Request, error: Exception) -> Response:
    """Answer for a mistake of this server; the server that runs it logs the error."""
    return to_json(replies.error_body(Refused("the server failed on this request", status=500)), 500)
