"""Parts of a study, and how finished cells become means over seeds, paired differences and judged claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

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
