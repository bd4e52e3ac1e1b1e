"""Pages of `foveate video`: what a model saw and answered, scores of a set, a phrase over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from foveate.core.results import parse_result
from foveate.report import charts, numbers
from foveate.report.blocks import Block, Charts, Drawn, Facts, Section, Text, block_page, measures_of
from foveate.report.images import Overlay, RunImages
from foveate.report.page import Page, draw
from foveate.search.results import LocatedFrame, VideoFindResult
from foveate.video.results import EvidenceSample, ShownFrame, VideoAskResult, VideoExchange, VideoScores
from foveate.vision.video.sampling import format_time

# Page of `foveate video ask`, `chat` and `frames`: what the model saw, the answers, and the share of its context.


# Finer grids would hide the frame.
_MAX_LINES = 12
_EVIDENCE = (
    "Evidence by occlusion: log-likelihood (nats) that the answer loses when a frame is left out. Above 0 the answer "
    "depends on the frame; below 0 (hollow bar) it is likelier without. The thin bar is the control: the same answer "
    "behind the question with its words shuffled. A frame whose control is as long matters to the answer, but not "
    "because of the question."
)
_draw = partial(draw, template="video.html.j2")


def build_video_ask(result: Mapping[str, Any], run_folder: Path) -> Page:
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
    budget = list_budget(r)
    frames = [
        _frame_card(frame, r) | {"evidence": [bars[row] for bars in evidence]} for row, frame in enumerate(r.frames)
    ]
    grids = "; ".join(f"{path}: {rows} × {columns} tokens of each frame" for path, (rows, columns) in r.grids.items())
    notes = [*r.warnings, *([f"{grids}. Lines are the cells that one token each is left of."] if grids else [])]
    lines = [f"frame {each.index:>6}  {format_time(each.time):>8}{'  slow' * each.is_slow}" for each in r.frames]
    return block_page(
        r.title,
        eyebrow="Video",
        top=[Facts(facts), Drawn(_draw("exchanges", r.exchanges))],
        sections=[
            Section(
                "budget",
                "Tokens",
                [Drawn(_draw("budget", budget))] if budget else [],
                "Each part of the context of the language model.",
            ),
            Section(
                "frames",
                "Frames",
                [
                    *(Text(note, "note") for note in [*notes, *([_EVIDENCE] if evidence else [])]),
                    Drawn(_draw("film", RunImages(run_folder), frames), lines),
                ],
            ),
        ],
        command=r.command,
    )


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


# Page of `foveate video evaluate` and `score`: strict and official scores, what is missing, and the evidence seen.


def build_video_evaluate(result: Mapping[str, Any], run_folder: Path) -> Page:
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
    further = [(name.capitalize(), f"{value:.3g}") for name, value in r.further.items() if value is not None]
    values = measures_of(r.table, r.columns, f"{r.interval}; the tick is guessing")
    timelines = [draw_timeline(sample) for sample in r.samples]
    return block_page(
        r.title,
        eyebrow="Video",
        top=[Facts(facts)],
        sections=[
            Section("numbers", "The numbers", [*values, Facts(further)] if values else [], link="Numbers"),
            Section(
                "evidence",
                "Did it see the evidence?",
                [Drawn(_draw("timelines", timelines))] if timelines else [],
                "A band is a group of frames that hold the answer; one frame of each group is needed. Left is the "
                "first frame of the clip, right the last.",
                "Evidence",
            ),
        ],
        command=r.command,
    )


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


# Page of `foveate video find`: the score of a phrase over time, and the best frames with their boxes.


def build_video_find(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a phrase in a clip."""
    r = parse_result(VideoFindResult, result)
    series = [
        charts.Series("best box", [(f.time, f.score) for f in r.frames if f.score is not None], 1),
        charts.Series("center", [(f.time, f.center_score) for f in r.frames if f.center_score is not None], 2),
    ]
    best = [r.frames[row] for row in r.best]
    facts = [("Model", r.model), ("Clip", Path(r.clip).name), ("Frames", str(len(r.frames)))]
    if best and best[0].score is not None:
        facts.append(("Best frame", f"{format_time(best[0].time)}, {r.measure} {best[0].score:+.3f}"))
    title = f"{r.measure.capitalize()} with “{r.phrase}” over time"
    cards = [
        {
            "frame": frame,
            "time": format_time(frame.time),
            "overlays": [] if frame.fractions is None else [Overlay(frame.fractions, "default")],
            "score": _describe_score(frame, r.measure),
            "pixels": " ".join(f"{edge:.0f}" for edge in frame.box or ()),
        }
        for frame in best
    ]
    lines = [
        f"{card['time']:>8}  frame {frame.index:>6}  {card['score']}  px {card['pixels']}"
        for card, frame in zip(cards, best, strict=True)
    ]
    # The score at the clip's end says nothing about the phrase.
    lines_over_time = charts.line_chart(series, title=title, x_label="seconds", width=640, end_values=False)
    chart = charts.plot(title, lines_over_time)
    best_frames: list[Block] = [Drawn(_draw("found", RunImages(run_folder), r.phrase, cards), lines)]
    return block_page(
        r.title,
        eyebrow="Find in video",
        top=[Facts(facts), *(Text(text, "note") for text in r.warnings), Charts([chart], "wide")],
        sections=[Section("frames", "Best frames", best_frames)],
        command=r.command,
    )


def _describe_score(frame: LocatedFrame, measure: str) -> str:
    if frame.box is None:
        return "not found"
    if frame.score is not None:
        return f"{measure} {frame.score:+.3f}"
    # Without a score of its own a box that was answered is still one, and one of cosines has no area.
    return "no area" if measure == "cosine" else "found"


PAGES: Mapping[str, Callable[[Mapping[str, Any], Path], Page]] = {
    "video_ask": build_video_ask,
    "video_evaluate": build_video_evaluate,
    "video_find": build_video_find,
}
