"""Page of `foveate video find`: the score of a phrase over time, and the best frames with their boxes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import parse_result
from foveate.report import charts
from foveate.report.images import Overlay
from foveate.report.page import Page, command_text
from foveate.search.results import VideoFindResult
from foveate.vision.video.sampling import format_time


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a phrase in a clip."""
    r = parse_result(VideoFindResult, result)
    series = [
        charts.Series("best box", [(f.time, f.score) for f in r.frames if f.score is not None], 1),
        charts.Series("center", [(f.time, f.center_score) for f in r.frames if f.center_score is not None], 2),
    ]
    best = [r.frames[row] for row in r.best]
    facts = [("Model", r.model), ("Clip", Path(r.clip).name), ("Frames", str(len(r.frames)))]
    if best and best[0].score is not None:
        facts.append(("Best frame", f"{format_time(best[0].time)}, cosine {best[0].score:+.3f}"))
    title = f"Cosine with “{r.phrase}” over time"
    context = {
        "facts": facts,
        "phrase": r.phrase,
        "warnings": r.warnings,
        "chart": charts.plot(title, charts.line_chart(series, title=title, x_label="seconds", width=640)),
        "best": [
            {
                "frame": frame,
                "time": format_time(frame.time),
                "overlays": [Overlay(frame.fractions, "default")],
                "score": "no area" if frame.score is None else f"cosine {frame.score:+.3f}",
            }
            for frame in best
        ],
        "command": command_text(r.command),
    }
    return Page("video_find.html.j2", r.title, context)
