"""Training with a region encoder: alignment and conversations reach it, and its folder answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foveate.core.model_folder import read_tensors
from foveate.mllm.train import prepare_training, train_mllm
from foveate.multimodal.opening import open_mllm
from foveate.records.collection import Collection
from foveate.records.shapes import Point, Stroke
from tiny_mllm import make_recipe, make_tiled_recipe

SAMPLER = {"kind": "sampler", "anchors": [8, 4], "neighbors": [4, 4]}


@pytest.mark.parametrize("tiles", [False, True])
def test_a_region_encoder_is_trained_saved_and_asked(tiles: bool, asked_collection: Path, tmp_path: Path) -> None:
    recipe = make_tiled_recipe() if tiles else make_recipe()
    regions = {"regions": "hybrid" if tiles else "tokens", "region_encoder": SAMPLER, "region_points": 32}
    stages = [stage.model_dump() for stage in recipe.stages]
    recipe = make_recipe(model=recipe.model.model_dump() | regions, stages=stages)
    with Collection.open(asked_collection) as collection:
        before = prepare_training(recipe, collection, tmp_path / "untrained").model.state_dict()
        trained = train_mllm(recipe, collection, tmp_path / "run")
    assert trained.model_folder is not None
    after = read_tensors(trained.model_folder / "model.safetensors")
    names = [name for name in before if name.startswith("region_reader.")]
    assert names
    assert all(not np.allclose(before[name], after[name].float()) for name in names if name.endswith("weight"))
    image = np.zeros((48, 64, 3), dtype=np.uint8)
    for shape in (Point(20, 20), Stroke((Point(3, 3), Point(40, 30)))):
        answer = open_mllm(trained.model_folder).ask(image, "What is <region>?", regions=[shape], max_tokens=4)
        assert answer.tokens <= 4
