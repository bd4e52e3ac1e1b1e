"""The page of models between a network and its tuned one: the curve over alpha, and what is recommended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foveate.core.results import ResultModel, Value, parse_result
from foveate.report import numbers
from foveate.report.charts import Series, line_chart, plot
from foveate.report.page import Page, command_text
from foveate.report.tradeoff import Mark, tradeoff_chart


class WiseSet(ResultModel):
    key: str
    title: str
    role: str
    n: int
    classes: int = 0
    left_out: int = 0
    unreadable: int = 0
    chance: float | None = None
    accuracy: list[Value]


class WiseRecommended(ResultModel):
    alpha: float
    rule: str
    standard_error: float | None = None


class WisePoint(ResultModel):
    alpha: float
    inside: float
    outside: float


class WiseResult(ResultModel):
    kind: str
    title: str = ""
    method: str = ""
    rule: str = ""
    head: str = ""
    alphas: list[float]
    sets: list[WiseSet]
    recommended: WiseRecommended
    peeking: dict[str, WisePoint] | None = None
    saved: dict[str, Any] | None = None
    command: str | list[str] | None = None


def percents(one: WiseSet) -> list[float]:
    """The curve in percent."""
    return [100 * value.value for value in one.accuracy]


def mean_of_shifted(r: WiseResult) -> list[float]:
    """The mean over shifted sets at each alpha; empty without any."""
    shifted = [percents(one) for one in r.sets if one.role == "shifted"]
    return [sum(values) / len(values) for values in zip(*shifted, strict=True)]


def charts(r: WiseResult) -> list[Markup]:
    """Accuracy by alpha, and shifted against own test images as alpha grows."""
    test = next((one for one in r.sets if one.role == "test"), None)
    validation = next((one for one in r.sets if one.role == "validation"), None)
    outside = mean_of_shifted(r)
    lines = []
    if test is not None:
        lines.append(Series("test", list(zip(r.alphas, percents(test), strict=True)), 1))
    if outside:
        lines.append(Series("shifted", list(zip(r.alphas, outside, strict=True)), 2))
    if validation is not None:
        lines.append(Series("validation", list(zip(r.alphas, percents(validation), strict=True)), 3))
    title = "Accuracy (%) from the network that came (0) to the tuned one (1)"
    drawn = [plot(title, line_chart(lines, title=title, x_label="alpha", height=330))]
    if test is not None and outside:
        inside = percents(test)
        place = r.alphas.index(r.recommended.alpha)
        marks = [Mark("alpha 0", inside[0], outside[0], 0), Mark("alpha 1", inside[-1], outside[-1], 0)]
        marks.append(Mark(f"recommended, {r.recommended.alpha:g}", inside[place], outside[place], 1))
        title = "Shifted against own test images (%), as alpha grows"
        series = [Series(r.method, list(zip(inside, outside, strict=True)), 1)]
        labels = ("accuracy on own test images (%)", "own", "shifted")
        drawn.append(plot(title, tradeoff_chart(series, marks, title=title, labels=labels)))
    return drawn


def lead(r: WiseResult) -> str:
    """The answer in one or two sentences."""
    place = r.alphas.index(r.recommended.alpha)
    said = []
    for one in r.sets:
        if one.role != "validation":
            before, after = one.accuracy[-1].value, one.accuracy[place].value
            said.append(f"{one.title} {numbers.percent(after)} (tuned alone {numbers.percent(before)})")
    return f"Recommended: alpha {r.recommended.alpha:g}. There: {'; '.join(said)}."


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """The page of a curve's result.json (`WiseResult`)."""
    r = parse_result(WiseResult, result)
    facts = [("Method", f"{r.method}: {r.rule}"), ("Head", r.head)]
    if r.saved:
        facts.append(("Written", f"the model at alpha {r.saved['alpha']:g}"))
    rows = [
        {
            "alpha": f"{alpha:g}",
            "recommended": alpha == r.recommended.alpha,
            "cells": [
                {
                    "value": numbers.percent(one.accuracy[place].value),
                    "span": numbers.interval(one.accuracy[place].low, one.accuracy[place].high),
                }
                for one in r.sets
            ],
        }
        for place, alpha in enumerate(r.alphas)
    ]
    titles = {"inside": "best on own test images", "outside": "best on shifted images"}
    context = {
        "r": r,
        "lead": lead(r),
        "facts": facts,
        "charts": charts(r),
        "rows": rows,
        "peeking": [(titles[key], point) for key, point in (r.peeking or {}).items() if key in titles],
        "command": command_text(r.command or ""),
    }
    return Page("adapt_wise.html.j2", r.title or "Between a network and its tuned one", context)
