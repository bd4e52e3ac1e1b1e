"""Writes a classifier as the folder that it came from, with its weights as they are now."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save_file

from foveate.adapt.classifier import Classifier
from foveate.core.errors import UserError
from foveate.core.files import commit_atomically


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
