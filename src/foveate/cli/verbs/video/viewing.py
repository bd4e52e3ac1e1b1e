"""Show a clip to a model as the options of `foveate video ask` and `chat` say, and ask it a question."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.options import print_stream
from foveate.cli.verbs.video.options import Span, build_how
from foveate.cli.verbs.video.page import collect_warnings, describe_occlusion, describe_warnings

if TYPE_CHECKING:
    from foveate.video.results import VideoExchange
    from foveate.video.viewing import VideoAnswer, VideoChoice, Viewing

# Of an answer with options: a letter, which a few tokenizers split.
_LETTER_TOKENS = 4


def watch_clip(
    model: str,
    clip: Path,
    requests: Sequence[tuple[str, Sequence[str]]],
    *,
    max_tokens: int,
    run: Path | None,
    how: str,
    start: str | None,
    end: str | None,
    allow_damaged: bool,
    fit: bool,
    prompt: str,
    rope_factor: float | None,
    selector: Path | None,
    device: str | None,
    **strategy: Any,
) -> Viewing:
    """Show a clip to a model as the options of `ask` and `chat` say; `requests` are questions with their options."""
    from foveate.core.errors import UserError
    from foveate.core.runs import check_run_path
    from foveate.video.networks import open_network
    from foveate.video.watch import count_text, watch

    check_run_path(run)
    settings, span = build_how(how, strategy), Span.parse(start, end)
    by_question = getattr(settings, "choose", "even") == "query"
    if by_question and len(requests) != 1:
        raise UserError(
            f"--choose query: frames are chosen for one question (got {len(requests)}); expected one, or cover"
        )
    if not clip.exists():
        # Before a model is opened, which takes seconds.
        raise UserError(f"{clip}: no such file or folder")
    with collect_warnings() as texts:
        network = open_network(model, device=device, rope_factor=rope_factor)
        # Of a chat no question is known: each is checked when it is asked.
        text_tokens = None
        if fit or requests:
            has_options = any(options for _, options in requests)
            answer_tokens = _LETTER_TOKENS if has_options else max_tokens
            text_tokens = count_text(network, requests, prompt=prompt or None, max_tokens=answer_tokens)
        viewing = watch(
            network,
            clip,
            how=settings,
            start=span.start,
            end=span.end,
            selector=open_selector(selector, device),
            query=requests[0][0] if by_question else None,
            fit=fit,
            text_tokens=text_tokens,
            prompt=prompt or None,
            allow_damaged=allow_damaged,
        )
    # Those of the strategy are listed with what was seen.
    for line in describe_warnings([text for text in texts if text not in viewing.record["warnings"]]):
        click.echo(line, err=True)
    return viewing


def open_selector(folder: Path | None, device: str | None) -> Any:
    """Open the encoder of --selector; None without."""
    if folder is None:
        return None
    from foveate.search.api import open_model

    return open_model(folder, device=device)


def ask_question(
    viewing: Viewing,
    question: str,
    options: tuple[str, ...],
    max_tokens: int,
    *,
    silent: bool,
    evidence: bool = False,
) -> VideoExchange:
    """Ask a question, print its answer as it comes, and note both."""
    from foveate.video.results import VideoExchange

    start = time.perf_counter()
    answer: VideoAnswer | VideoChoice
    details: dict[str, Any] = {}
    if options:
        answer = choice = viewing.choose(question, options)
        text = f"{choice.letter}. {options[choice.index]}"
        if not silent:
            click.echo(text)
            for option, share in zip(options, choice.probabilities, strict=True):
                click.echo(f"  {share:.3f}  {option}")
        details.update(options=list(options), probabilities=list(choice.probabilities), mass=choice.mass)
    else:
        answer = written = print_stream(viewing.stream(question, max_tokens=max_tokens), silent=silent)
        if not written.text:
            click.echo("(nothing: the model ended its answer at once)", err=True)
        text = written.text
        details.update(tokens=written.tokens, finished=written.finished)
    # The clock stops before the evidence, which is slow and not part of the answer.
    seconds = round(time.perf_counter() - start, 3)
    if evidence and text:
        from foveate.video.occlusion import measure_occlusion

        occlusion = measure_occlusion(viewing, question, answer, options)
        details.update(drops=list(occlusion.drops), control=list(occlusion.control))
        if not silent:
            for line in describe_occlusion(viewing, occlusion):
                click.echo(line)
    return VideoExchange(question=question, text=text, seconds=seconds, **details)
