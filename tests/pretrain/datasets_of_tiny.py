"""Training samples of a collection for the tiny recipe, and what is written while they are prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from foveate.core.files import write_bytes_atomically
from foveate.pretrain.dataset import PretrainDataset
from foveate.pretrain.train import build_dataset, build_model
from foveate.records.collection import Collection
from foveate.vision import feature_store as store

LITE0 = {"kind": "lite0", "image_size": 64, "width": 32}
RANDOM_VIEWS = {"scale": (0.3, 1.0), "flip": 0.5, "cached": 3}


def make(collection: Collection, cache: Path, *, cached: bool = False, **changes: Any) -> PretrainDataset:
    """A dataset of the tiny recipe; `cached` = with the frozen Lite0 as image encoder."""
    settings = tiny.recipe(**changes)
    if cached:
        settings = settings.model_copy(update={"image_encoder": LITE0})
    model = build_model(settings)
    return build_dataset(settings, collection, model, device=torch.device("cpu"), cache=cache)


def parts_written(monkeypatch: pytest.MonkeyPatch, *, stop_at: int | None = None) -> list[str]:
    """Names of the parts that are written from here on; the process is interrupted in number `stop_at`."""
    names: list[str] = []

    def write(path: Path, data: bytes) -> None:
        names.append(path.name)
        if len(names) == stop_at:
            raise KeyboardInterrupt
        write_bytes_atomically(path, data)

    monkeypatch.setattr(store, "write_bytes_atomically", write)
    return names
