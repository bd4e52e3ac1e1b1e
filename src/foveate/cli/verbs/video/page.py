"""Write what was seen of a clip into a run folder, with its page; describe it in lines of text."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from foveate.core.runs import RunFolder
    from foveate.video.occlusion import Occlusion
    from foveate.video.results import ShownFrame, VideoExchange, VideoScores
    from foveate.video.strategies import Strategy
    from foveate.video.viewing import SeenFrame, Viewing

# Longest side in pixels: a page holds fifty of them in its own file.
_SIDE = 320
# Frames of an answer's evidence that are printed; the page has all.
_PRINTED = 3


def describe_viewing(viewing: Viewing) -> list[str]:
    """List frames, times, tokens of each path and share of the context."""
    from foveate.vision.video.sampling import format_time

    record = viewing.record
    paths = ", ".join(f"{name} {count:,}" for name, count in record["tokens"].items())
    span = " to ".join(format_time(record["times"][row]) for row in (0, -1))
    slow = f", {len(record['slow'])} slow" if record["slow"] else ""
    share = f", {record['video_tokens'] / record['limit']:.0%} of the context" if record["limit"] else ""
    return [
        f"seen: {len(record['indices'])} of {record['num_decoded']} frames, {span}{slow}",
        f"tokens: {record['video_tokens']:,} ({paths}){share}",
        *(f"fitted: {change}" for change in record["fitted"]),
        *describe_warnings(record["warnings"]),
    ]


def describe_occlusion(viewing: Viewing, occlusion: Occlusion) -> list[str]:
    """List the frames without which an answer loses most of its log-likelihood."""
    from foveate.vision.video.sampling import format_time

    record, drops = viewing.record, occlusion.drops
    best = sorted(range(len(drops)), key=lambda row: (-drops[row], row))[:_PRINTED]
    return ["evidence: log-likelihood that the answer loses without a frame"] + [
        f"  {format_time(record['times'][row]):>8}  frame {record['indices'][row]:>6}  {drops[row]:+.3f}"
        + (f"  (shuffled question {occlusion.control[row]:+.3f})" if occlusion.control else "")
        for row in best
    ]


def format_scores(result: VideoScores) -> list[str]:
    """List the scores of a question set, then how many answers were counted apart."""
    lines = []
    for row in result.table:
        values = [(column.title.lower(), row.values.get(column.key)) for column in result.columns]
        scores = ", ".join(f"{title} {value.value:.3f}" for title, value in values if value is not None)
        lines.append(f"{row.question}, {row.data}: {scores or 'none'}, n {row.n or 0:,}")
    counts = {
        "without an answer, counted as wrong": result.missing,
        "answers cut at the longest": result.unfinished,
        "not readable": result.unparsed,
        "not judged: the request failed": result.failed,
        "open questions, to be judged by `foveate video score`": result.unjudged,
    }
    lines += [f"  {count:,} {what}" for what, count in counts.items() if count]
    if result.judge:
        lines.append(f"  judged by {result.judge}, {' to '.join(dict.fromkeys(result.judge_dates))}")
    return lines


def describe_warnings(texts: Sequence[str]) -> list[str]:
    """Return a line for each warning."""
    return [f"warning: {text}" for text in texts]


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Collect the texts of warnings, which Python would print with file and line."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        # Overrides filters such as -W ignore and -W error, which would drop the warnings or raise them.
        warnings.simplefilter("always", UserWarning)
        yield texts
        texts += dict.fromkeys(str(warning.message) for warning in caught)


def describe_how(how: Strategy) -> str:
    """Write a strategy with the options that were set."""
    options = how.model_dump(mode="json", exclude_unset=True)
    return " ".join([how.kind, *(f"{name}={value}" for name, value in options.items())])


def save_viewing(
    viewing: Viewing, exchanges: Sequence[VideoExchange], run: Path | None
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return the result of a viewing; write it with frames and page where there is a folder for it."""
    from foveate.core.runs import RunFolder
    from foveate.report import render
    from foveate.video.results import VideoAskResult

    record = viewing.record
    folder = None if run is None else RunFolder.create(run)
    result = VideoAskResult(
        title=exchanges[0].question if exchanges else f"Frames of {Path(record['clip']).name}",
        command=["foveate", *sys.argv[1:]],
        model=record["model"],
        clip=record["clip"],
        how=describe_how(viewing.how),
        fitted=record["fitted"],
        num_decoded=record["num_decoded"],
        # Reading frames decodes the clip again, so it is done only where there is a page to show them on.
        frames=[] if folder is None else viewing.read_frames(lambda frames: save_frames(folder, frames)),
        tokens=record["tokens"],
        grids={name: (grid.rows, grid.columns) for name, grid in viewing.layout.find_grids().items()},
        limit=record["limit"],
        warnings=record["warnings"],
        exchanges=list(exchanges),
    )
    printed = result.model_dump(mode="json", include={"model", "clip", "exchanges"}) | {"seen": record}
    if folder is None:
        return printed, {}
    folder.write_result(result.to_json())
    return printed, {"run": folder.path, "report": render(folder.path)}


def save_frames(folder: RunFolder, frames: Iterable[SeenFrame]) -> list[ShownFrame]:
    """Write frames into a run folder; a frame that repeats is one file."""
    from foveate.video.results import ShownFrame

    return [
        ShownFrame(
            image=save_frame(folder, frame.image, frame.index),
            index=frame.index,
            time=frame.time,
            is_slow=frame.is_slow,
        )
        for frame in frames
    ]


def save_frame(folder: RunFolder, image: Image.Image, index: int) -> str:
    """Write frame number `index` of a clip into a run folder; return its path there."""
    name = f"images/{index:06d}.webp"
    path = folder.path / name
    path.parent.mkdir(exist_ok=True)
    shrink(image).save(path, "WEBP", quality=80)
    return name


def shrink(image: Image.Image) -> Image.Image:
    """Return an image at the size of a page, with its proportions."""
    scale = _SIDE / max(image.size)
    return image if scale >= 1 else image.resize([max(1, round(side * scale)) for side in image.size])
