"""The page of an audit: the formats in numbers, then side by side on images with every assertion marked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveate.core.results import Column, ResultModel, Row, parse_result
from foveate.report import numbers, parts
from foveate.report.captions import MARKS, MEANINGS, AuditImage
from foveate.report.page import Page, command_text


class AuditJudge(ResultModel):
    definition: str
    hash: str = ""


class AuditSample(ResultModel):
    images: int
    of: dict[str, int] = {}
    without_all_formats: int = 0
    split: str | None = None
    seed: int = 0


class AuditResult(ResultModel):
    kind: str
    title: str = ""
    collection: str
    models: dict[str, dict[str, int]] = {}
    scene_oracle: bool = False
    sample: AuditSample
    context: int
    splitter: str = ""
    tagger: str = ""
    judges: dict[str, AuditJudge] = {}
    columns: list[Column] = []
    table: list[Row] = []
    interval: str = "95 % intervals, bootstrap over images"
    gallery: list[AuditImage] = []
    command: str | list[str] = ""


def _without_best(group: parts.TableGroup) -> parts.TableGroup:
    """No format is the best one: the longest is not, nor the one with the most contradictions."""
    lines = [replace(line, cells=[replace(cell, best=False) for cell in line.cells]) for line in group.lines]
    return replace(group, lines=lines)


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """The page of an audit's result.json (`AuditResult`)."""
    r = parse_result(AuditResult, result)
    facts = [("Images", numbers.count(r.sample.images)), ("Text tower's context", f"{r.context} tokens")]
    facts += [("Assertions split by", r.splitter), ("Split", r.sample.split or "all")]
    context = {
        "r": r,
        "facts": facts,
        "groups": [_without_best(group) for group in parts.table_groups(r.table, r.columns)],
        "written": [
            (column.title, ", ".join(f"{model} ({count})" for model, count in r.models.get(column.key, {}).items()))
            for column in r.columns
        ],
        "formats": {column.title: MEANINGS[column.key] for column in r.columns if column.key in MEANINGS},
        "marks": MARKS,
        "galleries": {
            name: [one for one in r.gallery if one.data == name] for name in dict.fromkeys(g.data for g in r.gallery)
        },
        "command": command_text(r.command),
    }
    return Page("audit.html.j2", r.title or f"What the captions of {r.collection} are worth", context)
