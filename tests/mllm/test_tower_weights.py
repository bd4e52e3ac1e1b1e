"""The image tower of a model folder of `foveate pretrain` in a new multimodal model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from foveate.core.errors import UserError
from foveate.core.model_folder import WEIGHTS, read_tensors
from foveate.core.recipes import dump, load
from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.train import prepare_training
from foveate.multimodal.opening import open_mllm
from foveate.pretrain.train import build_model
from foveate.records.collection import Collection
from foveate.vision.localizer.folder import save_model
from naming import raises_naming
from tiny_mllm import make_recipe

LITE0 = {"kind": "lite0", "width": 32, "image_size": 64}


@pytest.fixture(scope="module", params=["open_clip", "lite0"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = tiny.recipe()
    if request.param == "lite0":
        recipe = recipe.model_copy(update={"image_encoder": LITE0})
    model = build_model(recipe).eval()
    # Other weights than those that the settings alone would give.
    with torch.no_grad():
        for parameter in model.image_encoder.parameters():
            parameter.mul_(1.5)
    return save_model(model, tmp_path_factory.mktemp("cloc") / "model")


def take_tower(folder: Path | str, **tower: Any) -> MllmRecipe:
    model = make_recipe().model.model_dump()
    return make_recipe(tower_weights=str(folder), model={**model, "tower": tower})


def test_the_tower_is_that_of_the_folder_and_is_saved_with_the_model(
    asked_collection: Path, folder: Path, tmp_path: Path
) -> None:
    recipe = take_tower(folder)
    (tmp_path / "again.yaml").write_text(dump(recipe))
    assert load(MllmRecipe, str(tmp_path / "again.yaml")) == recipe
    trained = {
        name.removeprefix("image_encoder."): weight
        for name, weight in read_tensors(folder / WEIGHTS).items()
        if name.startswith("image_encoder.")
    }
    with Collection.open(asked_collection) as collection:
        training = prepare_training(recipe, collection, tmp_path / "run")
        state = training.model.tower.state_dict()
        assert trained.keys() == state.keys()
        assert all(torch.equal(weight.float(), state[name]) for name, weight in trained.items())
        model = open_mllm(training.save())
        # The same command goes on with the same tower, and refuses another one.
        prepare_training(recipe, collection, tmp_path / "run")
        (tmp_path / "run" / "data.json").write_text('{"tower": {"sha256": "other"}}')
        with raises_naming(UserError, "data.json", "tower.sha256"):
            prepare_training(recipe, collection, tmp_path / "run")
    stored = model.loaded.model.tower.state_dict()  # type: ignore[union-attr]
    # The projection to the joint space is not stored, for nothing reads it.
    assert all(torch.equal(stored[name], trained[name].float()) for name in stored if not name.startswith("proj."))
    assert model.loaded.provenance["tower"]["source"] == str(folder.resolve())  # type: ignore[union-attr]


def test_other_folders_and_other_settings_are_refused(folder: Path, tmp_path: Path) -> None:
    with raises_naming(UserError, "tower_weights", str(tmp_path)):
        take_tower(tmp_path)
    with raises_naming(UserError, "model.tower.embed_dim", "tower_weights", "999"):
        take_tower(folder, embed_dim=999)
    with raises_naming(UserError, "tower_weights", "mini"):
        make_recipe(initial="mini", model={}, tower_weights=str(folder))
