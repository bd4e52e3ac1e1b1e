"""Page of `foveate video evaluate` and `score`: strict and official scores, what is missing, and the evidence seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.core.results import parse_result
from foveate.report import numbers, parts
from foveate.report.page import Page, command_text
from foveate.video.results import EvidenceSample, VideoScores


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a question set's result.json (`VideoScores`)."""
    r = parse_result(VideoScores, result)
    facts = [
        ("Model", r.model),
        ("What it sees", r.how),
        ("Questions", numbers.count(r.questions)),
        ("Clips", numbers.count(r.clips)),
    ]
    # A score on a different number of questions is not comparable with published ones.
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
        "timelines": [draw_timeline(sample) for sample in r.samples],
        "charts": [],
        "command": command_text(r.command),
    }
    return Page("mllm_run.html.j2", r.title, context)


def draw_timeline(sample: EvidenceSample) -> dict[str, Any]:
    """Put the frames that were read of a clip, and the evidence of a question, on one line from 0 to 100 percent."""
    frames, slow = set(sample.frames), set(sample.slow)
    # A clip that was replaced by a shorter one, or evidence of another clip, must not leave the line.
    count = max([sample.num_frames, *(frame + 1 for group in sample.evidence for frame in group)])
    seen, detailed = ([not names.isdisjoint(group) for group in sample.evidence] for names in (frames, slow))
    text = f"{sum(seen)} of {len(seen)} among the frames that were read"
    if slow:
        text += f", {sum(detailed)} among the slow ones"
    return {
        "sample": sample,
        "bands": [
            {"start": 100 * start / count, "width": 100 * (end - start) / count, "is_seen": is_seen}
            for group, is_seen in zip(sample.evidence, seen, strict=True)
            for start, end in list_runs(group)
        ],
        "marks": [(100 * (frame + 0.5) / count, frame in slow) for frame in sample.frames],
        "text": text,
        "is_seen": all(seen),
    }


def list_runs(frames: Sequence[int]) -> list[tuple[int, int]]:
    """List the runs of consecutive frames, each with the number behind its last one.

    >>> list_runs([3, 4, 9])
    [(3, 5), (9, 10)]
    """
    runs: list[tuple[int, int]] = []
    for frame in sorted(set(frames)):
        if runs and runs[-1][1] == frame:
            runs[-1] = (runs[-1][0], frame + 1)
        else:
            runs.append((frame, frame + 1))
    return runs
