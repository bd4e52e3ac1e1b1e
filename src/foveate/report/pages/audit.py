"""Page of an audit: a table of all formats, then images with every assertion of their captions marked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveate.caption.audit_results import AuditResult
from foveate.core.results import parse_result
from foveate.report import numbers, parts
from foveate.report.captions import MARKS, MEANINGS
from foveate.report.page import Page, command_text


def _without_best(group: parts.TableGroup) -> parts.TableGroup:
    """Remove the marks of best cells: the longest format is not the best, nor the one with most contradictions."""
    lines = [replace(line, cells=[replace(cell, best=False) for cell in line.cells]) for line in group.lines]
    return replace(group, lines=lines)


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of an audit's result.json (`AuditResult`)."""
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
            name: [image for image in r.gallery if image.data == name]
            for name in dict.fromkeys(image.data for image in r.gallery)
        },
        "command": command_text(r.command),
    }
    return Page("audit.html.j2", r.title or f"Captions of {r.collection}, audited", context)
