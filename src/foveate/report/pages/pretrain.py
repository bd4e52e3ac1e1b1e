"""The page of one training run: curves, samples after preprocessing, metrics, recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import parse_result
from foveate.pretrain.results import PretrainResult
from foveate.report import numbers, parts, words
from foveate.report.examples import example_groups
from foveate.report.page import Page, command_text
from foveate.report.simple import simple_page


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a training run."""
    r = parse_result(PretrainResult, result)
    rows = parts.read_metrics(run_folder, r.curves) if isinstance(r.curves, str) else r.curves
    seconds = sum(r.seconds.values()) if isinstance(r.seconds, dict) else r.seconds
    facts = [("Steps", numbers.count(r.steps)), ("Time", numbers.duration(seconds))]
    facts += [(f"Parameters, {words.plain(key)}", _parameter(value)) for key, value in r.parameters.items()]
    if r.frozen:
        facts.append(("Frozen part of the image tower", r.frozen))
    if r.model:
        facts.append(("Model folder", r.model))
    evaluation = r.evaluation
    return simple_page(
        r.title or str(r.recipe.get("name", "A training run")),
        eyebrow="Pretraining",
        facts=facts,
        charts=parts.curves({"this run": rows}, max_charts=8),
        charts_title="Training curves",
        groups=parts.table_groups(evaluation.table, evaluation.columns) if evaluation else [],
        columns=evaluation.columns if evaluation else [],
        interval_text=evaluation.interval if evaluation else "",
        samples=example_groups(r.samples),
        recipe=r.recipe,
        command=command_text(r.command),
    )


def _parameter(value: Any) -> str:
    return numbers.millions(value) if isinstance(value, int | float) else str(value)
