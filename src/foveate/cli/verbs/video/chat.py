"""`foveate video chat`: answer each line of the input as a question about a clip."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.options import common, finish, run_option
from foveate.cli.verbs.video.options import viewing_options
from foveate.cli.verbs.video.page import describe_viewing, save_viewing
from foveate.cli.verbs.video.viewing import ask_question, watch_clip

if TYPE_CHECKING:
    from foveate.video.results import VideoExchange


@click.command("chat", short_help="Ask about a clip, question after question.")
@click.argument("model")
@click.argument("clip", type=click.Path(path_type=Path))
@viewing_options
@click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Longest answer.")
@run_option("none", "Folder for a page with frames and answers")
@common(seed=False)
def command(model: str, clip: Path, max_tokens: int, run: Path | None, as_json: bool, **watching: Any) -> None:
    """Answer each line of the input as a question about CLIP, until it ends.

    The clip is encoded and read once; every further question costs its own text. A question does not see earlier ones.
    With --json all questions and answers are printed at the end.

    \b
    Example:
      foveate video chat mini street.mp4 --frames 24
    """
    from foveate.core.errors import UserError

    viewing = watch_clip(model, clip, [], max_tokens=max_tokens, run=run, **watching)
    for line in describe_viewing(viewing):
        click.echo(line, err=True)
    exchanges: list[VideoExchange] = []
    # Ctrl-C ends only the conversation, at the prompt or in an answer: what was answered belongs on the page.
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            question = input("> " if sys.stdin.isatty() else "").strip()
            try:
                if question:
                    exchanges.append(ask_question(viewing, question, (), max_tokens, silent=as_json))
            except UserError as problem:
                # One question that does not fit ends no conversation.
                click.echo(str(problem), err=True)
    result, paths = save_viewing(viewing, exchanges, run)
    finish(result, [], paths, as_json=as_json)
