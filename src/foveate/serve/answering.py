"""From a request to a call, and from a reply to JSON or a stream, for every endpoint that a model answers."""

from __future__ import annotations

import asyncio
import functools
import json
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from foveate.core.errors import nearest
from foveate.serve import bodies, replies, responses
from foveate.serve.calls import Adapter, ChatAdapter, ChatCall, ChatReply, Endpoint, Refused, ServedImage
from foveate.serve.guard import Receive
from foveate.serve.media import ImageDecoder
from foveate.serve.settings import ServeSettings
from foveate.serve.work import ModelWorker, refuse_late
from foveate.vision.video.sources import Source

# Counters and histograms in Prometheus' text format.


_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_HELP = {
    "foveate_requests_total": "Requests by path and status.",
    "foveate_request_seconds": "Seconds from a request's head to the end of its reply.",
    "foveate_first_piece_seconds": "Seconds from a request's head to the first piece of a streamed answer.",
    "foveate_tokens_total": "Tokens that were read (prompt) and written (completion).",
    "foveate_waiting": "Calls that wait for a model.",
}
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """What has happened since the start. Use it within one event loop."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, dict[Labels, float]] = defaultdict(dict)
        self._seconds: defaultdict[str, dict[Labels, list[float]]] = defaultdict(dict)

    def count(self, name: str, value: float = 1, **labels: str) -> None:
        """Add to a counter."""
        counts, key = self._counts[name], tuple(labels.items())
        counts[key] = counts.get(key, 0) + value

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Add a duration to a histogram."""
        # Buckets, then one for what is longer than all of them, then the sum.
        values = self._seconds[name].setdefault(tuple(labels.items()), [0.0] * (len(_SECONDS) + 2))
        values[bisect_left(_SECONDS, seconds)] += 1
        values[-1] += seconds

    def render(self, gauges: Mapping[str, Mapping[Labels, float]]) -> str:
        """Return the text, with values that are measured now."""
        lines = []
        for kind, families in (("counter", self._counts), ("gauge", gauges)):
            for name, samples in families.items():
                lines += _head(name, kind)
                lines += [f"{name}{_braces(labels)} {value:.10g}" for labels, value in samples.items()]
        for name, samples in self._seconds.items():
            lines += _head(name, "histogram")
            for labels, (*buckets, total) in samples.items():
                count = 0.0
                for bound, value in zip((*map(str, _SECONDS), "+Inf"), buckets, strict=True):
                    count += value
                    lines.append(f"{name}_bucket{_braces((*labels, ('le', bound)))} {count:.10g}")
                lines += [f"{name}_sum{_braces(labels)} {total:.10g}", f"{name}_count{_braces(labels)} {count:.10g}"]
        return "\n".join([*lines, ""])


def _head(name: str, kind: str) -> list[str]:
    return [f"# HELP {name} {_HELP[name]}", f"# TYPE {name} {kind}"]


def _braces(labels: Labels) -> str:
    escaped = [(name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in labels]
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}" if labels else ""


T = TypeVar("T")
# Larger bodies and replies are read and written in a thread: 24 MB take as long as many requests.
_MAX_LOOP_BYTES = 64 * 1024
# Numbers are written one by one, and base64 in one go for each vector.
_MAX_LOOP_VALUES = {"float": 4 * 1024, "base64": 256 * 1024}
# In ASCII: a text may hold a lone surrogate, which UTF-8 cannot. No NaN, which JSON has not.
_ENCODER = json.JSONEncoder(allow_nan=False)
ENDPOINTS: dict[str, tuple[Endpoint, type[bodies.Body | responses.OtherBody], str]] = {
    "/v1/chat/completions": ("chat", bodies.ChatBody, "messages"),
    "/v1/completions": ("chat", responses.CompletionsBody, "prompt"),
    "/v1/responses": ("chat", responses.ResponsesBody, "input"),
    "/v1/embeddings": ("embeddings", bodies.EmbeddingsBody, "images"),
    "/v1/locate": ("locate", bodies.LocateBody, "image"),
    "/v1/search": ("search", bodies.SearchBody, "image"),
    "/v1/classify": ("classify", bodies.ClassifyBody, "image"),
}
# A client that goes earlier is noticed then.
_WATCH_SECONDS = 0.05
# 499, as nginx logs it: the client has closed the connection, so only the log sees this status.
_GONE = 499


class Answerer:
    """Answer calls by the workers of all models."""

    def __init__(self, adapters: Sequence[Adapter], settings: ServeSettings, metrics: Metrics) -> None:
        self.adapters = {adapter.name: adapter for adapter in adapters}
        self.settings, self.metrics, self.is_closing = settings, metrics, False
        self.workers: dict[str, ModelWorker] = {}
        self._num_reading = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self.decoder = ImageDecoder(max_pixels=settings.max_pixels)
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="compiler")

    def start(self) -> None:
        """Start the threads of the models; within the event loop that serves, which is always the same."""
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        # A call of another loop would wait for a batch that nothing wakes.
        if loop is not self._loop:
            raise RuntimeError("an application serves in one event loop; expected another application for this one")
        if not self.workers:
            for name, adapter in self.adapters.items():
                self.workers[name] = ModelWorker(
                    adapter,
                    max_batch=self.settings.batch,
                    max_waiting=self.settings.queue,
                    is_reading=lambda: self._num_reading > 0,
                )

    async def close(self) -> None:
        """Take no more calls, and let those at work end within the grace time."""
        self.is_closing = True
        grace = self.settings.grace_seconds
        await asyncio.gather(*(worker.close(grace_seconds=grace) for worker in self.workers.values()))
        self._compiler.shutdown(wait=False)

    async def answer(self, request: Request) -> Response:
        """Answer a POST to one of `ENDPOINTS`."""
        try:
            return await self._answer(request)
        except Refused as refusal:
            raise responses.rename_field(refusal, request.scope["path"]) from refusal

    async def _answer(self, request: Request) -> Response:
        if self.is_closing:
            raise Refused("the server is stopping", status=503, code="stopping", retry_after=5)
        self.start()  # some servers run no lifespan
        endpoint, model, param = ENDPOINTS[request.scope["path"]]
        record = request.scope["foveate"]
        self._num_reading += 1
        try:
            data = await read_body(request.receive, self.settings.max_body_bytes)
            read = functools.partial(bodies.parse_body, model, data)
            given = read() if len(data) <= _MAX_LOOP_BYTES else await self.in_thread(read)
            body = given.to_chat() if isinstance(given, responses.OtherBody) else given
            worker = self._find_worker(body.model, endpoint)
            record["model"] = body.model
            # Thousands of images take minutes, for which nobody may wait.
            reading = self._decode(body, param=param, longest_side=worker.adapter.decode_side)
            images, clips = await self.while_connected(reading, request.receive)
            make = functools.partial(bodies.make_call, body, images, clips)
            call = make() if len(data) <= _MAX_LOOP_BYTES else await self.in_thread(make)
            if isinstance(call, ChatCall) and (call.json_schema or call.is_json):
                adapter = worker.adapter
                assert isinstance(adapter, ChatAdapter), "calls go to an endpoint of their model"
                # In a thread of its own: a large schema takes a second to compile, and images must not wait for it.
                loop, compile_schema = asyncio.get_running_loop(), functools.partial(adapter.compile, call)
                await self.while_connected(loop.run_in_executor(self._compiler, compile_schema), request.receive)
        finally:
            self._num_reading -= 1
        if self.settings.log_content:
            record["request"] = bodies.without_images(body)
        if isinstance(body, bodies.ChatBody) and isinstance(call, ChatCall):
            writer = responses.make_writer(given, body, images, request_id=record["id"])
            if body.stream:
                pieces = worker.write(call, timeout_seconds=self.settings.timeout_seconds)
                return await self._stream(request, writer, pieces)
            reply = await self.while_connected(worker.answer(call), request.receive)
            self._count(record, reply)
            return to_json(writer.completion(reply))
        reply = await self.while_connected(worker.answer(call), request.receive)
        if isinstance(body, bodies.EmbeddingsBody):
            record["prompt_tokens"] = reply.num_tokens
            write = functools.partial(
                replies.embeddings_body, body.model, reply.vectors, reply.num_tokens, body.encoding_format
            )
            is_small = reply.vectors.size <= _MAX_LOOP_VALUES[body.encoding_format]
            return to_json(write()) if is_small else await self.in_thread(lambda: to_json(write()))
        if isinstance(body, bodies.LocateBody):
            return to_json(replies.located_body(body.model, images[0], reply))
        write_rows = replies.hits_body if isinstance(body, bodies.SearchBody) else replies.classes_body
        return to_json(write_rows(body.model, reply))

    async def _stream(
        self,
        request: Request,
        writer: replies.ChatWriter,
        pieces: AsyncGenerator[str | ChatReply, None],
    ) -> Response:
        record = request.scope["foveate"]
        # A refusal before the first piece still gets its status: the head of the reply waits for it.
        first = await self.while_connected(anext(pieces), request.receive)
        seconds = time.perf_counter() - record["start"]
        self.metrics.observe("foveate_first_piece_seconds", seconds, model=writer.model)
        record["first_piece_seconds"] = round(seconds, 4)

        async def events() -> AsyncIterator[bytes]:
            # Chunks of a chat differ in their text only; named events have numbers as well.
            chunk, _, tail = (b"", b"", b"") if writer.is_named else _event(writer.piece("")).rpartition(b'""')
            piece = first
            try:
                for event in writer.start():
                    yield _event(event, is_named=writer.is_named)
                while isinstance(piece, str):
                    if writer.is_named:
                        yield _event(writer.piece(piece), is_named=True)
                    else:
                        yield chunk + json.dumps(piece).encode() + tail
                    piece = await anext(pieces)
                self._count(record, piece)
                for event in writer.end(piece):
                    yield _event(event, is_named=writer.is_named)
                if not writer.is_named:
                    yield b"data: [DONE]\n\n"
            except Refused as refusal:
                record["status"] = refusal.status
                yield _event(writer.fail(refusal), is_named=writer.is_named)
            finally:
                await pieces.aclose()

        # nginx would hold the pieces back until its buffer is full.
        return StreamingResponse(events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    async def _decode(
        self, body: bodies.Body, *, param: str, longest_side: int | None
    ) -> tuple[list[ServedImage], list[Source]]:
        """Decode the images of a request, and open its clips."""
        images = await self.decoder.read(bodies.image_urls(body), param=param, longest_side=longest_side)
        clips = await self.decoder.read_clips(
            bodies.clip_urls(body), param=param, max_frames=self.settings.max_clip_frames
        )
        return images, clips

    async def while_connected(self, work: Awaitable[T], receive: Receive) -> T:
        """Wait for a reply no longer than the client does, or the server's limit."""

        loop, task, limit = asyncio.get_running_loop(), asyncio.current_task(), self.settings.timeout_seconds
        begin, refusal, watching = loop.time(), list[Refused](), list[asyncio.Task[None]]()

        async def watch() -> None:
            try:
                async with asyncio.timeout_at(begin + limit):
                    while (await receive())["type"] != "http.disconnect":
                        pass
                refusal.append(Refused("the client has gone", status=_GONE))
            except TimeoutError:
                refusal.append(refuse_late(limit))
            assert task is not None, "called by a task"
            task.cancel()

        # One timer instead of tasks and futures around the work: most replies come before.
        timer = loop.call_later(min(_WATCH_SECONDS, limit), lambda: watching.append(loop.create_task(watch())))
        try:
            return await work
        except asyncio.CancelledError:
            # A cancellation that did not come from `watch` alone must not become a reply.
            if not refusal or task is None or task.uncancel() > 0:
                raise
            raise refusal[0] from None
        finally:
            timer.cancel()
            for each in watching:
                each.cancel()

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run what would hold up the event loop."""
        # Uses the decoder's threads: their number limits how many large bodies and images are processed at once.
        return await asyncio.get_running_loop().run_in_executor(self.decoder.pool, work)

    def _find_worker(self, name: str, endpoint: Endpoint) -> ModelWorker:
        adapter = self.find_adapter(name)
        if endpoint not in adapter.endpoints:
            able = [other.name for other in self.adapters.values() if endpoint in other.endpoints]
            raise Refused(
                f"model: '{name}' ({adapter.kind}) does not answer {endpoint}; expected {', '.join(able) or 'no model'}"
                f", or for '{name}': {', '.join(sorted(adapter.endpoints))}",
                code="unsupported_endpoint",
                param="model",
            )
        return self.workers[name]

    def find_adapter(self, name: str) -> Adapter:
        """Return the model or index of a name; raise `Refused` (404) if it is not served."""
        if name not in self.adapters:
            message = f"model: '{name[:80]}' is not served; expected {', '.join(self.adapters)}"
            message += nearest(name[:80], self.adapters)
            raise Refused(message, status=404, code="model_not_found", param="model")
        return self.adapters[name]

    def _count(self, record: dict[str, Any], reply: ChatReply) -> None:
        record["prompt_tokens"], record["completion_tokens"] = reply.num_prompt_tokens, reply.num_tokens
        if self.settings.log_content:
            record["reply"] = reply.text


async def read_body(receive: Receive, max_bytes: int) -> bytes:
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


def to_json(content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(_ENCODER.encode(content), status, headers, "application/json")


def _event(content: Mapping[str, Any], *, is_named: bool = False) -> bytes:
    name = f"event: {content['type']}\n".encode() if is_named else b""
    return name + b"data: " + _ENCODER.encode(content).encode() + b"\n\n"
