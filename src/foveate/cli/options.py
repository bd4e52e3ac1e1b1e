"""Options that mean the same at every verb, groups of verbs, and how a verb ends: its result, tables, paths."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from foveate.cli.fields import fields
from foveate.core import progress

if TYPE_CHECKING:
    from foveate.core.recipes import Settings
    from foveate.multimodal.settings import OpeningOptions

F = TypeVar("F", bound=Callable[..., Any])
Command = Callable[..., None]
T = TypeVar("T")
S = TypeVar("S", bound="Settings")
# Exit status of a command that searched and found nothing: neither a mistake (1) nor wrong arguments (2).
NOT_FOUND = 3


def _quieten(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    # An eager callback: progress must be off before another option opens a file and reports it.
    if value:
        progress.configure(quiet=True)
    return value


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
# Eager and without a value: progress is silenced before any other option is read, by verbs that never see it.
quiet_option = click.option(
    "--quiet", is_flag=True, callback=_quieten, expose_value=False, is_eager=True, help="No progress."
)
seed_option = click.option(
    "--seed", type=click.IntRange(0), default=None, help="Random seed; by default the recipe's, or 0."
)
device_option = click.option(
    "--device", default=None, metavar="NAME", help="cpu, cuda, cuda:1 or mps; by default CUDA if available."
)
workers_option = click.option(
    "--workers", type=click.IntRange(1, 256), default=None, help="Threads or processes that read and decode."
)

report_option = click.option(
    "--report-to",
    "trackers",
    multiple=True,
    metavar="TRACKER",
    help="Also log to tensorboard, trackio, wandb or mlflow; repeatable.",
)

# How a model of transformers is opened; for commands of class `FieldsCommand`, whose argument `opening` gets what was
# given.
opening_options = fields(
    "foveate.multimodal.settings:OpeningOptions", "dtype", "device_map", "quantize", into="opening"
)

set_option = click.option(
    "--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Any other setting; repeatable."
)


def path_option(flag: str, help: str, *, required: bool = False) -> Callable[[F], F]:
    """Add an option for a file or folder; the argument of the command has the option's name."""
    return click.option(flag, type=click.Path(path_type=Path), required=required, help=help)


def run_option(default: str, what: str = "Run folder") -> Callable[[F], F]:
    """Add --out for a run folder; the argument of the command is `run`.

    Args:
        default: the folder where --out is missing, for the help.
        what: what the folder is for, where the verb runs no training.
    """
    return click.option("--out", "run", type=click.Path(path_type=Path), help=f"{what}; {default} by default.")


unit_of_boxes_option = click.option(
    "--unit-of-boxes",
    metavar="UNIT",
    help="What the numbers of a box mean, of a model of transformers whose family is not known: none, pixels, "
    "resized-pixels, 0-1, 0-1-padded, 0-1-cropped, 0-1000, 0-1000-yx (y first), places, locations, patches or points.",
)


def model_first(*names: str) -> Callable[[Command], Command]:
    """Add the arguments NAME ... and --model; the command gets each name, and the model: by default the shipped one.

    The order of earlier releases, with the model as the first argument, is read, too.

    Args:
        names: arguments of the command that the user must give, such as "image" and "phrase".
    """
    listed = " ".join(name.upper() for name in names)

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def command(*args: Any, arguments: tuple[str, ...], model: str | None, **values: Any) -> None:
            from foveate.core.hub import DEFAULT_ENCODER

            if not len(names) <= len(arguments) <= len(names) + 1:
                raise click.UsageError(f"expected {listed} (got {len(arguments)} arguments)")
            first = arguments[0] if len(arguments) > len(names) else None
            if first is not None and model is not None:
                line = f"{find_command()} {listed} --model {model}"
                raise click.UsageError(f"the model is named twice (got '{first}' and '{model}'); expected {line}")
            chosen = next((name for name in (model, first) if name is not None), DEFAULT_ENCODER)
            function(*args, model=chosen, **dict(zip(names, arguments[-len(names) :], strict=True)), **values)

        option = click.option("--model", default=None, metavar="NAME", help="Encoder; by default the one that ships.")
        return click.argument("arguments", nargs=-1, required=True, metavar=listed)(option(command))

    return decorate


def dry_run_option(help: str) -> Callable[[F], F]:
    """Add --dry-run: print what would be done, and write nothing."""
    return click.option("--dry-run", is_flag=True, help=help)


def find_command() -> str:
    """Return the command that runs, such as "foveate adapt train"."""
    return "foveate " + click.get_current_context().command_path.removeprefix("foveate ")


@dataclass(frozen=True)
class Call:
    """What the shared options of a command line say; None where it says nothing, or the command has no such option."""

    as_json: bool = False
    run: Path | None = None
    dry_run: bool = False
    workers: int | None = None
    seed: int | None = None
    device: str | None = None

    @property
    def command(self) -> list[str]:
        """The command line, for run.json, result and page."""
        return ["foveate", *sys.argv[1:]]

    def check(self, model: type[S], values: Mapping[str, Any]) -> S:
        """Return settings of the values that the user gave; an error names the command."""
        from foveate.core.recipes import validate

        return validate(model, dict(values), where=find_command())

    def finish(self, result: dict[str, Any], lines: Iterable[str], paths: Mapping[str, Path] | None = None) -> None:
        """Print the result of the command; see `finish`."""
        finish(result, lines, paths or {}, as_json=self.as_json)


def check_opening(opening: Mapping[str, Any], *, device: str | None) -> OpeningOptions:
    """Return what `opening_options` gave; with a device map, which chooses the devices itself, --device is refused."""
    from foveate.multimodal.settings import OpeningOptions

    if device is not None and "device_map" in opening:
        raise click.UsageError("--device has no effect with --device-map, which chooses the devices")
    return Call().check(OpeningOptions, opening)


def common(*, seed: bool = True, device: bool = True) -> Callable[[Command], Command]:
    """Add --json and --quiet, and --seed and --device where they have an effect; the command gets a `Call`.

    The `Call` also holds what --out of a run folder, --dry-run and --workers say, where these stand above.
    """

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def command(**values: Any) -> None:
            function(Call(**{name: values.pop(name) for name in SHARED if name in values}), **values)

        options = [json_option, quiet_option] + [seed_option] * seed + [device_option] * device
        # Decorators run from the bottom up: applied in reverse, the options are listed in their order.
        for option in reversed(options):
            option(command)
        return command

    return decorate


SHARED = tuple(field.name for field in dataclasses.fields(Call))


def finish(result: dict[str, Any], lines: Iterable[str], paths: Mapping[str, Path], *, as_json: bool) -> None:
    """Print the result: words and then the written paths, or one JSON object with both."""
    if as_json:
        click.echo(json.dumps({**result, "paths": {name: str(path) for name, path in paths.items()}}))
        return
    for line in lines:
        click.echo(line)
    for name, path in paths.items():
        click.echo(f"{name}: {path}")


def print_stream(pieces: Generator[str, None, T], *, silent: bool) -> T:
    """Print the pieces of an answer as they come, and a line end behind them; return the answer."""
    start = True
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            if not silent:
                click.echo()
            return end.value
        if not silent:
            # Tokens of a first word often begin with a space.
            click.echo(piece.lstrip() if start else piece, nl=False)
            sys.stdout.flush()
        start = start and not piece.strip()


def split_names(values: tuple[str, ...]) -> list[str]:
    """Split the class names of an option at commas; @FILE has one a line."""
    class_names: list[str] = []
    for value in values:
        class_names += read_lines(Path(value[1:])) if value.startswith("@") else value.split(",")
    return [text.strip() for text in class_names if text.strip()]


def read_lines(path: Path) -> list[str]:
    """Read a file of class names, one a line."""
    from foveate.core.errors import UserError, nearest

    if not path.exists():
        siblings = [text.name for text in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file of class names{nearest(path.name, siblings)}")
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a text file of class names") from error


# Groups of commands whose modules are imported when they are used or described, so that help is shown at once.


class LazyCommands(MutableMapping[str, click.Command]):
    """The commands of a group by name; each is a click command in a module of its package, imported at first use.

    Args:
        package: for example "foveate.cli.verbs.adapt".
        modules: module of the package -> names of its commands.
    """

    def __init__(self, package: str, modules: Mapping[str, Sequence[str]]) -> None:
        self._modules = {name: f"{package}.{module}" for module, names in modules.items() for name in names}
        self._commands: dict[str, click.Command | None] = dict.fromkeys(self._modules)

    def __getitem__(self, name: str) -> click.Command:
        command = self._commands[name]
        if command is None:
            values = vars(importlib.import_module(self._modules[name])).values()
            command = next(value for value in values if isinstance(value, click.Command) and value.name == name)
            self._commands[name] = command
        return command

    # Needed by click: `Group.add_command` assigns to this mapping.
    def __setitem__(self, name: str, command: click.Command) -> None:
        self._commands[name] = command

    def __delitem__(self, name: str) -> None:
        del self._commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._commands)

    def __len__(self) -> int:
        return len(self._commands)
