"""The threshold of boxes: measured, stored in a folder, and measured when a training ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.core.paths import DATA
from foveate.mllm.calibrate import calibrate, draw_pairs, measure_box_scores
from foveate.mllm.card import put_box_scores
from foveate.mllm.results import BoxScoreResult
from foveate.mllm.settings import CalibrateSettings
from foveate.mllm.train import prepare_training
from foveate.multimodal.answers import Answer
from foveate.multimodal.ask import Mllm
from foveate.multimodal.folder import load_model, read_settings
from foveate.multimodal.opening import open_mllm
from foveate.records.collection import Collection
from foveate.records.images import decode
from naming import raises_naming
from tiny_mllm import make_recipe

SETTINGS = CalibrateSettings(split="test", limit=6)
RESULT = BoxScoreResult(
    collection="shapes", split="validation", images=8, present=8, absent=8,
    min_box_score=1.5, auc=0.9, hit_rate=0.875, false_alarm_rate=0.125,
)  # fmt: skip


def test_a_folder_gets_its_threshold_with_how_it_was_measured(asked_collection: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "mini", tmp_path / "mini")
    metrics = read_json(folder / "metrics.json")
    with Collection.open(asked_collection) as collection:
        result = calibrate(str(folder), collection, SETTINGS, device="cpu")
        assert calibrate(str(folder), collection, SETTINGS, device="cpu") == result, "whatever the folder had before"
    assert (result.images, result.present, result.absent, result.split) == (6, 6, 6, "test")
    assert load_model(folder).min_box_score == result.min_box_score
    stored = read_json(folder / "metrics.json")
    assert stored["box_scores"]["auc"] == result.auc
    assert stored["scenes"] == metrics["scenes"]
    card = (folder / "README.md").read_text()
    assert card.count("## Not found") == card.count("## Data") == 1
    assert f"{result.min_box_score:.2f}" in card
    assert card.split("## Data")[1] == (DATA / "mini" / "README.md").read_text().split("## Data")[1]


@pytest.mark.parametrize(
    "card", ["# A\n\n## Data\n\nScenes.\n", "# A\n", "# A\n\n## Data\n\nScenes.\n\n## Mine\n\nNotes.\n"]
)
def test_a_card_loses_nothing_else(card: str) -> None:
    written = put_box_scores(card, RESULT)
    assert "1.50" in written
    assert all(line in written.splitlines() for line in card.splitlines())
    again = put_box_scores(f"{written}\n## Behind\n\nMore.\n", RESULT.model_copy(update={"min_box_score": 2.5}))
    assert again == written.replace("1.50", "2.50") + "\n## Behind\n\nMore.\n"


def test_the_shipped_model_has_its_threshold() -> None:
    _, config = read_settings(DATA / "mini")
    box_scores = read_json(DATA / "mini" / "metrics.json")["box_scores"]
    assert config["min_box_score"] == box_scores["min_box_score"]
    assert box_scores["auc"] > 0.95


def test_pairs_are_of_phrases_that_an_image_shows_and_does_not_show(asked_collection: Path) -> None:
    with Collection.open(asked_collection) as collection:
        pairs = draw_pairs(collection, CalibrateSettings(split="test"))
        assert draw_pairs(collection, CalibrateSettings(split="test")) == pairs
        for row, present, absent in pairs:
            phrases = {region.phrase for region in collection.read_regions(row)}
            assert present in phrases
            assert absent not in phrases
        with raises_naming(UserError, "split", "validatoin"):
            draw_pairs(collection, CalibrateSettings(split="validatoin"))


def test_images_that_cannot_be_read_are_left_out(
    asked_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask_all(model: Mllm, questions: list[tuple[bytes, str]], *, max_tokens: int) -> list[Answer]:
        for image, _ in questions:
            decode(image)
        return [Answer("", box_scores=(float(number % 2 == 0),)) for number in range(len(questions))]

    monkeypatch.setattr(Mllm, "ask_all", ask_all)
    path, model = Path(shutil.copytree(asked_collection, tmp_path / "shapes")), Mllm(load_model(DATA / "mini"))
    with Collection.open(path) as collection:
        damaged, cut = collection.index["offset"][-2:].tolist()
    with (path / "images" / "00002.tar").open("r+b") as file:
        file.seek(damaged + 200)
        file.write(b"damaged")
        file.truncate(cut + 200)
    with Collection.open(path) as collection:
        result = measure_box_scores(model, collection, CalibrateSettings(split="test"))
    assert (result.images, result.unreadable, result.present, result.absent, result.auc) == (8, 2, 8, 8, 1)
    assert "2 of 10 images" in capsys.readouterr().err
    for name in ("00001.tar", "00002.tar"):
        (path / "images" / name).unlink()
    with Collection.open(path) as collection, raises_naming(UserError, path, "none of 10"):
        measure_box_scores(model, collection, CalibrateSettings(split="test"))


def test_a_threshold_needs_a_folder_and_a_box_head(asked_collection: Path) -> None:
    loaded = load_model(DATA / "mini")
    loaded.model.box_head = None
    with Collection.open(asked_collection) as collection:
        with raises_naming(UserError, "mini"):
            calibrate("mini", collection, SETTINGS)
        with raises_naming(UserError, "box_head"):
            measure_box_scores(Mllm(loaded), collection, SETTINGS)


@pytest.mark.parametrize("value", [True, "high", [1.0]])
def test_a_threshold_that_is_no_number_is_refused(value: object, tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "mini", tmp_path / "mini")
    config = (folder / "config.json").read_text()
    old = f'"min_box_score": {read_json(folder / "config.json")["min_box_score"]}'
    assert old in config
    (folder / "config.json").write_text(config.replace(old, f'"min_box_score": {json.dumps(value)}'))
    with raises_naming(UserError, "min_box_score"):
        open_mllm(folder)


def test_a_training_measures_it_where_it_trains_boxes(
    asked_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe()
    with Collection.open(asked_collection) as collection:
        training = prepare_training(recipe, collection, tmp_path / "run")
        # Without a split for validation there is nothing to measure on, and the folder is written all the same.
        folder = training.save()
        assert training.box_scores is None
        assert load_model(folder).min_box_score is None
        monkeypatch.setattr("foveate.mllm.train.measure_box_scores", lambda *_: RESULT)
        folder = training.save()
    assert load_model(folder).min_box_score == RESULT.min_box_score
    assert "## Not found" in (folder / "README.md").read_text()
    assert training.result("finished").box_scores == RESULT
