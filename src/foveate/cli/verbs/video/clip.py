"""Show a clip to a model as the options of `foveate video` say, and write what was seen."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from foveate.cli.exchanges import describe_choice
from foveate.cli.options import check_opening, opening_options, path_option, print_stream

if TYPE_CHECKING:
    from PIL import Image

    from foveate.core.runs import RunFolder
    from foveate.multimodal.choose import Choice
    from foveate.video.occlusion import Occlusion
    from foveate.video.results import ShownFrame, VideoExchange
    from foveate.video.strategies import Strategy
    from foveate.video.viewing import SeenFrame, VideoAnswer, Viewing
    from foveate.vision.video.sampling import SampleRule


# Options of the verbs of `foveate video` that say which part of a clip is shown, and how.


F = TypeVar("F", bound=Callable[..., Any])
allow_damaged_option = click.option("--allow-damaged", is_flag=True, help="Use what can be decoded of a damaged clip.")
_STRATEGY = ("frames", "slow", "slow_pool", "fast", "choose", "sampled")


def strategy_options(function: F) -> F:
    """Add --how and the fields of a strategy; the command gets them as `how` and `strategy`."""
    options = [
        click.option(
            "--how",
            default="slowfast",
            show_default=True,
            help="Strategy, or the paper's notation, slowfast-slow_10frms_...",
        ),
        click.option("--frames", type=click.IntRange(1), help="Frames to sample from the clip; 50 by default."),
        click.option("--slow", type=click.IntRange(0), help="Frames that keep their detail; 10 by default."),
        click.option("--slow-pool", metavar="RxC", help="Pooling of slow frames: 1x1, 1x2 or 2x2; 1x2 by default."),
        click.option("--fast", metavar="RxC", help="Grid of tokens of all frames, or none; 4x4 by default."),
        click.option("--choose", help="How slow frames are chosen: even, cover, change or query; even by default."),
        click.option("--sampled", type=click.IntRange(1), help="Tokens that ts keeps of all frames; 2880 by default."),
    ]
    return _add(options, function)


def span_options(function: F) -> F:
    """Add --start, --end and --allow-damaged."""
    options = [
        click.option("--start", metavar="TIME", help="Start of the part that is shown: 80, 1:20 or 1:02:03."),
        click.option("--end", metavar="TIME", help="End of the part that is shown."),
        allow_damaged_option,
    ]
    return _add(options, function)


def sampling_options(function: F) -> F:
    """Add --fps and --rule."""
    options = [
        click.option(
            "--fps",
            type=click.FloatRange(0, min_open=True),
            help="Sample at this rate, at most as many frames as --frames.",
        ),
        click.option(
            "--rule",
            type=click.Choice(["official", "uniform_mid", "linspace", "midpoint", "by_number", "fps"]),
            help="How frames are sampled; official by default, where parts are equal in time. by_number: in frames.",
        ),
    ]
    return _add(options, function)


rope_option = click.option(
    "--rope-factor",
    type=click.FloatRange(1),
    help="Stretch positions by dynamic NTK scaling; by default 2 where the context is 4,096, else 1 (as trained).",
)


def fitting_options(function: F) -> F:
    """Add --fit, --prompt and --rope-factor."""
    options = [
        click.option(
            "--fit",
            is_flag=True,
            help="Shrink the strategy where the clip does not fit the context, as without any option of size.",
        ),
        click.option("--prompt", default="", metavar="NAME|FILE", help="Wording: video, plain or a file."),
        rope_option,
    ]
    return _add(options, function)


def viewing_options(function: F) -> F:
    """Add all options that say how a model watches a clip; the command takes them as keywords and passes them on."""
    selector = path_option("--selector", "Image-text model, such as a CLOC model, by which slow frames are chosen.")
    return strategy_options(sampling_options(span_options(fitting_options(selector(opening_options(function))))))


def _add(options: list[Callable[[Any], Any]], function: F) -> F:
    # Decorators run from the bottom up: applied in reverse, the options are listed in their order.
    for option in reversed(options):
        function = option(function)
    return function


def build_how(how: str, options: Mapping[str, Any]) -> Strategy:
    """Build the strategy that `strategy_options` describe; options that were not passed keep its defaults."""
    from foveate.video.strategies import parse_how

    return parse_how(how, **{name: options[name] for name in _STRATEGY if options.get(name) is not None})


@dataclass(frozen=True)
class Span:
    """Part of a clip in seconds; None is its beginning or end."""

    start: float | None
    end: float | None

    @classmethod
    def parse(cls, start: str | None, end: str | None) -> Span:
        """Parse the times of `span_options`."""
        from foveate.core.errors import UserError
        from foveate.vision.video.sampling import parse_time

        times = []
        for flag, text in (("--start", start), ("--end", end)):
            try:
                times.append(None if text is None else parse_time(text))
            except UserError as problem:
                raise UserError(f"{flag}: {problem}") from problem
        return cls(*times)


# Write what was seen of a clip into a run folder, with its page; describe it in lines of text.


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


# Show a clip to a model as the options of `foveate video ask` and `chat` say, and ask it a question.


# An answer with options is a letter, which a few tokenizers split.
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
    rule: SampleRule | None,
    fps: float | None,
    allow_damaged: bool,
    fit: bool,
    prompt: str,
    rope_factor: float | None,
    selector: Path | None,
    device: str | None,
    opening: dict[str, Any],
    **strategy: Any,
) -> Viewing:
    """Show a clip to a model as the options of `ask` and `chat` say; `requests` are questions with their options."""
    from foveate.core.errors import UserError
    from foveate.core.runs import check_run_path
    from foveate.video.networks import open_network
    from foveate.video.watching import count_text, watch

    check_run_path(run)
    opened_as = check_opening(opening, device=device)
    settings, span = build_how(how, strategy), Span.parse(start, end)
    # The defaults are the paper's, for a context of 4,096. Where nobody asked for a size, they shrink to what the model
    # has, and the changes are listed; a size that was asked for is kept or refused.
    is_default = click.get_current_context().get_parameter_source("how") is not ParameterSource.COMMANDLINE
    fit = fit or (is_default and all(strategy.get(name) is None for name in _STRATEGY))
    by_question = getattr(settings, "choose", "even") == "query"
    if by_question and len(requests) != 1:
        raise UserError(
            f"--choose query: frames are chosen for one question (got {len(requests)}); expected one, or cover"
        )
    if not clip.exists():
        # Before a model is opened, which takes seconds.
        raise UserError(f"{clip}: no such file or folder")
    with collect_warnings() as texts:
        network = open_network(model, device=device, rope_factor=rope_factor, opening=opened_as)
        # No question of a chat is known yet: each is checked when it is asked.
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
            rule=rule,
            fps=fps,
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
    viewing: Viewing, question: str, options: tuple[str, ...], max_tokens: int, *, silent: bool, evidence: bool = False
) -> VideoExchange:
    """Ask a question, print its answer as it comes, and note both."""
    from foveate.video.results import VideoExchange

    start = time.perf_counter()
    answer: VideoAnswer | Choice
    details: dict[str, Any] = {}
    if options:
        answer = choice = viewing.choose(question, options)
        text = f"{choice.letter}. {options[choice.index]}"
        if not silent:
            click.echo(text)
            for line in describe_choice(choice, options):
                click.echo(f"  {line}")
        details.update(options=list(options), probabilities=list(choice.probabilities))
        details.update(mass=choice.mass, scored_by=choice.scored_by)
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
