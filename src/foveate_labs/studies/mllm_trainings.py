"""Trainings of multimodal models for studies: variants of one recipe, at equal processor time, asked after it.

A step costs less in some variants than in others: a few steps of each are timed, and each takes as many as its time
allows.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from foveate.core.experiment_grid import Cell
from foveate.core.files import read_json, write_json_atomically
from foveate.core.progress import say
from foveate_labs.studies.study import GridStudy

if TYPE_CHECKING:
    from foveate.mllm.recipe import MllmRecipe
    from foveate.mllm.train import Trained
    from foveate.multimodal.ask import Mllm

RECIPE = "mllm-mini"
ALIGNMENT, TEXT, READING, DENSE, INSTRUCTION = "alignment", "text", "reading", "dense", "instruction"
STEPS, TOWERS = "steps.json", "towers"
TOWER_RECIPES = {"cloc": "tour", "clip": "tour-clip"}
# Sets of images in a step with texts: half of the recipe's, so that so short a training has twice as many steps.
BATCH = 8
_GROUPS = {TEXT: ("text",), READING: ("text-rich",), DENSE: ("dense-regions",)}
# What the trainings of a variant depend on.
_FIELDS = ("stages", "groups", "model", "instruction", "formats", "tower")


@dataclass(frozen=True)
class Variant:
    """Differences from the recipe.

    Attributes:
        title, what: of its row.
        condition: whose questions it is asked.
        stages: in order, with their shares of the training's time.
        groups: of conversations, in the instruction stage.
        model: fields of the model. instruction: fields of the stages with texts.
        formats: of captions that its collection has besides.
        without: kinds of questions that its collection lacks.
        tower: a key of TOWER_RECIPES; frozen, with its trained head.
    """

    title: str
    what: str
    condition: str = "scenes"
    stages: Mapping[str, float] = field(default_factory=lambda: {ALIGNMENT: 0.3, INSTRUCTION: 0.7})
    groups: tuple[str, ...] = ("general", "refer-ground")
    model: Mapping[str, Any] = field(default_factory=dict)
    instruction: Mapping[str, Any] = field(default_factory=dict)
    formats: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    tower: str = ""


def build_recipe(variant: Variant, steps: Mapping[str, int], *, seed: int) -> MllmRecipe:
    """Return the recipe of a variant.

    Args:
        steps: of each stage; stages in its order, their names up to the first "-" those of the variant.
    """
    from foveate.core.recipes import load, validate
    from foveate.mllm.recipe import MllmRecipe

    content = load(MllmRecipe, RECIPE).model_dump(mode="json")
    content["model"] |= variant.model
    stages = {stage["name"]: stage for stage in content["stages"]}
    with_texts = {**stages[INSTRUCTION], **variant.instruction}
    with_texts["training"] = with_texts["training"] | {"batch_size": BATCH}
    for name, groups in {INSTRUCTION: variant.groups, **_GROUPS}.items():
        stages[name] = {**with_texts, "groups": groups}
    # Captions and words hold no box, so that all their steps would be without its loss.
    stages[TEXT] |= {"box_weight": 0.0}
    content["stages"] = [_set_length(stages[name.partition("-")[0]], name, steps[name], seed=seed) for name in steps]
    return validate(MllmRecipe, content, where=f"recipe '{RECIPE}', variant '{variant.title}'")


def _set_length(stage: Mapping[str, Any], name: str, steps: int, *, seed: int) -> dict[str, Any]:
    # No loader processes: their time would not count as the training's.
    training = stage["training"] | {"steps": steps, "warmup_steps": min(50, steps // 10), "seed": seed, "workers": 0}
    return {**stage, "name": name, "training": training}


def choose_steps(variant: Variant, seconds: Mapping[str, float], processor_seconds: float) -> dict[str, int]:
    """Return the steps of each stage that fill the processor time of a training.

    Args:
        seconds: of a step of each stage.
    """
    return {name: max(1, round(share * processor_seconds / seconds[name])) for name, share in variant.stages.items()}


@dataclass(frozen=True)
class TrainingScale:
    """Size of a study of trainings; part of the identity of its cells.

    Attributes:
        train, test: images of each condition.
        processor_seconds: of a training.
        timed_steps: of each stage and variant, from which their numbers of steps are set.
        questions: asked at most, each with its image, none and another one.
        tower_steps: of the trainings of the towers CLOC and CLIP; 0 in a study without them.
    """

    train: int
    test: int
    processor_seconds: int
    timed_steps: int
    questions: int
    tower_steps: int
    seeds: int


class TrainedStudy(GridStudy):
    """A study whose cells train and ask multimodal models.

    Its scale is a `TrainingScale`.

    Attributes:
        trained: variants by key.
    """

    trained: ClassVar[Mapping[str, Variant]]

    @classmethod
    def training_parameters(cls) -> dict[str, Any]:
        """Return what the trainings depend on besides the scale, JSON-ready."""
        variants = {}
        for key, variant in cls.trained.items():
            # `without` only where it is set: it came later, and the identity of older folders stays valid.
            fields = (*_FIELDS, "without") if variant.without else _FIELDS
            variants[key] = {name: _plain(getattr(variant, name)) for name in fields}
        return {"recipe": RECIPE, "batch": BATCH, "variants": variants}

    @abstractmethod
    def build_collection(self, variant: Variant, target: Path) -> None:
        """Write the images and questions of a variant; those that are there stay."""

    def collection_path(self, variant: Variant) -> Path:
        """Return the collection that a variant is trained on; the test images of a condition are the same in all."""
        without = [f"no-{kind}" for kind in variant.without]
        return self.folder / "-".join((variant.condition, *variant.formats, *without))

    def prepare_trainings(self, variants: Sequence[str], *, steps_of: str = "") -> None:
        """Draw the images, train the towers, and set the steps of variants; only what is missing.

        Args:
            steps_of: the variant that is timed for all; by default each is timed.
        """
        path = self.folder / STEPS
        steps = read_json(path) if path.is_file() else {}
        hours = self.scale.seeds * len(variants) * self.scale.processor_seconds / 3600
        say(f"{self.scale.seeds * len(variants)} trainings, {hours:.1f} h of processor time without their evaluations")
        for key in variants:
            self.build_collection(self.trained[key], self.collection_path(self.trained[key]))
        for tower in sorted({self.trained[key].tower for key in variants} - {""}):
            self.train_tower(tower, self.folder / "scenes")
        for key in variants:
            timed = steps_of or key
            if timed not in steps:
                steps[timed] = choose_steps(self.trained[timed], self._time_steps(timed), self.scale.processor_seconds)
            steps[key] = steps[timed]
            # After each variant, so that an interrupted preparation times none twice.
            write_json_atomically(path, steps)

    def train_tower(self, tower: str, collection_path: Path) -> Path:
        """Train a tower on scenes; return its folder."""
        from foveate.records.collection import Collection
        from foveate_labs.studies.trainings import train

        run, steps = self.folder / TOWERS / tower, self.scale.tower_steps
        changes = [f"training.steps={steps}", f"training.warmup_steps={steps // 10}", "training.batch_size=80",
                   f"training.checkpoint_every={steps}", "training.workers=0"]  # fmt: skip
        with Collection.open(collection_path) as collection:
            return train(TOWER_RECIPES[tower], changes, collection, run, device=self.device)

    def _time_steps(self, key: str) -> dict[str, float]:
        """Train a few steps of each stage and return the processor seconds of one."""
        import torch

        from foveate_labs.studies.mllm_measures import step_seconds

        # As in the trainings: with more, the time of a step would be that of all threads.
        torch.set_num_threads(1)
        lengths = {"short": 2, "long": 2 + self.scale.timed_steps}
        stages = self.trained[key].stages
        steps = {f"{stage}-{name}": count for stage in stages for name, count in lengths.items()}
        run = self.folder / "timing" / key
        # What an interrupted session began was timed in part.
        shutil.rmtree(run, ignore_errors=True)
        trained = self._train(key, steps, run, seed=0)
        shutil.rmtree(run)
        return {stage: step_seconds(trained.result.stages, name=stage) for stage in stages}

    def _train(self, key: str, steps: Mapping[str, int], run: Path, *, seed: int) -> Trained:
        """Train a variant, or resume its training. A signal to stop ends the study, too."""
        from foveate.mllm.train import train_mllm
        from foveate.records.collection import Collection
        from foveate_labs.studies.mllm_measures import train_on_tower

        variant = self.trained[key]
        recipe = build_recipe(variant, steps, seed=seed)
        with Collection.open(self.collection_path(variant)) as collection:
            if variant.tower:
                folder = self.train_tower(variant.tower, self.folder / "scenes")
                trained = train_on_tower(recipe, collection, run, tower=folder, device=self.device)
            else:
                trained = train_mllm(recipe, collection, run, device=self.device)
        if trained.model_folder is None:
            raise KeyboardInterrupt
        return trained

    def measure_training(
        self, cell: Cell, changed: Mapping[str, Callable[[Mllm], Mllm]] | None = None
    ) -> dict[str, float]:
        """Train the variant of a cell, and ask it with its image, none and another one.

        Args:
            changed: further forms in which the same model is asked, by the prefix of their measures.
        """
        from foveate.core.files import read_json_lines
        from foveate.mllm.evaluate import ROWS, draw_questions, evaluate, load_suite
        from foveate.mllm.settings import SuiteSettings
        from foveate.mllm.train import NAMES
        from foveate.multimodal.ask import Mllm
        from foveate.multimodal.opening import open_mllm
        from foveate.records.collection import Collection
        from foveate_labs.studies.mllm_measures import guess_scores, nearest_names, suite_scores

        variant, work = self.trained[cell.variant], self.folder / "cells" / "at-work" / cell.name
        run, path = work / "run", self.collection_path(variant)
        resumed = run.exists()
        steps = read_json(self.folder / STEPS)[cell.variant]
        trained = self._train(cell.variant, steps, run, seed=cell.seed)
        assert trained.model_folder is not None
        model = open_mllm(trained.model_folder, device=self.device)
        assert isinstance(model, Mllm)
        values: dict[str, float] = {}
        # The nearest name reads one view an image; with tiles there are several.
        if model.loaded.model.settings.assembly is None:
            with Collection.open(path) as collection:
                recipe = build_recipe(variant, steps, seed=cell.seed)
                values |= nearest_names(model, collection, recipe, run / NAMES)
        suite, settings = load_suite("scenes"), SuiteSettings(limit=self.scale.questions, batch_size=32)
        # The same questions that `evaluate` draws below: its rows of answers name them only by id.
        contents = suite.read(path, settings.split)
        contents.close()
        questions = draw_questions(contents.questions, limit=settings.limit, seed=settings.seed)
        models = {"": model} | {prefix: change(model) for prefix, change in (changed or {}).items()}
        evaluations = [work / f"evaluation-{number}" for number in range(len(models))]
        for (prefix, asked_as), evaluation in zip(models.items(), evaluations, strict=True):
            evaluate(asked_as, "scenes", path, run=evaluation, settings=settings, name=cell.name)
            scores = suite_scores(questions, read_json_lines(evaluation / ROWS))
            values |= {f"{prefix}{name}": value for name, value in scores.items() if not prefix or "/" not in name}
        if not resumed:  # the time of earlier sessions is not known
            values["processor_seconds"] = sum(stage.processor_seconds for stage in trained.result.stages)
        # The weights of a hundred trainings would fill the disk; the cell's numbers are all that is read again.
        for folder in (run, *evaluations):
            shutil.rmtree(folder)
        return values | guess_scores(suite, questions)

    def table_of_steps(self, stages: Sequence[str]) -> dict[str, Any]:
        """Return a table of the steps of each variant, for the page."""
        path = self.folder / STEPS
        steps = read_json(path) if path.is_file() else {}
        lines = [
            [variant.title, *(f"{steps[key].get(stage, 0):,}" for stage in stages)]
            for key, variant in self.trained.items()
            if key in steps
        ]
        return {
            "title": "Steps at equal processor time",
            "note": f"{self.scale.processor_seconds} processor seconds for all stages, by {self.scale.timed_steps} "
            "timed steps of each.",
            "columns": ["variant", *stages],
            "lines": lines,
        }


def _plain(value: Any) -> Any:
    """Return a value as JSON would give it back: a folder's settings are compared with those of this run."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple | list) else value
