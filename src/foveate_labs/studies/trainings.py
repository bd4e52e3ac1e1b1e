"""Training runs of studies: cells that pretrain, their shared frozen features, and captioners."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from foveate.caption.targets.conversations import prepare_captions
from foveate.caption.targets.settings import TargetSettings
from foveate.core.experiment_grid import Cell
from foveate.core.model_folder import CONFIG
from foveate.core.recipes import load
from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.train import train_mllm
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.train import build_dataset, build_model, pretrain
from foveate.records.collection import Collection
from foveate.vision.feature_cache import CACHE
from foveate.vision.localizer.folder import load_model
from foveate.vision.localizer.model import LocalizingModel


def train(recipe: str, changes: Sequence[str], collection: Collection, run: Path, *, device: str | None) -> Path:
    """Train, or resume the training in `run`; return its model folder. A signal to stop ends the study, too."""
    # Studies do their own measuring: the evaluation at the end of a training would only take time.
    trained = pretrain(load(PretrainRecipe, recipe, changes), collection, run, device=device, evaluate_split=None)
    if trained.model_folder is None:
        raise KeyboardInterrupt
    return trained.model_folder


def train_cell(
    cell: Cell, recipe: str, changes: Sequence[str], collection: Collection, folder: Path, *, device: str | None
) -> LocalizingModel:
    """Train and load the model of a cell; the training lies in the folder of the unfinished cell."""
    run = folder / "cells" / "at-work" / cell.name / "run"
    return load_model(train(recipe, changes, collection, run, device=device), device=device)


def cache_features(path: Path, recipe: str, changes: Sequence[str], *, device: str | None) -> None:
    """Compute the missing frozen features of a collection that trainings with this recipe read."""
    settings = load(PretrainRecipe, recipe, changes)
    where = torch.device(device or "cpu")
    build_dataset(settings, Collection.open(path), build_model(settings), device=where, cache=path / CACHE)


def train_captioner(
    path: Path, run: Path, targets: TargetSettings, *, part: float, seed: int, device: str | None = None
) -> Path:
    """Put captions of a split into a collection and train the recipe `captioner` on them; return its model folder.

    Args:
        part: of the recipe's steps that each stage trains.
    """
    folder = run / "model"
    if (folder / CONFIG).is_file():
        return folder
    prepare_captions(path, targets, seed=seed)
    recipe = load(MllmRecipe, "captioner", [f"split={targets.split}"])
    stages = []
    for stage in recipe.stages:
        steps = max(1, round(part * stage.training.steps))
        warmup = min(round(part * stage.training.warmup_steps), steps // 2)
        training = stage.training.model_copy(update={"steps": steps, "warmup_steps": warmup, "seed": seed})
        stages.append(stage.model_copy(update={"training": training}))
    with Collection.open(path) as collection:
        trained = train_mllm(recipe.model_copy(update={"stages": tuple(stages)}), collection, run, device=device)
    if trained.model_folder is None:
        raise KeyboardInterrupt
    return trained.model_folder
