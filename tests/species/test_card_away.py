"""A card that is pulled out in the middle: nothing is stored as done, the run ends, and the same command resumes."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from foveate.cli.main import cli
from foveate.core.errors import NothingSucceededError, UserError
from foveate.records.annotate import matching_parts
from foveate.records.collection import Collection
from foveate.species import boxes as boxes_module
from foveate.species import predict as predict_module
from foveate.species.boxes import add_boxes
from foveate.species.folder import open_species
from foveate.species.model import SpeciesModel
from foveate.species.predict import predict
from foveate.species.predictions import Predictions
from foveate.species.settings import BoxSettings, PredictSettings
from foveate.survey.deployments import read_deployments
from foveate.survey.importers.cards import import_cards
from foveate_labs.worlds.traps import build_traps

IMAGES, BROKEN = 40, 5


def write_cards(folder: Path) -> Path:
    """Write two cameras with 20 images each; the sixth image is truncated."""
    for number in range(IMAGES):
        path = folder / "cards" / "AB"[number // 20] / f"IMG_{number:04}.JPG"
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG")
        path.write_bytes(buffer.getvalue()[: 300 if number == BROKEN else None])
    (folder / "cards" / "deployments.csv").write_text("deploymentID\nA\nB\n")
    return folder / "cards"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SpeciesModel:
    """A linear head on Lite0's features of whole images."""
    folder = tmp_path_factory.mktemp("model")
    build_traps(folder / "survey", train=12, validation=3, test=3, seed=3)
    options = ("--method", "linear_probe", "--view", "whole", "--prior", "none", "--device", "cpu")
    arguments = ("species", "train", "--collection", folder / "survey", "--out", folder / "run", *options)
    result = CliRunner().invoke(cli, [*map(str, arguments), "encoder.kind=lite0", "encoder.image_size=64"])
    assert result.exit_code == 0, result.output
    return open_species(folder / "run/model")


def pull_out_after(monkeypatch: pytest.MonkeyPatch, module: object, name: str, cards: Path, count: int) -> None:
    """Move the cards away once a function of a module has been called so many times."""
    original, calls = getattr(module, name), []

    def call(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == count + 1:
            cards.rename(cards.with_name("away"))
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, call)


def test_predicting_ends_where_the_card_is_pulled_out_and_goes_on_with_it(
    model: SpeciesModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards, results = write_cards(tmp_path), tmp_path / "results"
    monkeypatch.setattr(predict_module, "_IMAGES_PER_PART", 10)
    arguments = (model, cards, results, PredictSettings(detect=False))
    with monkeypatch.context() as patch:
        pull_out_after(patch, predict_module, "read_image", cards, 12)
        away = predict(*arguments, device="cpu", workers=1)
    # 39 images were collected; after 12 the second part of ten fails, and the others are not begun.
    assert (away.computed, away.away, away.unreachable) == (20, True, 27)
    failure = away.find_failure()
    assert type(failure) is UserError
    assert "27 of 39 images could not be reached" in str(failure)
    assert "is the card still there? Run the same command again" in str(failure)
    for mount_point in (False, True):
        if mount_point:
            cards.mkdir()
        with pytest.raises(UserError, match="is the card still there"):
            predict(*arguments, device="cpu", workers=1)
    cards.rmdir()
    cards.with_name("away").rename(cards)
    back = predict(*arguments, device="cpu", workers=1)
    assert (back.computed, back.unreachable, back.find_failure()) == (27, 0, None)
    # The broken file is listed as failed, and only that one.
    images = Predictions.open(results).images
    failed = [row["key"] for row in images.to_pylist() if row["status"] == "failed"]
    assert failed == [f"A/IMG_{BROKEN:04}"]
    assert np.isfinite(Predictions.open(results).probabilities_NK).all()


def test_boxes_end_where_the_card_is_pulled_out_and_go_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards, survey = write_cards(tmp_path), tmp_path / "survey"
    import_cards(cards, survey, reference=True)
    with monkeypatch.context() as patch:
        pull_out_after(patch, boxes_module, "decode", cards, 18)
        away = add_boxes(survey, BoxSettings(), device="cpu", workers=1)
    # `decode` was called with the bytes of the 19th image; the card is away for the 20th.
    assert (sum(away.status.values()), away.away, away.unreachable) == (19, True, 20)
    assert type(away.find_failure()) is UserError
    stored = [key for part in matching_parts(survey, "region_status", ["key"], where={}) for key in part["key"]]
    assert len(stored) == 19
    assert add_boxes(survey, BoxSettings(), device="cpu", workers=1).unreachable == 20
    cards.with_name("away").rename(cards)
    back = add_boxes(survey, BoxSettings(), device="cpu", workers=1)
    assert (sum(back.status.values()), back.away, back.unreachable, back.find_failure()) == (39, False, 0, None)


def test_files_that_were_deleted_from_a_card_end_no_run(model: SpeciesModel, tmp_path: Path) -> None:
    """Twelve of the first camera and the last of the other are gone: the others are read, then the question comes."""
    cards, survey = write_cards(tmp_path), tmp_path / "survey"
    import_cards(cards, survey, reference=True)
    for number in [*range(6, 18), IMAGES - 1]:
        (cards / "AB"[number // 20] / f"IMG_{number:04}.JPG").unlink()
    boxes = add_boxes(survey, BoxSettings(), device="cpu", workers=1)
    assert (sum(boxes.status.values()), boxes.away, boxes.unreachable) == (26, False, 13)
    result = predict(model, survey, tmp_path / "results", PredictSettings(), device="cpu", workers=1)
    assert (result.computed, result.away, result.unreachable) == (39, False, 13)
    assert "13 of 40 images" in str(result.find_failure())


@pytest.mark.parametrize("code", [errno.EIO, errno.ENODEV, errno.ESTALE])
def test_a_card_that_fails_while_it_is_collected_is_no_success(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards, read = write_cards(tmp_path), Path.open

    def fail(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.suffix == ".JPG" and int(path.stem[-4:]) >= 20:
            raise OSError(code, os.strerror(code), str(path))
        return read(path, *arguments, **options)

    command = ["collect", str(cards), "--out", str(tmp_path / "survey"), "--workers", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        result = CliRunner().invoke(cli, command)
    assert isinstance(result.exception, UserError) or result.exit_code == 1
    assert "20 of 40 images could not be reached" in f"{result.output} {result.exception}"
    again = CliRunner().invoke(cli, command)
    assert again.exit_code == 0, again.output
    with Collection.open(tmp_path / "survey") as collection:
        assert len(collection) == IMAGES - 1


def test_a_card_that_is_away_from_the_start_has_nothing_to_predict(tmp_path: Path) -> None:
    cards, survey = write_cards(tmp_path), tmp_path / "survey"
    import_cards(cards, survey, reference=True)
    cards.rename(tmp_path / "away")
    result = add_boxes(survey, BoxSettings(), device="cpu", workers=1)
    assert (result.status, result.unreachable, result.away) == ({}, 39, True)
    assert isinstance(result.find_failure(), NothingSucceededError)


def test_cards_need_no_table_and_take_one_from_anywhere(model: SpeciesModel, tmp_path: Path) -> None:
    cards, results = write_cards(tmp_path), tmp_path / "results"
    table = (cards / "deployments.csv").rename(tmp_path / "places.csv")
    settings = PredictSettings(detect=False)
    predict(model, cards, results, settings, device="cpu", workers=1)
    first = read_deployments(results / "deployments.csv")
    assert first.ids == {"A": "A", "B": "B"}
    assert set(Predictions.open(results).images["camera"].to_pylist()) == {"A", "B", ""}
    # Cameras are known, and the same call resumes.
    assert predict(model, cards, results, settings, device="cpu", workers=1).computed == 0
    table.write_text("deploymentID,folder,locationID,latitude,longitude\nA1,A,oak,48.1,11.5\nB,B,,,\n")
    for path in (results, tmp_path / "others"):
        predict(model, cards, path, PredictSettings(detect=False, deployments=table), device="cpu", workers=1)
        assert set(Predictions.open(path).images["camera"].to_pylist()) == {"oak", "B", ""}
