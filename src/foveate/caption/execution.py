"""Send the requests of a run: from one process, or from several by Ray Data.

An executor is a row of `EXECUTORS`. All of them request through `foveate.caption.requests.request_caption`, so that the
rows are the same.

The memory of one process is bounded: per request in flight one image, as many again that wait for their turn, and two
per thread that are being prepared. Formats of one image follow one another, so that a server that caches images reads
each once.

Ray Data hands out blocks of images, and each worker sends requests as one process does. Every worker opens the
collection by its path, which must be the same everywhere, and has a captioner of its own: with `http`, `concurrency`
counts per worker. Only the first process writes. A stop loses the blocks that workers were at; the same command asks
for them again. It needs the extra `ray`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from foveate.caption.captioner import Captioner, PreparedImage, find_backend, prepare_image
from foveate.caption.lengths import OtherTokenizer
from foveate.caption.pending_requests import PendingRequest, PendingRequests, RequestConfig
from foveate.caption.requests import CaptionResult, request_caption, skip_unreadable
from foveate.core.errors import UserError, choose
from foveate.core.recipes import validate
from foveate.records.collection import Collection
from foveate.records.images import BadImage
from foveate.records.ray_work import import_ray, start_cluster

# Interval in which a stop is noticed and an executor gives a sign of life.
_TICK_SECONDS = 0.5
_BLOCK_IMAGES = 64  # a worker of Ray waits for the last of them before it takes the next block


@dataclass(frozen=True, slots=True)
class CaptionJob:
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

    run: Callable[[CaptionJob, Any, Captioner, Callable[[], bool]], AsyncGenerator[list[CaptionResult], None]]
    note: str = ""


async def stream_results(
    job: CaptionJob, pending: ImageRequests, captioner: Captioner, stopping: Callable[[], bool]
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

    def __init__(
        self, job: CaptionJob, pending: ImageRequests, captioner: Captioner, stopping: Callable[[], bool]
    ) -> None:
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


def _read_image(collection: Collection, pending: PendingRequest, job: CaptionJob) -> PreparedImage:
    """Read an image, compare its hash, and prepare it."""
    # A request's key has the hash of the image: a caption of changed bytes would be stored under a wrong key.
    data = collection.image_bytes(pending.row, verify=True)
    return prepare_image(data, longest_side=job.config.settings.longest_side)


async def stream_from_ray(
    job: CaptionJob, pending: PendingRequests, captioner: Captioner, stopping: Callable[[], bool]
) -> AsyncGenerator[list[CaptionResult], None]:
    """See `Executor.run`."""
    ray = import_ray()
    if not pending.pending:
        return
    started = start_cluster(job.processes)
    blocks, reading = _iterate_blocks(ray, job, pending), None
    try:
        while not stopping():
            # Wait in a thread: Ray's iterator blocks until a worker has finished its block, which may take minutes.
            reading = asyncio.ensure_future(asyncio.to_thread(next, blocks, None))
            while not (await asyncio.wait({reading}, timeout=_TICK_SECONDS))[0]:
                if stopping():
                    return
                yield []
            block = reading.result()
            if block is None:
                return
            rows = [json.loads(text) for text in block["result"].to_pylist()]
            # Results first: what a worker got before it failed is written.
            yield [_load_result(row) for row in rows if "failure" not in row]
            failures = [row["failure"] for row in rows if "failure" in row]
            if failures:
                raise UserError(failures[0])
    finally:
        # Close the blocks before the cluster: a thread of Ray Data that calls a cluster that is gone may end this
        # process. A reader that a stop leaves behind still holds them; its errors reach no caller.
        if reading is None or reading.done():
            await asyncio.to_thread(blocks.close)
        if started:
            await asyncio.to_thread(ray.shutdown)


def _iterate_blocks(ray: Any, job: CaptionJob, pending: PendingRequests) -> Generator[pa.Table, None, None]:
    """Yield blocks of results as JSON, in the order in which they are ready."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    source = iter(pending)
    blocks = []
    while part := list(islice(source, _BLOCK_IMAGES)):
        # JSON in one column, because Arrow would guess the types of nested and empty fields block by block.
        blocks.append(pa.table({"pending": [json.dumps(asdict(request), ensure_ascii=False) for request in part]}))
    if not blocks:
        return
    results = ray.data.from_arrow(blocks).map_batches(
        Worker,
        fn_constructor_args=(job,),
        batch_size=_BLOCK_IMAGES,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(job.processes, len(blocks))),
    )
    # No prefetching: a part of the results that is only read ahead is lost when the run is stopped.
    yield from results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _load_result(content: Any) -> CaptionResult:
    content["flags"] = tuple(content["flags"])
    return CaptionResult(**content)


def _load_pending(content: Any) -> PendingRequest:
    content["kinds"] = tuple(content["kinds"])
    return PendingRequest(**content)


class _PendingBlock:
    """Some images of a run, in the form that the local executor takes."""

    def __init__(self, collection: Collection, pending: list[PendingRequest]) -> None:
        self.collection, self._pending = collection, pending

    def __iter__(self) -> Iterator[PendingRequest]:
        return iter(self._pending)


class Worker:
    """A worker process with its collection, captioner and event loop.

    The captioner's connections belong to this loop.
    """

    def __init__(self, job: CaptionJob) -> None:
        self._job = job
        self._collection = Collection.open(job.collection)
        self._loop = asyncio.new_event_loop()
        self._failure = ""
        # A failure is passed on as a row: Ray would start an actor that raises again and again.
        try:
            self._captioner: Captioner | None = job.open_captioner(self._collection)
        except UserError as error:
            self._captioner, self._failure = None, str(error)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Caption a block of images."""
        pending = [_load_pending(json.loads(text)) for text in block["pending"].to_pylist()]
        results = [] if self._failure else self._loop.run_until_complete(self._caption(pending))
        rows: list[dict[str, Any]] = [asdict(result) for result in results]
        if self._failure:
            rows.append({"failure": self._failure})
        return pa.table({"result": pa.array([json.dumps(row, ensure_ascii=False) for row in rows], pa.string())})

    async def _caption(self, pending: list[PendingRequest]) -> list[CaptionResult]:
        assert self._captioner is not None
        results: list[CaptionResult] = []
        try:
            block = _PendingBlock(self._collection, pending)
            async for part in stream_results(self._job, block, self._captioner, lambda: False):
                results += part
        except UserError as error:
            self._failure = str(error)
        return results


EXECUTORS: dict[str, Executor] = {
    "local": Executor(stream_results, note="one process, many requests in flight"),
    "ray": Executor(stream_from_ray, note="several processes on one machine or many, by Ray Data (extra ray)"),
}


def find_executor(name: str) -> Executor:
    """Return an executor by name.

    Raises:
        UserError: there is no such executor; the error lists all and the nearest match.
    """
    return EXECUTORS[choose(name, EXECUTORS, "executor")]
