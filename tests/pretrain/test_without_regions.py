"""A training without any region: what it says, what the folder keeps, and that an untrained Prompter is never asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import tiny
from foveate.core.errors import UserError
from foveate.pretrain.pricing import price_recipe
from foveate.pretrain.train import PretrainRun, pretrain
from foveate.records.collection import Collection
from foveate.search.index import build_index
from foveate.search.locate import encode_image, locate
from foveate.vision.localizer.folder import load_model
from foveate.vision.regions.roi import roi_pool
from naming import raises_naming


@pytest.fixture(scope="module")
def images(tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(tiny_collection, tmp_path_factory.mktemp("without") / "shapes"))
    shutil.rmtree(folder / "annotations" / "regions")
    return folder


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainRun:
    recipe = tiny.recipe(training={"steps": 1, "workers": 0})
    return pretrain(recipe, Collection.open(images), tmp_path_factory.mktemp("without-run") / "run", device="cpu")


def test_the_run_and_its_folder_say_that_no_place_was_learned(run: PretrainRun) -> None:
    assert (run.result.regions, run.result.localizes, run.result.locate_rule) == (0, False, "candidates")
    assert run.model_folder is not None
    config = json.loads((run.model_folder / "config.json").read_text())
    assert config["localizes"] is False
    assert config["provenance"]["regions"] == 0
    assert "foveate regions" in (run.model_folder / "README.md").read_text()


def test_the_command_that_makes_regions_is_named_before(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    priced = price_recipe(tiny.recipe(), collection=Collection.open(images))
    assert f"foveate regions {images}" in priced.warnings[0]
    assert priced.facts["regions"] == 0
    pretrain(tiny.recipe(training={"steps": 1, "workers": 0}), Collection.open(images), tmp_path, evaluate_split=None)
    assert f"foveate regions {images}" in capsys.readouterr().err


def test_a_clip_has_no_such_warning(images: Path) -> None:
    recipe = tiny.recipe(regions={"method": "none"})
    assert not [text for text in price_recipe(recipe, collection=Collection.open(images)).warnings if "regions" in text]


def test_boxes_are_compared_by_pooled_tokens(run: PretrainRun, images: Path, tmp_path: Path) -> None:
    assert run.model_folder is not None
    model = load_model(run.model_folder)
    assert model.prompter is not None
    data = Collection.open(images).image_bytes(0)
    encoded = encode_image(model, data)
    boxes, owner = torch.tensor([[0.1, 0.2, 0.7, 0.9]]), torch.zeros(1, dtype=torch.int64)
    pooled = roi_pool(encoded.tokens.tokens, encoded.tokens.grid, boxes, owner)
    expected = model.image_encoder.project(pooled)
    assert torch.equal(model.encode_regions(encoded.tokens, boxes, owner), expected)
    located = locate(model, data, "a red disc")
    assert located.rule == "candidates"
    assert set(located.boxes) == {"candidates", "center", "random"}
    with raises_naming(UserError, "head"):
        locate(model, data, "a red disc", rule="head")
    described, _ = build_index(run.model_folder, images, tmp_path / "index")
    assert described.counts["regions"] == 0
    assert described.crops


def test_a_trained_prompter_stays_trained(tiny_collection: Path, images: Path, tmp_path: Path) -> None:
    short = {"steps": 1, "workers": 0}
    first = pretrain(
        tiny.recipe(training=short), Collection.open(tiny_collection), tmp_path / "first", evaluate_split=None
    )
    assert first.result.localizes
    assert first.result.regions
    recipe = tiny.recipe(training=short, initial=str(first.model_folder))
    assert pretrain(recipe, Collection.open(images), tmp_path / "second", evaluate_split=None).result.localizes
