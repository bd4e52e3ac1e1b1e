"""Single calls gathered into batches, for captioners that run on this machine.

Calls wait for at most a moment. What is alike goes together: rows of one format take about the same number of tokens,
so that a batch does not wait for its longest row alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Batcher(Generic[Q, A]):
    """Gathers concurrent calls of `ask` and answers them together, in one thread, one batch after the other.

    Args:
        answer: a batch of questions -> as many answers in the same order. It runs in the batcher's own thread.
        most: questions in a batch.
        alike: questions with equal values may share a batch.
        wait_seconds: how long a batch that is not full waits for more.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Q]], Sequence[A]],
        *,
        most: int,
        alike: Callable[[Q], Hashable],
        wait_seconds: float = 0.02,
    ) -> None:
        self._answer, self._most, self._alike, self._wait = answer, most, alike, wait_seconds
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._task: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        """The answer to one question."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        self._arrived.set()
        return await future

    async def close(self) -> None:
        """End the thread; calls that still wait are canceled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for _, future in self._waiting:
            future.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next()
            try:
                answers = await loop.run_in_executor(self._thread, self._answer, [question for question, _ in batch])
            except BaseException as error:
                for _, future in batch:
                    if not future.done():
                        future.cancel() if isinstance(error, asyncio.CancelledError) else future.set_exception(error)
                if isinstance(error, asyncio.CancelledError):
                    raise
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    async def _next(self) -> list[tuple[Q, asyncio.Future[A]]]:
        """The next batch: the question that waits longest, and those like it."""
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full(), self._wait)
            kind = self._alike(self._waiting[0][0])
            taken, left = list[tuple[Q, asyncio.Future[A]]](), deque[tuple[Q, asyncio.Future[A]]]()
            for entry in self._waiting:
                fits = len(taken) < self._most and self._alike(entry[0]) == kind
                if not entry[1].done():
                    (taken if fits else left).append(entry)
            self._waiting = left
            if taken:
                return taken

    async def _full(self) -> None:
        """Returns once as many questions like the first one wait as a batch takes."""
        while True:
            kind = self._alike(self._waiting[0][0])
            if sum(self._alike(question) == kind for question, _ in self._waiting) >= self._most:
                return
            self._arrived.clear()
            await self._arrived.wait()
