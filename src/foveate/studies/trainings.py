"""Pretraining runs as cells of a study: a recipe with overrides on a collection, and shared frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from foveate.core.experiment_grid import Cell
from foveate.core.recipes import load
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.train import CACHE, build_dataset, build_model, pretrain
from foveate.records.collection import Collection
from foveate.vision.localizer.folder import load_model
from foveate.vision.localizer.model import LocalizingModel


def train(recipe: str, changes: Sequence[str], collection: Collection, run: Path, *, device: str | None) -> Path:
    """Train, or resume the training in `run`; return its model folder. A signal to stop ends the study, too."""
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
