"""Long work as a table of cells, one (condition, variant, seed) each: finished ones are files, stopped work goes on.

Several processes may work on one table: a cell is locked while it is worked on, and a lock dies with its owner.
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
    """One training: what it is called and which seed it has."""

    seed: int
    condition: str
    variant: str

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.condition}-{self.variant}-seed{self.seed}"


@dataclass(frozen=True)
class Done:
    """What a finished cell left: measures by name, and the seconds that it took."""

    values: dict[str, float]
    seconds: float


class CellStore:
    """The finished cells of a table in a folder, for the settings that `identity` names.

    Raises:
        UserError: when the folder holds cells of other settings.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        saved = folder / "settings.json"
        if saved.is_file() and read_json(saved) != identity:
            raise UserError(
                f"{folder}: holds cells of other settings (compare {saved}); give another folder with --run"
            )
        if not saved.is_file():
            write_json_atomically(saved, identity)

    def path(self, cell: Cell) -> Path:
        """Where the finished cell is."""
        return self.folder / f"{cell.name}.json"

    def done(self, cell: Cell) -> Done | None:
        """The finished cell, or None."""
        if not self.path(cell).is_file():
            return None
        stored = read_json(self.path(cell))
        return Done({str(k): float(v) for k, v in stored["values"].items()}, float(stored["seconds"]))

    def finish(self, cell: Cell, values: dict[str, float], seconds: float) -> None:
        """Writes the cell's file."""
        sweep(self.path(cell))
        about = {"condition": cell.condition, "variant": cell.variant, "seed": cell.seed}
        write_json_atomically(self.path(cell), {**about, "values": values, "seconds": round(seconds, 2)})

    def work_folder(self, cell: Cell) -> Path:
        """Where a cell may keep what it needs while it is worked on."""
        return self.folder / "at-work" / cell.name


def run_cells(store: CellStore, cells: Sequence[Cell], work: Work, *, wait: bool = True) -> Iterator[Cell]:
    """Works on all cells that are not finished and that nobody else works on; yields each that it finished.

    Args:
        wait: wait for those that others work on, and take over what they leave.
    """
    while True:
        missing = [cell for cell in cells if store.done(cell) is None]
        if not missing:
            return
        worked = False
        for cell in missing:
            if _work_on(store, cell, work):
                worked = True
                yield cell
        if not worked and not wait:
            return
        if not worked:
            time.sleep(1.0)


def _work_on(store: CellStore, cell: Cell, work: Work) -> bool:
    """Whether the cell was free, was still missing, and is finished now."""
    lock = FolderLock(store.work_folder(cell), purpose=f"cell {cell.name}")
    try:
        lock.__enter__()
    except UserError:  # somebody else works on it
        return False
    try:
        if store.done(cell) is not None:
            return False
        started = time.monotonic()
        values = work(cell)
        store.finish(cell, values, time.monotonic() - started)
        return True
    finally:
        lock.__exit__(None, None, None)
