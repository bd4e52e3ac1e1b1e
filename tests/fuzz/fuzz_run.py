"""Hostile inputs, made from a seed and tried one after the other: no crash, no hang, no traceback.

    run(target, count=1000, seed=1, work=folder)             tries inputs 0 .. 999
    run(target, count=1, seed=1, first=417, work=folder)     tries input 417 again

An input passes where the code succeeds, refuses with a sentence (UserError), or quarantines and counts. It fails with
any other exception, after 10 s of processor time or 120 s on the clock, above 2 GiB of memory more than the process had
before, or where it changes something that the whole process shares.
"""

from __future__ import annotations

import contextlib
import csv
import faulthandler
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from foveate.core.errors import UserError, explain_os_error

CPU_SECONDS = 10.0
CLOCK_SECONDS = 120.0
MEMORY_KB = 2 * 2**20
_MOST_FAILURES = 8


@dataclass
class Trial:
    """One input: where its random choices come from, an empty folder of its own, and what it was."""

    random: random.Random
    folder: Path
    notes: list[str] = field(default_factory=list)

    def note(self, what: object) -> None:
        """Say what the input is, for the message of a failure."""
        self.notes.append(repr(what)[:600])


@dataclass(frozen=True)
class Target:
    """`attempt` makes one input and tries it; it returns a word for the outcome, and may raise UserError."""

    name: str
    attempt: Callable[[Trial], str]


class Hang(BaseException):
    """An input took too long; no `except Exception` may swallow it."""


def run(target: Target, *, count: int, seed: int, work: Path, first: int = 0) -> Counter[str]:
    """Try the inputs number `first` .. `first + count - 1`; gives the outcomes, raises AssertionError."""
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    began = time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    with _quiet_disk(), _watch():
        for number in range(first, first + count):
            failure = _try(target, number, seed, work, outcomes)
            if failure is not None:
                failures.append(failure)
                if len(failures) >= _MOST_FAILURES:
                    break
    told = ", ".join(f"{word} {times}" for word, times in outcomes.most_common())
    print(f"fuzz {target.name}: {sum(outcomes.values())} inputs, seed {seed}: {told}; {time.monotonic() - began:.1f} s")
    assert not failures, f"{len(failures)} failures\n\n" + "\n\n".join(failures)
    return outcomes


def _try(target: Target, number: int, seed: int, work: Path, outcomes: Counter[str]) -> str | None:
    folder = work / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (work / "current.txt").write_text(f"{target.name} seed {seed} input {number}\n", encoding="utf-8")
    trial = Trial(random.Random(f"{target.name}|{seed}|{number}"), folder)
    before = _shared_state()
    _reset_peak()
    had = _peak_kb()
    _arm()
    try:
        outcome = target.attempt(trial)
    except UserError as refusal:
        outcome = "refused" if str(refusal).strip() else "FAILED: a refusal without a sentence"
    except OSError as error:
        # The command line prints these as a sentence too.
        outcome = "refused by the system" if explain_os_error(error) else f"FAILED: {error!r:.300}\n{_where(error)}"
    except (Exception, Hang) as error:
        outcome = f"FAILED: {type(error).__name__}: {str(error)[:300]}\n{_where(error)}"
    finally:
        _disarm()
    changed = [name for name, value in _shared_state().items() if value != before[name]]
    peak = _peak_kb() - had
    if changed:
        outcome = f"FAILED: it changed {', '.join(changed)}"
    elif peak > MEMORY_KB:
        outcome = f"FAILED: {peak // 1024} MiB of memory"
    if not outcome.startswith("FAILED"):
        outcomes[outcome] += 1
        return None
    outcomes["FAILED"] += 1
    again = f"run(TARGETS[{target.name!r}], count=1, seed={seed}, first={number})"
    return f"{again}: {outcome}\ninput: {'; '.join(trial.notes) or '(none)'}\n{_listing(folder)}"


def _where(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)[-12:])[-3000:]


def _listing(folder: Path) -> str:
    lines = []
    for path in sorted(folder.rglob("*"))[:8]:
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):
                data = path.read_bytes()
                lines.append(f"  {path.relative_to(folder)!s:.80}: {len(data)} bytes, {data[:60]!r}")
    return "\n".join(lines)


def _shared_state() -> dict[str, object]:
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(legacy, dict)
    return {
        "Image.MAX_IMAGE_PIXELS": Image.MAX_IMAGE_PIXELS,
        "ImageFile.LOAD_TRUNCATED_IMAGES": ImageFile.LOAD_TRUNCATED_IMAGES,
        "the working folder": os.getcwd(),
        "csv's field size": csv.field_size_limit(),
        "the recursion limit": sys.getrecursionlimit(),
        "the digits of whole numbers": sys.get_int_max_str_digits(),
        "numpy's global random numbers": (legacy["state"]["pos"], int(legacy["state"]["key"][0])),
    }


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_kb() -> int:
    """The most memory since `_reset_peak`, in KiB; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


def _too_long(number: int, frame: object) -> None:
    limit = f"{CPU_SECONDS:g} s of processor time" if number == signal.SIGPROF else f"{CLOCK_SECONDS:g} s on the clock"
    raise Hang(f"more than {limit}")


def _arm() -> None:
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, CLOCK_SECONDS)
    # Where compiled code hangs no exception reaches it: say where, and end.
    faulthandler.dump_traceback_later(2 * CLOCK_SECONDS, exit=True, file=sys.__stderr__)


def _disarm() -> None:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def _watch() -> Iterator[None]:
    """The two clocks; whoever used them before (the test runner's own limit) gets them back."""
    began = time.monotonic()
    handlers = {one: signal.signal(one, _too_long) for one in (signal.SIGPROF, signal.SIGALRM)}
    left, every = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        _disarm()
        for one, handler in handlers.items():
            signal.signal(one, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(1.0, left - (time.monotonic() - began)), every)


@contextlib.contextmanager
def _quiet_disk() -> Iterator[None]:
    """No progress, and no waiting for the disk: that files last is the subject of other tests."""
    from foveate.core import progress

    fsync, quiet = os.fsync, progress._quiet
    os.fsync = lambda descriptor: None
    progress.configure(quiet=True)
    try:
        yield
    finally:
        os.fsync = fsync
        progress.configure(quiet=quiet)
