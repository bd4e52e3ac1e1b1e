"""`foveate video ask`: answer questions about a clip, in words or by the letter of an option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.options import common, finish, run_option
from foveate.cli.verbs.video.options import viewing_options
from foveate.cli.verbs.video.page import describe_viewing, save_viewing
from foveate.cli.verbs.video.viewing import ask_question, watch_clip


@click.command("ask", short_help="Ask questions about a clip.")
@click.argument("model")
@click.argument("clip", type=click.Path(path_type=Path))
@click.argument("questions", nargs=-1, required=True)
@click.option("--option", "options", multiple=True, help="Answer to choose from, by its letter. At least two.")
@viewing_options
@click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Longest answer.")
@click.option("--evidence", is_flag=True, help="Measure how much each answer depends on each frame; takes minutes.")
@run_option("none", "Folder for a page with frames and answers")
@common(seed=False)
def command(
    model: str,
    clip: Path,
    questions: tuple[str, ...],
    options: tuple[str, ...],
    max_tokens: int,
    evidence: bool,
    run: Path | None,
    as_json: bool,
    **watching: Any,
) -> None:
    """Answer QUESTIONS about CLIP, then list what MODEL saw of it.

    CLIP is a video file, an animated GIF or WebP, or a folder of images. MODEL is a folder or hub id of a LLaVA of
    transformers (llava, llava_next, llava_onevision, vipllava, llava_next_video), or a folder of foveate mllm train. It
    needs no training on video. The clip is encoded and read once for all questions.

    \b
    Example:
      foveate video ask mini street.mp4 "What is in the image?" --frames 24
      foveate video ask llava-hf/llava-v1.6-vicuna-7b-hf street.mp4 "What happens after the taxi?" --from 1:20 --to 2:00
      foveate video ask mini street.mp4 "Which color is it?" --option red --option green --frames 24
      foveate video ask mini street.mp4 "Which color is it?" --frames 24 --evidence --run runs/street
    """
    if options:
        from foveate.video.prompts import check_choices

        source = click.get_current_context().get_parameter_source("max_tokens")
        if source is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError("--max-tokens has no effect with --option: an answer is a letter")
        # Before a model is opened, which takes seconds.
        check_choices(options)
    requests = [(question, options) for question in questions]
    viewing = watch_clip(model, clip, requests, max_tokens=max_tokens, run=run, **watching)
    if evidence:
        from foveate.video.occlusion import group_rows

        # A strategy whose frames cannot be left out is refused before it answers.
        group_rows(viewing.layout)
    exchanges = []
    for question in questions:
        if len(questions) > 1 and not as_json:
            click.echo(f"> {question}")
        exchanges.append(ask_question(viewing, question, options, max_tokens, silent=as_json, evidence=evidence))
    result, paths = save_viewing(viewing, exchanges, run)
    finish(result, [] if as_json else describe_viewing(viewing), paths, as_json=as_json)
