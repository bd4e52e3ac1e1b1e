"""The work of one served model: a bounded queue, batches of calls that may share one, and the thread that answers them.

Pieces and replies reach their clients as soon as a row has them, not when its batch ends. Rows whose client is gone
leave the queue, or stop at the next token.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from typing import Any

from foveate.chat.batching import DynamicBatcher, run_in_halves
from foveate.core.errors import UserError
from foveate.serve.calls import Adapter, Call, ChatAdapter, ChatCall, ChatReply, Refused

# Clients that start together share a batch, though their images are decoded one after another. A client alone would
# only lose time: an answer takes so long that a moment is nothing, but 1 ms is a twentieth of 100 regions.
_GATHER_SECONDS, _ALONE_SECONDS = 0.01, 0.001
# Paths from the root, of the home or of a drive; not 1/2, </s> or https://host.
_PATH = re.compile(r"(?<![\w<,/.])(?:~?/[\w.]|[A-Za-z]:[\\/]|\\\\\w)")
_LOG = logging.getLogger("foveate.serve")


class _Row:
    """A call while it waits and is answered.

    Attributes:
        is_streamed: somebody reads its pieces. is_gone: nobody waits for it any more.
        is_started: its batch has begun. has_ended: its reply is there.
    """

    def __init__(self, call: Call, group: Hashable, *, is_streamed: bool) -> None:
        self.call, self.group, self.is_streamed = call, group, is_streamed
        self.is_gone = self.is_started = self.has_ended = False
        self._loop = asyncio.get_running_loop()
        self.reply: asyncio.Future[Any] = self._loop.create_future()
        self.pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self._num_written = self._num_sent = 0

    def begin(self) -> None:
        """Begin to write from the start: a batch that failed is written again in halves."""
        self.is_started, self._num_written = True, 0

    def push(self, piece: str) -> None:
        """Send a piece from the model's thread; what an earlier attempt has sent is not sent again."""
        self._num_written += len(piece)
        num_new = self._num_written - self._num_sent
        if num_new > 0 and self.is_streamed:
            self._num_sent = self._num_written
            self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece[-num_new:])

    def end(self, reply: Any) -> None:
        """Send the reply, or the exception, from the model's thread; only the first one counts."""
        if not self.has_ended:
            self.has_ended = True
            self._loop.call_soon_threadsafe(self.settle, reply)

    def settle(self, reply: Any) -> None:
        """Wake who waits for the reply."""
        if self.reply.done():
            return
        if isinstance(reply, Exception):
            self.reply.set_exception(_describe(reply))
            # A client that has gone never reads it, which asyncio would report.
            self.reply.exception()
        else:
            self.reply.set_result(reply)
        self.pieces.put_nowait(None)


class ModelWorker:
    """An adapter behind a bounded queue and a thread. Use it within one event loop.

    Args:
        max_batch: maximum number of calls that are answered together.
        max_waiting: maximum number of calls that are queued or in a batch; more are refused.
        is_reading: whether requests are being read that may share a batch with those that wait.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        max_batch: int = 8,
        max_waiting: int = 64,
        is_reading: Callable[[], bool] = lambda: True,
    ) -> None:
        self.adapter, self.max_waiting = adapter, max_waiting
        # Holds both queued and running rows: running ones keep their images in memory, so they count as waiting, too.
        self._rows: dict[_Row, asyncio.Future[None]] = {}
        self._is_closing, self._is_reading = False, is_reading
        self._batcher: DynamicBatcher[_Row, None] = DynamicBatcher(
            self._run,
            max_batch=max_batch,
            group_by=lambda row: row.group,
            max_wait_seconds=self._find_wait,
        )

    @property
    def num_waiting(self) -> int:
        """Number of calls that are queued or in a batch."""
        return len(self._rows)

    async def answer(self, call: Call) -> Any:
        """Return the reply of a call; for a `ChatCall` once it is whole. Cancelling it takes the call back.

        Raises:
            Refused: by `check`, by a full queue or a worker that drains, or by the model; 500 where the model fails.
        """
        row = self._submit(call, is_streamed=False)
        try:
            return await row.reply
        finally:
            self._give_up(row)

    async def write(
        self, call: ChatCall, *, timeout_seconds: float | None = None
    ) -> AsyncGenerator[str | ChatReply, None]:
        """Yield the pieces of an answer as they are written, then its `ChatReply`; closing it early stops the row.

        Args:
            timeout_seconds: after which an unfinished answer ends.

        Raises:
            Refused: as `answer`, at the first piece where that is before the model begins; 504 for an answer too late.
        """
        row = self._submit(call, is_streamed=True)
        # One timer for the whole answer instead of a timeout around each piece.
        timer = None
        if timeout_seconds is not None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(timeout_seconds, row.settle, refuse_late(timeout_seconds))
        try:
            while (piece := await row.pieces.get()) is not None:
                yield piece
            yield await row.reply
        finally:
            if timer is not None:
                timer.cancel()
            self._give_up(row)

    async def close(self, *, grace_seconds: float = float("inf")) -> None:
        """Take no more calls, let those at work end within the grace time, stop the others, and end the thread."""
        self._is_closing = True
        closing = asyncio.create_task(self._batcher.close())
        # Not `wait_for`, which would cancel the closing that still has to end the thread.
        done, _ = await asyncio.wait([closing], timeout=None if grace_seconds == float("inf") else grace_seconds)
        if not done:
            for row in list(self._rows):
                row.settle(Refused("the server has stopped", status=503, code="stopping", retry_after=5))
                self._give_up(row)
        await closing

    def _submit(self, call: Call, *, is_streamed: bool) -> _Row:
        # Checked first: a call that can never be answered is refused as such, however full the queue is.
        self.adapter.check(call)
        if self._is_closing:
            raise Refused("the server is stopping", status=503, code="stopping", retry_after=5)
        if self.num_waiting >= self.max_waiting:
            text = f"{self.adapter.name}: {self.num_waiting} calls are waiting already; try again later"
            raise Refused(text, status=503, code="queue_full", retry_after=1)
        # Grouped by type as well: `write` takes only chats, `answer` all other calls.
        row = _Row(call, (type(call), self.adapter.group(call)), is_streamed=is_streamed)
        self._rows[row] = future = self._batcher.enqueue(row)
        future.add_done_callback(lambda future: self._forget(row, future))
        return row

    def _give_up(self, row: _Row) -> None:
        """Let a row leave the queue, or stop at the next token, that has no reply yet."""
        row.is_gone = True
        if not row.has_ended and (future := self._rows.get(row)) is not None:
            future.cancel()

    def _find_wait(self) -> float:
        """Return the seconds for which a batch that could begin waits for others."""
        if self._is_reading():
            return _GATHER_SECONDS
        is_chat = any(isinstance(row.call, ChatCall) and not row.is_started for row in self._rows)
        return _ALONE_SECONDS if is_chat else 0.0

    def _forget(self, row: _Row, future: asyncio.Future[None]) -> None:
        del self._rows[row]
        error = None if future.cancelled() else future.exception()
        # This changes nothing for a row that has ended.
        row.settle(error if isinstance(error, Exception) else Refused("the call was given up", status=503))

    def _run(self, rows: Sequence[_Row]) -> list[None]:
        """Answer a batch; a row that fails alone fails no other."""
        for row, error in zip(rows, run_in_halves(self._attempt, rows, errors=Exception), strict=True):
            if error is not None:
                row.end(error)
        return [None] * len(rows)

    def _attempt(self, rows: Sequence[_Row]) -> list[None]:
        left = [row for row in rows if not row.has_ended and not row.is_gone]
        chats = [row.call for row in left if isinstance(row.call, ChatCall)]
        for row in left:
            row.begin()
        try:
            if chats:
                assert isinstance(self.adapter, ChatAdapter), "calls go to an endpoint of their model"
                self.adapter.write(chats, _Rows(left))
            elif left:
                for row, reply in zip(left, self.adapter.answer([row.call for row in left]), strict=True):
                    row.end(reply)
        except (MemoryError, RuntimeError) as error:  # torch's OutOfMemoryError is one
            if _is_out_of_memory(error) and "torch" in sys.modules:
                # Only then can the halves use the memory that the failed batch has left reserved.
                sys.modules["torch"].cuda.empty_cache()
            raise
        return [None] * len(rows)


class _Rows:
    """See `foveate.serve.calls.Listener`."""

    def __init__(self, rows: Sequence[_Row]) -> None:
        self.rows = rows

    def is_streamed(self, row: int) -> bool:
        return self.rows[row].is_streamed

    def push(self, row: int, piece: str) -> None:
        self.rows[row].push(piece)

    def end(self, row: int, reply: ChatReply | Exception) -> None:
        self.rows[row].end(reply)

    def is_gone(self, row: int) -> bool:
        return self.rows[row].is_gone


def refuse_late(seconds: float) -> Refused:
    """Return the refusal of a reply that has taken too long."""
    return Refused(f"the reply took longer than {seconds:g} s; see --timeout-seconds", status=504, code="timeout")


def _is_out_of_memory(error: Exception) -> bool:
    # By name: torch is not loaded before a model is. Its allocator for the CPU raises a plain RuntimeError.
    is_allocator = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or is_allocator


def _describe(error: Exception) -> Refused:
    """Return what the client may read of an error; of a model that failed only that.

    A `UserError` with a path is about a file of this server, which no client can mend, or about a client's text that
    looks like one: it is for the log.
    """
    if isinstance(error, Refused):
        return error
    if isinstance(error, UserError) and not _PATH.search(str(error)):
        return Refused(str(error), code="invalid_value")
    if _is_out_of_memory(error):
        return Refused("the model has too little memory for this call", status=503, code="out_of_memory", retry_after=5)
    _LOG.warning(f"a call failed: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
    return Refused("the model failed on this call", status=500)
