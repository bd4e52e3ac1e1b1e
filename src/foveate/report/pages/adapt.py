"""Page of one adapter: what was trained, curves, accuracy on held-out images, recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.adapt.results import AdaptResult, ProbeResult
from foveate.core.results import Evaluation, parse_result
from foveate.report import numbers, parts
from foveate.report.page import Page, command_text
from foveate.report.simple import simple_page

MAX_NAMES = 6


def _list_names(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _describe_probe(probe: ProbeResult) -> str:
    how = f"chosen by {probe.folds}-fold cross-validation" if probe.folds else "not cross-validated"
    return f"logistic regression, C {probe.C:g}, {how}"


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of an adapter's result.json (`AdaptResult`)."""
    r = parse_result(AdaptResult, result)
    counts = r.parameters
    share = counts.trained / max(counts.backbone, 1)
    facts = [
        ("Data", f"{r.data}: {numbers.count(r.images)} training images, {len(r.classes)} classes"),
        ("Trained in the backbone", f"{counts.trained:,} of {counts.backbone:,} parameters ({share:.2%})"),
        *([("Where", _list_names(r.matched))] if r.matched else []),
        ("Trained in the head", f"{counts.head:,} parameters"),
        ("Cached", r.cached),
        ("Steps", numbers.count(r.steps) if r.steps else "none: the head is solved"),
        *([("Linear probe", _describe_probe(r.probe))] if r.probe else []),
        ("Time", numbers.duration(r.seconds)),
    ]
    evaluation = r.evaluation or Evaluation()
    measured = "The last epoch's model, measured on images that took no part in training or in any selection."
    return simple_page(
        r.title or "An adapted model",
        eyebrow="Adaptation",
        lead=f"{r.loss[0].upper()}{r.loss[1:]}. {measured}" if r.loss else measured,
        facts=facts,
        charts=parts.curves({"this run": parts.read_metrics(run_folder, r.curves)}, max_charts=6) if r.curves else [],
        charts_title="Training curves",
        groups=parts.table_groups(evaluation.table, evaluation.columns),
        columns=evaluation.columns,
        interval_text=evaluation.interval,
        recipe=r.recipe,
        command=command_text(r.command),
    )
