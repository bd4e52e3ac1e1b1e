"""The protocol of executors, and the one for a single process.

Executor `x` is the module `foveate.caption.executors.x`; a new one is one new module. All of them request through
`foveate.caption.requests.request_caption`, so that the rows are the same.

The memory of this one is bounded: per request in flight one image, as many again that wait for their turn, and two per
thread that are being prepared. Formats of one image follow one another, so that a server that caches images reads each
once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from foveate.caption.captioner import Captioner, PreparedImage, find_backend, prepare_image
from foveate.caption.lengths import OtherTokenizer
from foveate.caption.pending_requests import PendingRequest, RequestConfig
from foveate.caption.requests import CaptionResult, request_caption, skip_unreadable
from foveate.core.errors import UserError
from foveate.core.plugins import load_plugin, module_names
from foveate.core.recipes import validate
from foveate.records.collection import Collection
from foveate.records.images import BadImage

EXECUTORS = "foveate.caption.executors"
# Interval in which a stop is noticed and an executor gives a sign of life.
_TICK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """A run in a form that another process can take up: paths and plain values only.

    Attributes:
        workers: threads that read and prepare images in one process.
        processes: for executors that start some.
    """

    collection: Path
    config: RequestConfig
    backend_settings: dict[str, Any]
    run_id: str
    tokenizer: Path | None = None
    workers: int = 2
    processes: int = 2

    def open_captioner(self, collection: Collection) -> Captioner:
        """Open the captioner of this job in this process."""
        backend = find_backend(self.config.backend)
        settings = validate(backend.settings, self.backend_settings, where=f"backend '{self.config.backend}'")
        return backend.open(settings, collection)


class ImageRequests(Protocol):
    """Images to caption and their collection, such as `PendingRequests`."""

    collection: Collection

    def __iter__(self) -> Iterator[PendingRequest]: ...


@dataclass(frozen=True, slots=True)
class Executor:
    """A way to send requests.

    Attributes:
        run: (job, pending, captioner, stopping) -> lists of results in any order. An empty list is a sign of life, and
            comes at least every second. When `stopping()` is true it starts no new images and ends after the requests
            in flight. A UserError means that the run cannot continue; earlier results stay valid.
        note: one line for lists and docs.
    """

    run: Callable[[Job, Any, Captioner, Callable[[], bool]], AsyncGenerator[list[CaptionResult], None]]
    note: str = ""


def executor_names() -> list[str]:
    """List all executors, without importing them."""
    return module_names(EXECUTORS)


def find_executor(name: str) -> Executor:
    """Import an executor by name.

    Raises:
        UserError: there is no such executor; the error lists all and the nearest match.
    """
    return load_plugin(EXECUTORS, name, "EXECUTOR", label="executor")


async def stream_results(
    job: Job, pending: ImageRequests, captioner: Captioner, stopping: Callable[[], bool]
) -> AsyncGenerator[list[CaptionResult], None]:
    """See `Executor.run`."""
    flow = _Flow(job, pending, captioner, stopping)
    tasks = [asyncio.create_task(flow.feed())]
    tasks += [asyncio.create_task(flow.work()) for _ in range(flow.width)]
    try:
        while any(not task.done() for task in tasks) or not flow.results.empty():
            yield await flow.next_results()
            for task in tasks:
                # Raised at once: the error of one task must not wait until all other requests are done.
                if task.done() and not task.cancelled() and task.exception() is not None:
                    raise task.exception() or AssertionError
        if flow.failure is not None:
            raise flow.failure
    finally:
        flow.closed = True
        # Repeat the cancellation: wait_for of Python 3.11 swallows a cancellation that comes together with its result.
        while left := [task for task in tasks if not task.done()]:
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=_TICK_SECONDS)
        flow.threads.shutdown(wait=True, cancel_futures=True)


_Request = tuple[PendingRequest, str, PreparedImage]


class _Flow:
    """The queues between preparing images, requesting captions and writing rows."""

    def __init__(self, job: Job, pending: ImageRequests, captioner: Captioner, stopping: Callable[[], bool]) -> None:
        self.job, self.pending, self.captioner, self.stopping = job, pending, captioner, stopping
        self.width = max(1, captioner.concurrency)
        self.requests: asyncio.Queue[_Request | None] = asyncio.Queue(maxsize=self.width)
        # Larger than what is in flight: a part that is being written holds up no request until several are behind.
        self.results: asyncio.Queue[CaptionResult] = asyncio.Queue(maxsize=4 * self.width + 64)
        self.threads = ThreadPoolExecutor(job.workers, thread_name_prefix="prepare")
        self.other = None if job.tokenizer is None else OtherTokenizer(job.tokenizer)
        self.failure: UserError | None = None
        self.closed = False

    async def next_results(self) -> list[CaptionResult]:
        """Return all results that are there, or an empty list after a while."""
        try:
            results = [await asyncio.wait_for(self.results.get(), _TICK_SECONDS)]
        except TimeoutError:
            return []
        while not self.results.empty():
            results.append(self.results.get_nowait())
        return results

    @property
    def ending(self) -> bool:
        return self.closed or self.failure is not None or self.stopping()

    async def feed(self) -> None:
        """Prepare images ahead, in order, and queue their requests."""
        ahead: deque[tuple[PendingRequest, Future[PreparedImage]]] = deque()
        source = iter(self.pending)
        while not self.ending:
            while len(ahead) < 2 * self.job.workers and (pending := next(source, None)) is not None:
                ahead.append((pending, self.threads.submit(_read_image, self.pending.collection, pending, self.job)))
            if not ahead:
                break
            pending, future = ahead.popleft()
            try:
                image = await asyncio.wrap_future(future)
            except BadImage as problem:
                for kind in pending.kinds:
                    await self.results.put(skip_unreadable(self.job.config, pending, kind, problem))
                continue
            for kind in pending.kinds:
                if not await self._enqueue((pending, kind, image)):
                    break
        for _ in range(self.width):  # one for each worker: there is no more
            await self.requests.put(None)

    async def _enqueue(self, request: _Request) -> bool:
        """Queue a request; False when the run is to end before there is room."""
        # A plain put would block while a hanging server keeps the queue full, and a stop would go unnoticed.
        while not self.ending:
            try:
                await asyncio.wait_for(self.requests.put(request), _TICK_SECONDS)
            except TimeoutError:
                continue
            return True
        return False

    async def work(self) -> None:
        """Request captions, one after the other, until there are no more requests."""
        while (request := await self.requests.get()) is not None:
            if self.ending:
                continue  # take the rest out of the queue, so that `feed` can put its last entries
            pending, kind, image = request
            try:
                result = await request_caption(
                    self.captioner, self.job.config, pending, kind, image, run_id=self.job.run_id, other=self.other
                )
            except UserError as error:
                # The first one is reported: those of the other workers are its echo.
                self.failure = self.failure or error
                continue
            await self.results.put(result)


def _read_image(collection: Collection, pending: PendingRequest, job: Job) -> PreparedImage:
    """Read an image, compare its hash, and prepare it."""
    # A request's key has the hash of the image: a caption of changed bytes would be stored under a wrong key.
    data = collection.image_bytes(pending.row, verify=True)
    return prepare_image(data, longest_side=job.config.settings.longest_side)


EXECUTOR = Executor(stream_results, note="one process, many requests in flight")
