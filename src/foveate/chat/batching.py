"""Gather concurrent calls into batches, for models that run on this machine.

Calls wait for at most a moment. What is alike goes together: rows of one format take about the same number of tokens,
so that a batch does not wait for its longest row alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")
E = TypeVar("E", bound=Exception)


def run_in_halves(
    run_batch: Callable[[Sequence[Q]], Sequence[A]], requests: Sequence[Q], *, errors: type[E] | tuple[type[E], ...]
) -> list[A | E]:
    """Run a batch; where it fails, run its halves, so that a request that fails alone fails no other.

    Args:
        run_batch: requests -> as many results in the same order.
        errors: what stands in the place of a result where a request fails alone; others are raised.
    """
    if not requests:
        return []
    try:
        return list(run_batch(requests))
    except errors as error:
        if len(requests) == 1:
            return [error]
    # Behind the handler, which would hold the tensors of the failed batch by its traceback.
    middle = len(requests) // 2
    return [
        result
        for half in (requests[:middle], requests[middle:])
        for result in run_in_halves(run_batch, half, errors=errors)
    ]


# Equal calls are different ones, and to compare what they hold takes time.
@dataclass(slots=True, eq=False)
class _Call(Generic[Q, A]):
    request: Q
    future: asyncio.Future[A]
    arrived: float


class DynamicBatcher(Generic[Q, A]):
    """Run concurrent calls of one event loop in batches, one after the other, in a thread.

    Args:
        run_batch: requests -> as many results in the same order. A result that is an exception is raised by its own
            call alone; an exception that `run_batch` raises, by all calls of the batch.
        max_batch: maximum of requests in a batch.
        group_by: requests with equal values may share a batch; all may by default.
        max_wait_seconds: how long the first request of a batch that is not full waits for others; a function is asked
            when the batch could begin.
    """

    def __init__(
        self,
        run_batch: Callable[[Sequence[Q]], Sequence[A | Exception]],
        *,
        max_batch: int,
        group_by: Callable[[Q], Hashable] = lambda request: None,
        max_wait_seconds: float | Callable[[], float] = 0.02,
    ) -> None:
        self._run_batch, self._max_batch, self._group_by = run_batch, max_batch, group_by
        self._max_wait = max_wait_seconds
        self._waiting: deque[_Call[Q, A]] = deque()
        self._arrived = asyncio.Event()
        # One thread of its own: a model is used by one batch at a time, and asyncio's threads stay free for others.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    async def submit(self, request: Q) -> A:
        """Return the result of one request, from the next batch that takes it."""
        return await self.enqueue(request)

    def enqueue(self, request: Q) -> asyncio.Future[A]:
        """Return the future of one request's result; canceling it takes the request out of the queue."""
        assert not self._closing, "the batcher is closed"
        if self._task is None:
            # Not in the constructor, which may run before there is an event loop.
            self._task = asyncio.create_task(self._run())
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        call = _Call(request, future, time.monotonic())
        self._waiting.append(call)
        self._arrived.set()
        future.add_done_callback(lambda future: self._leave(call) if future.cancelled() else None)
        return future

    def _leave(self, call: _Call[Q, A]) -> None:
        # What it holds, such as images, must not stay until the next batch.
        with contextlib.suppress(ValueError):
            self._waiting.remove(call)

    async def close(self) -> None:
        """Answer the calls that wait, and end the thread."""
        self._closing = True
        self._arrived.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := await self._next_batch():
            requests = [call.request for call in batch]
            results: Sequence[A | BaseException]
            try:
                results = await loop.run_in_executor(self._thread, self._run_batch, requests)
            except asyncio.CancelledError:
                for call in (*batch, *self._waiting):
                    call.future.cancel()
                raise
            except BaseException as error:
                # Whatever it is, it belongs to those who called: a batcher that died of it would let all others wait
                # forever.
                results = [error] * len(batch)
            for call, result in zip(batch, results, strict=True):
                if call.future.done():  # its caller was canceled
                    continue
                if isinstance(result, BaseException):
                    call.future.set_exception(result)
                else:
                    call.future.set_result(result)

    async def _next_batch(self) -> list[_Call[Q, A]]:
        """Wait for the next batch: the oldest request and those like it; empty when closed."""
        oldest, deadline = None, 0.0
        while True:
            while not self._waiting:
                if self._closing:
                    return []
                self._arrived.clear()
                await self._arrived.wait()
            if self._waiting[0] is not oldest:
                oldest = self._waiting[0]
                # From the arrival on: those who came while the last batch ran have waited already.
                deadline = oldest.arrived + (self._max_wait() if callable(self._max_wait) else self._max_wait)
            left = deadline - time.monotonic()
            if left > 0 and not self._closing and not self._is_full():
                # No `wait_for`, which makes a task of its own for each wait.
                self._arrived.clear()
                timer = asyncio.get_running_loop().call_later(left, self._arrived.set)
                await self._arrived.wait()
                timer.cancel()
                continue
            group = self._group_by(self._waiting[0].request)
            batch, others = list[_Call[Q, A]](), deque[_Call[Q, A]]()
            for call in self._waiting:
                fits = len(batch) < self._max_batch and self._group_by(call.request) == group
                if not call.future.done():
                    (batch if fits else others).append(call)
            self._waiting = others
            if batch:
                return batch

    def _is_full(self) -> bool:
        """Return whether requests like the oldest one fill a batch."""
        group = self._group_by(self._waiting[0].request)
        return sum(self._group_by(call.request) == group for call in self._waiting) >= self._max_batch
