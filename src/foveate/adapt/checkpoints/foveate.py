"""Our own classifier folder: an image encoder of `foveate.vision` with a linear head.

`config.json` (kind "classifier", the encoder's settings, the class names), `model.safetensors`, `preprocess.json`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from foveate.adapt.classifier import Classifier, load_strictly
from foveate.core.errors import UserError
from foveate.core.files import commit_atomically, write_bytes_atomically, write_json_atomically
from foveate.core.version import __version__
from foveate.vision.encoder import ImageEncoder
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.registry import build_image_encoder, seeded


def copy_with_weights(classifier: Classifier, source: Path | None, target: Path) -> None:
    """All files of `source` but its weights, and model.safetensors; appears at once."""
    if source is None:
        raise UserError("say which folder the classifier was opened from: its configuration is copied from there")
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(source, temporary, ignore=shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json"))
        weights = {name: value.detach().cpu().contiguous() for name, value in classifier.network.state_dict().items()}
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        commit_atomically(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


KIND = "classifier"
FORMAT = 1
WHAT = f"config.json says kind '{KIND}'"


class EncoderClassifier(nn.Module):
    """The joint embedding of an image encoder, then a linear head that starts from the seed."""

    def __init__(self, encoder: ImageEncoder, *, settings: Mapping[str, Any], classes: int, seed: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        self.settings = dict(settings)
        with seeded(seed):
            self.head = nn.Linear(encoder.embed_dim, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalized pixels [B, 3, S, S] to logits [B, C]."""
        return self.head(self.encoder(self.encoder.frozen_features(pixels)).pooled)


def classifier_of(model: LocalizingModel, names: Sequence[str], *, seed: int = 0) -> Classifier:
    """A classifier with an untrained head on the image encoder of one of our models."""
    encoder = model.image_encoder
    settings = {**dict(model.recipe.image_encoder), **encoder.architecture()}
    settings.setdefault("embed_dim", encoder.embed_dim)
    network = EncoderClassifier(encoder, settings=settings, classes=len(names), seed=seed)
    network.to(model.device).requires_grad_(True)
    return Classifier(network, head_name="head", names=names, preprocess=encoder.preprocess, format="foveate")


def reads(folder: Path, config: dict[str, Any]) -> bool:
    """Whether the folder is ours and a classifier."""
    return config.get("kind") == KIND


def load(folder: Path, config: dict[str, Any]) -> Classifier:
    """Builds the encoder from its settings and fills it strictly."""
    where = folder / "config.json"
    if config.get("format") != FORMAT:
        raise UserError(f"{where}: format {config.get('format')}, this version reads {FORMAT}")
    settings, names = config.get("image_encoder"), config.get("classes")
    if not isinstance(settings, dict) or not isinstance(names, list) or len(names) < 2:
        raise UserError(f"{where}: fields 'image_encoder' (a mapping) and 'classes' (at least two names) are wanted")
    encoder = build_image_encoder(settings)
    network = EncoderClassifier(encoder, settings=settings, classes=len(names))
    path = folder / "model.safetensors"
    try:
        load_strictly(network, load_file(path), name=str(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return Classifier(network, head_name="head", names=names, preprocess=encoder.preprocess, format="foveate")


def save(classifier: Classifier, source: Path | None, target: Path) -> None:
    """Writes the folder; config.json last."""
    network = classifier.network
    assert isinstance(network, EncoderClassifier)
    target.mkdir(parents=True)
    with torch.no_grad():
        weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_bytes_atomically(target / "model.safetensors", save_tensors(weights))
    write_json_atomically(target / "preprocess.json", network.encoder.preprocess.to_dict())
    config = {
        "kind": KIND,
        "format": FORMAT,
        "foveate": __version__,
        "image_encoder": network.settings,
        "classes": list(classifier.names),
    }
    write_json_atomically(target / "config.json", config)
