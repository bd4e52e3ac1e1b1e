"""One grammar for commands that run a recipe: `VERB RECIPE [field=value ...] --collection DIR [options]`.

    @click.command("train", cls=FieldsCommand)
    @recipe_command("runs/mllm-RECIPE", dry_run="Print what every stage costs; train nothing.")
    @fields(...)
    def train_command(call: RecipeCall, settings: dict[str, Any]) -> None: ...

An option beats the same field among the overrides, and both beat the recipe.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from foveate.cli.options import (
    Call,
    Command,
    common,
    dry_run_option,
    find_command,
    path_option,
    report_option,
    run_option,
    workers_option,
)
from foveate.cli.renamed import warn_renamed

if TYPE_CHECKING:
    from foveate.core.recipes import Settings

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class RecipeCall(Call):
    """What a command line says of its recipe and its data, beside the shared options.

    Attributes:
        recipe: shipped name or file; None: the defaults, where the command has some.
        overrides: texts of the form `a.b=value`.
    """

    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    collection: Path | None = None

    @property
    def name(self) -> str:
        """The name of the recipe, for the default run folder."""
        return Path(self.recipe or "").stem

    @property
    def data(self) -> Path:
        """The folder of --collection; only a dry run may do without it."""
        if self.collection is None:
            raise click.UsageError("Missing option '--collection'.")
        return self.collection

    def read(self) -> dict[str, Any]:
        """Return the content of the recipe, without overrides; nothing where none is named."""
        from foveate.core.recipes import read

        return {} if self.recipe is None else read(self.recipe)

    def require(self, content: Mapping[str, Any], **options: object) -> None:
        """Raise UsageError for an option that neither the command line nor the recipe gives."""
        for name, value in options.items():
            if not value and name not in content:
                raise click.UsageError(f"Missing option '--{name}', or a RECIPE with the field '{name}'.")

    def options(self, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the fields that options set: `settings`, and --seed and --workers of the training."""
        settings = dict(settings or {})
        given = {"seed": self.seed, "workers": self.workers, **settings.pop("training", {})}
        return settings | {"training": {name: value for name, value in given.items() if value is not None}}

    def load(self, model: type[S], options: Mapping[str, Any] | None = None) -> S:
        """Return the recipe, with overrides and, above them, options.

        Args:
            options: nested values that the user gave, see `options`.

        Raises:
            UserError: the recipe or one of its fields is wrong, an override, or an option.
        """
        from foveate.core.recipes import apply_overrides, format_overrides, validate

        content = self.read()
        apply_overrides(content, [*self.overrides, *format_overrides(options or {})])
        return validate(model, content, where=find_command() if self.recipe is None else f"recipe '{self.recipe}'")

    def refuse_pricing(self, pricing: Mapping[str, Any]) -> None:
        """Raise UsageError for options of a dry run where a training was asked for."""
        if pricing:
            raise click.UsageError(f"--{next(iter(pricing)).replace('_', '-')} belongs to --dry-run")

    def stop(self, result: dict[str, Any], run: Path, *, step: int | None = None) -> NoReturn:
        """Say that the run was stopped, and end as a shell reports a program that Ctrl-C ended."""
        where = "" if step is None else f" at step {step}"
        self.finish(result, [f"stopped{where}; run the same command to resume"], {"run": run})
        sys.exit(130)


def recipe_command(
    run: str,
    *,
    dry_run: str | None = None,
    what: str = "Run folder",
    collection: str | None = "Collection folder; a dry run needs none.",
    optional: bool = False,
    workers: bool = True,
    source: bool = False,
) -> Callable[[Command], Command]:
    """Add RECIPE, OVERRIDES and the options that all commands with a recipe share; the command gets a `RecipeCall`.

    Args:
        run: run folder where --out is missing, for the help.
        dry_run: help of --dry-run; None: there is none.
        what: what the run folder is for.
        collection: help of --collection; None: there is none.
        optional: the command has a default recipe.
        workers: whether the command reads images in parallel.
        source: release 0.2 took the data as an argument and the recipe as --recipe, which still works.
    """

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def command(
            call: Call, recipe: str | None, overrides: tuple[str, ...], collection: Path | None = None, **values: Any
        ) -> None:
            # An override of a command whose recipe may be left out stands where the recipe would.
            if recipe is not None and _is_override(recipe):
                behind = next((text for text in overrides if "=" not in text), None)
                if behind is not None or not optional:
                    raise click.UsageError(
                        f"RECIPE is '{recipe}', an override; expected the recipe first: {find_command()} "
                        f"{behind or 'RECIPE'} {recipe}"
                    )
                recipe, overrides = None, (recipe, *overrides)
            if source:
                recipe, collection = _read_old_form(recipe, values.pop("old_recipe"), collection)
            filled = RecipeCall(**vars(call), recipe=recipe, overrides=overrides, collection=collection)
            with _reporting(values.pop("trackers", ())):
                function(filled, **values)

        # Click lists what is applied last first: the command's own options stand between the two groups of shared ones.
        own = command.__dict__.pop("__click_params__", [])
        command = common()(command)
        for add, is_used in (
            (report_option, workers),
            (workers_option, workers),
            (dry_run_option(dry_run or ""), dry_run is not None),
        ):
            if is_used:
                add(command)
        run_option(run, what)(command)
        command.__dict__["__click_params__"] += own
        if source:
            click.option("--recipe", "old_recipe", hidden=True)(command)
        if collection is not None:
            path_option("--collection", collection)(command)
        click.argument("overrides", nargs=-1, metavar="[FIELD=VALUE]...")(command)
        return click.argument("recipe", required=not optional)(command)

    return decorate


def _reporting(trackers: tuple[str, ...]) -> AbstractContextManager[None]:
    if not trackers:
        return contextlib.nullcontext()
    from foveate.training.trackers import report_to

    return report_to(*trackers)


def _is_override(text: str) -> bool:
    """Whether a text is `field=value` and no path, whose folders may have a "=" in their names."""
    # Not by Path.exists, which raises where a long override is too long for the name of a file.
    return re.match(r"[^/\\=]*=", text) is not None and not os.path.exists(text)


def _read_old_form(
    recipe: str | None, old_recipe: str | None, collection: Path | None
) -> tuple[str | None, Path | None]:
    """Return recipe and collection of `species train SOURCE [--recipe RECIPE]`, as release 0.2 had it."""
    command = find_command().removeprefix("foveate ")
    source = None
    if old_recipe is not None:
        recipe, source = old_recipe, recipe
        warn_renamed(command, "--recipe RECIPE", "the first argument, RECIPE")
    elif collection is None and recipe is not None and Path(recipe).is_dir():
        recipe, source = None, recipe
    if source is None:
        return recipe, collection
    if collection is not None:
        raise click.UsageError(f"give the data once: --collection {collection} or {source}")
    warn_renamed(command, "the argument SOURCE", "--collection SOURCE")
    return recipe, Path(source)
