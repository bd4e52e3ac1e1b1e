"""Page of `foveate video evaluate` and `score`: strict and official scores, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import parse_result
from foveate.mllm.video.scores import VideoScores
from foveate.report import numbers, parts
from foveate.report.page import Page, command_text


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a question set's result.json (`VideoScores`)."""
    r = parse_result(VideoScores, result)
    facts = [
        ("Model", r.model),
        ("What it sees", r.how),
        ("Questions", numbers.count(r.questions)),
        ("Clips", numbers.count(r.clips)),
    ]
    if r.published and r.questions not in r.published:
        facts.append(("Questions of the published lists", " or ".join(map(numbers.count, r.published))))
    counts = {
        "Without an answer, counted as wrong": r.missing,
        "Answers cut off": r.unfinished,
        "Not readable": r.unparsed,
        "Not judged, the request failed": r.failed,
        "Open questions, not judged yet": r.unjudged,
    }
    facts += [(name, numbers.count(count)) for name, count in counts.items() if count]
    facts += [("Reason", reason) for reason in r.reasons]
    if r.judge:
        dates = " to ".join(dict.fromkeys(r.judge_dates))
        prompts = f"prompts {r.judge_prompts}" if r.judge_prompts else "our prompts"
        facts.append(("Judge", f"{r.judge}, {dates}, {prompts}"))
    context = {
        "eyebrow": "Video",
        "name": r.title,
        "facts": facts,
        "samples": [],
        "overlays": [],
        "groups": parts.table_groups(r.table, r.columns),
        "columns": r.columns,
        "interval_note": r.interval,
        "further": [(name.capitalize(), f"{value:.3g}") for name, value in r.further.items() if value is not None],
        "charts": [],
        "command": command_text(r.command),
    }
    return Page("mllm_run.html.j2", r.title, context)
