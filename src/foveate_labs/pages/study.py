"""The pages of a study and of all studies: claims with their verdicts, values with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foveate.core.results import Value, parse_result
from foveate.report import numbers
from foveate.report.blocks import Block, Charts, Drawn, Facts, Fold, Notes, Section, Table, Text, block_page
from foveate.report.charts import ForestRow, difference_bar, forest, plot
from foveate.report.page import Page, draw
from foveate_labs.studies.results import (
    PaperLine,
    StudiesResult,
    StudyClaim,
    StudyLine,
    StudyResult,
)

REACH = 0.5  # of the bars of differences
FIRST = 4  # measures whose charts are open
_draw = partial(draw, template="study.html.j2")


def signed(value: float) -> str:
    """Format `+0.123` with a true minus sign."""
    return f"{value:+.3f}".replace("-", "−")


def claim_line(claim: StudyClaim) -> dict[str, Any]:
    """Prepare a claim for the template: difference as text and as a bar."""
    mean = claim.difference
    span = "" if mean.low is None or mean.high is None else f"{signed(mean.low)} to {signed(mean.high)}"
    return {
        "claim": claim,
        "value": signed(mean.value),
        "span": span,
        "bar": difference_bar(mean.value, mean.low, mean.high, margin=claim.margin, reach=REACH),
    }


def charts(r: StudyResult, condition: str) -> list[Markup]:
    """Draw a forest chart of every measure of a condition that at least two rows have."""
    entries = [
        (row, entry) for row in r.rows for entry in r.table if (entry.condition, entry.row) == (condition, row.key)
    ]
    figures = []
    for measure in r.measures:
        rows = [
            ForestRow(row.title, value.value, value.low, value.high, row.role)
            for row, entry in entries
            if (value := entry.values.get(measure.key)) is not None
        ]
        # A line at the reference's mean through all rows shows differences without the table.
        line = next((forest_row.value for forest_row in rows if forest_row.style == "reference"), None)
        # A single dot compares nothing.
        if len(rows) > 1:
            figures.append(plot(measure.title, forest(rows, title=measure.title, line=line)))
    return figures


def number_lines(r: StudyResult, condition: str) -> list[list[str]]:
    """Return rows of the plain table: mean and half of the interval for every measure."""
    by_row = {entry.row: entry for entry in r.table if entry.condition == condition}
    return [
        [
            row.title,
            *(mean_and_half(by_row[row.key].values.get(measure.key), seeds=len(r.seeds)) for measure in r.measures),
        ]
        for row in r.rows
        if row.key in by_row
    ]


def mean_and_half(value: Value | None, *, seeds: int) -> str:
    """Format `0.466 ± 0.041`, with n where it has fewer seeds than the study; a dash where not measured."""
    if value is None:
        return "–"
    # A mean over fewer seeds than the others must be marked as such.
    fewer = "" if value.n in (None, seeds) else f" (n {value.n})"
    if value.low is None or value.high is None:
        return f"{value.value:.3f}{fewer}".replace("-", "−")
    return f"{value.value:.3f} ± {(value.high - value.low) / 2:.3f}{fewer}".replace("-", "−")


def tally(claims: Sequence[StudyClaim]) -> list[tuple[str, int]]:
    """Count the verdicts."""
    return [(name, sum(claim.verdict == name for claim in claims)) for name in ("shown", "not shown", "opposite")]


def build_study(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a `StudyResult`."""
    r = parse_result(StudyResult, result)
    claimed, numbered = list[Block](), list[Block]()
    for condition in r.conditions:
        lines = [(claim.asserted, claim_line(claim)) for claim in r.claims if claim.condition == condition.key]
        asserted, others = ([line for holds, line in lines if holds is verdict] for verdict in (True, False))
        if lines:
            claimed.append(Drawn(_draw("condition", {"condition": condition, "asserted": asserted, "open": others})))
        figures = charts(r, condition.key)
        numbered.append(Charts(figures[:FIRST], title=condition.title))
        if more := figures[FIRST:]:
            numbered.append(Fold(f"{len(more)} more measures", [Charts(more)]))
        heads = ["Variant", *(measure.title for measure in r.measures)]
        numbered.append(Fold("All numbers", [Table(heads, number_lines(r, condition.key))]))
    names = {"train_scenes": "Training scenes", "test_scenes": "Test scenes", "steps": "Steps", "batch_size": "Batch"}
    # The page of an unfinished study would otherwise look finished.
    unfinished = f" of {numbers.count(r.planned)}, the others are to come" if r.planned > r.trainings else ""
    trainings = f"{numbers.count(r.trainings)}{unfinished}"
    facts = [("Seeds", str(len(r.seeds))), ("Trainings", trainings)]
    known = {name: value for name, value in r.scale.items() if isinstance(value, int)}
    facts += [(title, numbers.count(known[name])) for name, title in names.items() if name in known]
    facts.append(("Time in the trainings, processes added up", numbers.duration(r.seconds.get("trainings"))))
    facts += [("Foveate", r.version), ("PyTorch", r.machine.torch)]
    data = [
        f"{source.name}: {'used' if source.used else f'not installed (package {source.package}), so not measured'}."
        for source in r.optional_data
    ]
    variants = [row for row in r.rows if any(entry.row == row.key for entry in r.table)]
    return block_page(
        r.title,
        eyebrow="Study",
        top=[Text(r.question), Facts(facts), Drawn(_draw("tally", tally(r.claims))), Text(" ".join(data), "note real")],
        sections=[
            Section(
                "claims",
                "Claims",
                claimed,
                "Shown: the whole 95 % interval of the differences, paired by seed, lies beyond what is claimed. "
                "Opposite: it lies on the other side. Otherwise not shown.",
            ),
            Section(
                "numbers",
                "Numbers",
                numbered,
                "Mean over seeds and 95 % t-interval. The line through all rows is the reference.",
            ),
            *(
                Section(f"table-{number}", table.title, [Table(table.columns, table.lines)], table.note)
                for number, table in enumerate(r.further_tables, start=1)
            ),
            Section(
                "variants",
                "Variants",
                [Drawn(draw("columns_list", variants))],
                "All share their data; one thing differs from the reference.",
            ),
            Section("limits", "What this does not show", [Notes(r.limits)], link="Limits"),
        ],
        command=r.command,
    )


# The page over all studies: what the papers state, what was found, and whether it is shown.


VERDICTS = ("shown", "not shown", "opposite")
UNTESTABLE = "not testable here"


def build_studies(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a `StudiesResult`."""
    r = parse_result(StudiesResult, result)
    lines = {study.study: [_line(line) for line in r.lines if line.study == study.study] for study in r.studies}
    unanimous = [line["tag"] for of_study in lines.values() for line in of_study]
    tally = [(name, unanimous.count(name)) for name in (*VERDICTS, "mixed", UNTESTABLE)]
    facts = [
        ("Studies", numbers.count(len(r.studies))),
        ("Trainings", numbers.count(sum(study.trainings for study in r.studies))),
        ("Claims of papers", numbers.count(len(r.lines))),
        ("Checks that must hold", f"{sum(s.held for s in r.studies)} of {sum(s.must_hold for s in r.studies)} shown"),
    ]
    lead = (
        "Each study trains the variants of a method with several seeds on built-in data. Shown: the whole 95\u00a0% "
        "interval of the differences lies beyond what is claimed. Opposite: it lies on the other side. Otherwise not "
        "shown, which refutes nothing at this scale."
    )
    missing = [Text(f"Without results so far: {', '.join(r.missing)}.", "note")] if r.missing else []
    return block_page(
        r.title,
        eyebrow="Studies",
        top=[Text(lead), Facts(facts), Drawn(_draw("tally", tally)), *missing],
        sections=[
            Section(
                study.study,
                study.title,
                [Text(_origin(study), "note"), Drawn(_draw("papers", lines[study.study]))],
                study.question,
                study.study,
            )
            for study in r.studies
        ],
        command=r.command,
    )


def _origin(study: StudyLine) -> Markup:
    held = f"; {study.held} of {study.must_hold} checks that must hold are shown" if study.must_hold else ""
    text = f"{study.seeds} seeds, {study.trainings:,} of {study.planned:,} trainings{held}."
    return Markup("{} <code>{}</code>").format(text, study.command)


def _line(line: PaperLine) -> dict[str, Any]:
    """Return a line with its verdict for a tag, counted where sets of data differ."""
    counts = [(name, line.verdicts[name]) for name in VERDICTS if line.verdicts.get(name)]
    if line.untestable:
        tag = UNTESTABLE
    else:
        # Sets of data that disagree have no common verdict.
        tag = counts[0][0] if len(counts) == 1 else "mixed"
    detail = ", ".join(f"{name} {count}" for name, count in counts) if len(counts) > 1 else ""
    return {"line": line, "tag": tag, "detail": detail, "differences": line.difference.split("; ")}


PAGES = {"study": build_study, "studies": build_studies}
