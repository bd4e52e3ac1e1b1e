"""Parts of a study, and how finished cells become means over seeds, paired differences and judged claims."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from foveate.core.errors import UserError
from foveate.core.experiment_grid import Cell
from foveate.metrics.intervals import seed_interval

Values = Mapping[tuple[str, str], Mapping[int, Mapping[str, float]]]  # (condition, row) -> seed -> measure -> value


@dataclass(frozen=True)
class Measure:
    """A measure: its key in a cell and its title.

    control: should be low or is a cost; no claim of quality is made with it.
    """

    key: str
    title: str
    control: bool = False


@dataclass(frozen=True)
class Row:
    """A row of the study's table.

    trained_as: the variant whose cells it reads.
    prefix: of its measures in these cells, where one training is asked in several ways.
    what: the one thing that differs from the reference.
    """

    key: str
    title: str
    what: str
    # Several rows may read one training: asking a model in another way costs no second training.
    trained_as: str
    prefix: str = ""
    role: Literal["reference", "variant", "baseline", "control"] = "variant"


@dataclass(frozen=True)
class Claim:
    """A statement that is judged by an interval of paired differences.

    It compares `measure` of row `better` with `measure` of row `worse` (or with `worse_measure`, another measure of
    the same rows' cells) in one condition: shown when the whole interval of the paired differences lies above
    `margin`, opposite when it lies below `margin` and below 0 (or below the margin, where that is negative), else not
    shown.

    asserted: the method fails without it; others are claims of the paper at another scale, published either way.
    """

    text: str
    condition: str
    measure: str
    better: str
    worse: str
    # A margin below 0 claims "not worse by more than" its size.
    margin: float = 0.0
    worse_measure: str = ""
    asserted: bool = False
    source: str = ""


@dataclass(frozen=True)
class Condition:
    """A kind of data that all variants are trained and tested on."""

    key: str
    title: str
    what: str


@dataclass(frozen=True)
class OptionalData:
    """A data set that is used where it is installed."""

    key: str
    title: str
    package: str


@dataclass(frozen=True)
class PaperClaim:
    """A statement of a paper, and the claim of the study that tests it, in every condition that has it.

    control: the claim that would fail if the effect had another cause.
    untestable: why it cannot be tested here, where there is no claim.
    """

    text: str
    claim: str = ""
    control: str = ""
    untestable: str = ""


@dataclass(frozen=True)
class Design:
    """Rows, conditions, measures and claims of a study; `reference` is the row that others are compared with.

    headline: (condition, measure) of the columns of the page's table; by default the first measure of all conditions.
    headline_rows: rows of that table; by default all.
    """

    name: str
    title: str
    question: str
    reference: str
    conditions: Sequence[Condition]
    rows: Sequence[Row]
    measures: Sequence[Measure]
    claims: Sequence[Claim]
    limits: Sequence[str] = field(default_factory=tuple)
    paper_claims: Sequence[PaperClaim] = ()
    headline: Sequence[tuple[str, str]] = ()
    headline_rows: Sequence[str] = ()
    optional_data: Sequence[OptionalData] = field(default_factory=tuple)


def row_values(
    rows: Sequence[Row], done: Iterable[tuple[Cell, Mapping[str, float]]]
) -> dict[tuple[str, str], dict[int, dict[str, float]]]:
    """Map (condition, row) to seed to measure to value.

    A row takes the measures with its prefix; a row without one takes those that have none.
    """
    by_row: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for cell, values in done:
        for row in rows:
            if row.trained_as != cell.variant:
                continue
            measured = {
                name.removeprefix(row.prefix): value
                for name, value in values.items()
                if name.startswith(row.prefix) and (row.prefix or "/" not in name)
            }
            # A cell has not the measures of every row that reads it: some are asked in one condition alone.
            if measured:
                by_row.setdefault((cell.condition, row.key), {})[cell.seed] = measured
    return by_row


def interval_of(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean and t-interval over seeds, JSON-ready."""
    return seed_interval(list(values)).to_value().to_json()


def verdict(low: float | None, high: float | None, *, margin: float) -> str:
    """Judge an interval of differences as "shown", "opposite" or "not shown".

    >>> verdict(0.02, 0.2, margin=0.0), verdict(-0.3, -0.1, margin=0.0), verdict(-0.1, 0.1, margin=0.0)
    ('shown', 'opposite', 'not shown')
    >>> verdict(0.02, 0.2, margin=0.15), verdict(0.02, 0.1, margin=0.15), verdict(-0.04, 0.02, margin=-0.05)
    ('not shown', 'not shown', 'shown')
    """
    # One seed has no interval, and so shows nothing.
    if low is None or high is None:
        return "not shown"
    if low > margin:
        return "shown"
    # With a negative margin ("not worse by more than"), a small loss is neither shown nor opposite.
    return "opposite" if high < min(margin, 0.0) else "not shown"


def _row_values(values: Values, condition: str, row: str, measure: str) -> dict[int, float]:
    by_seed = values.get((condition, row), {})
    return {seed: measured[measure] for seed, measured in by_seed.items() if measure in measured}


def judge(claim: Claim, values: Values) -> dict[str, Any] | None:
    """Return the claim with its difference and verdict, JSON-ready; None where a side was not measured."""
    ours = _row_values(values, claim.condition, claim.better, claim.measure)
    theirs = _row_values(values, claim.condition, claim.worse, claim.worse_measure or claim.measure)
    shared = sorted(set(ours) & set(theirs))
    if not shared:
        return None
    # Paired by seed: both sides share images, split and order, and what a seed is worth cancels out.
    difference = interval_of([ours[seed] - theirs[seed] for seed in shared])
    return {
        "text": claim.text,
        "condition": claim.condition,
        "measure": claim.measure,
        "better": claim.better,
        "worse": claim.worse,
        "margin": claim.margin,
        "asserted": claim.asserted,
        "source": claim.source,
        "difference": difference,
        "verdict": verdict(difference["low"], difference["high"], margin=claim.margin),
    }


def summary(design: Design, values: Values) -> dict[str, Any]:
    """Return the table, the paired differences to the reference and the judged claims, JSON-ready."""
    table = []
    for condition in design.conditions:
        for row in design.rows:
            if (condition.key, row.key) not in values:
                continue
            entry: dict[str, Any] = {"condition": condition.key, "row": row.key, "values": {}, "differences": {}}
            for measure in design.measures:
                values_of_row = _row_values(values, condition.key, row.key, measure.key)
                reference = _row_values(values, condition.key, design.reference, measure.key)
                shared = sorted(set(values_of_row) & set(reference))
                if values_of_row:
                    entry["values"][measure.key] = interval_of([values_of_row[seed] for seed in sorted(values_of_row)])
                if shared and row.key != design.reference:
                    entry["differences"][measure.key] = interval_of([values_of_row[s] - reference[s] for s in shared])
            table.append(entry)
    judged = [verdict_ for claim in design.claims if (verdict_ := judge(claim, values)) is not None]
    return {"table": table, "claims": judged}


# The base of every study: a grid of cells (seed x condition x variant), each trained and measured on its own.


# Fields of a scale that only select cells. They are no part of a grid's identity, so that a run folder keeps its
# finished cells when more seeds, conditions or variants are asked for.
SELECTORS = ("seeds", "conditions", "variants")


class GridStudy(ABC):
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

    def prepare(self) -> None:  # noqa: B027 - not every study has something to share
        """Make what all cells share; repeated, only what is missing."""

    @abstractmethod
    def measure(self, cell: Cell) -> dict[str, float]:
        """Train and measure one cell."""

    def further_tables(self) -> list[dict[str, Any]]:
        """Return tables for the page besides the grid: title, note, columns, lines of texts."""
        return []
