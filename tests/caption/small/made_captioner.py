"""A tiny collection of scenes, a tiny recipe and a captioner trained on them for a few steps: what the tests run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
from foveate.caption.small.recipe import CaptionerRecipe
from foveate.core.recipes import validate
from foveate.records.scenes.scene_collection import build_scenes

RECIPE: dict[str, Any] = {
    "config_version": 1,
    "image_encoder": {"kind": "lite0", "image_size": 64, "width": 16, "embed_dim": 8, "precision": "float32"},
    "pixel_shuffle": 2,
    "decoder": {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
    },
    "vocabulary": 400,
    "word_training": {"steps": 2, "batch_size": 8, "common": 0.5},
    "training": {
        "steps": 4,
        "batch_size": 8,
        "learning_rate": 5e-3,
        "log_every": 1,
        "checkpoint_every": 2,
        "workers": 1,
    },
    "alignment": {"steps": 3},
}


def recipe(**changes: Any) -> CaptionerRecipe:
    """The tiny recipe with changes."""
    return validate(CaptionerRecipe, tiny.merged(RECIPE, changes), where="tiny recipe")


def make_scenes(path: Path, *, train: int = 24, test: int = 6) -> Path:
    """Generated scenes of 96 pixels."""
    build_scenes(path, train=train, test=test, size=96)
    return path
