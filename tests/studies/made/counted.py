"""A study whose trainings only count, in steps that are kept as a training keeps checkpoints; it logs what it does."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.core.cells import Cell
from foveate.core.files import write_json_atomically
from foveate.studies.study import Condition, Design, Measure, Row

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


FULL = QUICK = Scale()


def cells(scale: Scale, *, seed: int, extras: Any) -> list[Cell]:
    return [Cell(seed + number, "true", variant) for number in range(scale.seeds) for variant in VARIANTS]


def identity(scale: Scale, *, extras: Any) -> dict[str, Any]:
    return {"steps": STEPS}


@dataclass
class Work:
    folder: Path
    scale: Scale
    extras: Mapping[str, Path]
    device: str | None = None

    def prepare(self) -> None:
        """Nothing that trainings share."""

    def __call__(self, cell: Cell) -> dict[str, float]:
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
