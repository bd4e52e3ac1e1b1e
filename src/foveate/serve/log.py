"""Lines of the server's log, written in a thread: a pipe that nobody reads holds up whoever writes into it."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
import time
from typing import TextIO

_CLOSE_SECONDS = 0.5
# A line wakes the thread, which then takes the interpreter from whoever serves: once for all lines of this time.
_GATHER_SECONDS = 0.02


class LogWriter(logging.Handler):
    """Write lines to a stream in a thread of its own.

    Attributes:
        num_dropped: lines that were dropped since the last one that was not.

    Args:
        max_lines: lines that may wait; more are dropped, and their number is the next line that is written.
    """

    def __init__(self, stream: TextIO, *, max_lines: int = 4096) -> None:
        super().__init__()
        self.stream, self.max_lines, self.num_dropped = stream, max_lines, 0
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # A daemon: held up in a pipe, it must not keep the process alive.
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line; `handle` holds the lock."""
        if self._lines.qsize() >= self.max_lines:
            self.num_dropped += 1
            return
        line = self.format(record)
        if self.num_dropped:
            line = f"{json.dumps({'dropped_lines': self.num_dropped})}\n{line}"
            self.num_dropped = 0
        self._lines.put(line)

    def close(self) -> None:
        """Write what waits, as far as somebody reads it within half a second."""
        if self._thread.is_alive():
            self._lines.put(None)
            self._thread.join(_CLOSE_SECONDS)
        super().close()

    def _write(self) -> None:
        is_open = True
        while is_open:
            lines = [self._lines.get()]
            if lines[0] is not None:
                time.sleep(_GATHER_SECONDS)
            lines += [self._lines.get() for _ in range(self._lines.qsize())]
            is_open = lines[-1] is not None
            # Who read the log may have gone.
            with contextlib.suppress(OSError, ValueError):
                self.stream.write("".join(f"{line}\n" for line in lines if line is not None))
                self.stream.flush()
