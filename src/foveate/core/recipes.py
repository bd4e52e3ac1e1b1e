"""Recipes: pydantic models that refuse unknown keys, filled from a YAML file and `a.b=value` overrides."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from foveate.core.errors import UserError, nearest
from foveate.core.paths import CHECKOUT, PACKAGE
from foveate.core.yaml_text import read_yaml


class Settings(BaseModel):
    """Base of all recipe models: immutable; unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


def _recipe_folder() -> Path:
    installed = PACKAGE / "recipes"  # a wheel carries them inside the package
    return installed if installed.is_dir() else CHECKOUT / "recipes"


def recipe_names() -> list[str]:
    """List the names of the shipped recipes."""
    return sorted(path.stem for path in _recipe_folder().glob("*.yaml"))


def recipe_path(name_or_path: str) -> Path:
    """Find a recipe file by the name of a shipped recipe, or by path.

    Raises:
        UserError: it is neither; the error lists the shipped recipes and the nearest.
    """
    # Shipped names come first: a file "tour" in the working folder must not change what `foveate pretrain tour` does.
    shipped = _recipe_folder() / f"{name_or_path}.yaml"
    if shipped.is_file() and "/" not in name_or_path:
        return shipped
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    names = recipe_names()
    if not names:
        raise UserError(
            f"recipe '{name_or_path}': no recipes at {_recipe_folder()}; expected those of a checkout or of an "
            "installed package"
        )
    raise UserError(
        f"recipe '{name_or_path}': no such file or shipped recipe; expected a path or one of {', '.join(names)}"
        f"{nearest(name_or_path, names)}"
    )


def read_recipe_text(path: Path) -> str:
    """Read a recipe file.

    Raises:
        UserError: it is not UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from error


def read(name_or_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe file as a mapping and apply `a.b=value` overrides."""
    path = recipe_path(name_or_path)
    content = read_yaml(read_recipe_text(path), where=str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of names to values (got {type(content).__name__})")
    apply_overrides(content, overrides)
    return content


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set fields of a mapping in place.

    Args:
        overrides: texts of the form `a.b=value`, the value as YAML; the last one of a field wins. An entry of a list is
            named by its index or its field `name`: `stages.1.training.steps=10`, `stages.instruction.groups=[text]`.

    Raises:
        UserError: a text has another form, or names a field below a plain value, or no entry of a list.
    """
    for override in overrides:
        _apply(content, override)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Turn `a.b=value` texts into a nested mapping.

    Raises:
        UserError: a text has another form.
    """
    content: dict[str, Any] = {}
    for override in overrides:
        _apply(content, override)
    return content


def format_overrides(values: Mapping[str, Any], *, prefix: str = "") -> list[str]:
    """Turn nested values into `a.b=value` texts, the inverse of `parse_overrides`; None is left out.

    >>> format_overrides({"training": {"steps": 3, "seed": None}, "initial": "model"})
    ['training.steps=3', 'initial="model"']
    """
    overrides = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            overrides += format_overrides(value, prefix=f"{prefix}{name}.")
        elif value is not None:
            # JSON is YAML, and quotes texts: a folder named "1" or "yes" stays a text.
            overrides.append(f"{prefix}{name}={json.dumps(value)}")
    return overrides


def parse_pairs(texts: Sequence[str], *, hint: str) -> dict[str, str]:
    """Split `NAME=VALUE` texts into a mapping.

    Args:
        hint: how a text is written, for the error ("write it as color=red").

    Raises:
        UserError: a text has no name, no "=" or no value, or a name comes twice.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name or not value:
            raise UserError(f"'{text}': {hint}")
        if name in pairs:
            raise UserError(f"'{text}': '{name}' comes twice")
        pairs[name] = value
    return pairs


def _apply(content: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"override '{override}': expected name.of.field=value")
    value = read_yaml(text, where=f"override '{override:.80}'", kind="YAML")
    *parents, last = name.split(".")
    group: Any = content
    for parent in parents:
        if isinstance(group, list):
            child = group[_find_entry(group, parent, override)]
        else:
            # A recipe may leave out a whole group, whose fields then have the model's defaults.
            child = group.setdefault(parent, {})
        if not isinstance(child, dict | list):
            raise UserError(f"override '{override}': '{parent}' is a value, not a group of fields")
        group = child
    if isinstance(group, list):
        group[_find_entry(group, last, override)] = value
    else:
        group[last] = value


def _find_entry(entries: list[Any], part: str, override: str) -> int:
    """Find an entry of a list by its index from 0, or by the `name` that it has, as stages do."""
    # A number that is too large for an index may still be the name of an entry.
    if part.isdecimal() and int(part) < len(entries):
        return int(part)
    names = [str(entry["name"]) if isinstance(entry, dict) and "name" in entry else "" for entry in entries]
    if part in names:
        return names.index(part)
    expected = ", ".join(f"{index} ({name})" if name else str(index) for index, name in enumerate(names))
    raise UserError(
        f"override '{override}': the list has no entry '{part}'; expected one of {expected or 'none, it is empty'}"
        f"{nearest(part, filter(None, names))}"
    )


def validate(model: type[S], content: dict[str, Any], *, where: str) -> S:
    """Validate a mapping.

    Args:
        where: the file or option that it comes from, for errors.

    Raises:
        UserError: one sentence for all problems, each with its field, what is expected and the nearest match.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = "; and ".join(describe_problem(model, dict(problem)) for problem in error.errors())
        problems = problems.replace("?; and ", "? And ")  # after a nearest match, which is a sentence of its own
        raise UserError(f"{where}: {problems}") from None


def describe_problem(model: type[BaseModel], problem: dict[str, Any]) -> str:
    """Describe one of a `ValidationError`'s problems: the field, what is expected, and the nearest match."""
    location = [str(part) for part in problem["loc"]]
    field = ".".join(location)
    if problem["type"] == "extra_forbidden":
        parent = _find_model(model, location[:-1])
        allowed = sorted(parent.model_fields) if parent else []
        return f"unknown field '{field}'; expected one of {', '.join(allowed)}{nearest(location[-1], allowed)}"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    message = message.removeprefix("value error, ")
    if not field:  # a rule about several fields
        return message
    if problem["type"] == "missing":
        parent = _find_model(model, location[:-1])
        info = parent.model_fields.get(location[-1]) if parent else None
        if info is not None and info.description:
            return f"field '{field}': {message}: {info.description.rstrip('.')}"
    if problem["type"] == "literal_error":
        allowed = _list_choices(problem["ctx"]["expected"])
        expected = f"expected one of {', '.join(allowed)}{nearest(str(problem['input']), allowed)}"
        return f"field '{field}': unknown value {problem['input']!r:.60}; {expected}"
    # Rules about several fields, and choices, which quote what is unknown, name the value themselves.
    given = problem["input"] if isinstance(problem["input"], list | tuple) else [problem["input"]]
    is_named = isinstance(problem["input"], dict) or any(repr(one) in message for one in given)
    names_value = problem["type"] == "value_error" and is_named
    value = "" if names_value or problem["type"] == "missing" else f" (got {problem['input']!r:.60})"
    return f"field '{field}': {message}{value}"


def _list_choices(expected: str) -> list[str]:
    """Split pydantic's list of a Literal's values: "'a', 'b' or 3" is a, b, 3."""
    return [choice.strip().strip("'") for choice in re.split(", | or ", expected)]


def _find_model(model: type[BaseModel], location: Sequence[str]) -> type[BaseModel] | None:
    """Find the pydantic model that holds a field; pydantic puts the tags of discriminated unions into locations."""
    candidates: list[type[BaseModel]] = [model]
    for part in location:
        if part.isdigit():  # an item of a list
            continue
        tagged = [candidate for candidate in candidates if part in _literals(candidate)]
        # A tag may equal the name of a field of its own model: it is read once.
        if tagged and len(candidates) > 1:
            candidates = tagged
            continue
        candidates = [
            model
            for candidate in candidates
            if part in candidate.model_fields
            for model in _list_models(candidate.model_fields[part].annotation)
        ]
    return candidates[0] if candidates else None


def _literals(model: type[BaseModel]) -> list[Any]:
    """List the tags of a model in discriminated unions."""
    tags = [model.model_fields[name].annotation for name in ("kind", "type") if name in model.model_fields]
    return [value for annotation in tags if get_origin(annotation) is Literal for value in get_args(annotation)]


def _list_models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, typing.Annotated, list, tuple, dict):
        return [model for inner in get_args(annotation) for model in _list_models(inner)]
    return []


def load(model: type[S], name_or_path: str, overrides: Sequence[str] = ()) -> S:
    """Read a recipe, apply overrides and validate it.

    Args:
        model: of the recipe, such as `foveate.pretrain.PretrainRecipe`.
        name_or_path: a shipped recipe, or a YAML file.
        overrides: texts of the form `a.b=value`, the value as YAML; the last one of a field wins.

    Raises:
        UserError: the recipe or one of its fields is wrong, or an override.

    Example:
        >>> from foveate.pretrain import PretrainRecipe
        >>> load_recipe(PretrainRecipe, "tour", ["training.steps=100"]).training.steps
        100
    """
    return validate(model, read(name_or_path, overrides), where=f"recipe '{name_or_path}'")


def dump(settings: Settings) -> str:
    """Return the complete resolved recipe as YAML."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
