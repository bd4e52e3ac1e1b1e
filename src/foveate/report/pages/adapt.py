"""The page of one adaptation: what was trained, curves, accuracy on what was held out, recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import Evaluation, ResultModel, parse_result
from foveate.report import numbers, parts
from foveate.report.page import Page, command_text
from foveate.report.simple import simple_page

MOST_PLACES = 6


class AdaptResult(ResultModel):
    kind: str
    title: str = ""
    recipe: dict[str, Any] = {}
    command: str | list[str] | None = None
    data: str = ""
    classes: list[str] = []
    images: int = 0
    kept: str = ""
    steps: int | None = None
    seconds: float | None = None
    curves: str = "metrics.jsonl"
    parameters: dict[str, int] = {}
    places: list[str] = []
    evaluation: Evaluation | None = None


def _more(places: list[str]) -> str:
    return f" and {len(places) - MOST_PLACES} more" if len(places) > MOST_PLACES else ""


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """The page of an adaptation's result.json."""
    r = parse_result(AdaptResult, result)
    trained, whole = r.parameters.get("trained", 0), r.parameters.get("backbone", 0)
    facts = [
        ("Data", f"{r.data}: {numbers.count(r.images)} training images, {len(r.classes)} classes"),
        ("Trained in the backbone", f"{trained:,} of {whole:,} numbers ({trained / max(whole, 1):.2%})"),
        *([("Where", ", ".join(r.places[:MOST_PLACES]) + _more(r.places))] if r.places else []),
        ("Trained in the head", f"{r.parameters.get('head', 0):,} numbers"),
        ("Computed once", r.kept),
        ("Updates", numbers.count(r.steps)),
        ("Time", numbers.duration(r.seconds)),
    ]
    evaluation = r.evaluation or Evaluation()
    return simple_page(
        r.title or "An adapted model",
        eyebrow="Adaptation",
        lead="The last epoch's model, measured on images that took no part in training or in any choice.",
        facts=facts,
        charts=parts.curves({"this run": parts.read_metrics(run_folder, r.curves)}, max_charts=6),
        charts_title="How it learnt",
        groups=parts.table_groups(evaluation.table, evaluation.columns),
        columns=evaluation.columns,
        interval_text=evaluation.interval,
        recipe=r.recipe,
        command=command_text(r.command or ""),
    )
