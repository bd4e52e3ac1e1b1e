"""A study whose trainings only count, in steps that are kept as a training keeps checkpoints; it logs what it does."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from foveate.core.experiment_grid import Cell
from foveate.core.files import write_json_atomically
from foveate_labs.studies.study import Condition, Design, GridStudy, Measure, Row

VARIANTS = ("ours", "theirs", "control")
STEPS = 5
DESIGN = Design(
    name="counted",
    title="Counted",
    question="Is every training counted once?",
    reference="ours",
    conditions=[Condition("true", "True", "")],
    rows=[Row(name, name, "", name) for name in VARIANTS],
    measures=[Measure("name", "Name")],
    claims=[],
)


@dataclass(frozen=True)
class Scale:
    seeds: int = 4


class Counted(GridStudy):
    design, full, quick = DESIGN, Scale(), Scale()
    variants = VARIANTS

    @classmethod
    def parameters(cls, datasets: Collection[str]) -> dict[str, Any]:
        return {"steps": STEPS}

    def measure(self, cell: Cell) -> dict[str, float]:
        self._log("begin", cell)
        kept = self.folder / "cells" / "at-work" / cell.name / "step.json"
        done = int(kept.read_text()) if kept.is_file() else 0
        for step in range(done, STEPS):
            time.sleep(0.002)
            write_json_atomically(kept, step + 1)
        self._log("end", cell)
        return {"name": (7 * cell.seed + len(cell.variant)) / 100}

    def _log(self, what: str, cell: Cell) -> None:
        """Appends a line in one write, so that lines of several processes never mix."""
        descriptor = os.open(self.folder / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{what} {cell.name}\n".encode())
        os.close(descriptor)


STUDY = Counted
