"""One process: threads prepare images, and as many requests are in flight as the captioner wants.

What is in memory is bounded: per request in flight one image, as many again that wait for their turn, and two per
thread that are being prepared. Formats of one image follow one another, so that a server that keeps images in a
cache reads each once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor

from foveate.caption.asking import Outcome, ask, unreadable
from foveate.caption.captioner import Captioner
from foveate.caption.executing import Executor, Job
from foveate.caption.images import Prepared, prepare
from foveate.caption.lengths import OtherTokenizer
from foveate.caption.work import Todo, Worklist
from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.images import BadImage

_TICK_SECONDS = 0.5
_Request = tuple[Todo, str, Prepared]


async def outcomes(
    job: Job, worklist: Worklist, captioner: Captioner, stopping: Callable[[], bool]
) -> AsyncGenerator[list[Outcome], None]:
    """See `Executor`."""
    flow = _Flow(job, worklist, captioner, stopping)
    tasks = [asyncio.create_task(flow.feed())]
    tasks += [asyncio.create_task(flow.work()) for _ in range(flow.width)]
    try:
        while any(not task.done() for task in tasks) or not flow.results.empty():
            yield await flow.next_results()
            for task in tasks:
                if task.done() and not task.cancelled() and task.exception() is not None:
                    raise task.exception() or AssertionError
        if flow.failure is not None:
            raise flow.failure
    finally:
        flow.over = True
        # Again and again: wait_for of Python 3.11 swallows a cancellation that comes together with its result.
        while left := [task for task in tasks if not task.done()]:
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=_TICK_SECONDS)
        flow.threads.shutdown(wait=True, cancel_futures=True)


class _Flow:
    """The queues between preparing, asking and writing."""

    def __init__(self, job: Job, worklist: Worklist, captioner: Captioner, stopping: Callable[[], bool]) -> None:
        self.job, self.worklist, self.captioner, self.stopping = job, worklist, captioner, stopping
        self.width = max(1, captioner.concurrency)
        self.requests: asyncio.Queue[_Request | None] = asyncio.Queue(maxsize=self.width)
        self.results: asyncio.Queue[Outcome] = asyncio.Queue(maxsize=4 * self.width + 64)
        self.threads = ThreadPoolExecutor(job.workers, thread_name_prefix="prepare")
        self.other = None if job.tokenizer is None else OtherTokenizer(job.tokenizer)
        self.failure: UserError | None = None
        self.over = False

    async def next_results(self) -> list[Outcome]:
        """What has come in, or an empty list after a while."""
        try:
            found = [await asyncio.wait_for(self.results.get(), _TICK_SECONDS)]
        except TimeoutError:
            return []
        while not self.results.empty():
            found.append(self.results.get_nowait())
        return found

    @property
    def ending(self) -> bool:
        return self.over or self.failure is not None or self.stopping()

    async def feed(self) -> None:
        """Prepare images ahead, in order, and queue their requests."""
        ahead: deque[tuple[Todo, Future[Prepared]]] = deque()
        source = iter(self.worklist)
        while not self.ending:
            while len(ahead) < 2 * self.job.workers and (todo := next(source, None)) is not None:
                ahead.append((todo, self.threads.submit(read, self.worklist.collection, todo, self.job)))
            if not ahead:
                break
            todo, future = ahead.popleft()
            try:
                image = await asyncio.wrap_future(future)
            except BadImage as problem:
                for kind in todo.kinds:
                    await self.results.put(unreadable(self.job.asking, todo, kind, problem))
                continue
            for kind in todo.kinds:
                if not await self._queued((todo, kind, image)):
                    break
        for _ in range(self.width):
            await self.requests.put(None)

    async def _queued(self, request: _Request) -> bool:
        """Whether a request found a place in the queue before the run is to end."""
        while not self.ending:
            try:
                await asyncio.wait_for(self.requests.put(request), _TICK_SECONDS)
            except TimeoutError:
                continue
            return True
        return False

    async def work(self) -> None:
        """Ask, one request after the other, until there are none."""
        while (request := await self.requests.get()) is not None:
            if self.ending:
                continue
            todo, kind, image = request
            try:
                made = await ask(
                    self.captioner, self.job.asking, todo, kind, image, run_id=self.job.run_id, other=self.other
                )
            except UserError as error:
                self.failure = self.failure or error
                continue
            await self.results.put(made)


def read(collection: Collection, todo: Todo, job: Job) -> Prepared:
    """Read an image, compare its hash, and prepare it. Raises BadImage."""
    data = collection.image_bytes(todo.row, verify=True)
    return prepare(data, longest_side=job.asking.settings.longest_side)


EXECUTOR = Executor(outcomes, note="one process, many requests in flight")
