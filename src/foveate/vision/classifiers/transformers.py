"""Image classifiers of transformers: config.json with `model_type` and a `...ForImageClassification`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from foveate.core.errors import UserError
from foveate.core.hub import Checkpoint, check_loaded, loading
from foveate.vision.classifier import Classifier, copy_with_weights
from foveate.vision.hf.processors import processor_settings
from foveate.vision.preprocess import Preprocess

WHAT = "config.json has a 'model_type' and an architecture that ends in ForImageClassification"


def matches(folder: Path, config: dict[str, Any]) -> bool:
    """Whether the folder holds an image classifier of transformers."""
    architectures = config.get("architectures") or []
    return "model_type" in config and any(str(name).endswith("ForImageClassification") for name in architectures)


def load(folder: Path, config: dict[str, Any]) -> Classifier:
    """Open it with `AutoModelForImageClassification`; tensors that would stay random are an error."""
    from transformers import AutoModelForImageClassification

    checkpoint = Checkpoint(str(folder), folder)
    # Refuses pickled weights, before transformers opens the folder.
    checkpoint.weights()
    with loading(folder):
        network, report = AutoModelForImageClassification.from_pretrained(
            str(folder), use_safetensors=True, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
    check_loaded(report, name=str(folder))
    if report.get("unexpected_keys"):
        unexpected = sorted(report["unexpected_keys"])
        raise UserError(f"{folder}: {len(unexpected)} tensors belong to no part of the model ({unexpected[0]})")
    labels = network.config.id2label
    # By number, the order of the logits.
    names = [str(labels[number]) for number in sorted(labels)]
    preprocess = None
    if (folder / "preprocessor_config.json").is_file():
        preprocess = Preprocess(**processor_settings(checkpoint), geometry="center_crop")
    return Classifier(network, head_name="classifier", names=names, preprocess=preprocess, format="transformers")


def save(classifier: Classifier, source: Path | None, target: Path) -> None:
    """Copy the source's folder with the present weights."""
    copy_with_weights(classifier, source, target)
