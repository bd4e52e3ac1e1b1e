"""Start programs, read their output, and end them with everything they started, however this process ends.

Flower's SuperLink and SuperNode start processes, some in sessions of their own; each looks whether its parent is there
and ends when it is not. Here they are asked to end, waited for, and killed if they stay.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from foveate.core.errors import UserError
from foveate.core.progress import say

_POLL_SECONDS, _LOOK_SECONDS = 0.2, 2.0
_LINES = 100
_PATIENCE_SECONDS = 15.0
"""How long processes may take to end when they are asked to."""
# Windows has no SIGHUP.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@dataclass
class Child:
    """A program that runs.

    Attributes:
        name: of the program. begun, recent: the first and the last lines that it printed.
        kin: it and what it started, as last seen.
    """

    name: str
    process: subprocess.Popen[str]
    reader: threading.Thread = field(init=False)
    begun: list[str] = field(default_factory=list)
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=_LINES))
    kin: set[psutil.Process] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._listen, daemon=True)
        self.reader.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            text = line.rstrip("\n")
            (self.begun if len(self.begun) < _LINES else self.recent).append(text)
            say(text)

    def wait(self, until: Callable[[], bool] = lambda: False) -> int | None:
        """Wait until a condition holds (return None) or the program has ended (return its status)."""
        looked = 0.0
        while True:
            status = self.process.poll()
            if status is not None:
                self.reader.join(1)  # its last lines
                return status
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                # Noted while the program runs: children that outlive their parent can no longer be found through it.
                self.kin |= family(self.process.pid)
            if until():
                return None
            time.sleep(_POLL_SECONDS)

    @property
    def text(self) -> str:
        """Its output; of a long one the first and last lines."""
        return "\n".join([*self.begun, *list(self.recent)])


@contextlib.contextmanager
def started(command: Sequence[str], variables: Mapping[str, str]) -> Iterator[Child]:
    """Start a program of this Python's environment; its lines go to standard error. At the end nothing of it is left.

    Raises:
        UserError: there is no such program.
    """
    # The environment's own programs come first in PATH: Flower starts further ones by name.
    process = subprocess.Popen(
        [program(command[0]), *command[1:]],
        env={**os.environ, **variables, "PATH": os.pathsep.join((str(_programs()), os.environ.get("PATH", "")))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches this process only, which then ends the others in order
    )
    child = Child(command[0], process)
    try:
        yield child
    finally:
        with _deaf():
            end(child)
            child.reader.join(1)


def program(name: str) -> str:
    """Path of a program in this Python's environment.

    Raises:
        UserError: the program is not installed.
    """
    path = _programs() / name
    if not path.is_file():
        raise UserError(
            f"Flower's program {name} is not in this environment; install Flower into one of its own, in a clone: "
            "`python3 -m venv federated && . federated/bin/activate && pip install -e '.[flower]'`"
        )
    return str(path)


def _programs() -> Path:
    return Path(sys.executable).parent


def end(child: Child) -> None:
    """Ask the program to end, wait for it and its kin, and kill what stays."""
    # Processes in sessions of their own do not get the signal that the program gets.
    kin = child.kin | family(child.process.pid)
    with contextlib.suppress(ProcessLookupError):
        child.process.terminate()
    until = time.monotonic() + _PATIENCE_SECONDS
    # New children may appear while the old ones end, so the family is looked up again.
    while (child.process.poll() is None or _left(kin)) and time.monotonic() < until:
        kin |= family(child.process.pid)
        time.sleep(_POLL_SECONDS)
    for survivor in _left(kin):
        with contextlib.suppress(psutil.NoSuchProcess):
            # End only processes that were seen as this program's kin, by process and start time.
            survivor.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.process.wait(_PATIENCE_SECONDS)


def family(root: int) -> set[psutil.Process]:
    """A process and all its descendants; empty if it has ended."""
    try:
        process = psutil.Process(root)
        return {process, *process.children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()


def _left(kin: set[psutil.Process]) -> list[psutil.Process]:
    """Processes that have not ended.

    psutil compares start times, so that a process that got the number of an ended one is never killed.
    """
    alive = []
    for process in kin:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP (a closed terminal) end the block as Ctrl-C does; the process exits with 128 + number.

    A signal that is ignored, as SIGHUP under nohup, stays ignored.
    """

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    heard = [sig for sig in _SIGNALS if sig != signal.SIGINT and signal.getsignal(sig) != signal.SIG_IGN]
    with _handling(dict.fromkeys(heard, stop)):
        yield


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Ignore signals in a short block: a second Ctrl-C must not leave processes behind."""
    with _handling(dict.fromkeys(_SIGNALS, signal.SIG_IGN)):
        yield


@contextlib.contextmanager
def _handling(handlers: Mapping[signal.Signals, signal._HANDLER]) -> Iterator[None]:
    """Set signal handlers for a block; do nothing outside the main thread, as only that one may set any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on this port."""
    family_of, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family_of, kind, protocol) as probe:
        # As servers do: a port whose last connection has just closed counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError:
            return False
    return True


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something listens on this port."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False
