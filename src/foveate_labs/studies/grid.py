"""The base of every study: a grid of cells (seed x condition x variant), each trained and measured on its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from foveate.core.errors import UserError
from foveate.core.experiment_grid import Cell
from foveate_labs.studies.study import Design, row_values

# Fields of a scale that only select cells. They are no part of a grid's identity, so that a run folder keeps its
# finished cells when more seeds, conditions or variants are asked for.
SELECTORS = ("seeds", "conditions", "variants")


class GridStudy:
    """A study; a module of `foveate_labs.studies` that has one as `STUDY` is found by its name.

    A subclass has a `design`, the scales `full` and `quick` (frozen dataclasses with a field `seeds`), its variants,
    and `measure`. Everything else has a default.

    Args:
        folder: run folder; what `prepare` makes and the finished cells lie in it.
        scale: how large the study is.
        datasets: optional data that were found, by key (see `find_datasets`).
        device: of the trainings; the recipe's choice by default.
        selected: variants that are to be trained; all by default. `prepare` may leave out what only others need.
    """

    design: ClassVar[Design]
    full: ClassVar[Any]
    quick: ClassVar[Any]
    variants: ClassVar[Sequence[str]] = ("all",)

    def __init__(
        self,
        folder: Path,
        scale: Any,
        datasets: Mapping[str, Path] | None = None,
        device: str | None = None,
        selected: Sequence[str] = (),
    ) -> None:
        self.folder, self.scale, self.datasets, self.device = folder, scale, datasets or {}, device
        self.selected = tuple(selected)

    @classmethod
    def cells(cls, scale: Any, *, seed: int, datasets: Collection[str]) -> list[Cell]:
        """List all cells, seed by seed: a study that is stopped early has whole seeds."""
        # A scale names conditions only where its quick form has fewer; any other runs the whole design.
        conditions = [
            condition
            for condition in getattr(scale, "conditions", None) or [entry.key for entry in cls.design.conditions]
            if cls.has_data(condition, datasets)
        ]
        return [
            Cell(number, condition, variant)
            for number in range(seed, seed + scale.seeds)
            for condition in conditions
            for variant in cls.variants_of(condition, scale)
        ]

    @classmethod
    def has_data(cls, condition: str, datasets: Collection[str]) -> bool:
        """Whether the data of a condition are available; optional data may be missing."""
        return True

    @classmethod
    def variants_of(cls, condition: str, scale: Any) -> Sequence[str]:
        """List the variants that are trained under a condition."""
        return list(cls.variants)

    @classmethod
    def identity(cls, scale: Any, *, datasets: Collection[str]) -> dict[str, Any]:
        """Return what the values of cells depend on besides their names; a folder of another identity is refused."""
        sizes = {name: value for name, value in asdict(scale).items() if name not in SELECTORS}
        return {"study": cls.design.name, **sizes, **cls.parameters(datasets)}

    @classmethod
    def parameters(cls, datasets: Collection[str]) -> dict[str, Any]:
        """Return the constants of the module that cells depend on, JSON-ready."""
        return {}

    @classmethod
    def find_datasets(cls, folders: Sequence[Path]) -> dict[str, Path]:
        """Find optional data in `folders` and where packages of the system put them.

        Raises:
            UserError: a folder holds nothing that the study reads.
        """
        if folders:
            raise UserError(f"--data {folders[0]}: the study '{cls.design.name}' uses no optional data; leave it out")
        return {}

    @classmethod
    def row_values(
        cls, finished: Mapping[Cell, Mapping[str, float]]
    ) -> dict[tuple[str, str], dict[int, dict[str, float]]]:
        """Map (condition, row) to seed to measure to value."""
        return row_values(cls.design.rows, finished.items())

    def prepare(self) -> None:
        """Make what all cells share; repeated, only what is missing."""

    def measure(self, cell: Cell) -> dict[str, float]:
        """Train and measure one cell."""
        raise NotImplementedError

    def further_tables(self) -> list[dict[str, Any]]:
        """Return tables for the page besides the grid: title, note, columns, lines of texts."""
        return []
