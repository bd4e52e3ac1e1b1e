"""A region encoder for a model that has none: all it had stays, and exactly the encoder is new."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import tiny_models
from foveate.cli.verbs.mllm import command
from foveate.core.errors import UserError
from foveate.core.model_folder import WEIGHTS, read_tensors
from foveate.core.recipes import dump, load, validate
from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.stages import build_recipe_model
from foveate.mllm.train import prepare_training, train_mllm
from foveate.multimodal.folder import stored_state
from foveate.multimodal.opening import open_mllm
from foveate.records.collection import Collection
from foveate.records.shapes import Point
from naming import raises_naming
from tiny_mllm import make_recipe

SAMPLER = {"kind": "sampler", "anchors": [8, 4], "neighbors": [4, 4]}
REGIONS = {
    "regions": "hybrid", "region_encoder": SAMPLER, "region_points": 32, "region_mean": True, "region_norm": False
}  # fmt: skip


def add_regions(folder: Path | str, **model: Any) -> MllmRecipe:
    first, second = (stage.model_dump() for stage in make_recipe().stages)
    first |= {"connector_rate": 0, "embedding_rate": 0, "language_rate": 0}
    content = {"add_regions": str(folder), "model": {**REGIONS, **model}, "stages": [first, second]}
    return validate(MllmRecipe, content, where="test")


@pytest.fixture(scope="module")
def folder(asked_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose regions are tokens, untrained."""
    model = make_recipe().model.model_dump()
    recipe = make_recipe(model=model | {"language": model["language"] | {"max_position_embeddings": 256}})
    with Collection.open(asked_collection) as collection:
        return prepare_training(recipe, collection, tmp_path_factory.mktemp("plain") / "run").save()


def test_all_that_a_model_had_stays_and_the_encoder_is_new(
    asked_collection: Path, folder: Path, tmp_path: Path
) -> None:
    recipe = add_regions(folder)
    assert load(MllmRecipe, str(write(tmp_path / "again.yaml", dump(recipe)))) == recipe
    before = read_tensors(folder / WEIGHTS)
    with Collection.open(asked_collection) as collection:
        training = prepare_training(recipe, collection, tmp_path / "run")
        state = stored_state(training.model.state_dict(), recipe.model)
        assert all(torch.equal(value, state[name]) for name, value in before.items())
        new = state.keys() - before.keys()
        assert new == {name for name in state if name.startswith("region_reader.")}
        assert training.run_all() == "finished"
        trained = train_mllm(recipe, collection, tmp_path / "run")
    stage = read_tensors(tmp_path / "run" / "stage-0-alignment" / "weights.safetensors")
    # Alignment moved the encoder, and the scale of its loss.
    moved = {name for name, value in before.items() if not torch.equal(value, stage[name])}
    assert moved == {"name_scale"}
    assert any(not torch.equal(state[name], stage[name]) for name in new)
    assert trained.model_folder is not None
    assert trained.result.initial == str(folder)
    model = open_mllm(trained.model_folder)
    answer = model.ask(np.zeros((48, 64, 3), dtype=np.uint8), "What is <region>?", regions=[Point(9, 9)], max_tokens=3)
    assert answer.tokens <= 3


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_what_a_folder_lacks_beside_regions_is_an_error(asked_collection: Path, folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    tensors = read_tensors(broken / WEIGHTS)
    removed = tensors.pop("box_head.point_in.weight" if "box_head.point_in.weight" in tensors else "region_E")
    save_file(tensors, broken / WEIGHTS)
    with Collection.open(asked_collection) as collection, raises_naming(UserError, WEIGHTS, "missing"):
        prepare_training(add_regions(broken), collection, tmp_path / "first")
    tensors |= {"region_E": removed, "region_reader.encoder.dim_projector.bias": torch.zeros(32)}
    save_file(tensors, broken / WEIGHTS)
    with Collection.open(asked_collection) as collection, raises_naming(UserError, WEIGHTS, "dim_projector"):
        prepare_training(add_regions(broken), collection, tmp_path / "second")


def test_models_and_recipes_that_get_no_regions_are_named(asked_collection: Path, folder: Path, tmp_path: Path) -> None:
    with raises_naming(UserError, "model.region_encoder"):
        add_regions(folder, region_encoder=None)
    with raises_naming(UserError, "add_regions", "no-such"):
        add_regions(tmp_path / "no-such")
    with raises_naming(UserError, "initial", "add_regions"):
        validate(MllmRecipe, add_regions(folder).model_dump() | {"initial": "mini"}, where="test")
    with Collection.open(asked_collection) as collection:
        first = prepare_training(add_regions(folder), collection, tmp_path / "run").save()
    with raises_naming(UserError, "add_regions", "sampler"):
        add_regions(first)


def test_lora_stands_beside_a_frozen_language_model(asked_collection: Path, tmp_path: Path) -> None:
    """A model that was trained with a frozen source, regions as text, gets an encoder and LoRA."""
    source = tmp_path / "source"
    tiny_models.save(source)
    first, second = (stage.model_dump() for stage in make_recipe().stages)
    stages = [first, second | {"box_weight": 0.0}]
    plain = make_recipe().model.model_dump() | {
        "language": {"source": str(source), "tuning": "frozen"}, "regions": "text", "box_head": False
    }  # fmt: skip
    recipe = validate(MllmRecipe, {"model": plain, "stages": stages}, where="test")
    with Collection.open(asked_collection) as collection:
        folder = prepare_training(recipe, collection, tmp_path / "plain").save()
        model = {**REGIONS, "language": {"tuning": "lora", "lora": {"rank": 2}}}
        content = {"add_regions": str(folder), "model": model, "stages": stages}
        training = prepare_training(validate(MllmRecipe, content, where="test"), collection, tmp_path / "run")
    before, state = read_tensors(folder / WEIGHTS), stored_state(training.model.state_dict(), training.recipe.model)
    assert all(torch.equal(value, state[name]) for name, value in before.items())
    new = {name for name in state.keys() - before.keys() if not name.startswith("region_reader.")}
    assert "region_E" in new
    assert all(".lora_" in name for name in new - {"region_E"})
    assert any(".lora_" in name for name in new)


def test_the_command_adds_regions_to_the_shipped_model(folder: Path) -> None:
    shipped = build_recipe_model(load(MllmRecipe, "ferret-on-mini"))
    assert shipped.region_reader is not None
    assert shipped.phrase_maps is not None
    arguments = ["train", "ferret-on-mini", "--add-regions", str(folder), "--dry-run", "--json"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    priced = json.loads(result.stdout)
    # In the first stage the encoder alone is trained.
    assert priced["stages"][0]["trained"] == priced["parameters_by_part"]["regions"] > 0
