"""The executor for several processes, on one machine or many, by Ray Data.

Ray Data hands out blocks of images; each worker sends requests as `local` does.

Every worker opens the collection by its path, which must be the same everywhere, and has a captioner of its own: with
`http`, `concurrency` counts per worker. Only the first process writes. A stop loses the blocks that workers were at;
the same command asks for them again. Needs the extra `ray`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import pyarrow as pa

from foveate.caption.captioner import Captioner
from foveate.caption.executors.local import Executor, Job
from foveate.caption.executors.local import stream_results as stream_local_results
from foveate.caption.pending_requests import PendingRequest, PendingRequests
from foveate.caption.requests import CaptionResult
from foveate.core.errors import UserError
from foveate.records.collection import Collection

_BLOCK_IMAGES = 64  # a worker waits for the last of them before it takes the next block
_TICK_SECONDS = 0.5


async def stream_results(
    job: Job, pending: PendingRequests, captioner: Captioner, stopping: Callable[[], bool]
) -> AsyncGenerator[list[CaptionResult], None]:
    """See `foveate.caption.executors.local.Executor.run`."""
    ray = _import_ray()
    if not pending.pending:
        return
    # A cluster that the caller started is not ours to shut down.
    started = not ray.is_initialized()
    if started:
        # An existing cluster (RAY_ADDRESS) has its own processors; Ray refuses their number as an argument.
        cluster = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": job.processes, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **cluster)
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


def _import_ray() -> Any:
    # Ray reports usage statistics to its maker unless they are disabled.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A reader that a stop leaves behind may call Ray once more. Ray would start a second cluster for it, whose
    # processes end with the reader's thread, and 60 seconds later end this process.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("--executor ray needs Ray Data: run `pip install 'foveate[ray]'`") from error
    return ray


def _iterate_blocks(ray: Any, job: Job, pending: PendingRequests) -> Generator[pa.Table, None, None]:
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


class _Block:
    """Some images of a run, in the form that the local executor takes."""

    def __init__(self, collection: Collection, pending: list[PendingRequest]) -> None:
        self.collection, self._pending = collection, pending

    def __iter__(self) -> Iterator[PendingRequest]:
        return iter(self._pending)


class Worker:
    """A worker process with its collection, captioner and event loop.

    The captioner's connections belong to this loop.
    """

    def __init__(self, job: Job) -> None:
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
            block = _Block(self._collection, pending)
            async for part in stream_local_results(self._job, block, self._captioner, lambda: False):
                results += part
        except UserError as error:
            self._failure = str(error)
        return results


EXECUTOR = Executor(stream_results, note="several processes on one machine or many, by Ray Data (extra ray)")
