"""Lines of the server's log, written in a thread: a pipe that nobody reads holds up whoever writes into it."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
from typing import TextIO

_CLOSE_SECONDS = 0.5


class LogWriter(logging.Handler):
    """Write lines to a stream in a thread of its own.

    Attributes:
        num_dropped: lines that were dropped since the last one that was not.

    Args:
        max_lines: lines that may wait; more are dropped, and their number is the next line that is written.
    """

    def __init__(self, stream: TextIO, *, max_lines: int = 4096) -> None:
        super().__init__()
        self.stream, self.num_dropped = stream, 0
        self._lines: queue.Queue[str | None] = queue.Queue(max_lines)
        # A daemon: held up in a pipe, it must not keep the process alive.
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line; `handle` holds the lock."""
        line = self.format(record)
        if self.num_dropped:
            line = f"{json.dumps({'dropped_lines': self.num_dropped})}\n{line}"
        try:
            self._lines.put_nowait(line)
            self.num_dropped = 0
        except queue.Full:
            self.num_dropped += 1

    def close(self) -> None:
        """Write what waits, as far as somebody reads it within a second."""
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._lines.put(None, timeout=_CLOSE_SECONDS)
                self._thread.join(_CLOSE_SECONDS)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            # Who read the log may have gone.
            with contextlib.suppress(OSError, ValueError):
                self.stream.write(f"{line}\n")
                self.stream.flush()
