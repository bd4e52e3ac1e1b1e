"""Progress on standard error: a bar on a terminal, plain lines elsewhere, nothing when told to be quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_quiet = False
_LINE_SECONDS = 10.0


def configure(*, quiet: bool) -> None:
    """Turns the messages of this process off or on."""
    global _quiet
    _quiet = quiet


def say(message: str) -> None:
    """One line to the user, on standard error."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


def track(items: Iterable[T], *, description: str, total: int | None = None) -> Iterator[T]:
    """Yields `items` and shows how far it is. `total` is taken from `len(items)` when it has one."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if _quiet:
        yield from items
    elif sys.stderr.isatty():
        yield from _bar(items, description, total)
    else:
        yield from _lines(items, description, total)


def _bar(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as progress:
        yield from progress.track(items, total=total, description=description)


def _lines(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    of = f" of {total}" if total is not None else ""
    told = time.monotonic()
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - told > _LINE_SECONDS:
            told = time.monotonic()
            say(f"{description}: {done}{of}")
    say(f"{description}: {done}{of}, finished")
