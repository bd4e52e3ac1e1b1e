"""Page of `foveate mllm evaluate`: answers with both controls, and the table of the suite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import parse_result
from foveate.mllm.results import SuiteResult, SuiteSample
from foveate.report import numbers, parts
from foveate.report.images import Overlay
from foveate.report.page import Page, command_text


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a suite's result.json (`SuiteResult`)."""
    r = parse_result(SuiteResult, result)
    facts = [
        ("Model", r.model),
        ("Questions", numbers.count(r.questions)),
        ("Images", numbers.count(r.images)),
        ("Split", r.split),
    ]
    if r.unreadable:
        facts.append(("Left out, unreadable or refused", numbers.count(r.unreadable)))
    if r.unfinished:
        facts.append(("Answers cut off", numbers.count(r.unfinished)))
    context = {
        "eyebrow": "Evaluate",
        "name": r.title,
        "facts": facts,
        "samples": r.samples,
        "overlays": [_overlays(sample) for sample in r.samples],
        "groups": parts.table_groups(r.table, r.columns),
        "columns": r.columns,
        "further": [
            (name.capitalize(), "none" if share is None else f"{share:.3g}")
            for name, share in r.further.get("image", {}).items()
        ],
        "charts": [],
        "command": command_text(r.command),
    }
    return Page("mllm_run.html.j2", r.title, context)


def _overlays(sample: SuiteSample) -> list[Overlay]:
    styles = ((sample.regions, "region"), (sample.true_boxes, "truth"), (sample.boxes, "default"))
    return [Overlay(box, style) for boxes, style in styles for box in boxes]
