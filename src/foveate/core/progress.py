"""Progress on standard error: a bar on a terminal, plain lines elsewhere, nothing with --quiet."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar


def duration(seconds: float | None) -> str:
    """Format seconds for people.

    >>> duration(8.24), duration(417.3), duration(466_560), duration(None)
    ('8.2 s', '6 min 57 s', '5.4 days', '–')
    """
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 2 * 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{seconds / 86_400:,.3g} days"


T = TypeVar("T")
_quiet = False
_SECONDS_PER_LINE = 10.0  # rare enough for log files of long runs


def configure(*, quiet: bool) -> None:
    """Turn the messages of this process off or on."""
    global _quiet
    _quiet = quiet


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Suppress messages inside the block, for example of the parts of work that reports as a whole."""
    # The earlier state is restored, because the whole command may be quiet.
    before = _quiet
    configure(quiet=True)
    try:
        yield
    finally:
        configure(quiet=before)


def say(message: str) -> None:
    """Print one line to standard error, which leaves standard output to results."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


def track(items: Iterable[T], *, description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and show progress; `total` defaults to `len(items)` where it has a length.

    Nothing is shown where there is nothing to do, as in a run that is resumed after its end.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if _quiet or total == 0:
        yield from items
    # A bar redraws itself, which would become one endless line in a log file.
    elif sys.stderr.isatty():
        yield from _bar(items, description, total)
    else:
        yield from _lines(items, description, total)


class Meter:
    """Progress of work that is not one iterable: call `advance` for what is done, with an optional note."""

    def __init__(self, description: str, total: int) -> None:
        self._description, self._total, self._done, self._note = description, total, 0, ""
        self._last_line = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Meter:
        if not _quiet and sys.stderr.isatty():
            self._bar = _make_bar("{task.description}", note=True)
            self._task = self._bar.add_task(self._description, total=self._total, note="")
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not _quiet:
            self._print_line()

    def advance(self, count: int = 1, *, note: str | None = None) -> None:
        """Count `count` more as done; the note stays until it is replaced."""
        self._done += count
        self._note = self._note if note is None else note
        if self._bar is not None:
            self._bar.update(self._task, advance=count, note=self._note)
        elif not _quiet and time.monotonic() - self._last_line > _SECONDS_PER_LINE:
            self._last_line = time.monotonic()
            self._print_line()

    def _print_line(self) -> None:
        say(f"{self._description}: {self._done}/{self._total}" + (f"; {self._note}" if self._note else ""))


def _make_bar(text: str, *, note: bool = False) -> Any:
    # Imported here: rich takes longer to load than most commands that print no bar.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    if note:
        columns.append(TextColumn("{task.fields[note]}"))
    return Progress(*columns, console=Console(stderr=True), transient=False)


def _bar(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    with _make_bar("{task.description}") as progress:
        yield from progress.track(items, total=total, description=description)


def _lines(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    of_total = f"/{total}" if total is not None else ""
    last_line = time.monotonic()
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last_line > _SECONDS_PER_LINE:
            last_line = time.monotonic()
            say(f"{description}: {done}{of_total}")
    say(f"{description}: {done}{of_total}, finished")
