"""A tiny comparison: images of stripes that even untrained features tell apart, and a tiny network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from adapt.towers import tower
from foveate.adapt.compare.recipe import CompareRecipe, parse_tasks
from foveate.adapt.load_backbone import LoadedBackbone
from foveate.vision.preprocess import Preprocess

HALF = Preprocess(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def stripes(path: Path, *, classes: int = 3, seed: int = 0, splits: tuple[int, int, int] = (6, 3, 5)) -> Path:
    """Images with a bright stripe, whose height is the class: so many of each class in train, validation, test."""
    generator = np.random.default_rng(seed)
    labels = np.tile(np.arange(classes), sum(splits))
    split = np.repeat(["train", "validation", "test"], [classes * count for count in splits])
    images = generator.integers(0, 60, (len(labels), 32, 32, 3)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[10 * label : 10 * label + 10] += 180
    kept = split != ""
    np.savez(path, images=images[kept], labels=np.array(["top", "middle", "low"])[labels], split=split)
    return path


def network() -> LoadedBackbone:
    return LoadedBackbone(tower("timm"), HALF, {"kind": "timm"})


def recipe(folder: Path, **changes: Any) -> CompareRecipe:
    """Of the stripes in a folder, which are made where they are missing."""
    data = folder / "stripes.npz"
    if not data.exists():
        stripes(data)
    given = {
        "backbone": {"kind": "timm"},
        "tasks": parse_tasks([f"drawn/stripes={data}"]),
        "methods": ["linear", "bitfit"],
        "training": {"epochs": 3, "batch_size": 9},
    }
    return CompareRecipe(**(given | changes))
