"""The localizing model by itself: its settings are no recipe, and a folder keeps what it does not use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tiny
from foveate.core.errors import UserError
from foveate.core.recipes import validate
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.train import build_model
from foveate.vision.localizer.folder import CONFIG, load_model, save_model
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.localizer.settings import LocalizerSettings


def test_a_model_is_built_from_settings_alone() -> None:
    recipe = tiny.recipe()
    fields = LocalizerSettings.model_fields
    settings = LocalizerSettings(**{name: value for name, value in recipe.model_dump().items() if name in fields})
    assert set(fields) | {"config_version", "initial", "data", "training", "parameter_rules"} == set(
        PretrainRecipe.model_fields
    )
    with torch.device("meta"):
        alone, trained = LocalizingModel(settings).state_dict(), LocalizingModel(recipe).state_dict()
    assert {name: value.shape for name, value in alone.items()} == {
        name: value.shape for name, value in trained.items()
    }


def test_a_folder_keeps_how_it_was_trained(tmp_path: Path) -> None:
    """Opening and saving again loses nothing of the recipe, although the model itself only knows its own part."""
    recipe = tiny.recipe(training={"seed": 3})
    first = save_model(build_model(recipe).eval(), tmp_path / "first")
    opened = load_model(first, device="cpu")
    assert type(opened.recipe) is LocalizerSettings
    again = json.loads((save_model(opened, tmp_path / "again") / CONFIG).read_text())
    assert again == json.loads((first / CONFIG).read_text())
    assert again["recipe"]["training"]["seed"] == 3
    validate(PretrainRecipe, again["recipe"], where="config")
    reopened = load_model(tmp_path / "again", device="cpu").state_dict()
    for name, value in opened.state_dict().items():
        assert torch.equal(value, reopened[name])


def test_unknown_parts_of_a_folder_are_refused(tmp_path: Path) -> None:
    folder = save_model(build_model(tiny.recipe()).eval(), tmp_path / "model")
    config = json.loads((folder / CONFIG).read_text())
    for recipe, said in (
        ({**config["recipe"], "regoins": {}}, "unknown field 'regoins'.*Did you mean 'regions'"),
        ([1], "field 'recipe'.*list"),
    ):
        (folder / CONFIG).write_text(json.dumps({**config, "recipe": recipe}))
        with pytest.raises(UserError, match=said):
            load_model(folder)
