"""Exports without the images that show people: by a detection, a decision or an answer."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from card_survey import FILES, KEYS, predict_card, train_model
from click.testing import CliRunner

from foveate.cli.main import cli
from foveate.species.corrections import apply_corrections, open_target
from foveate.species.export import find_people
from foveate.species.predictions import Predictions
from foveate.survey.importers.corrections import Correction

# A person decides the second burst; one stands behind the animal of the third; a weak one is none.
BOXES = {
    **{frame: [("animal", 0.9)] for frame in range(12)},
    3: [("person", 0.95)],
    4: [("person", 0.9)],
    5: [("person", 0.9)],
    7: [("animal", 0.9), ("person", 0.3)],
    8: [("animal", 0.9), ("person", 0.1)],
}
# The answer about one frame of the last burst is one about its event.
SHOWN = {3, 4, 5, 7, 9, 10, 11}


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> Predictions:
    folder = tmp_path_factory.mktemp("people")
    predictions = predict_card(train_model(folder), folder, [1] * 12, BOXES)
    # A person was seen on a frame that no detector has found one on.
    answer = [Correction("line 2", "human", file=FILES[11])]
    apply_corrections(open_target(predictions.folder), answer, folder / "answers.csv")
    return Predictions.open(predictions.folder)


def export(predictions: Predictions, path: Path, format: str, *options: str) -> str:
    command = ["species", "export", str(predictions.folder), "--to", format, "--out", str(path), *options]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_people_are_found(predictions: Predictions) -> None:
    assert find_people(predictions) == {KEYS[number] for number in SHOWN}


def list_files(path: Path, format: str) -> set[str]:
    if format == "megadetector":
        return {image["file"] for image in json.loads(path.read_text(encoding="utf-8"))["images"]}
    table = path / "media.csv" if format == "camtrap-dp" else path
    column = {"camtrap-dp": "filePath", "csv": "file", "wildlife-insights": "location"}[format]
    with table.open(newline="") as file:
        return {row[column] for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("megadetector", ()),
        ("csv", ()),
        ("wildlife-insights", ("--project", "7")),
        ("camtrap-dp", ("--coordinate-digits", "2", "--contributor", "A. Person")),
    ],
)
def test_no_export_has_people(predictions: Predictions, format: str, options: tuple[str, ...], tmp_path: Path) -> None:
    export(predictions, tmp_path / "all", format, *options)
    before = list_files(tmp_path / "all", format)
    output = export(predictions, tmp_path / "some", format, *options, "--exclude-humans")
    after = list_files(tmp_path / "some", format)
    assert before - after == {FILES[number] for number in SHOWN} & before
    assert len(before) > len(after) > 0
    assert "7 images with people left out" in output
    if format == "camtrap-dp":
        with (tmp_path / "some/observations.csv").open(newline="") as file:
            assert {row["observationType"] for row in csv.DictReader(file)} == {"animal"}
        assert "with 3 decimals (about 111 m)" in output
