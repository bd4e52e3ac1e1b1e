"""Click options made from the fields of a pydantic model: name, type, bounds, default and help are declared once.

    @click.command("caption", cls=FieldsCommand)
    @fields("foveate.caption.pending_requests:CaptionSettings", ("formats", "--format"), "language", "longest_side")
    def command(settings: dict[str, Any], ...): ...

The model is named by a string and imported only when the verb is parsed or asked for help: `foveate --help` lists all
verbs without loading any wing.
"""

from __future__ import annotations

import importlib
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from foveate.core.errors import UserError, choose

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

_BY_USER = (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.ENVIRONMENT)
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class _Bounds:
    """Bounds of a number; None where there is none."""

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    multiple_of: int | None = None


class Fields(click.Option):
    """A placeholder among a command's parameters for the options of some fields of a model.

    Attributes:
        model: "module:Class" of a pydantic model.
        flags: field path ("data.shots") -> names of its option ("--shots",), or "module:NAMES" of what `fields` takes.
        into: the command's argument that gets the values that the user gave, nested as the model is.
        repeat: paths of tuples whose option is repeated, instead of one value with commas.
        metavars: field path -> placeholder of its value in the help.
        of_recipe: the defaults are those of a recipe, which the command line does not know yet.
    """

    def __init__(
        self,
        model: str,
        flags: dict[str, tuple[str, ...]] | str,
        into: str,
        repeat: frozenset[str],
        metavars: Mapping[str, str],
        of_recipe: bool,
    ) -> None:
        # Click warns of two parameters of one name, so several placeholders of a command are told apart by a flag.
        first = "all" if isinstance(flags, str) else next(iter(flags.values()))[0].removeprefix("--")
        super().__init__([f"--{into.replace('_', '-')}-fields-{first}"], hidden=True, expose_value=False)
        self.model, self.flags, self.into, self.repeat, self.metavars = model, flags, into, repeat, metavars
        self.of_recipe = of_recipe

    def expand(self) -> list[FieldOption]:
        """Import the model and build one option per field.

        Raises:
            LookupError: the model has no such field (a mistake in the verb, not of a user).
        """
        model = _named(self.model)
        flags = _flags(_named(self.flags)) if isinstance(self.flags, str) else self.flags
        return [
            FieldOption(
                path,
                names,
                find_field(model, path),
                into=self.into,
                repeat=path in self.repeat,
                metavar=self.metavars.get(path),
                of_recipe=self.of_recipe,
            )
            for path, names in flags.items()
        ]


class FieldOption(click.Option):
    """The option of one field. Its value counts only if the user gave it: a recipe's default is not an override."""

    def __init__(
        self,
        path: str,
        flags: tuple[str, ...],
        field: FieldInfo,
        *,
        into: str,
        repeat: bool = False,
        metavar: str | None = None,
        of_recipe: bool = False,
    ) -> None:
        self.path, self.into = path, into
        annotation = _without_none(field.annotation)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        settings: dict[str, Any] = {"help": _sentence(field.description), "required": field.is_required()}
        if of_recipe:
            # The recipe is not read yet; a default of the model may not be the recipe's.
            settings |= {"help": f"{settings['help']} The recipe's by default.", "required": False}
            default = default if annotation is bool else None
        if annotation is bool and default is None and not of_recipe:
            # Three states: on, off, and what the field says of neither.
            flags = tuple(f"{flag}/--no-{flag.removeprefix('--')}" for flag in flags)
            settings |= {"is_flag": True, "required": False, "default": None}
        elif annotation is bool:
            if default:
                # A switch that is on by default can only be turned off.
                flags = tuple(f"--no-{flag.removeprefix('--')}" for flag in flags)
                settings["help"] = _sentence(find_off_description(field)) or settings["help"]
            settings |= {"is_flag": True, "flag_value": not default, "required": False, "default": default}
        elif repeat:
            inner = typing.get_args(annotation)[0]
            settings |= {"type": click_type(inner, bounds_of(field)), "multiple": True, "metavar": metavar}
            settings["help"] = f"{settings['help']} Repeatable."
            if default:
                settings |= {"default": default, "show_default": True}
        else:
            settings |= {"type": click_type(annotation, bounds_of(field))}
            if default not in (None, "", (), [], {}):
                settings |= {"default": _as_text(default), "show_default": True}
            settings["metavar"] = metavar or ("A,B,..." if isinstance(settings["type"], _List) else None)
        # `into` is part of the name: two models of one command may have a field of the same name.
        super().__init__([*flags, f"{into}__{path.replace('.', '__')}"], **settings)


class _List(click.ParamType):
    """Texts with commas between them."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if not isinstance(value, str):
            return tuple(value)
        return tuple(part.strip() for part in value.split(",") if part.strip())


class _Multiple(click.IntRange):
    """A whole number in a range that a number divides."""

    def __init__(self, factor: int, bounds: _Bounds) -> None:
        super().__init__(bounds.low, bounds.high, bounds.low_open, bounds.high_open)  # type: ignore[arg-type]
        self.factor = factor

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number = super().convert(value, param, ctx)
        if number % self.factor:
            self.fail(f"{number} is not a multiple of {self.factor}.", param, ctx)
        return number


class _Choice(click.Choice):
    """A choice whose error names the nearest match."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return choose(str(value), self.choices, "value")
        except UserError as problem:
            # As click reports a number out of its range, so that all wrong arguments end with one status.
            self.fail(str(problem), param, ctx)


class FieldsCommand(click.Command):
    """A command whose `Fields` placeholders become options; each group of values arrives as one dictionary."""

    _expanded: list[click.Parameter] | None = None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        # Click calls this several times; the model is imported and its options are built only once.
        if self._expanded is None:
            self._expanded = [
                option
                for parameter in super().get_params(ctx)
                for option in (parameter.expand() if isinstance(parameter, Fields) else [parameter])
            ]
        return self._expanded

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            if isinstance(parameter, Fields):
                # The command expects this argument even if none of its options was given.
                ctx.params.setdefault(parameter.into, {})
        for parameter in self.get_params(ctx):
            if isinstance(parameter, FieldOption) and parameter.name is not None:
                value = ctx.params.pop(parameter.name, None)
                # Defaults are shown in the help and set by the model: only what the user gave overrides a recipe.
                if ctx.get_parameter_source(parameter.name) in _BY_USER:
                    _set(ctx.params[parameter.into], parameter.path, value)
        return rest


def fields(
    model: str,
    *names: str | tuple[str, ...],
    into: str = "settings",
    repeat: Collection[str] = (),
    metavars: Mapping[str, str] | None = None,
    of_recipe: bool = False,
) -> Callable[[F], F]:
    """Add options for fields of a model to a command of class `FieldsCommand`.

    Args:
        model: "module:Class".
        names: field paths. The option is the last part of the path ("data.shots" is --shots, "alt_kinds" --alt-kinds),
            or what follows the path: ("data.field", "--label"), ("format", "--format", "--as"). Or one "module:NAMES"
            of a sequence of those.
        into: argument of the command that gets {field: value} of what the user gave, nested like the model.
        repeat: paths of tuples whose option is repeated (--template A --template B), where a value may hold a comma.
        metavars: field path -> placeholder of its value in the help ("HOST[:PORT]").
        of_recipe: the model is a recipe's and the options override it: no option is required or shows a default.
    """
    first = names[0]
    flags = first if isinstance(first, str) and ":" in first else _flags(names)

    def decorate(function: F) -> F:
        # Click collects parameters in this list and reverses it: decorators run from the bottom up.
        function.__dict__.setdefault("__click_params__", []).append(
            Fields(model, flags, into, frozenset(repeat), metavars or {}, of_recipe)
        )
        return function

    return decorate


def _named(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def _flags(names: Iterable[str | tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return dict((name, (_flag(name),)) if isinstance(name, str) else (name[0], name[1:]) for name in names)


def _flag(path: str) -> str:
    return "--" + path.rpartition(".")[2].replace("_", "-")


def find_field(model: Any, path: str) -> FieldInfo:
    """Return the field at a dotted path of nested models."""
    *parents, last = path.split(".")
    for parent in parents:
        model = _without_none(model.model_fields[parent].annotation)
    if last not in model.model_fields:
        raise LookupError(f"{model.__name__} has no field '{last}'")
    return model.model_fields[last]


def find_off_description(field: FieldInfo) -> str | None:
    """Return what turning a switch off does: `json_schema_extra={"off": "serve no page"}`."""
    extra = field.json_schema_extra
    return str(extra["off"]) if isinstance(extra, dict) and "off" in extra else None


def bounds_of(field: FieldInfo) -> _Bounds:
    """Read the bounds of a number from a field's constraints (ge, gt, le, lt, multiple_of)."""
    return _read_bounds(field.metadata)


def _read_bounds(rules: Iterable[Any]) -> _Bounds:
    low = high = multiple_of = None
    low_open = high_open = False
    for rule in rules:
        if (value := getattr(rule, "ge", None)) is not None:
            low = value
        if (value := getattr(rule, "gt", None)) is not None:
            low, low_open = value, True
        if (value := getattr(rule, "le", None)) is not None:
            high = value
        if (value := getattr(rule, "lt", None)) is not None:
            high, high_open = value, True
        multiple_of = getattr(rule, "multiple_of", multiple_of)
    return _Bounds(low, high, low_open, high_open, multiple_of)


def click_type(annotation: Any, bounds: _Bounds) -> click.ParamType:
    """Return the click type of a field's annotation; what click has no type for stays text, checked by the model."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        inner, *rules = typing.get_args(annotation)
        # The element of a tuple has its bounds in its own annotation; a field's type may be Annotated without any.
        rules = [part for rule in rules for part in getattr(rule, "metadata", [rule])]
        return click_type(inner, bounds if bounds != _Bounds() else _read_bounds(rules))
    if origin is Literal:
        choices = typing.get_args(annotation)
        return _Choice([str(choice) for choice in choices])
    if annotation is int and bounds.multiple_of is not None:
        return _Multiple(bounds.multiple_of, bounds)
    if annotation in (int, float):
        kind = click.IntRange if annotation is int else click.FloatRange
        return kind(bounds.low, bounds.high, min_open=bounds.low_open, max_open=bounds.high_open)  # type: ignore[arg-type]
    if annotation is Path:
        return click.Path(path_type=Path)
    if origin in (tuple, list):
        return _List()
    return click.STRING


def _without_none(annotation: Any) -> Any:
    """`X` of `X | None`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        others = [inner for inner in typing.get_args(annotation) if inner is not type(None)]
        return _without_none(others[0]) if len(others) == 1 else annotation
    return annotation


def _sentence(description: str | None) -> str | None:
    """Turn a field's description into an option's help: one sentence; a value stays as it is ("pcv: ...")."""
    if not description:
        return None
    first = description.split(maxsplit=1)[0]
    # "paper = as published" begins with a value, which has no capital letter.
    is_word = first.rstrip(",").isalpha() and not description.startswith(f"{first} = ")
    start = description[0].upper() if is_word else description[0]
    return start + description[1:].rstrip(".") + "."


def _as_text(default: Any) -> Any:
    if isinstance(default, dict):
        default = [f"{name}={value}" for name, value in default.items()]
    return ",".join(map(str, default)) if isinstance(default, tuple | list) else default


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    values[last] = value
