"""Work that is killed: a server imports a module once and forks a process for each call.

So a start costs milliseconds instead of the seconds that imports take, and a kill falls into the work itself. Each call
is a process of its own with its own locks, threads and files; SIGKILL ends it as it ends any other.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

_SERVER = """
import importlib, json, os, sys, traceback
from pathlib import Path
module = importlib.import_module(sys.argv[1])
if sys.argv[2:]:
    module.prepare(*sys.argv[2:])
out = os.dup(1)
os.dup2(2, 1)  # what the work prints is for people

def tell(**what):
    os.write(out, (json.dumps(what) + "\\n").encode())

def deadly(function, die_at, moment):
    def call(*arguments, **options):
        global steps
        steps += 1
        number = steps
        if number == die_at and moment == "before":
            os._exit(9)
        try:
            return function(*arguments, **options)
        finally:
            if number == die_at:
                os._exit(9)
    return call

def work(name, arguments, die_at, moment):
    global steps
    steps = 0
    os.replace, os.unlink, Path.unlink = (deadly(one, die_at, moment) for one in (os.replace, os.unlink, Path.unlink))
    code = 1
    try:
        getattr(module, name)(*arguments)
        tell(steps=steps)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)

tell(ready=True)
for line in sys.stdin:
    process = os.fork()
    if not process:
        work(*json.loads(line))
    tell(process=process)
    tell(code=os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
"""
TESTS = Path(__file__).resolve().parent


class Work:
    """A call at work in a process of its own."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.process: int = server.read("process")

    def end(self) -> int:
        """Waits for it; its exit code, which is -9 after a kill."""
        return self._server.read("code")

    def finish(self) -> int:
        """Waits for it and asserts that it succeeded; how many files it replaced or deleted."""
        assert self.end() == 0
        return self._server.told.pop("steps")

    def kill(self, after: float) -> bool:
        """SIGKILL so many seconds from now; False where it had ended before."""
        time.sleep(after)
        try:
            os.kill(self.process, signal.SIGKILL)
        except ProcessLookupError:
            pass
        code = self.end()
        self._server.told.pop("steps", None)
        assert code in (0, -signal.SIGKILL)
        return code != 0


class Server:
    """Forks processes that call functions of one module, one after the other.

    Args:
        module: its name; it may lie in any folder of tests.
        prepare: what its function `prepare` is called with, once, before anything is forked; not called without.
    """

    def __init__(self, module: str, *prepare: object) -> None:
        if not hasattr(os, "fork"):
            pytest.skip("needs fork, which Windows lacks")
        folders = [TESTS, *TESTS.glob("*/"), *TESTS.glob("*/*/"), TESTS.parent / "src"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, folders))}
        self.told: dict[str, Any] = {}
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, module, *map(str, prepare)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.read("ready")

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)

    def start(self, name: str, *arguments: object, die_at: int = 0, moment: str = "") -> Work:
        """Begins a call of the function `name`.

        Args:
            arguments: paths, numbers, texts and lists of these.
            die_at, moment: ends the process at once "before" or "after" the n-th time that it replaces or deletes a
                file.
        """
        assert self._server.stdin is not None
        order = [name, [str(one) if isinstance(one, Path) else one for one in arguments], die_at, moment]
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return Work(self)

    def seconds(self, name: str, *arguments: object) -> float:
        """How long a call takes that nobody kills."""
        began = time.monotonic()
        self.start(name, *arguments).finish()
        return time.monotonic() - began

    def read(self, what: str) -> Any:
        """The next thing of that name which the server tells."""
        assert self._server.stdout is not None
        while what not in self.told:
            line = self._server.stdout.readline()
            assert line, "the server has ended"
            self.told |= json.loads(line)
        return self.told.pop(what)


def kill_at_random(start: Callable[[], Work], *, kills: int, longest: float, seed: int, after: Callable[[bool], None]):
    """Starts the same work again and again until it was killed `kills` times in its middle.

    Args:
        longest: seconds; moments are drawn between 0 and this.
        after: called after each attempt, with False where the work had ended before it could be killed.
    """
    moments = random.Random(seed)
    killed = 0
    while killed < kills:
        dead = start().kill(moments.uniform(0, longest))
        killed += dead
        after(dead)
