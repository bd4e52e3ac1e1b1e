"""Page of an evaluated captioner: obedience, lengths and accuracy, and held-out images with all captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.caption.evaluation_results import CaptionerEvaluation, CaptionerResult
from foveate.core.results import parse_result
from foveate.report import parts
from foveate.report.page import Page, command_text

FORMATS = {"ssc": "Short", "dsc": "Descriptive", "dsc_plus": "Dense", "afc": "With the AltText"}
DATA = {"scenes": "Generated scenes", "images": "Real images"}


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of the result.json of an evaluated captioner."""
    r = parse_result(CaptionerResult, result)
    evaluation = r.evaluation or CaptionerEvaluation()
    facts = []
    if r.reads_requests is not None:
        facts.append(("Asked with", "the requests it was trained on" if r.reads_requests else "prompts"))
    if evaluation.obeys is not None:
        facts.append(("Every format obeyed by 95 %", "yes" if evaluation.obeys else "no"))
    if evaluation.lengths_rise is not None:
        facts.append(("Lengths rise, short to dense", "yes" if evaluation.lengths_rise else "no"))
    groups = [(title, [image for image in evaluation.samples if image.data == data]) for data, title in DATA.items()]
    context = {
        "facts": facts,
        "groups": parts.table_groups(evaluation.table, evaluation.columns),
        "columns": evaluation.columns,
        "samples": [(title, members) for title, members in groups if members],
        "formats": FORMATS,
        "split": evaluation.split,
        "command": command_text(r.command),
        "name": r.title or "A controllable captioner",
    }
    return Page("captioner.html.j2", str(context["name"]), context)
