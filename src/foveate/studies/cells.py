"""How long a study will take, said once its first cell is finished."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.core.cells import Cell, CellStore, Work, run_cells
from foveate.core.progress import say


def announce(store: CellStore, cells: Sequence[Cell], work: Work, *, workers: int) -> None:
    """Works on the first missing cell, times it, and says how long the rest will take."""
    missing = [cell for cell in cells if store.done(cell) is None]
    if not missing:
        say(f"all {len(cells)} trainings are finished")
        return
    for cell in run_cells(store, missing[:1], work, wait=False):
        done = store.done(cell)
        assert done is not None
        rest = (len(missing) - 1) * done.seconds / workers
        say(
            f"first of {len(missing)} trainings: {done.seconds:.0f} s; the other {len(missing) - 1} will take about "
            f"{rest / 3600:.1f} h ({rest / 60:.0f} min) with {workers} workers. It can be stopped and goes on."
        )
