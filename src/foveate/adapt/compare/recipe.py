"""The recipe of `foveate adapt compare`: backbone, tasks, grid, and how candidates are selected."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from foveate.adapt import vtab
from foveate.adapt.recipe import AdaptTraining
from foveate.core.errors import UserError
from foveate.core.recipes import Settings, apply_overrides, format_overrides, validate

_NAME = re.compile(r"(?:(?P<group>[A-Za-z0-9_.]+)/)?(?P<name>[A-Za-z0-9_.]+)")


class CompareTask(Settings):
    """One task: images with one class each."""

    name: str = Field(description="of letters, digits, _ and .")
    path: str = Field(description="collection folder, npz file, or a VTAB-1K task with its lists")
    field: str | None = Field(None, description="label field of a collection")
    group: str = Field("", description="of tasks that are averaged together")
    shots: int | None = Field(None, ge=1, description="images of each class to learn and to select from, drawn")

    @property
    def key(self) -> str:
        """Its name with its number of shots, for files."""
        return self.name if self.shots is None else f"{self.name}.{self.shots}shot"

    @property
    def title(self) -> str:
        """Its name with its number of shots, for tables."""
        return self.name if self.shots is None else f"{self.name}, {self.shots} a class"


class CompareRecipe(Settings):
    """Everything that decides one comparison."""

    backbone: dict[str, Any] = Field(description="`kind` and the fields of that encoder; see `--backbone`")
    tasks: list[CompareTask] = Field(min_length=1, description="what is learned")
    methods: list[str] = Field(
        ["all"], min_length=1, description="entries of the grid: all, method names, or names of single entries"
    )
    grid: str = Field("quick", description="a published grid by name, or a YAML file")
    training: dict[str, Any] = Field({}, description="fields of `adapt train`'s training part, above those of the grid")
    train: list[str] = Field(["train"], min_length=1, description="splits to learn from")
    validation: str = Field("validation", description="split to select by; where a task has none, `share` is drawn")
    test: str = Field("test", description="split that is measured once, at the end; never used to choose")
    share: float = Field(0.2, gt=0, lt=1, description="of the images of each class to select by, where it is drawn")
    folds: int = Field(
        0, ge=0, description="number of cross-validation folds for the selection; 0 = one validation split"
    )
    seeds: int = Field(
        1, ge=1, description="number of final training runs per method, each with a different initialization"
    )
    seed: int = Field(0, ge=0, description="decides drawn images, splits, and the first of the seeds")
    peek: bool = Field(
        False,
        description="also evaluate on the test set after each epoch of the final training; never used for selection",
    )
    budget: str | None = Field(
        None,
        description="maximum number of trained parameters without the head, such as 100000, or 1.5% of the network",
    )

    @field_validator("folds")
    @classmethod
    def _check_folds(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("one fold leaves nothing to learn from; allowed are 0 and integers from 2")
        return folds

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        keys = [task.key for task in self.tasks]
        repeated = next((key for key in keys if keys.count(key) > 1), None)
        if repeated is not None:
            raise ValueError(f"task '{repeated}' is named twice; write NAME=PATH with another name")
        if self.test in self.train or self.test == self.validation:
            raise ValueError(f"split '{self.test}' is the test split: it must not be learned from or selected by")
        if "seed" in self.training:
            raise ValueError("training.seed has no effect here; set seed and seeds")
        # Read once here, so that a mistake shows before any data are opened.
        max_parameters(self.budget, 1)
        self.resolve_training({}, {}, seed=0)
        return self

    def resolve_training(self, grid: dict[str, Any], candidate: dict[str, Any], *, seed: int) -> AdaptTraining:
        """Return how a candidate is trained: fields of the grid, above them the user's, above these the candidate's."""
        # Random heads unless a grid or the user says otherwise, as in the study: its protocol is what is compared.
        # The candidate's own fields last: they are what a grid compares.
        content = {"head_init": "random", **grid, **self.training, **candidate, "seed": seed}
        return validate(AdaptTraining, content, where="training")


def parse_task(text: str, *, what: str = "data") -> CompareTask:
    """Parse one task `[NAME=]PATH[:FIELD]`.

    Args:
        what: name of the option in errors, such as "--shifted".

    Raises:
        UserError: another form, or a folder of several tasks.
    """
    tasks = _parse_text(text, what=what, form="PATH, PATH:FIELD or NAME=PATH:FIELD")
    if len(tasks) != 1:
        raise UserError(f"{what} '{text}' holds {len(tasks)} tasks; name one of them")
    return tasks[0]


def build_recipe(
    backbone: Mapping[str, Any] | None,
    tasks: Sequence[CompareTask],
    overrides: Sequence[str] = (),
    *,
    content: Mapping[str, Any] | None = None,
    **options: Any,
) -> CompareRecipe:
    """Check a recipe from a file's content, `field=value` overrides and options, each above those before it.

    Args:
        backbone: fields of the network; None: those of the content.
        tasks: none: those of the content.

    Raises:
        UserError: an unknown field (the nearest is named) or a value that does not fit.
    """
    recipe = copy.deepcopy(dict(content or {}))
    if backbone is not None:
        recipe["backbone"], options = {}, {"backbone": dict(backbone), **options}
    if tasks:
        recipe["tasks"] = [task.model_dump() for task in tasks]
    apply_overrides(recipe, [*overrides, *format_overrides(options)])
    return validate(CompareRecipe, recipe, where="foveate adapt compare")


def max_parameters(budget: str | None, backbone: int) -> int | None:
    """Return how many parameters `budget` allows, for a network of `backbone` parameters.

    Raises:
        ValueError: another form.
    """
    if budget is None:
        return None
    # 1,000,000 and 1_000_000 are as people write them.
    text = budget.replace(",", "").replace("_", "").strip()
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"budget '{budget}': write a number such as 100000, or a share such as 1.5%")
    return int(value / 100 * backbone) if text.endswith("%") else int(value)


def parse_tasks(texts: tuple[str, ...] | list[str], shots: tuple[int, ...] = ()) -> list[CompareTask]:
    """Parse tasks `[[GROUP/]NAME=]PATH[:FIELD]`, each with every number of shots.

    Args:
        texts: a folder of VTAB-1K tasks stands for all of them.
        shots: images of each class; all by default.

    Raises:
        UserError: a text of another form, or a path that does not exist.
    """
    tasks = [task for text in texts for task in _parse_text(text)]
    if not tasks:
        raise UserError("tasks: expected at least one, as NAME=PATH or NAME=PATH:FIELD")
    return [task.model_copy(update={"shots": n}) for task in tasks for n in (shots or (None,))]


def _parse_text(
    text: str, *, what: str = "task", form: str = "[GROUP/]NAME=PATH or NAME=PATH:FIELD"
) -> list[CompareTask]:
    # A path may hold = and : itself: what exists as it is written is a path.
    name, equals, rest = text.partition("=")
    if not equals or Path(text).exists():
        name, rest = "", text
    path, field = rest, None
    if not Path(rest).exists() and ":" in rest:
        path, _, field = rest.rpartition(":")
    if not Path(path).exists():
        raise UserError(f"{what} '{text}': no such file or folder; write {form}")
    # A folder of VTAB-1K tasks stands for all of them, each in its group.
    inner = vtab.tasks_in(Path(path))
    if inner and not field:
        return [
            CompareTask(name=task.name.replace("-", "_"), path=str(task), group=vtab.group_of(task.name))
            for task in inner
        ]
    name = name or re.sub(r"[^A-Za-z0-9_.]", "_", Path(path).resolve().stem)
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"{what} '{text}': its name '{name}' must consist of letters, digits, _ and ., with or without GROUP/"
        )
    group = match["group"] or vtab.group_of(match["name"])
    return [CompareTask(name=match["name"], path=path, field=field or None, group=group)]
