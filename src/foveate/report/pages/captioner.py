"""The page of a captioner: curves of its stages, obedience and truth, and held-out images with all their captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import Column, ResultModel, Row, parse_result
from foveate.report import numbers, parts
from foveate.report.page import Page, command_text

FORMATS = {"ssc": "Short", "dsc": "Descriptive", "dsc_plus": "Dense", "afc": "With the AltText"}
DATA = {"scenes": "Generated scenes", "images": "Real images"}


class Caption(ResultModel):
    text: str
    obeys: bool
    tokens: int
    assertions: list[tuple[str, str]] = []


class Sample(ResultModel):
    image: str
    data: str
    alt: str = ""
    captions: dict[str, Caption] = {}


class CaptionerEvaluation(ResultModel):
    split: str = ""
    images: int = 0
    columns: list[Column] = []
    table: list[Row] = []
    samples: list[Sample] = []
    obeys: bool | None = None
    lengths_rise: bool | None = None


class Stage(ResultModel):
    steps: int
    seconds: float
    images: int
    curves: str = ""


class CaptionerResult(ResultModel):
    kind: str
    title: str = ""
    collection: str = ""
    command: str | list[str] | None = None
    recipe: dict[str, Any] = {}
    data: dict[str, Any] = {}
    stages: dict[str, Stage] = {}
    evaluation: CaptionerEvaluation | None = None


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """The page of a captioner's result.json, of its training or of an evaluation alone."""
    r = parse_result(CaptionerResult, result)
    found = r.evaluation or CaptionerEvaluation()
    facts = [
        (name.capitalize(), f"{numbers.count(s.steps)} updates, {numbers.duration(s.seconds)}")
        for name, s in r.stages.items()
    ]
    if found.obeys is not None:
        facts.append(("Every format obeyed by 95 %", "yes" if found.obeys else "no"))
    if found.lengths_rise is not None:
        facts.append(("Lengths rise, short to dense", "yes" if found.lengths_rise else "no"))
    runs = {name: parts.read_metrics(run_folder, stage.curves) for name, stage in r.stages.items() if stage.curves}
    groups = [(title, [sample for sample in found.samples if sample.data == data]) for data, title in DATA.items()]
    context = {
        "facts": facts,
        "charts": parts.curves(runs, max_charts=6) if runs else [],
        "groups": parts.table_groups(found.table, found.columns),
        "columns": found.columns,
        "samples": [(title, members) for title, members in groups if members],
        "formats": FORMATS,
        "data": r.data,
        "recipe": r.recipe,
        "split": found.split,
        "command": command_text(r.command or ""),
        "name": r.title or "A controllable captioner",
    }
    return Page("captioner.html.j2", str(context["name"]), context)
