"""Foveate's own classifier folder: an image encoder of `foveate.vision` with a linear head.

`config.json` (kind "classifier", the encoder's settings, the class names), `model.safetensors`, `preprocess.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.model_folder import (
    CONFIG,
    PREPROCESS,
    WEIGHTS,
    check_header,
    check_tensors,
    read_config,
    read_tensors,
    write_model_folder,
)
from foveate.vision.classifier import Classifier
from foveate.vision.encoder import ImageEncoder
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.preprocess import check_preprocess
from foveate.vision.registry import build_image_encoder, seeded

KIND = "classifier"
FORMAT = 1
WHAT = f"config.json has kind '{KIND}'"


class EncoderClassifier(nn.Module):
    """The joint embedding of an image encoder, then a linear head that starts from the seed."""

    def __init__(self, encoder: ImageEncoder, *, settings: Mapping[str, Any], classes: int, seed: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        self.settings = dict(settings)
        # Seeded apart from the global generator; a loaded head overwrites these values anyway.
        with seeded(seed):
            self.head = nn.Linear(encoder.embed_dim, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map normalized pixels [B, 3, S, S] to logits [B, C]."""
        return self.head(self.encoder(self.encoder.frozen_features(pixels)).pooled)


def classifier_of(model: LocalizingModel, names: Sequence[str], *, seed: int = 0) -> Classifier:
    """Build a classifier with an untrained head on the image encoder of a localizing model."""
    encoder = model.image_encoder
    # The encoder's own description wins: it builds the encoder again without fetching trained weights.
    settings = {**dict(model.recipe.image_encoder), **encoder.architecture()}
    settings.setdefault("embed_dim", encoder.embed_dim)
    network = EncoderClassifier(encoder, settings=settings, classes=len(names), seed=seed)
    network.to(model.device).requires_grad_(True)
    return Classifier(network, head_name="head", names=names, preprocess=encoder.preprocess, format="foveate")


def matches(folder: Path, config: dict[str, Any]) -> bool:
    """Whether the folder is Foveate's and a classifier."""
    return config.get("kind") == KIND


def load(folder: Path, config: dict[str, Any]) -> Classifier:
    """Build the encoder from its settings and load its weights strictly."""
    config = read_config(folder, kind=KIND, formats=[FORMAT], fields={"image_encoder": dict, "classes": list})
    settings, names = config["image_encoder"], config["classes"]
    if len(names) < 2:
        raise UserError(f"{folder / 'config.json'}: field 'classes' must have at least two names (got {len(names)})")
    path = folder / WEIGHTS

    def build() -> EncoderClassifier:
        return EncoderClassifier(build_image_encoder(settings), settings=settings, classes=len(names))

    check_header(path, settings, build, where=folder / CONFIG)
    network = build()
    encoder = network.encoder
    check_preprocess(folder / PREPROCESS, encoder.preprocess)
    tensors = read_tensors(path)
    check_tensors(tensors, network.state_dict(), path)
    network.load_state_dict(tensors, strict=True)
    return Classifier(network, head_name="head", names=names, preprocess=encoder.preprocess, format="foveate")


def save(classifier: Classifier, source: Path | None, target: Path) -> None:
    """Write the folder; config.json last."""
    network = classifier.network
    assert isinstance(network, EncoderClassifier)
    write_model_folder(
        target,
        kind=KIND,
        format=FORMAT,
        config={"image_encoder": network.settings, "classes": list(classifier.names)},
        tensors=network.state_dict(),
        files={PREPROCESS: network.encoder.preprocess.to_dict()},
    )
