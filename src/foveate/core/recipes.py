"""Recipes: a pydantic model (unknown keys refused) <- a YAML file <- `a.b=value` overrides."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from foveate.core.errors import UserError, nearest
from foveate.core.yaml_text import read_yaml


class Settings(BaseModel):
    """Base of all recipe models: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Settings)


def _recipe_folder() -> Path:
    package = Path(__file__).resolve().parent.parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent.parent / "recipes"


def recipe_names() -> list[str]:
    """The names of the recipes that come with Foveate."""
    return sorted(path.stem for path in _recipe_folder().glob("*.yaml"))


def recipe_path(name_or_path: str) -> Path:
    """The file of a shipped recipe's name, or of a path.

    Raises:
        UserError: when it is neither, naming the shipped recipes and the nearest one.
    """
    shipped = _recipe_folder() / f"{name_or_path}.yaml"
    if shipped.is_file() and "/" not in name_or_path:
        return shipped
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    names = recipe_names()
    raise UserError(
        f"recipe '{name_or_path}': neither a file nor a shipped recipe ({', '.join(names)})"
        f"{nearest(name_or_path, names)}"
    )


def recipe_text(path: Path) -> str:
    """What stands in a recipe file.

    Raises:
        UserError: when it is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from error


def read(name_or_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a recipe file with `a.b=value` overrides applied (values are read as YAML)."""
    path = recipe_path(name_or_path)
    content = read_yaml(recipe_text(path), where=str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping of names to values, this is {type(content).__name__}")
    apply_overrides(content, overrides)
    return content


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> None:
    """Sets fields of a mapping from texts of the form a.b=value; values are read as YAML.

    Raises:
        UserError: for a text of another form, or a field below one that is a value.
    """
    for override in overrides:
        _apply(content, override)


def options_of(overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping that `name.of.field=value` texts make by themselves.

    Raises:
        UserError: for a text that is none of these.
    """
    content: dict[str, Any] = {}
    for override in overrides:
        _apply(content, override)
    return content


def _apply(content: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"override '{override}': write it as name.of.field=value")
    value = read_yaml(text, where=f"override '{override:.80}'", kind="YAML")
    *parents, last = name.split(".")
    place = content
    for parent in parents:
        child = place.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"override '{override}': '{parent}' is a value, not a group of fields")
        place = child
    place[last] = value


def validate(model: type[S], content: dict[str, Any], *, where: str) -> S:
    """The checked model of `content`.

    Raises:
        UserError: one sentence for all problems, each with its field, what is allowed and the nearest match.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = "; and ".join(_sentence(model, dict(problem)) for problem in error.errors())
        problems = problems.replace("?; and ", "? And ")  # after a nearest match, which is a sentence of its own
        raise UserError(f"{where}: {problems}") from None


def _sentence(model: type[BaseModel], problem: dict[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    field = ".".join(location)
    if problem["type"] == "extra_forbidden":
        parent = _model_at(model, location[:-1])
        allowed = sorted(parent.model_fields) if parent else []
        return f"unknown field '{field}', allowed are {', '.join(allowed)}{nearest(location[-1], allowed)}"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    message = message.removeprefix("value error, ")
    if not field:  # of several fields together
        return message
    if problem["type"] == "missing":
        parent = _model_at(model, location[:-1])
        info = parent.model_fields.get(location[-1]) if parent else None
        if info is not None and info.description:
            return f"field '{field}': {message}: {info.description.rstrip('.')}"
    # A rule about several fields of a group names their values itself.
    told = problem["type"] == "missing" or (problem["type"] == "value_error" and isinstance(problem["input"], dict))
    given = "" if told else f" (it is {problem['input']!r:.60})"
    return f"field '{field}': {message}{given}"


def _model_at(model: type[BaseModel], location: Sequence[str]) -> type[BaseModel] | None:
    """The pydantic model that holds the field at `location`; tags of discriminated unions are part of it."""
    candidates: list[type[BaseModel]] = [model]
    for part in location:
        tagged = [c for c in candidates if "kind" in c.model_fields and part in _literals(c)]
        if tagged:
            candidates = tagged
            continue
        candidates = [
            found
            for candidate in candidates
            if part in candidate.model_fields
            for found in _models_in(candidate.model_fields[part].annotation)
        ]
    return candidates[0] if candidates else None


def _literals(model: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(model.model_fields["kind"].annotation)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, typing.Annotated, list, tuple, dict):
        return [found for inner in get_args(annotation) for found in _models_in(inner)]
    return []


def load(model: type[S], name_or_path: str, overrides: Sequence[str] = ()) -> S:
    """Reads, overrides and checks a recipe.

    Raises:
        UserError: naming the recipe, the field, what is allowed and the nearest match.
    """
    return validate(model, read(name_or_path, overrides), where=f"recipe '{name_or_path}'")


def dump(settings: Settings) -> str:
    """The complete resolved recipe as YAML."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
