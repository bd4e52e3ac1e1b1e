"""A training that starts from a model folder: its weights, tokenizer and names; resumed as uninterrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_mllm_train import make_source_recipe, signal_in_call
from test_stages import make_toy

import tiny_models
from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.core.model_folder import read_tensors
from foveate.core.recipes import dump, load, validate
from foveate.mllm.pricing import price_recipe
from foveate.mllm.reader import save_reading
from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.stages import build_recipe_model
from foveate.mllm.task import MllmTask
from foveate.mllm.train import Trained, prepare_training, train_mllm
from foveate.multimodal.folder import NAMES, TOKENIZER, hash_model, load_model, stored_state
from foveate.records.collection import Collection
from foveate.vision.text_reader import READER, CharacterHead, ReaderSettings
from naming import raises_naming
from tiny_mllm import make_recipe

STAGES = [stage.model_dump() for stage in make_recipe().stages]


def start_from(folder: Path | str, **changes: Any) -> MllmRecipe:
    return validate(MllmRecipe, {"initial": str(folder), "stages": STAGES, **changes}, where="test")


@pytest.fixture(scope="module")
def folder(asked_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a short training, with a name that the collection does not have."""
    with Collection.open(asked_collection) as collection:
        run = tmp_path_factory.mktemp("initial") / "run"
        trained = train_mllm(make_recipe(), collection, run)
    assert trained.model_folder is not None
    names = trained.model_folder / NAMES
    names.write_text(json.dumps([*json.loads(names.read_text()), "zebra crossing"]))
    return trained.model_folder


def test_a_training_starts_from_weights_tokenizer_and_names(
    asked_collection: Path, folder: Path, tmp_path: Path
) -> None:
    recipe = start_from(folder)
    assert recipe.model == make_recipe().model
    with Collection.open(asked_collection) as collection:
        training = prepare_training(recipe, collection, tmp_path / "run")
    expected = read_tensors(folder / "model.safetensors")
    state = stored_state(training.model.state_dict(), recipe.model)
    assert expected.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in expected.items())
    assert (tmp_path / "run" / TOKENIZER).read_bytes() == (folder / TOKENIZER).read_bytes()
    assert "zebra crossing" in training.names.index
    assert training.names.ids_NW.max() < len(training.model.embeddings_VE)


def test_a_character_head_stays_with_the_model_that_is_trained_further(
    asked_collection: Path, folder: Path, tmp_path: Path
) -> None:
    notes = {"exact": 0.8, "another_image": 0.0, "false_rate": 0.0, "num_written": 5, "num_empty": 5}
    notes |= {"collection": "words", "command": ["foveate"], "revision": "abc"}
    head = CharacterHead(width=8, hidden=16)
    (folder / "of an editor").mkdir(exist_ok=True)  # no file of the model, and no reason to fail
    base = save_reading(folder, tmp_path / "reads", head, ReaderSettings(width=8, hidden=16, min_score=0.5), notes)
    with Collection.open(asked_collection) as collection:
        trained = train_mllm(start_from(base), collection, tmp_path / "run")
    assert trained.model_folder is not None
    assert (trained.model_folder / READER).read_bytes() == (base / READER).read_bytes()
    assert read_json(trained.model_folder / "config.json")["reading"] == read_json(base / "config.json")["reading"]
    assert "## Written words" in (trained.model_folder / "README.md").read_text(encoding="utf-8")
    opened = load_model(trained.model_folder)
    assert opened.reader is not None


def test_stages_of_another_view_start_from_resized_positions(asked_collection: Path, tmp_path: Path) -> None:
    toy = make_toy("mm15-1b")
    with Collection.open(asked_collection) as collection:
        first = train_mllm(toy, collection, tmp_path / "first")
        again = validate(
            MllmRecipe,
            {"initial": str(first.model_folder), "stages": [stage.model_dump() for stage in toy.stages]},
            where="test",
        )
        training = prepare_training(again, collection, tmp_path / "run")
    assert first.model_folder is not None
    assert training.model.tower.grid == (2, 2)
    stored = read_tensors(first.model_folder / "model.safetensors")
    state = training.model.state_dict()
    assert state["connector.pos_emb"].shape != stored["connector.pos_emb"].shape
    assert torch.equal(state["connector.readout.0.weight"], stored["connector.readout.0.weight"])


def test_a_language_model_from_elsewhere_comes_along(asked_collection: Path, tmp_path: Path) -> None:
    tiny_models.save(tmp_path / "source")
    with Collection.open(asked_collection) as collection:
        first = train_mllm(make_source_recipe(tmp_path / "source"), collection, tmp_path / "first")
        assert first.model_folder is not None
        training = prepare_training(start_from(first.model_folder), collection, tmp_path / "run")
        expected, state = read_tensors(first.model_folder / "model.safetensors"), training.model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in expected.items())
        weights = tmp_path / "source" / "tokenizer.json"
        weights.write_bytes(weights.read_bytes() + b"\n")
        with raises_naming(UserError, "model.language.source", "sha256"):
            prepare_training(start_from(first.model_folder), collection, tmp_path / "other")


def train(collection: Path, run: Path, folder: Path) -> Trained:
    with Collection.open(collection) as opened:
        return train_mllm(start_from(folder), opened, run)


def test_a_killed_run_ends_as_an_uninterrupted_one(
    asked_collection: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(asked_collection, tmp_path / "whole", folder)
    assert (whole.result.initial, whole.result.initial_sha256) == (str(folder), hash_model(folder))
    for call in (2, 3):
        with monkeypatch.context() as patch:
            patch.setattr(MllmTask, "losses", signal_in_call(call, MllmTask.losses))
            assert train(asked_collection, tmp_path / "parts", folder).model_folder is None
    parts = train(asked_collection, tmp_path / "parts", folder)
    first, second = (read_tensors(run.model_folder / "model.safetensors") for run in (whole, parts))  # type: ignore[operator]
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    initial = read_tensors(folder / "model.safetensors")
    assert not all(torch.equal(value, first[name]) for name, value in initial.items())


def test_a_run_goes_on_from_its_initial_model_alone(asked_collection: Path, folder: Path, tmp_path: Path) -> None:
    initial = shutil.copytree(folder, tmp_path / "initial")
    with Collection.open(asked_collection) as collection:
        prepare_training(start_from(initial), collection, tmp_path / "run").run.folder.append_metrics({"step": 1})
        (initial / "README.md").write_text("another card")
        prepare_training(start_from(initial), collection, tmp_path / "run")
        config = initial / "config.json"
        config.write_text(config.read_text() + "\n")
        with raises_naming(UserError, "data.json", "initial.sha256"):
            prepare_training(start_from(initial), collection, tmp_path / "run")


def test_what_a_recipe_gives_of_the_model_must_agree(folder: Path) -> None:
    given = {"max_images": 2, "connector": {"kind": "pooled"}}
    assert start_from(folder, model=given).model == make_recipe().model
    assert validate(MllmRecipe, start_from(folder).model_dump(), where="test") == start_from(folder)
    for model, named in (
        ({"language": {"hidden_size": 64}}, ("model.language.hidden_size", "64", "32")),
        ({"connector": {"depth": 1, "kid": 1}}, ("model.connector.kid", "kind")),
        ({"assembly": {}}, ("model.assembly",)),
        ({"max_image": 2}, ("model.max_image", "max_images")),
    ):
        with raises_naming(UserError, *named):
            start_from(folder, model=model)
    with pytest.warns(UserWarning, match=r"vocabulary .* initial"):
        start_from(folder, vocabulary=800)


def test_folders_to_start_from_are_refused_by_name(tmp_path: Path) -> None:
    for source in (tmp_path / "none", tmp_path):
        with raises_naming(UserError, "initial", source):
            start_from(source)


def test_the_shipped_model_is_a_start(asked_collection: Path, tmp_path: Path) -> None:
    recipe = start_from("mini")
    assert recipe.initial == "mini"
    assert recipe.model.tower == load(MllmRecipe, "mllm-mini").model.tower
    assert "initial: mini" in dump(recipe)
    priced = price_recipe(recipe).to_json()
    with torch.device("meta"):
        model = build_recipe_model(recipe)
    assert priced["parameters_by_part"]["language"] == sum(w.numel() for w in model.language_model.parameters())
