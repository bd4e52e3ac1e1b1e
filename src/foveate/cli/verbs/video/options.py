"""Options of the verbs of `foveate video` that say which part of a clip is shown, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from foveate.cli.options import path_option

if TYPE_CHECKING:
    from foveate.video.strategies import Strategy

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
    """Add --from, --to and --allow-damaged."""
    options = [
        click.option("--from", "start", metavar="TIME", help="Start of the part that is shown: 80, 1:20 or 1:02:03."),
        click.option("--to", "end", metavar="TIME", help="End of the part that is shown."),
        allow_damaged_option,
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
        click.option("--fit", is_flag=True, help="Shrink the strategy where the clip does not fit the context."),
        click.option("--prompt", default="", metavar="NAME|FILE", help="Wording: video, plain or a file."),
        rope_option,
    ]
    return _add(options, function)


def viewing_options(function: F) -> F:
    """Add all options that say how a model watches a clip; the command takes them as keywords and passes them on."""
    selector = path_option("--selector", "Image-text model, such as a CLOC model, by which slow frames are chosen.")
    return strategy_options(span_options(fitting_options(selector(function))))


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
        for flag, text in (("--from", start), ("--to", end)):
            try:
                times.append(None if text is None else parse_time(text))
            except UserError as problem:
                raise UserError(f"{flag}: {problem}") from problem
        return cls(*times)
