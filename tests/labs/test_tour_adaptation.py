"""The tour's adaptation on dark and light images: what is trained, counted and drawn, and that the model stays."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.core.recipes import load
from foveate.core.results import parse_result
from foveate.core.runs import RunFolder
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.train import build_model
from foveate.records.collection import Collection
from foveate.records.writer import CollectionWriter
from foveate.vision.localizer.model import LocalizingModel
from foveate_labs.pages.tour import adaptation_section
from foveate_labs.studies.results import TourAdaptation
from foveate_labs.tour.adaptation import SHOTS, tour_adaptation

TINY = ["image_encoder.image_size=32", "image_encoder.width=16", "embed_dim=16"]
NUM_TEST = 6


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    path = tmp_path_factory.mktemp("tour-adaptation") / "emoji"
    random = np.random.default_rng(0)
    with CollectionWriter(path, license="CC0-1.0", source="test") as writer:
        for number in range(SHOTS + 2 + NUM_TEST):
            for style, level in (("noto", 70), ("twemoji", 180)):
                pixels = level + random.normal(0, 30, (32, 32, 3))
                buffer = io.BytesIO()
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
                split = "train" if number < SHOTS + 2 else "test"
                labels = {"source": "emoji", "style": style}
                writer.add(f"{style}-{number}", buffer.getvalue(), labels=labels, group=str(number), split=split)
    return Collection.open(path)


@pytest.fixture(scope="module")
def model() -> LocalizingModel:
    return build_model(load(PretrainRecipe, "tour", TINY)).eval()


@pytest.fixture(scope="module")
def result(emoji: Collection, model: LocalizingModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("run")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    content = tour_adaptation(emoji, RunFolder.create(folder), model=model, cache=folder / "cache", seed=0, epochs=8)
    assert all((value == before[name]).all() for name, value in model.state_dict().items()), "the model stays as it is"
    assert all((folder / example["image"]).is_file() for example in content["examples"])
    return json.loads(json.dumps(content, allow_nan=False))


def test_each_way_is_trained_on_the_same_few_images(result: dict[str, Any]) -> None:
    checked = parse_result(TourAdaptation, result)
    assert (checked.train_images, checked.test_images) == (2 * SHOTS, 2 * NUM_TEST)
    trained = {row.key: row.trained for row in checked.rows}
    assert 0 == trained["linear"] < trained["lora"] < trained["full"] == checked.backbone
    assert all(row.accuracy.value >= 0.9 for row in checked.rows), "dark and light are told apart"


def test_the_section_says_what_lora_is_compared_with(result: dict[str, Any]) -> None:
    section = adaptation_section(parse_result(TourAdaptation, result))
    assert "Linear head" in section["stat"].control
    assert "Guessing: 50%" in section["stat"].control
    wrong = {**result, "examples": [{**result["examples"][0], "answers": {"linear": "neither"}}]}
    assert adaptation_section(parse_result(TourAdaptation, wrong))["examples"][0][1] == [
        ("Linear head", "neither", False)
    ]
