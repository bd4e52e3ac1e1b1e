"""Page of models between a network and its tuned one: the curve over alpha and the recommendation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foveate.adapt.results import WiseResult, WiseSet
from foveate.core.results import parse_result
from foveate.report import numbers
from foveate.report.charts import Series, line_chart, plot
from foveate.report.page import Page, command_text
from foveate.report.tradeoff import Mark, tradeoff_chart


def percents(image_set: WiseSet) -> list[float]:
    """Return the curve in percent."""
    return [100 * value.value for value in image_set.accuracy]


def mean_of_shifted(r: WiseResult) -> list[float]:
    """Return the mean over shifted sets at each alpha; empty without any."""
    # Each set counts equally, whatever its size, so that a large one does not dominate the mean.
    shifted = [percents(image_set) for image_set in r.sets if image_set.role == "shifted"]
    return [sum(values) / len(values) for values in zip(*shifted, strict=True)]


def charts(r: WiseResult) -> list[Markup]:
    """Draw accuracy by alpha, and shifted against test images as alpha grows."""
    test = next((image_set for image_set in r.sets if image_set.role == "test"), None)
    validation = next((image_set for image_set in r.sets if image_set.role == "validation"), None)
    outside = mean_of_shifted(r)
    lines = []
    if test is not None:
        lines.append(Series("test", list(zip(r.alphas, percents(test), strict=True)), 1))
    if outside:
        lines.append(Series("shifted", list(zip(r.alphas, outside, strict=True)), 2))
    if validation is not None:
        lines.append(Series("validation", list(zip(r.alphas, percents(validation), strict=True)), 3))
    title = "Accuracy (%) from the original network (0) to the tuned one (1)"
    drawn = [plot(title, line_chart(lines, title=title, x_label="alpha", height=330))]
    if test is not None and outside:
        inside = percents(test)
        index = r.alphas.index(r.recommended.alpha)
        marks = [Mark("alpha 0", inside[0], outside[0], 0), Mark("alpha 1", inside[-1], outside[-1], 0)]
        marks.append(Mark(f"recommended, {r.recommended.alpha:g}", inside[index], outside[index], 1))
        title = "Shifted against own test images (%), as alpha grows"
        series = [Series(r.method, list(zip(inside, outside, strict=True)), 1)]
        labels = ("accuracy on own test images (%)", "own", "shifted")
        drawn.append(plot(title, tradeoff_chart(series, marks, title=title, labels=labels)))
    return drawn


def lead(r: WiseResult) -> str:
    """Return the recommendation in one or two sentences."""
    index = r.alphas.index(r.recommended.alpha)
    accuracies = []
    for image_set in r.sets:
        if image_set.role != "validation":
            tuned, recommended = image_set.accuracy[-1].value, image_set.accuracy[index].value
            accuracies.append(
                f"{image_set.title} {numbers.percent(recommended)} (tuned alone {numbers.percent(tuned)})"
            )
    return f"Recommended: alpha {r.recommended.alpha:g}. There: {'; '.join(accuracies)}."


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a curve's result.json (`WiseResult`)."""
    r = parse_result(WiseResult, result)
    facts = [("Method", f"{r.method}: {r.rule}"), ("Head", r.head)]
    if r.saved:
        facts.append(("Written", f"the model at alpha {r.saved.alpha:g}"))
    rows = [
        {
            "alpha": f"{alpha:g}",
            "recommended": alpha == r.recommended.alpha,
            "cells": [
                {
                    "value": numbers.percent(image_set.accuracy[index].value),
                    "span": numbers.interval(image_set.accuracy[index].low, image_set.accuracy[index].high),
                }
                for image_set in r.sets
            ],
        }
        for index, alpha in enumerate(r.alphas)
    ]
    titles = {"inside": "best on own test images", "outside": "best on shifted images"}
    context = {
        "r": r,
        "lead": lead(r),
        "facts": facts,
        "charts": charts(r),
        "rows": rows,
        # Chosen with test labels, so shown as what could have been reached, never as a result.
        "peeking": [(titles[key], point) for key, point in (r.peeking or {}).items() if key in titles],
        "command": command_text(r.command),
    }
    return Page("adapt_wise.html.j2", r.title or "Between a network and its tuned one", context)
