"""A calibration's numbers and curves: what its own page and the tour's share."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from foveate.core.results import CalibrateResult, ResultModel
from foveate.report.charts import Mark, Series, line_chart, plot, tradeoff_chart
from foveate.report.numbers import signed as signed

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


def percent(value: float | None) -> str:
    """Format `49.5`, None as a dash."""
    return "–" if value is None else f"{value:.1f}"


def table(r: CalibrateResult) -> dict[str, Any]:
    """Build the heads of the table with their meaning, and its lines of cells."""
    with_ncm = any(row.ncm for row in r.rows)
    with_rest = r.classes.rest > 0
    columns = [*COLUMNS, *((("R/Y", "samples of the other classes, all classes as answers"),) if with_rest else ())]
    heads = [*columns, ("AUSUC", "area under the curve of U/Y against S/Y, 0 to 1: does not depend on gamma")]
    heads += [(f"NCM {name}", what) for name, what in NCM] if with_ncm else []
    lines = []
    for row in r.rows:
        cells = [percent(row.accuracies.get(name)) for name, _ in columns]
        # Not a percentage: the area has a scale of its own.
        cells.append("–" if row.ausuc is None else f"{row.ausuc:.3f}")
        if with_ncm:
            cells += [percent(row.ncm.get(name)) for name, _ in NCM]
        lines.append({"title": row.title, "gamma": signed(row.gamma), "cells": cells, "peeks": row.peeks})
    return {"heads": heads, "lines": lines}


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
