"""Page of `foveate video ask`, `chat` and `frames`: what the model saw, the answers, and the share of its context."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import parse_result
from foveate.report import numbers
from foveate.report.images import Overlay
from foveate.report.page import Page, command_text
from foveate.video.results import ShownFrame, VideoAskResult, VideoExchange
from foveate.vision.video.sampling import format_time

# Finer grids would hide the frame.
_MAX_LINES = 12


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of result.json of `foveate video ask` (`VideoAskResult`)."""
    r = parse_result(VideoAskResult, result)
    num_slow, times = sum(frame.is_slow for frame in r.frames), [frame.time for frame in r.frames]
    span = f", {format_time(times[0])} to {format_time(times[-1])}" if times else ""
    evidence = [bars for number, each in enumerate(r.exchanges, 1) if (bars := list_evidence(number, each))]
    facts = [
        ("Model", r.model),
        ("Clip", Path(r.clip).name),
        ("Frames", f"{len(r.frames)} of {r.num_decoded:,}{span}"),
        ("Slow frames", str(num_slow) if num_slow else ""),
        ("What it sees", r.how),
        ("Changed to fit", "; ".join(r.fitted)),
        ("Time to answer", numbers.duration(sum(each.seconds for each in r.exchanges)) if r.exchanges else ""),
    ]
    context = {
        "facts": [(name, value) for name, value in facts if value],
        "exchanges": r.exchanges,
        "budget": list_budget(r),
        "frames": [
            _frame_card(frame, r) | {"evidence": [bars[row] for bars in evidence]} for row, frame in enumerate(r.frames)
        ],
        "has_evidence": bool(evidence),
        "grids": [f"{path}: {rows} × {columns} tokens of each frame" for path, (rows, columns) in r.grids.items()],
        "warnings": r.warnings,
        "command": command_text(r.command),
    }
    return Page("video_ask.html.j2", r.title, context)


def list_budget(r: VideoAskResult) -> list[tuple[str, int, float, str]]:
    """List the parts of the context: name, tokens, percent of the whole, CSS class; empty without tokens."""
    parts = [(name, count, f"b{number}") for number, (name, count) in enumerate(r.tokens.items())]
    # Without a known limit no free part is drawn; if the limit is exceeded, the free part is 0.
    if r.limit is not None:
        parts.append(("free for text and answer", max(0, r.limit - sum(r.tokens.values())), "bfree"))
    total = sum(count for _, count, _ in parts)
    return [(name, count, 100 * count / total, style) for name, count, style in parts if count]


def list_evidence(number: int, exchange: VideoExchange) -> list[dict[str, Any]]:
    """List the bars under each frame of a question: drop and control, in percent of the largest of both."""
    # Drops and control share one scale, since only the comparison is meaningful. `or 1`: all may be 0.
    largest = max(map(abs, [*exchange.drops, *exchange.control]), default=0) or 1
    control: list[float | None] = [*exchange.control] or [None] * len(exchange.drops)

    def measure(value: float) -> float:
        return 100 * abs(value) / largest

    return [
        {
            "number": number,
            "drop": drop,
            "width": measure(drop),
            "control": other,
            "control_width": None if other is None else measure(other),
        }
        for drop, other in zip(exchange.drops, control, strict=True)
    ]


def _frame_card(frame: ShownFrame, r: VideoAskResult) -> dict[str, Any]:
    """Put a frame together with the cells that one token each is left of."""
    path = "slow" if frame.is_slow else next((name for name in r.grids if name != "slow"), "")
    rows, columns = r.grids.get(path, (0, 0))
    overlays = []
    # A grid of one cell would only outline the frame itself.
    if 1 < rows * columns and max(rows, columns) <= _MAX_LINES:
        overlays = [
            Overlay((x / columns, y / rows, (x + 1) / columns, (y + 1) / rows), "cell")
            for y in range(rows)
            for x in range(columns)
        ]
    return {"frame": frame, "time": format_time(frame.time), "overlays": overlays}
