"""Training runs of studies: cells that pretrain, their shared frozen features, and captioners."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.caption.settings import TargetSettings
from foveate.caption.targets.conversations import prepare_captions
from foveate.core.experiment_grid import Cell
from foveate.core.model_folder import CONFIG
from foveate.core.recipes import load
from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.train import train_mllm
from foveate.pretrain.embed import CollectionEmbeddings
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.train import build_dataset, build_model, pretrain
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.records.region_sources import is_pseudo_label
from foveate.vision.feature_cache import CACHE
from foveate.vision.localizer.folder import load_model
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.preprocess import move_boxes, place_image, render_image
from foveate_labs.studies.real_regions import read_details

# Frozen features kept in memory: all models of a study have the same frozen encoders and see the same tests.


class FeatureMemory:
    """Outputs of frozen encoders by the hash of their input; never written to disk.

    Args:
        max_bytes: of features; beyond it new ones are computed and not stored.
    """

    def __init__(self, *, max_bytes: int = 2**30) -> None:
        self.free_bytes = max_bytes
        self._features: dict[bytes, Tensor] = {}

    def attach(self, model: LocalizingModel) -> None:
        """Make the frozen parts of the model's encoders look here before they compute."""
        for encoder, hash_input in ((model.image_encoder, _hash_pixels), (model.text_encoder, _hash_text)):
            # An encoder without a fingerprint is trained: its outputs change and must not be reused.
            if encoder.fingerprint():
                # The same input has other features in another encoder, and other last bits on another device.
                salt = f"{encoder.fingerprint()} {model.device} ".encode()
                cached = self._cached(encoder.frozen_features, salt, hash_input)
                encoder.frozen_features = cached  # pyrefly: ignore[bad-assignment]

    def _cached(
        self, compute: Callable[[Any], Tensor], salt: bytes, hash_input: Callable[[Any], bytes]
    ) -> Callable[[Any], Tensor]:
        def features(inputs: Tensor | Sequence[str]) -> Tensor:
            keys = [hashlib.blake2b(salt + hash_input(entry), digest_size=16).digest() for entry in inputs]
            missing = [index for index, key in enumerate(keys) if key not in self._features]
            if not missing and keys:
                return torch.stack([self._features[key] for key in keys])
            outputs = compute(inputs if len(missing) == len(keys) else _select(inputs, missing))
            new = dict(zip((keys[index] for index in missing), outputs, strict=True))
            for key, value in new.items():
                size = value.numel() * value.element_size()
                if size <= self.free_bytes:
                    self.free_bytes -= size
                    # A view would keep the whole batch in memory.
                    self._features[key] = value.clone()
            if len(missing) == len(keys):
                return outputs
            return torch.stack([new[key] if key in new else self._features[key] for key in keys])

        return features


def _select(inputs: Tensor | Sequence[str], indices: list[int]) -> Tensor | list[str]:
    return inputs[indices] if isinstance(inputs, Tensor) else [inputs[index] for index in indices]


def _hash_pixels(pixels_3HW: Tensor) -> bytes:
    return f"{tuple(pixels_3HW.shape)} {pixels_3HW.dtype} ".encode() + pixels_3HW.cpu().contiguous().numpy().tobytes()


def _hash_text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


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


# Measures of the study `cloc` that `foveate evaluate` does not have.


def box_gain(seen: CollectionEmbeddings, collection: Collection) -> float:
    """Return 1 - (squared error of the head's boxes) / (squared error of the mean training box), seen concepts.

    0: no better than one box for everything. 1: exact.
    """
    parts = np.array([region.slice for region in seen.regions], dtype=object)
    asked_R = (parts != "unseen") & (parts != "unseen kind")
    training = collection.rows("train")
    boxes = [
        region.box.to_array()
        for row in training
        for region in collection.read_regions(int(row))
        if not is_pseudo_label(region.source)
    ]
    # Under a squared error no other constant box does better on the training boxes.
    mean_4 = np.mean(boxes, axis=0)
    truth_R4 = seen.boxes_R4[asked_R]
    head_error = float(np.square(seen.located["head"][asked_R] - truth_R4).mean())
    return 1.0 - head_error / float(np.square(mean_4 - truth_R4).mean())


@torch.inference_mode()
def details_accuracy(model: LocalizingModel, path: Path) -> float:
    """Return how often a detail's image is nearest to the embedding of its own box among all boxes of the image.

    Real images that no model was trained on; the detail is encoded as an image, the boxes as regions.
    """
    preprocess = model.image_encoder.preprocess
    right: list[bool] = []
    for details in read_details(path):
        placement = place_image(preprocess, details.image.size, View())
        tokens = model.encode_image_tokens(render_image(preprocess, details.image, placement)[None])
        boxes_R4, kept_R = move_boxes(placement, np.stack([box.to_array() for box in details.boxes]), min_visible=0)
        owner_R = torch.zeros(len(boxes_R4), dtype=torch.long, device=model.device)
        z_RE = model.encode_regions(tokens, torch.from_numpy(boxes_R4).to(model.device), owner_R)
        crops = [crop for crop, keep in zip(details.crops, kept_R, strict=True) if keep]
        pixels = [render_image(preprocess, crop, place_image(preprocess, crop.size, View())) for crop in crops]
        crop_RE = model.encode_image(torch.stack(pixels))
        nearest_R = (crop_RE @ F.normalize(z_RE.float(), dim=-1).T).argmax(1).cpu()
        right += (nearest_R == torch.arange(len(crops))).tolist()
    return float(np.mean(right))
