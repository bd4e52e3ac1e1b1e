"""Page of a captioner: curves of its stages, obedience and accuracy, and held-out images with all captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.caption.small.results import CaptionerEvaluation, CaptionerResult
from foveate.core.results import parse_result
from foveate.report import numbers, parts
from foveate.report.page import Page, command_text

FORMATS = {"ssc": "Short", "dsc": "Descriptive", "dsc_plus": "Dense", "afc": "With the AltText"}
DATA = {"scenes": "Generated scenes", "images": "Real images"}


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a captioner's result.json, of a training or of an evaluation alone."""
    r = parse_result(CaptionerResult, result)
    evaluation = r.evaluation or CaptionerEvaluation()
    facts = [
        (name.capitalize(), f"{numbers.count(s.steps)} steps, {numbers.duration(s.seconds)}")
        for name, s in r.stages.items()
    ]
    if evaluation.obeys is not None:
        facts.append(("Every format obeyed by 95 %", "yes" if evaluation.obeys else "no"))
    if evaluation.lengths_rise is not None:
        facts.append(("Lengths rise, short to dense", "yes" if evaluation.lengths_rise else "no"))
    runs = {name: parts.read_metrics(run_folder, stage.curves) for name, stage in r.stages.items() if stage.curves}
    groups = [(title, [image for image in evaluation.samples if image.data == data]) for data, title in DATA.items()]
    context = {
        "facts": facts,
        "charts": parts.curves(runs, max_charts=6) if runs else [],
        "groups": parts.table_groups(evaluation.table, evaluation.columns),
        "columns": evaluation.columns,
        "samples": [(title, members) for title, members in groups if members],
        "formats": FORMATS,
        "data": r.data,
        "recipe": r.recipe,
        "split": evaluation.split,
        "command": command_text(r.command),
        "name": r.title or "A controllable captioner",
    }
    return Page("captioner.html.j2", str(context["name"]), context)
