"""Training with a region encoder: alignment and conversations reach it, and its folder answers."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.core.errors import UserError
from foveate.core.model_folder import read_tensors
from foveate.core.recipes import validate
from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.task import MllmTask
from foveate.mllm.train import prepare_training, train_mllm
from foveate.multimodal.opening import open_mllm
from foveate.records.collection import Collection
from foveate.records.shapes import Point, Stroke
from naming import raises_naming
from tiny_mllm import make_dual_recipe, make_recipe, make_tiled_recipe

SAMPLER = {"kind": "sampler", "anchors": [8, 4], "neighbors": [4, 4]}


@pytest.mark.parametrize("form", ["tokens", "hybrid", "tiles"])
def test_a_region_encoder_is_trained_saved_and_asked(form: str, asked_collection: Path, tmp_path: Path) -> None:
    recipe = make_tiled_recipe() if form == "tiles" else make_recipe()
    regions = {"regions": "tokens" if form == "tokens" else "hybrid", "region_encoder": SAMPLER, "region_points": 32}
    stages = [stage.model_dump() for stage in recipe.stages]
    if form == "hybrid":
        regions["language"] = recipe.model.language | {"max_position_embeddings": 256}
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


def test_two_towers_are_trained_in_two_stages_saved_and_asked(asked_collection: Path, tmp_path: Path) -> None:
    with Collection.open(asked_collection) as collection:
        start = prepare_training(make_dual_recipe(), collection, tmp_path / "untrained").model.state_dict()
        trained = train_mllm(make_dual_recipe(), collection, tmp_path / "run")
        again = train_mllm(make_dual_recipe(connector_rate=0), collection, tmp_path / "copied")
    assert trained.model_folder is not None
    assert again.model_folder is not None
    first = read_tensors(tmp_path / "run" / "stage-0-alignment" / "weights.safetensors")
    last = read_tensors(trained.model_folder / "model.safetensors")
    copied = read_tensors(again.model_folder / "model.safetensors")
    for name in (name for name in start if name.startswith("connector.projector_g.")):
        twin = name.replace("projector_g", "projector_l")
        # The first stage sees overviews alone, and the second begins with a copy.
        assert np.array_equal(first[twin], start[twin])
        assert not np.array_equal(first[name], start[name])
        assert np.array_equal(copied[twin], copied[name])
        assert not np.array_equal(last[twin], last[name])
    for name in (name for name in start if name.startswith(("tower.overview.", "tower.tiles.", "language_model."))):
        if name in last:  # tied heads are stored once
            assert np.array_equal(last[name], start[name]), name
    model = open_mllm(trained.model_folder)
    image = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    answers = [model.ask(image, "What is <region>?", regions=[Point(20, 20)], max_tokens=4) for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0].tokens <= 4


def test_losses_of_two_frozen_towers_are_the_same_without_their_cache(asked_collection: Path, tmp_path: Path) -> None:
    recipe = make_dual_recipe()
    model = recipe.model.model_dump()
    frozen = {name: model[name] | {"frozen": True} for name in ("tower", "tiles_tower")}
    recipe = make_recipe(model=model | frozen, stages=[stage.model_dump() for stage in recipe.stages])
    with Collection.open(asked_collection) as collection:
        training = prepare_training(recipe, collection, tmp_path / "run")
        for stage in recipe.stages:
            training.enter(stage)
            tower: Any = training.model.tower
            task = MllmTask(training.model, names=training.names, stage=stage)
            losses, shape = {}, tower.feature_shape
            for cached in (True, False):
                if not cached:
                    tower.frozen, tower.feature_shape, tower.feature_dtype = False, (3, 64, 64), torch.uint8
                    training._features = None
                with closing(training.loader(stage, training.samples(stage)).batches(0, 1)) as batches:
                    batch = task.prepare_batch(next(batches), torch.device("cpu"))
                assert batch["features"].shape[1:] == tower.feature_shape
                losses[cached] = task.losses(batch)[0]["loss"].item()
            assert losses[True] == pytest.approx(losses[False], rel=1e-6)
            if stage == recipe.stages[-1]:
                assert (batch["cell_V2"] > 0).any(), "a batch has tiles"
            # Features decide the loss: those of other images have another one.
            tower.frozen, tower.feature_shape, tower.feature_dtype = True, shape, torch.float16
            batch["features"] = 255 - batch["features"]
            assert task.losses(batch)[0]["loss"].item() != pytest.approx(losses[True], rel=1e-6)


def test_settings_of_two_towers_that_do_not_fit_are_refused() -> None:
    content = make_dual_recipe().model_dump()
    assembly = content["model"]["assembly"]
    for model, name in (
        ({"assembly": None}, "tiles_tower"),
        ({"assembly": assembly | {"tiling": assembly["tiling"] | {"overview": "none"}}}, "tiles_tower"),
        ({"assembly": assembly | {"indicator": "index"}}, "token_order"),
        ({"visual_positions": True}, "visual_positions"),
        ({"tiles_tower": None}, "copy_projector"),
        ({"region_encoder": None, "regions": "text", "region_map": "connector"}, "region_map"),
    ):
        stages = content["stages"]
        if model.get("assembly", ()) is None:
            stages = [stages[1] | {"assembly": None, "copy_projector": False}]
        with raises_naming(UserError, name):
            validate(MllmRecipe, {**content, "model": content["model"] | model, "stages": stages}, where="test")
