"""Listening, the port file, signals and draining: `foveate serve` from the socket to the end of the process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import json
import logging
import os
import queue
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol, TextIO

import uvicorn

from foveate.core.errors import UserError
from foveate.core.files import write_text_atomically
from foveate.serve.framing import FramingProtocol
from foveate.serve.guard import LOG, Receive, Scope, Send
from foveate.serve.settings import ServeSettings

# Lines of the server's log, written in a thread: a pipe that nobody reads holds up whoever writes into it.


_CLOSE_SECONDS = 0.5
# A line wakes the thread, which then takes the interpreter from whoever serves: once for all lines of this time.
_GATHER_SECONDS = 0.02


class JsonFormatter(logging.Formatter):
    """Write each record as one line of JSON: requests as they are, everything else with its level and message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        text = super().format(record)
        # The server's own lines of requests are JSON already.
        if record.name == LOG.name and record.levelno == logging.INFO:
            return text
        message, _, trace = text.partition("\n")
        return json.dumps({"level": record.levelname.lower(), "message": message} | ({"trace": trace} if trace else {}))


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


# Files of the process itself, and of connections that are open while they are refused.
_SPARE_FILES = 256
# After the models have ended: for the last pieces to reach their clients.
_FLUSH_SECONDS = 5


def make_protocol(settings: ServeSettings, *, parser: str = "auto") -> type[Any]:
    """Return the class of connections: limits and framing before one of uvicorn's parsers.

    Args:
        parser: "h11", "httptools", or "auto": httptools where it is installed.
    """
    if parser == "auto":
        parser = "httptools" if importlib.util.find_spec("httptools") else "h11"
    if parser == "httptools":
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Parser
    else:
        from uvicorn.protocols.http.h11_impl import H11Protocol as Parser
    limits = {name: getattr(settings, name) for name in ("max_connections", "max_all_connections", "max_body_bytes")}
    return type("Protocol", (FramingProtocol, Parser), {"clients": Counter[str](), **limits})


class Served(Protocol):
    """An ASGI application with limits, and with calls that may be at work when it is to end."""

    settings: ServeSettings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    async def close(self) -> None:
        """Let the calls at work end within the grace time."""
        ...


class Server(uvicorn.Server):
    """uvicorn that drains on the first SIGTERM or SIGINT and ends at once on the second.

    Args:
        started: called once connections are taken.
    """

    def __init__(self, application: Served, *, parser: str = "auto", started: Callable[[], None]) -> None:
        protocol = make_protocol(application.settings, parser=parser)
        super().__init__(
            uvicorn.Config(
                application,
                http=protocol,
                loop="asyncio",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                # A guest could name any address as its own.
                proxy_headers=False,
                timeout_graceful_shutdown=_FLUSH_SECONDS,
            )
        )
        self.application, self._on_started = application, started
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self.started:
            self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Answer what is at work, and refuse the rest with 503; a second signal ends the process."""
        if self._loop is None:
            self.should_exit = True
        elif self._drain is None:
            self._loop.call_soon_threadsafe(self.drain)
        else:
            # A model in the middle of a step would be waited for: nothing here is left half written.
            self.end()
            # By convention, the exit status of a process ended by a signal is 128 plus the signal's number.
            os._exit(128 + sig)

    def drain(self) -> None:
        """Let the calls at work end within the grace time, then stop."""

        async def close() -> None:
            await self.application.close()
            self.should_exit = True

        self._drain = self._drain or asyncio.get_running_loop().create_task(close())

    def end(self) -> None:
        """Remove the port file: nobody listens there any more."""
        if self.application.settings.port_file is not None:
            with contextlib.suppress(OSError):
                self.application.settings.port_file.unlink()


def serve(
    application: Served, *, ready: Callable[[int], None], parser: str = "auto", log_level: int = logging.INFO
) -> None:
    """Serve until a signal.

    Args:
        ready: called with the port once connections are taken; the port file is written before.
        log_level: of the lines on stderr; at INFO each request is one.

    Raises:
        UserError: the address cannot be listened on.
    """
    settings = application.settings
    listener = listen(settings.host, settings.port)
    port = listener.getsockname()[1]
    handler, logs = LogWriter(sys.stderr), (LOG, logging.getLogger("uvicorn.error"))
    handler.setFormatter(JsonFormatter())
    for log in logs:
        log.addHandler(handler)
    LOG.setLevel(log_level)

    def started() -> None:
        if settings.port_file is not None:
            write_text_atomically(settings.port_file, f"{port}\n")
        ready(port)

    server = Server(application, parser=parser, started=started)
    raise_file_limit(settings.max_all_connections + _SPARE_FILES)
    # Models and modules live as long as the process: to look through them for garbage would hold up all streams.
    gc.collect()
    gc.freeze()
    try:
        server.run([listener])
    finally:
        server.end()
        for log in logs:
            log.removeHandler(handler)
        handler.close()


def raise_file_limit(num_files: int) -> None:
    """Raise the soft limit of open files, as far as the hard one allows: many systems set it to 1,024."""
    # Windows has neither the module nor the limit.
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = num_files if hard == resource.RLIM_INFINITY else min(num_files, hard)
        if soft != resource.RLIM_INFINITY and soft < limit:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that listens on a host's first address.

    Raises:
        UserError: there is no such address here, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: cannot be listened on ({error.strerror or error})") from None
