"""Trainings as cells of a study: a recipe with changes on a collection, and the frozen features that all share."""

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
    """Trains, or goes on with the training in `run`; its model folder. A signal to stop ends the study, too."""
    trained = pretrain(load(PretrainRecipe, recipe, changes), collection, run, device=device, evaluate_split=None)
    if trained.model_folder is None:
        raise KeyboardInterrupt
    return trained.model_folder


def train_cell(
    cell: Cell, recipe: str, changes: Sequence[str], collection: Collection, folder: Path, *, device: str | None
) -> LocalizingModel:
    """The model of a cell; its training lies in the study's `folder` as long as the cell is worked on."""
    run = folder / "cells" / "at-work" / cell.name / "run"
    return load_model(train(recipe, changes, collection, run, device=device), device=device)


def cache_features(path: Path, recipe: str, changes: Sequence[str], *, device: str | None) -> None:
    """Makes the frozen features of a collection that trainings with this recipe read; does what is missing."""
    settings = load(PretrainRecipe, recipe, changes)
    where = torch.device(device or "cpu")
    build_dataset(settings, Collection.open(path), build_model(settings), device=where, cache=path / CACHE)
