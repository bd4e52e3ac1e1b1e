"""The page of a calibration (what fine-tuning damaged, the gammas, the curve), and what the tour shows of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foveate.core.results import GAMMA_TITLES, CalibrateResult, ResultModel, parse_result
from foveate.report import numbers
from foveate.report.blocks import Block, Charts, Chips, Facts, Fold, Notes, Section, Table, Text, block_page
from foveate.report.charts import Mark, Series, line_chart, plot, tradeoff_chart
from foveate.report.numbers import decimal, signed
from foveate.report.page import Page

COLUMNS = (
    ("Y/Y", "all samples, all classes"),
    ("S/Y", "samples of seen classes, all classes as answers"),
    ("U/Y", "samples of absent classes, all classes as answers: what fine-tuning breaks and gamma repairs"),
    ("S/S", "samples of seen classes, only seen classes as answers"),
    ("U/U", "samples of absent classes, only absent classes as answers: does not depend on gamma"),
)
NCM = (("Y/Y", "nearest class mean of the features, without the head"), ("U/U", "the same among absent classes"))
CURVE_TITLES = {"before": "pre-trained", "after": "fine-tuned"}
VERDICTS = {"level": "the level is off", "damaged": "features damaged", "nothing": "nothing to repair", "unknown": ""}


def table(r: CalibrateResult) -> Table:
    """Build the table of the models' accuracies."""
    columns = [*COLUMNS, *([("R/Y", "samples of the other classes, all classes as answers")] if r.classes.rest else [])]
    ncm = NCM if any(row.ncm for row in r.rows) else ()
    heads = [*columns, ("AUSUC", "area under the curve of U/Y against S/Y, 0 to 1: does not depend on gamma")]
    heads += [(f"NCM {name}", what) for name, what in ncm]
    rows = [
        [
            row.title,
            signed(row.gamma),
            *(decimal(row.accuracies.get(name), 1) for name, _ in columns),
            decimal(row.ausuc, 3),
            *(decimal(row.ncm.get(name), 1) for name, _ in ncm),
        ]
        for row in r.rows
    ]
    note = (
        "gamma* was chosen with the labels of these very samples: it peeks, and only shows how much there was to gain."
    )
    return Table(["Model", "gamma", *(name for name, _ in heads)], rows, note=note, meanings=heads, printed=True)


def charts(r: CalibrateResult) -> list[Markup]:
    """Draw the trade-off, and the three accuracies over gamma of the fine-tuned model."""
    if not r.curves:
        return []
    series = [
        # From the largest gamma down, so that accuracy on seen classes rises.
        Series(CURVE_TITLES.get(key, key), [(seen, absent) for _, seen, absent, _ in points[::-1]], int(key == "after"))
        for key, points in r.curves.items()
    ]
    marks = [
        Mark(row.title, row.accuracies["S/Y"] or 0.0, row.accuracies["U/Y"] or 0.0, 0 if row.key == "before" else 1)
        for row in r.rows
        if row.accuracies.get("S/Y") is not None and row.accuracies.get("U/Y") is not None
    ]
    title = "Absent against seen classes, U/Y (%), as gamma grows"
    drawn = [plot(title, tradeoff_chart(series, marks, title=title))]
    after = r.curves.get("after", [])
    if after:
        names = (("seen", 1, 0), ("absent", 2, 1), ("all", 3, 2))
        by_gamma = [Series(name, [(point[0], point[index]) for point in after], style) for name, index, style in names]
        title = "Accuracy of the fine-tuned model by gamma: S/Y, U/Y, Y/Y (%)"
        # Without end values: the largest gamma is none that anyone would use.
        chart = line_chart(by_gamma, title=title, x_label="gamma", from_zero=True, height=330, end_values=False)
        drawn.append(plot(title, chart))
    return drawn


class AnswersOfModels(ResultModel):
    before: str
    after: str
    calibrated: str


class CalibrateExample(ResultModel):
    image: str
    title: str = ""
    group: str
    label: str
    answers: AnswersOfModels


class CalibrateTrained(ResultModel):
    pretrained: int
    tuned: int
    classes: int


class CalibrateChanges(ResultModel):
    samples: int
    changed: int
    righted: int
    spoiled: int


class TourCalibration(CalibrateResult):
    """The tour's calibration: a result with what was trained, what gamma changed, and images with their answers."""

    trained: CalibrateTrained
    changes: dict[str, CalibrateChanges] = {}
    examples: list[CalibrateExample] = []


ANSWERS = {"before": "pre-trained", "after": "fine-tuned", "calibrated": "calibrated"}


def _head(r: CalibrateResult) -> tuple[str, Markup]:
    """Return the title and the heading: what calibration gives back where it was measured, else gamma alone."""
    rows = {row.key: row.accuracies.get("U/Y") for row in r.rows}
    before, after = rows.get("after"), rows.get(r.method)
    if before is None or after is None:
        return f"Calibrated: gamma {signed(r.gamma)}", Markup("gamma <em>{}</em>").format(signed(r.gamma))
    found = f"Absent classes: {before:.0f} % to {after:.0f} % right"
    return found, Markup("Absent classes: {} % → <em>{} %</em> right").format(f"{before:.0f}", f"{after:.0f}")


def build_calibrate(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a calibration's result.json (`CalibrateResult`)."""
    r = parse_result(CalibrateResult, result)
    facts = [
        ("gamma", signed(r.gamma)),
        ("found by", GAMMA_TITLES.get(r.method, r.method)),
        ("Verdict", VERDICTS.get(r.verdict, "")),
    ]
    facts += [("Seen classes", numbers.count(len(r.classes.seen))), ("Absent", numbers.count(len(r.classes.absent)))]
    facts += [("Other classes", numbers.count(r.classes.rest))] if r.classes.rest else []
    facts += [("Test samples", numbers.count(r.samples))] if r.samples else []
    groups = {"S": "Seen classes", "U": "Absent classes"}
    how: list[Block] = []
    if r.reason:
        how.append(Notes([f"{GAMMA_TITLES.get(r.method, r.method)} was used: {r.reason}."]))
    gammas = [
        [
            GAMMA_TITLES.get(name, name),
            signed(estimate.gamma),
            ", ".join("not feasible" if value is None else signed(value) for value in estimate.each),
            decimal(estimate.spread),
        ]
        for name, estimate in r.gammas.items()
    ]
    how.append(Table(["Method", "gamma", "Each run", "Spread"], gammas, left=(2,), printed=True))
    quartiles = ("mean", "lower_quartile", "median", "upper_quartile")
    gaps = [
        [groups[letter], *(signed(gap[name]) for name in quartiles)]
        for letter, gap in r.gaps.items()
        if gap is not None
    ]
    if gaps:
        heads = ["Samples of", "Mean", "Lower quartile", "Median", "Upper quartile"]
        how.append(Table(heads, gaps, title="Best other logit minus best absent logit"))
    rows = [
        [
            groups[letter],
            *(decimal(value, 3) for value in (head.norm_before, head.norm_after, head.update_norm)),
            "–" if head.update_cosine is None else signed(head.update_cosine),
        ]
        for letter, head in r.head.items()
        if head is not None
    ]
    if rows:
        heads = ["Rows of", "Length before", "after", "Length of the change", "Cosine between changes"]
        how.append(Table(heads, rows, title="Rows of the head"))
    drawings = charts(r)
    title, heading = _head(r)
    return block_page(
        title,
        eyebrow="Calibration",
        heading=heading,
        top=[
            *([Text(r.harm, "strong")] if r.harm else []),
            Text(r.sentence),
            Facts(facts),
            Notes([f"{note}." for note in r.notes]),
        ],
        sections=[
            Section(
                "numbers",
                "What fine-tuning did",
                [table(r)] if r.rows else [],
                "Percent, but for AUSUC. gamma is added to the logits of the absent classes.",
                "Numbers",
            ),
            Section(
                "curve",
                "The curve",
                [Charts(drawings)] if drawings else [],
                "Every gamma is one point. Fine-tuning that leaves the features whole moves the curve outwards, and "
                "the model along it.",
                "Curve",
            ),
            Section(
                "gamma",
                "Where gamma comes from",
                how,
                "gamma belongs to the scale of this checkpoint’s logits: do not carry it to another one.",
                "Gamma",
            ),
            Section(
                "classes",
                "Classes",
                [
                    Fold(f"{len(names)} {what}", [Chips(names)])
                    for what, names in (("seen", r.classes.seen), ("absent", r.classes.absent))
                ],
            ),
        ],
        command=r.command,
    )


PAGES: Mapping[str, Callable[[Mapping[str, Any], Path], Page]] = {"calibrate": build_calibrate}
