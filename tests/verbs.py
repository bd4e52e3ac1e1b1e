"""What tests ask of the command line: its verbs and sub-verbs, and the recipes that they run."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from foveate.core.plugins import load_module, module_names

ROOT = Path(__file__).resolve().parents[1]
VERBS = module_names("foveate.cli.verbs")


def module_of(verb: str) -> Any:
    """The module of a verb."""
    return load_module("foveate.cli.verbs", verb, label="verb")


def leaves(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command, or the sub-commands of a group, each with the words that call it."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from leaves(inner, (*path, name))


def sub_verbs() -> list[tuple[tuple[str, ...], click.Command]]:
    """All commands that do something: `pretrain`, `captioner evaluate`, ..."""
    return [leaf for verb in VERBS for leaf in leaves(module_of(verb).command, (verb,))]


def parameters_of(command: click.Command) -> list[click.Parameter]:
    """Arguments and options of a command, those made from a settings model included; without --help and old names."""
    shown = (one for one in command.get_params(click.Context(command)) if not getattr(one, "hidden", False))
    return [parameter for parameter in shown if "--help" not in parameter.opts]


def named(reference: str) -> Any:
    """What "module:attribute" names."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def recipe_verbs() -> list[str]:
    """Verbs that run recipes: their modules name the recipe's model (RECIPE) and what builds its networks (MODEL)."""
    return [verb for verb in VERBS if hasattr(module_of(verb), "RECIPE")]


def models_of_recipes(verb: str) -> dict[str, str]:
    """The models of a verb's recipes: that of most under "", of some by their names."""
    module = module_of(verb)
    return {"": module.RECIPE, **getattr(module, "OTHER_RECIPES", {})}


def model_of_recipe(verb: str, name: str) -> Any:
    """The model of a recipe by its name."""
    models = models_of_recipes(verb)
    return named(models.get(name, models[""]))


def verb_of_recipe(path: Path) -> str:
    """The verb of the command in a recipe's first line."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    words = first.removeprefix("# foveate ").split()
    assert first.startswith("# foveate "), f"{path.name}: starts with the command that runs it"
    assert path.stem in words, f"{path.name}: its command names another recipe"
    assert words[0] in recipe_verbs(), f"{path.name}: '{words[0]}' runs no recipes"
    return words[0]
