"""Encoders of other libraries by name: a folder of each, trained on, reopened and used for a prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from training_survey import build_survey

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.core.recipes import validate
from foveate.species.recipe import SpeciesRecipe
from foveate.vision.registry import parse_encoder
from naming import raises_naming
from vision.foreign import save_clip, save_dinov2, save_open_clip


def save_timm(folder: Path) -> Path:
    import timm
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("test_vit"), folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_survey(tmp_path_factory.mktemp("survey") / "survey", images=32).collection.path


@pytest.mark.parametrize(
    ("kind", "save"), [("timm", save_timm), ("dinov2", save_dinov2), ("clip", save_clip), ("open_clip", save_open_clip)]
)
def test_a_folder_is_an_encoder(kind: str, save: Any, survey: Path, tmp_path: Path) -> None:
    folder = tmp_path / "network"
    save(folder)
    model = tmp_path / "run/model"
    training = ["train", "--collection", survey, "--encoder", folder, "--method", "linear_probe", "--view", "whole"]
    commands = (
        [*training, "--prior", "none", "--out", tmp_path / "run"],
        ["predict", model, survey, "--out", tmp_path / "results"],
    )
    for command in commands:
        result = CliRunner().invoke(cli, ["species", *map(str, command)])
        assert result.exit_code == 0, result.output + repr(result.exception)
    config = json.loads((model / "config.json").read_text())
    assert (config["encoder"]["kind"], config["encoder"]["source"]) == (kind, str(folder))


def test_names_of_encoders(tmp_path: Path) -> None:
    assert parse_encoder("open_clip:imageomics/bioclip-2") == {"kind": "open_clip", "source": "imageomics/bioclip-2"}
    assert parse_encoder("timm:vit_small_patch14_dinov2.lvd142m")["source"] == "vit_small_patch14_dinov2.lvd142m"
    recipe = validate(SpeciesRecipe, {"encoder": "dinov2:facebook/dinov2-base"}, where="test")
    assert recipe.encoder == {"kind": "dinov2", "source": "facebook/dinov2-base", "embed_dim": 8}
    lite0 = validate(SpeciesRecipe, {"encoder": "lite0"}, where="test")
    assert lite0.encoder == SpeciesRecipe().encoder
    # The kind of a model of the hub is not known before it is fetched.
    with raises_naming(UserError, "encoder", "open_clip:imageomics/bioclip", "dinov2:imageomics/bioclip"):
        parse_encoder("imageomics/bioclip")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with raises_naming(UserError, "config.json", "no image encoder", "transformers"):
        parse_encoder(str(tmp_path))


def test_fields_beside_a_name_are_refused(tmp_path: Path) -> None:
    command = ["species", "train", "--collection", str(tmp_path), "--encoder", "lite0", "encoder.image_size=64"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code != 0
    assert "encoder.image_size=64" in result.output + str(result.exception)
