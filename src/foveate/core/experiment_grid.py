"""A grid of experiments: one cell per (condition, variant, seed), resumable, worked on by any number of processes.

A finished cell is a JSON file. A cell is locked while a process works on it, and the lock dies with its owner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.files import FolderLock, read_json, sweep, write_json_atomically

Work = Callable[["Cell"], dict[str, float]]


@dataclass(frozen=True, order=True)
class Cell:
    """One training of a grid."""

    # First, so that sorted cells finish every condition with one seed before the next seed begins.
    seed: int
    condition: str
    variant: str

    @property
    def name(self) -> str:
        return f"{self.condition}-{self.variant}-seed{self.seed}"


@dataclass(frozen=True)
class CellResult:
    """Measures of a finished cell by name, and the seconds that it took."""

    values: dict[str, float]
    seconds: float


class CellStore:
    """The finished cells of a grid in one folder.

    Args:
        identity: the settings that the values depend on, as JSON; cells of other settings are refused.

    Raises:
        UserError: the folder holds cells of other settings.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        saved = folder / "settings.json"
        if saved.is_file() and read_json(saved) != identity:
            raise UserError(
                f"{folder} holds cells of other settings (compare {saved}); choose another folder with --out"
            )
        # Processes started together may all write this file, which is safe: same content, atomic rename.
        if not saved.is_file():
            write_json_atomically(saved, identity)

    def path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.json"

    def done(self, cell: Cell) -> CellResult | None:
        """Read the result of a cell; None if it is not finished."""
        if not self.path(cell).is_file():
            return None
        stored = read_json(self.path(cell))
        return CellResult({str(k): float(v) for k, v in stored["values"].items()}, float(stored["seconds"]))

    def finish(self, cell: Cell, values: dict[str, float], seconds: float) -> None:
        """Write the result of a cell."""
        # Only the holder of the cell's lock gets here, so any temporary files were left by processes that died.
        sweep(self.path(cell))
        identity = {"condition": cell.condition, "variant": cell.variant, "seed": cell.seed}
        write_json_atomically(self.path(cell), {**identity, "values": values, "seconds": round(seconds, 2)})

    def work_folder(self, cell: Cell) -> Path:
        """Return the folder for checkpoints and other files of a cell while it is worked on."""
        return self.folder / "at-work" / cell.name


def run_cells(store: CellStore, cells: Sequence[Cell], work: Work, *, wait: bool = True) -> Iterator[Cell]:
    """Work on every unfinished cell that no other process works on; yield those finished here.

    Args:
        work: computes the measures of one cell.
        wait: wait for cells of other processes, and take over those that a dead process left.
    """
    while True:
        # Checked again in each round, because other processes finish cells in the meantime.
        missing = [cell for cell in cells if store.done(cell) is None]
        if not missing:
            return
        progressed = False
        for cell in missing:
            if _work_on(store, cell, work):
                progressed = True
                yield cell
        if not progressed and not wait:
            return
        if not progressed:
            # Other processes are at work on everything that is left; they may finish it or die.
            time.sleep(1.0)


def _work_on(store: CellStore, cell: Cell, work: Work) -> bool:
    """Finish a cell unless another process does; return whether it was finished here."""
    lock = FolderLock(store.work_folder(cell), purpose=f"cell {cell.name}")
    try:
        lock.__enter__()
    except UserError:  # locked by another process
        return False
    try:
        # Another process may have finished it between the list of missing cells and this lock.
        if store.done(cell) is not None:
            return False
        started = time.monotonic()
        values = work(cell)
        store.finish(cell, values, time.monotonic() - started)
        return True
    finally:
        lock.__exit__(None, None, None)
