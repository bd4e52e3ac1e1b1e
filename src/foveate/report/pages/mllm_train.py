"""Page of `foveate mllm train`: stages, what they were trained on, and their curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import parse_result
from foveate.mllm.results import MllmResult
from foveate.report import numbers, parts
from foveate.report.page import Page, command_text


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a training's result.json (`MllmResult`)."""
    r = parse_result(MllmResult, result)
    facts = [
        (stage.name.capitalize(), f"{numbers.count(stage.steps)} steps, {numbers.duration(stage.seconds)}")
        for stage in r.stages
    ]
    facts += [
        ("Parameters", numbers.count(r.parameters)),
        ("Images", numbers.count(r.images)),
        ("Conversations", numbers.count(sum(r.conversations.values()))),
    ]
    if r.names:
        facts.append(("Names of regions", numbers.count(r.names)))
    runs = {stage.name: parts.read_metrics(run_folder, stage.curves) for stage in r.stages}
    context = {
        "eyebrow": "Train",
        "name": "A multimodal model",
        "facts": facts,
        "charts": parts.curves(runs, max_charts=8),
        "samples": [],
        "groups": [],
        "columns": [],
        "command": command_text(r.command),
    }
    return Page("mllm_run.html.j2", "A multimodal model", context)
