"""Model folders that lie or are damaged: one sentence that names file and field, before memory is taken."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from foveate.core.errors import UserError
from foveate.core.model_folder import CONFIG, PREPROCESS, WEIGHTS
from foveate.pretrain.train import build_model
from foveate.vision.localizer.folder import load_model, save_model
from naming import raises_naming


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(build_model(tiny.recipe()).eval(), tmp_path / "model")


def _change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    change(config["recipe"])
    (folder / CONFIG).write_text(json.dumps(config))


def _change_weights(folder: Path, change: Callable[[torch.Tensor], object]) -> str:
    weights = load_file(folder / WEIGHTS)
    name = next(name for name, value in weights.items() if value.is_floating_point() and value.numel() > 1)
    change(weights[name])
    save_file(weights, folder / WEIGHTS)
    return name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    name = _change_weights(folder, lambda tensor: tensor.view(-1)[1:2].fill_(value))
    with raises_naming(UserError, str(folder / WEIGHTS), name):
        load_model(folder, device="cpu")


def test_a_fifo_is_not_waited_for(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    with raises_naming(UserError, str(folder / WEIGHTS)):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(("key", "value"), [("layers", 1_000_000), ("width", 10_000_000)])
def test_sizes_that_the_weights_do_not_have(folder: Path, key: str, value: int) -> None:
    """Neither takes memory: the header of the weights is compared with the network first."""

    def enlarge(recipe: dict[str, Any]) -> None:
        vision = recipe["image_encoder"]["config"]["vision_cfg"]
        assert key in vision
        vision[key] = value

    _change_config(folder, enlarge)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with raises_naming(UserError, str(folder)):
        load_model(folder, device="cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_another_preprocessing_than_the_encoder_s(folder: Path) -> None:
    values = json.loads((folder / PREPROCESS).read_text())
    (folder / PREPROCESS).write_text(json.dumps(values | {"mean": [0.0, 0.0, 0.0]}))
    with raises_naming(UserError, str(folder / PREPROCESS), "mean"):
        load_model(folder, device="cpu")
    (folder / PREPROCESS).unlink()
    with raises_naming(UserError, str(folder / PREPROCESS)):
        load_model(folder, device="cpu")
