"""Draw scenes in several processes, in order."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Position = TypeVar("Position")
Drawn = TypeVar("Drawn")


def draw_in_processes(
    draw: Callable[[Position], Drawn], positions: Sequence[Position], *, workers: int
) -> Iterator[Drawn]:
    """Yield `draw(position)` in the order of `positions`, whichever process draws it."""
    # For a few scenes, starting the processes would take longer than the drawing.
    if workers == 1 or len(positions) < 64:
        yield from map(draw, positions)
        return
    # Spawn, not fork: a fork of a process with threads may deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=workers, mp_context=context) as pool:
        yield from pool.map(draw, positions, chunksize=16)
