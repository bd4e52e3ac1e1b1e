"""`foveate video frames`: show which frames of a clip would be read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from foveate.cli.options import common, finish, path_option, run_option
from foveate.cli.verbs.video.options import Span, build_how, span_options, strategy_options
from foveate.cli.verbs.video.page import describe_how, describe_warnings, save_frames, shrink
from foveate.cli.verbs.video.viewing import open_selector


@click.command("frames", short_help="Show which frames of a clip would be read.")
@click.argument("clip", type=click.Path(path_type=Path))
@strategy_options
@span_options
@path_option("--selector", "Model folder by which slow frames are chosen with --choose cover, change or query.")
@click.option("--query", help="Question whose frames are chosen, with --choose query.")
@run_option("runs/video-frames", "Folder for frames and page")
@common(seed=False)
def command(
    clip: Path,
    how: str,
    start: str | None,
    end: str | None,
    allow_damaged: bool,
    selector: Path | None,
    query: str | None,
    run: Path | None,
    as_json: bool,
    device: str | None,
    **strategy: Any,
) -> None:
    """Write the sampled frames of CLIP with their times, slow ones marked. No language model is read.

    \b
    Example:
      foveate video frames street.mp4 --frames 24 --slow 4 --from 1:20 --to 2:00
      foveate video frames street.mp4 --choose query --selector runs/tour/cloc-seed0/model --query "a red boat"
    """
    from foveate.core.runs import RunFolder, check_run_path
    from foveate.report import render
    from foveate.video.results import VideoAskResult
    from foveate.video.viewing import SeenFrame
    from foveate.video.watch import check_choice, choose_slow
    from foveate.vision.video.reading import ClipReader
    from foveate.vision.video.sampling import format_time

    check_run_path(run)
    strategy_settings, span = build_how(how, strategy), Span.parse(start, end)
    encoder = open_selector(selector, device)
    reader = ClipReader(clip, strategy_settings.frames, start=span.start, end=span.end, allow_damaged=allow_damaged)
    indices = None
    if check_choice(strategy_settings, selector=encoder, query=query):
        indices = reader.read(lambda frames: choose_slow(strategy_settings, frames, selector=encoder, query=query))
    # A separate pass that shrinks each frame as it is decoded: a long clip at full size may not fit in memory.
    images = reader.read(lambda frames: [shrink(frame) for frame in frames])
    read = reader.record
    slow = strategy_settings.pick_slow(len(images), indices)
    # Which frames are read does not depend on a model's grid; 24 x 24 is LLaVA's.
    rows = strategy_settings.layout(len(images), 24 * 24, slow_indices=indices).frames
    seen = [SeenFrame(read.indices[row], read.times[row], row in slow, images[row]) for row in rows]
    folder = RunFolder.create(run or Path("runs/video-frames"))
    result = VideoAskResult(
        title=f"Frames of {clip.name}",
        command=["foveate", *sys.argv[1:]],
        clip=read.name,
        how=describe_how(strategy_settings),
        num_decoded=read.num_decoded,
        frames=save_frames(folder, seen),
        warnings=list(read.warnings),
    )
    folder.write_result(result.to_json())
    lines = [f"frame {each.index:>6}  {format_time(each.time):>8}{'  slow' * each.is_slow}" for each in seen]
    paths = {"run": folder.path, "report": render(folder.path)}
    finish(result.to_json(), [*lines, *describe_warnings(read.warnings)], paths, as_json=as_json)
