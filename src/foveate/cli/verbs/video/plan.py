"""`foveate video plan`: count tokens, FLOPs and memory of a clip for a model, without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.options import finish, json_option, quiet_option
from foveate.cli.verbs.video.options import Span, build_how, rope_option, span_options, strategy_options
from foveate.cli.verbs.video.page import collect_warnings, shrink


@click.command("plan", short_help="Count tokens, FLOPs and memory of a clip for a model.")
@click.argument("model")
@click.argument("clip", type=click.Path(path_type=Path), required=False)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Length of a clip that is not at hand.")
@click.option("--text-tokens", type=click.IntRange(1), help="Tokens of prompt, question and answer; 416 by default.")
@strategy_options
@span_options
@rope_option
@json_option
@quiet_option
def command(
    model: str,
    clip: Path | None,
    seconds: float | None,
    text_tokens: int | None,
    rope_factor: float | None,
    how: str,
    start: str | None,
    end: str | None,
    allow_damaged: bool,
    as_json: bool,
    **strategy: Any,
) -> None:
    """Count what MODEL would read of CLIP: tokens of each path, positions left, FLOPs, memory. No weights are read.

    \b
    Example:
      foveate video plan mini street.mp4 --frames 24
      foveate video plan llava-hf/llava-v1.6-vicuna-7b-hf --seconds 600
    """
    import dataclasses

    from foveate.video.plan import TEXT_TOKENS, format_plan, plan_video
    from foveate.vision.video.reading import read_clip

    if clip is not None and seconds is not None:
        raise click.UsageError("--seconds has no effect with a CLIP, whose length is read")
    if clip is None and (start or end or allow_damaged):
        raise click.UsageError("--from, --to and --allow-damaged have no effect without a CLIP")
    span, total = Span.parse(start, end), None
    if clip is not None:
        # The frames are decoded to be counted: headers are often wrong.
        read = read_clip(clip, 1, start=span.start, end=span.end, transform=shrink, allow_damaged=allow_damaged)
        total, seconds = read.num_decoded, (read.seconds[1] - read.seconds[0]) or None
    with collect_warnings() as texts:
        planned = plan_video(
            model,
            how=build_how(how, strategy),
            total=total,
            seconds=seconds,
            text_tokens=text_tokens or TEXT_TOKENS,
            rope_factor=rope_factor,
        )
    # Those of the strategy are among its fields.
    texts = [text for text in texts if text not in planned.warnings]
    planned = dataclasses.replace(planned, warnings=(*texts, *planned.warnings))
    finish(dataclasses.asdict(planned), format_plan(planned), {}, as_json=as_json)
