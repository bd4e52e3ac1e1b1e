"""`foveate video find`: find when and where a clip shows a phrase, without a language model."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from foveate.cli.options import common, finish, run_option
from foveate.cli.verbs.video.options import Span, span_options
from foveate.cli.verbs.video.page import describe_warnings, save_frame


@click.command("find", short_help="Find when and where a clip shows a phrase, without a language model.")
@click.argument("localizer", type=click.Path(path_type=Path))
@click.argument("clip", type=click.Path(path_type=Path))
@click.argument("phrase")
@click.option("--frames", type=click.IntRange(1), default=50, show_default=True, help="Frames to sample from the clip.")
@span_options
@click.option("--count", type=click.IntRange(1), default=5, show_default=True, help="Frames to list, best first.")
@run_option("runs/video-find", "Folder for frames and page")
@common()
def command(
    localizer: Path,
    clip: Path,
    phrase: str,
    frames: int,
    start: str | None,
    end: str | None,
    allow_damaged: bool,
    count: int,
    run: Path | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """List the frames of CLIP whose best box is most like PHRASE, with the time and the box in pixels.

    LOCALIZER is a model folder of foveate pretrain. The page draws the cosine over time, beside that of the center of
    each frame: a phrase that is in sight stands out from both.

    \b
    Example:
      foveate video find runs/tour/cloc-seed0/model street.mp4 "a red boat"
    """
    from foveate.core.errors import UserError
    from foveate.core.runs import RunFolder, check_run_path
    from foveate.report import render
    from foveate.search.locate import locate_frames
    from foveate.search.results import LocatedFrame, VideoFindResult
    from foveate.vision.localizer.folder import load_model
    from foveate.vision.video.reading import read_clip
    from foveate.vision.video.sampling import format_time

    check_run_path(run)
    span = Span.parse(start, end)
    if not localizer.is_dir():
        raise UserError(
            f"{localizer}: no such folder; expected a model of foveate pretrain, such as runs/tour/cloc-seed0/model"
        )
    model = load_model(localizer, device=device)
    # The paper's rule would repeat a frame of a short clip and never look at its last one.
    read = read_clip(clip, frames, rule="uniform_mid", start=span.start, end=span.end, allow_damaged=allow_damaged)
    located = locate_frames(model, read.frames, phrase, seed=seed or 0)
    folder = RunFolder.create(run or Path("runs/video-find"))
    order = sorted(range(len(located)), key=lambda row: (-located[row].cosine, read.times[row]))
    best = set(order[:count])
    rows = [
        LocatedFrame(
            index=read.indices[row],
            time=read.times[row],
            # The page shows only the best frames; of the others it plots just the scores.
            image=save_frame(folder, read.frames[row], read.indices[row]) if row in best else "",
            box=phrase_boxes.pixel_box,
            fractions=phrase_boxes.box,
            score=phrase_boxes.scores[phrase_boxes.rule],
            center_score=phrase_boxes.scores["center"],
        )
        for row, phrase_boxes in enumerate(located)
    ]
    result = VideoFindResult(
        title=f"“{phrase}” in {clip.name}",
        command=["foveate", *sys.argv[1:]],
        model=str(localizer),
        clip=read.name,
        phrase=phrase,
        best=[int(row) for row in order[:count]],
        frames=rows,
        warnings=list(read.warnings),
    )
    folder.write_result(result.to_json())
    lines = [
        f"{format_time(rows[row].time):>8}  frame {rows[row].index:>6}  cosine {located[row].cosine:+.3f}  "
        f"px {' '.join(f'{edge:.0f}' for edge in rows[row].box)}"
        for row in order[:count]
    ]
    paths = {"run": folder.path, "report": render(folder.path)}
    finish(result.to_json(), [*lines, *describe_warnings(read.warnings)], paths, as_json=as_json)
