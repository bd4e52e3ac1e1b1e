"""Several processes, on one machine or many: Ray Data hands out blocks of images, each worker asks as `local` does.

Every worker opens the collection by its path, which must be the same everywhere, and has a captioner of its own: with
`http`, `concurrency` counts per worker. Only the first process writes. A stop loses the blocks that workers were at;
the same command asks for them again. Needs the extra `ray`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import pyarrow as pa

from foveate.caption.asking import Outcome
from foveate.caption.captioner import Captioner
from foveate.caption.executing import Executor, Job
from foveate.caption.executors.local import outcomes as local_outcomes
from foveate.caption.work import Todo, Worklist
from foveate.core.errors import UserError
from foveate.records.collection import Collection

_BLOCK = 64  # images; a worker waits for the last of them before it takes the next block
_TICK_SECONDS = 0.5


async def outcomes(
    job: Job, worklist: Worklist, captioner: Captioner, stopping: Callable[[], bool]
) -> AsyncGenerator[list[Outcome], None]:
    """See `Executor`."""
    ray = _ray()
    if not worklist.todo:
        return
    started = not ray.is_initialized()
    if started:
        # A cluster that is there (RAY_ADDRESS) has its own processors; Ray refuses to be told their number.
        own = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": job.processes, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **own)
    try:
        answers = _answers(ray, job, worklist)
        while not stopping():
            reading = asyncio.ensure_future(asyncio.to_thread(next, answers, None))
            while not (await asyncio.wait({reading}, timeout=_TICK_SECONDS))[0]:
                if stopping():
                    return
                yield []
            block = reading.result()
            if block is None:
                return
            found = [json.loads(text) for text in block["outcome"].to_pylist()]
            yield [_outcome(one) for one in found if "failure" not in one]
            failures = [one["failure"] for one in found if "failure" in one]
            if failures:
                raise UserError(failures[0])
    finally:
        if started:
            await asyncio.to_thread(ray.shutdown)


def _ray() -> Any:
    # Ray tells its maker about every use if it is not told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("--executor ray needs Ray Data: run `pip install 'foveate[ray]'`") from error
    return ray


def _answers(ray: Any, job: Job, worklist: Worklist) -> Iterator[pa.Table]:
    """Blocks of outcomes as JSON, in the order in which they are ready."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    source = iter(worklist)
    blocks = []
    while part := list(islice(source, _BLOCK)):
        blocks.append(pa.table({"todo": [json.dumps(asdict(todo), ensure_ascii=False) for todo in part]}))
    if not blocks:
        return iter(())
    asked = ray.data.from_arrow(blocks).map_batches(
        Asker,
        fn_constructor_args=(job,),
        batch_size=_BLOCK,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(job.processes, len(blocks))),
    )
    return iter(asked.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))


def _outcome(content: Any) -> Outcome:
    content["flags"] = tuple(content["flags"])
    return Outcome(**content)


def _todo(content: Any) -> Todo:
    content["kinds"] = tuple(content["kinds"])
    return Todo(**content)


class _Part:
    """Some images of a worklist, as the local executor takes them."""

    def __init__(self, collection: Collection, todos: list[Todo]) -> None:
        self.collection, self._todos = collection, todos

    def __iter__(self) -> Iterator[Todo]:
        return iter(self._todos)


class Asker:
    """A worker: its collection, its captioner, and the event loop that the captioner's connections belong to."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._collection = Collection.open(job.collection)
        self._loop = asyncio.new_event_loop()
        self._failure = ""
        try:
            self._captioner: Captioner | None = job.open_captioner(self._collection)
        except UserError as error:
            self._captioner, self._failure = None, str(error)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Outcomes of a block of images."""
        todos = [_todo(json.loads(text)) for text in block["todo"].to_pylist()]
        found = [] if self._failure else self._loop.run_until_complete(self._ask(todos))
        said: list[dict[str, Any]] = [asdict(outcome) for outcome in found]
        if self._failure:
            said.append({"failure": self._failure})
        return pa.table({"outcome": pa.array([json.dumps(one, ensure_ascii=False) for one in said], pa.string())})

    async def _ask(self, todos: list[Todo]) -> list[Outcome]:
        assert self._captioner is not None
        found: list[Outcome] = []
        part: Any = _Part(self._collection, todos)
        try:
            async for some in local_outcomes(self._job, part, self._captioner, lambda: False):
                found += some
        except UserError as error:
            self._failure = str(error)
        return found


EXECUTOR = Executor(outcomes, note="several processes on one machine or many, by Ray Data (extra ray)")
