"""The page over all studies: what the papers state, what was found, and whether it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import parse_result
from foveate.report import numbers
from foveate.report.page import Page, command_text
from foveate_labs.studies.results import PaperLine, StudiesResult

VERDICTS = ("shown", "not shown", "opposite")
UNTESTABLE = "not testable here"


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a `StudiesResult`."""
    r = parse_result(StudiesResult, result)
    sections = [
        {"study": study, "lines": [_line(line) for line in r.lines if line.study == study.study]} for study in r.studies
    ]
    unanimous = [tag for section in sections for tag in (line["tag"] for line in section["lines"])]
    tally = [(name, unanimous.count(name)) for name in (*VERDICTS, "mixed", UNTESTABLE)]
    facts = [
        ("Studies", numbers.count(len(r.studies))),
        ("Trainings", numbers.count(sum(study.trainings for study in r.studies))),
        ("Claims of papers", numbers.count(len(r.lines))),
        ("Checks that must hold", f"{sum(s.held for s in r.studies)} of {sum(s.must_hold for s in r.studies)} shown"),
    ]
    context = {"r": r, "sections": sections, "tally": tally, "facts": facts, "command": command_text(r.command)}
    return Page("studies.html.j2", r.title, context)


def _line(line: PaperLine) -> dict[str, Any]:
    """Return a line with its verdict for a tag, counted where sets of data differ."""
    counts = [(name, line.verdicts[name]) for name in VERDICTS if line.verdicts.get(name)]
    if line.untestable:
        tag = UNTESTABLE
    else:
        # Sets of data that disagree have no common verdict.
        tag = counts[0][0] if len(counts) == 1 else "mixed"
    detail = ", ".join(f"{name} {count}" for name, count in counts) if len(counts) > 1 else ""
    return {"line": line, "tag": tag, "detail": detail, "differences": line.difference.split("; ")}


PAGES = {"studies": build}
