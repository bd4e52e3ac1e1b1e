"""Train a multimodal LLM: recipe and collection in; stages with their curves, and a model folder out.

Each stage has a folder with checkpoints; a finished stage leaves its weights, from which the next one starts, so that
the same command goes on wherever it was stopped.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from foveate.core import seeds
from foveate.core.devices import autocast_dtype
from foveate.core.errors import UserError
from foveate.core.files import read_json, write_bytes_atomically, write_json_atomically
from foveate.core.progress import duration, say
from foveate.core.recipes import dump
from foveate.core.runs import RunFolder
from foveate.mllm.calibrate import measure_box_scores
from foveate.mllm.card import model_card, put_reading
from foveate.mllm.data import (
    VALIDATION,
    ImageSet,
    hash_collection,
    list_training_words,
    read_sets,
    read_validation,
    select_sets,
    write_vocabulary,
)
from foveate.mllm.recipe import MllmRecipe, StageSettings
from foveate.mllm.results import BoxScoreResult, MllmResult, StageResult
from foveate.mllm.samples import MllmSamples, cache_features, open_loader
from foveate.mllm.stages import StagedModel
from foveate.mllm.task import MllmTask
from foveate.multimodal.ask import Mllm
from foveate.multimodal.folder import NAMES, TOKENIZER, LoadedModel, read_stored_reader, save_model
from foveate.multimodal.model import MultimodalModel
from foveate.multimodal.opening import find_folder
from foveate.records.collection import Collection
from foveate.training.distributed import barrier
from foveate.training.loader import BadSample, Loader
from foveate.training.loop import TrainingError
from foveate.training.run import Run
from foveate.training.task import Batch
from foveate.training.timing import StepTimes, time_steps
from foveate.vision.dual import DualConnector
from foveate.vision.feature_cache import FeatureCache

# Written or imported before the first step, so that they alone do not bind the run folder to the recipe.
_PREPARED = (TOKENIZER, NAMES, "imported")
# What runs of 0.2 began with: a file for each part of what is now in data.json.
_OLDER = {f"{part}.json": part for part in ("collection", "language", "initial", "tower")}
# Most samples of the validation split, as an evaluation takes time.
_VALIDATION_SAMPLES = 200
STAGE, STAGE_WEIGHTS = "stage.json", "weights.safetensors"
Measure = Callable[["MllmTraining"], Mapping[str, float]]


@dataclass
class Trained:
    """A training run; `model_folder` is None if it was stopped before its end, and on other ranks."""

    run: RunFolder
    result: MllmResult
    model_folder: Path | None
    is_main: bool


def train_mllm(
    recipe: MllmRecipe,
    collection: Collection,
    run_path: Path,
    *,
    device: str | None = None,
    command: Sequence[str] = (),
    measure: Measure | None = None,
) -> Trained:
    """Train all stages of a recipe on a collection; the same call again resumes.

    Args:
        measure: returns the metrics of an evaluation (`training.evaluate_every`), logged as `eval_NAME`; by default
            the losses of the validation split.

    Raises:
        UserError: the recipe does not fit the collection, or the run folder holds another run.

    Example:
        >>> from foveate.core import load_recipe
        >>> recipe = load_recipe(MllmRecipe, str(mllm_recipe_file))
        >>> run = train_mllm(recipe, Collection.open(asked_folder), new_folder, device="cpu")
        >>> run.result.status, run.model_folder.name
        ('finished', 'model')
    """
    with _open_run(recipe, run_path, device=device, command=command) as run:
        training = _prepare(collection, run)
        training.measure = measure
        status = training.run_all()
        is_main = run.here.is_main
        folder = training.save() if status == "finished" and is_main else None
        result = training.result(status)
        run.write_result(result)
    return Trained(run.folder, result, folder, is_main)


def _open_run(recipe: MllmRecipe, path: Path, *, device: str | None = None, command: Sequence[str] = ()) -> Run:
    recipe, text = match_earlier_run(recipe, path)
    return Run(
        recipe,
        path,
        device=device,
        command=command,
        training="stages.training",
        prepared=_PREPARED,
        older=_OLDER,
        text=text,
    )


def match_earlier_run(recipe: MllmRecipe, run_path: Path) -> tuple[MllmRecipe, str]:
    """Return the recipe to run, and its text for the run folder; a run begun without points goes on without them.

    Without this, no run that was begun before `point_share` existed could resume: its recipe would be another one.
    """
    saved = run_path / "recipe.yaml"
    try:
        before = yaml.safe_load(saved.read_text(encoding="utf-8")) if saved.is_file() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        before = None  # `RunFolder.create` refuses the folder, with its reason
    recorded = before.get("stages") if isinstance(before, dict) else None
    # A recipe of the user's, beside which no run has begun, has only what the user wrote.
    if not (run_path / "run.json").is_file() or not isinstance(recorded, list):
        return recipe, dump(recipe)
    if any("point_share" in each for each in (*(stage.model_fields_set for stage in recipe.stages), *recorded)):
        return recipe, dump(recipe)
    stages = tuple(stage.model_copy(update={"point_share": 0.0}) for stage in recipe.stages)
    recipe = recipe.model_copy(update={"stages": stages})
    content = recipe.model_dump(mode="json")
    for stage in content["stages"]:
        # Left out as in the saved recipe, so that the same command finds its own folder.
        del stage["point_share"], stage["point_place"]
    return recipe, yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def prepare_training(
    recipe: MllmRecipe, collection: Collection, run_path: Path, *, command: Sequence[str] = ()
) -> MllmTraining:
    """Create or reopen the run folder, train the tokenizer, and build the model; nothing is trained yet.

    Raises:
        UserError: the recipe does not fit the collection, or the run folder holds another run.
    """
    return _prepare(collection, _open_run(recipe, run_path, command=command))


def _prepare(collection: Collection, run: Run) -> MllmTraining:
    recipe = run.recipe
    assert isinstance(recipe, MllmRecipe)
    # Before the run folder is created: a recipe that does not fit the collection leaves none behind.
    sets = read_sets(recipe, collection)
    is_main = run.here.is_main
    run.open({"collection": {"name": collection.name, "sha256": hash_collection(collection)}} if is_main else None)
    if is_main:
        write_vocabulary(recipe, collection, sets, run.path)
    # The other processes read the tokenizer and the names that this one writes.
    barrier()
    return MllmTraining(recipe, collection, sets, run)


class MllmTraining:
    """The stages of one run, one after the other, on one model."""

    def __init__(self, recipe: MllmRecipe, collection: Collection, sets: Sequence[ImageSet], run: Run) -> None:
        self.recipe, self.collection, self.sets, self.run = recipe, collection, sets, run
        self.here = run.here
        self.measure: Measure | None = None
        # Folder of the features of a dry run, which writes nowhere else.
        self.scratch: Path | None = None
        self._validation: dict[str, list[Batch]] = {}
        self.stages: list[StageResult] = []
        self.staged = StagedModel(recipe, collection.name, run)
        self.prompts, self.names = self.staged.prompts, self.staged.names
        # Not at the end of the training, when the initial model may have been moved.
        self.training_words = list_training_words(sets, recipe.start)
        self.reader = read_stored_reader(find_folder(recipe.start)) if recipe.start else None
        self.box_scores: BoxScoreResult | None = None
        self._features: FeatureCache | None = None

    @property
    def model(self) -> MultimodalModel:
        """The model with the views of the current stage."""
        return self.staged.model

    def enter(self, stage: StageSettings) -> None:
        """Let the model see as a stage does; see `StagedModel.enter`."""
        if self.staged.enter(stage):
            self._features = None

    def run_all(self) -> str:
        """Run the stages that are left; return "finished", or "stopped" by a signal."""
        # Only where the process is alone: timing computes the features of later stages, too, of which each process
        # makes a share. The first would wait for the shares of the others, which wait for it in the first stage until
        # they time out.
        if self.staged.language is not None and self.here.size == 1:
            self.announce()
        for number, stage in enumerate(self.recipe.stages):
            folder = self.run.path / f"stage-{number}-{stage.name}"
            folder.mkdir(exist_ok=True)
            self.enter(stage)
            # Written last: a stage without it is trained to its end, from its newest checkpoint.
            if not (folder / STAGE).is_file():
                result = self._run(stage, folder)
                if result.status == "stopped":
                    self.stages.append(result)
                    return "stopped"
            self.stages.append(StageResult.model_validate(read_json(folder / STAGE)))
            self.staged.load_stage(folder / STAGE_WEIGHTS)
        return "finished"

    def announce(self) -> None:
        """Say how long the stages that are left will take, before they start."""
        model, features = self.model, self._features
        left = [
            stage
            for number, stage in enumerate(self.recipe.stages)
            if not (self.run.path / f"stage-{number}-{stage.name}" / STAGE).is_file()
        ]
        seconds: dict[str, float] = {}
        # A step that diverges is reported by the stage itself, with its folder.
        with contextlib.suppress(TrainingError):
            for stage in left:
                seconds[stage.name] = self.time_stage(stage, self.samples(stage)).total(stage.training)
        # A stage with views of another size resizes positions, which there and back are no longer the same.
        self.staged.model, self._features = model, features
        if seconds.keys() == {stage.name for stage in left} != set():
            stages = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
            total = duration(sum(seconds.values()))
            say(f"about {total} in all ({stages}), by the first steps of each stage on this machine")

    def time_stage(self, stage: StageSettings, samples: MllmSamples) -> StepTimes:
        """Time the first steps of a stage, which change nothing."""
        stage = self.without_validation(stage)
        self.model.require_gradients()
        evaluates = stage.training.evaluate_every is not None
        return time_steps(self.task(stage), self.loader(stage, samples), stage.training, evaluate=evaluates)

    def task(self, stage: StageSettings) -> MllmTask:
        """Return the task of a stage, which trains the model."""
        measure = partial(self.measure, self) if self.measure is not None else None
        validation = partial(self.load_validation, stage)
        return MllmTask(self.model, names=self.names, stage=stage, validation=validation, measure=measure)

    def without_validation(self, stage: StageSettings) -> StageSettings:
        """Return a stage without its evaluations and early stop where there is nothing to measure."""
        if self.measure is not None or stage.training.evaluate_every is None or self.load_validation(stage):
            return stage
        say(f"stage {stage.name}: nothing in split '{VALIDATION}' can be measured; no evaluation, no early stop")
        changes = {"evaluate_every": None, "monitor": None, "patience": None, "restore_best": False}
        return stage.model_copy(update={"training": stage.training.model_copy(update=changes)})

    def load_validation(self, stage: StageSettings) -> list[Batch]:
        """Load the validation samples of a stage, the same for each of its evaluations."""
        if stage.name not in self._validation:
            self._validation[stage.name] = self._load_validation(stage)
        return self._validation[stage.name]

    def _load_validation(self, stage: StageSettings) -> list[Batch]:
        sets = read_validation(self.recipe, self.collection)
        samples = self._samples(stage, sets)
        if not len(samples.rows):
            return []
        seed, size = self.loader_seed(stage), stage.training.batch_size
        names = [str(row) for row in samples.rows.tolist()]
        drawn = seeds.draw(names, _VALIDATION_SAMPLES, "validation", stage.training.seed, what="sample")
        rows = [int(samples.rows[index]) for index in drawn]
        samples.features = self.cache_features([samples.sets[row] for row in rows])
        loaded: list[dict[str, Any]] = []
        for row in rows:
            with contextlib.suppress(BadSample):
                loaded.append(samples.sample(row, 0, seed))
        return [samples.collate(loaded[start : start + size]) for start in range(0, len(loaded), size)]

    def loader_seed(self, stage: StageSettings) -> int:
        """Return the seed of the order and the draws of a stage."""
        # By the name of the stage: two stages of one seed would draw the same order.
        return seeds.integer("stage", stage.training.seed, stage.name) % 2**31

    def samples(self, stage: StageSettings, *, features: bool = True) -> MllmSamples:
        """Return the training samples of a stage.

        Args:
            features: compute them of all images; False leaves `MllmSamples.features` to the caller.
        """
        self.enter(stage)
        samples = self._samples(stage, self.sets)
        samples.check()
        if features:
            samples.features = self._cached()
        return samples

    def _samples(self, stage: StageSettings, sets: Sequence[ImageSet]) -> MllmSamples:
        return MllmSamples(
            select_sets(sets, stage),
            self.collection,
            self.prompts,
            self.names,
            preprocess=self.model.tower.preprocess,
            max_conversations=stage.max_conversations if stage.texts else 0,
            max_positions=self.model.max_positions,
            tokens_of_view=self.model.connector.num_tokens,
            settings=self.model.settings,
            replay=stage.replay,
            point_share=stage.point_share,
            point_place=stage.point_place,
        )

    def loader(self, stage: StageSettings, samples: MllmSamples) -> Loader:
        """Return the loader of a stage's samples; see `open_loader`."""
        return open_loader(stage, samples, seed=self.loader_seed(stage), here=self.here)

    def _run(self, stage: StageSettings, folder: Path) -> StageResult:
        stage = self.without_validation(stage)
        loader, settings = self.loader(stage, self.samples(stage)), stage.training
        if self.here.is_main:
            say(f"stage {stage.name}: {len(loader.rows)} samples, {settings.steps} steps")
        if stage.copy_projector and isinstance(self.model.connector, DualConnector):
            # A resumed stage takes its weights from a checkpoint instead.
            self.model.connector.copy_projector()
        # A fresh wrapper per stage, so that what one stage froze is not frozen in the next.
        self.model.require_gradients()
        task = self.task(stage)
        started = time.process_time()
        outcome = self.run.train(task, loader, settings, stage=folder.name)
        processor_seconds = time.process_time() - started
        gathered = self.run.gather(task, outcome)
        result = StageResult(
            name=stage.name,
            status=outcome.status,
            steps=outcome.step,
            seconds=round(outcome.seconds, 1),
            processor_seconds=round(processor_seconds, 2),
            samples=len(loader.rows),
            bad_samples=outcome.bad_samples,
            shares=stage.mixture.shares() if stage.mixture else {},
            # A stage that was killed between its last checkpoint and its weights has no row of this session.
            last=outcome.last_row or next(reversed(RunFolder(folder).read_metrics()), {}),
            curves=f"{folder.name}/metrics.jsonl",
        )
        if self.run.saves(outcome):
            self._write_weights(folder / STAGE_WEIGHTS, gathered)
            write_json_atomically(folder / STAGE, result.to_json())
        # The other processes load the weights of the stage that the main one has just written.
        barrier()
        return result

    def _write_weights(self, path: Path, gathered: dict[str, Tensor]) -> None:
        from safetensors.torch import save

        state = self.staged.stage_state()
        # Tied tensors are gathered once; the folder of a stage holds every name of the state.
        whole = {name: gathered.get(name, value).detach().cpu().clone().contiguous() for name, value in state.items()}
        write_bytes_atomically(path, save(whole))

    def _cached(self) -> FeatureCache:
        if self._features is None:
            self._features = self.cache_features(self.sets)
        return self._features

    def cache_features(self, sets: Sequence[ImageSet], *, rows: NDArray[np.int64] | None = None) -> FeatureCache:
        """Compute the frozen features of the images of sets, as far as they are not cached yet.

        Args:
            rows: in a dry run, the rows of the images that are looked at; by default all.
        """
        return cache_features(
            self.model, self.collection, sets, run_path=self.run.path, here=self.here, scratch=self.scratch, only=rows
        )

    def result(self, status: str) -> MllmResult:
        """Put the result together."""
        groups = Counter(talk.group for group in self.sets for talk in group.conversations)
        return MllmResult(
            status=status,
            recipe=self.recipe.model_dump(mode="json"),
            command=self.run.command or [],
            collection=self.collection.name,
            images=len({row for group in self.sets for row in group.rows}),
            conversations=dict(groups),
            names=len(self.names.index),
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            stages=self.stages,
            seconds=round(sum(stage.seconds for stage in self.stages), 1),
            model="model/",
            initial=self.recipe.start or "",
            initial_sha256=self.staged.initial_sha256,
            box_scores=self.box_scores,
        )

    def trained_groups(self) -> list[str]:
        """List the groups of conversations that the stages trained on."""
        groups = {talk.group for images in self.sets for talk in images.conversations}
        return sorted(group for group in groups if any(stage.trains(group) for stage in self.recipe.stages))

    def measure_box_scores(self) -> None:
        """Measure when a phrase counts as not shown, where a stage trained boxes and there are images to measure on."""
        if not any(stage.box_weight for stage in self.recipe.stages):
            return
        model = Mllm(LoadedModel(self.model.eval(), self.prompts, self.prompts.tokenizer, {}))
        try:
            self.box_scores = measure_box_scores(model, self.collection)
        except UserError as problem:
            # A training is not lost for it, but without the threshold every phrase gets a box, shown or not.
            say(f"no threshold of boxes, every phrase gets one: {problem}; foveate mllm calibrate measures it")

    def save(self) -> Path:
        """Write the model folder."""
        self.measure_box_scores()
        result = self.result("finished")
        provenance = self.run.provenance(
            collection=self.collection.name,
            license=self.collection.license,
            split=self.recipe.split,
            groups=self.trained_groups(),
        )
        if self.recipe.start:
            provenance["initial"] = {"source": self.recipe.start, "sha256": self.staged.initial_sha256}
        if self.recipe.tower_weights:
            provenance["tower"] = self.run.folder.identity["tower"]
        card = model_card(self.recipe, result.parameters, provenance, box_scores=self.box_scores)
        if self.reader is not None:
            card = put_reading(card, self.reader.described)
        return save_model(
            self.run.path / "model",
            settings=self.recipe.model,
            weights=self.model.state_dict(),
            tokenizer_json=None if self.staged.language else (self.run.path / TOKENIZER).read_text(encoding="utf-8"),
            language=self.staged.language,
            names=list(self.names.index),
            preprocess=self.model.tower.preprocess.to_dict(),
            card=card,
            metrics=self.box_scores.to_metrics() if self.box_scores else {},
            provenance=provenance,
            min_box_score=self.box_scores.min_box_score if self.box_scores else None,
            training_words=self.training_words,
            reader=self.reader,
            # What is trained in bf16 is stored in it.
            dtype=autocast_dtype(self.recipe.stages[-1].training.precision, self.here.device) or torch.float32,
        )
