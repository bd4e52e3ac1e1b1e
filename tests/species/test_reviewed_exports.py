"""After a review no image or event is missing from any export, and every export has the answers."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from card_survey import FILES, KEYS, predict_card, train_model
from click.testing import CliRunner

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.species.corrections import apply_corrections, open_target
from foveate.species.export import export_predictions
from foveate.species.model import SpeciesModel
from foveate.species.predictions import Predictions
from foveate.species.review import rank_events, write_review
from foveate.species.settings import ExportSettings
from foveate.survey.importers.corrections import read_corrections
from foveate.survey.survey import Survey
from naming import raises_naming
from timelapse import list_timelapse_faults

LYNX = 1
FOX, HARE = "Vulpes vulpes", "Lepus europaeus"
# The classifier sees a lynx everywhere, NanoDet has not looked, and MegaDetector saw an animal in the first two bursts.
BOXES: dict[int, list[tuple[str, float]]] = {
    **{number: [("animal", 0.9), ("person", 0.1)] for number in range(6)},
    6: [("person", 0.6)],
    7: [],
    8: [],
    9: [("animal", 0.7)],
    10: [("animal", 0.8)],
    11: [],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SpeciesModel:
    return train_model(tmp_path_factory.mktemp("model"))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def answer(predictions: Predictions, folder: Path, answers: dict[str, tuple[str, str]]) -> None:
    """Fill in the review table: answer and count by event, and read it back."""
    table = folder / write_review(predictions, folder, max_events=300).table
    rows = read_csv(table)
    for row in rows:
        row["correction"], row["count"] = answers.get(row["event"], ("", ""))
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    apply_corrections(open_target(predictions.folder), read_corrections(table), table)


ANSWERS = {"A:00001": (FOX, "2"), "A:00002": ("human", ""), "A:00003": ("blank", "")}


@pytest.fixture
def reviewed(model: SpeciesModel, tmp_path: Path) -> Predictions:
    """Four events of three frames, of which a person answered three."""
    predictions = predict_card(model, tmp_path, [LYNX] * 12, BOXES)
    answer(predictions, tmp_path / "review", ANSWERS)
    return Predictions.open(predictions.folder)


def export(predictions: Predictions, path: Path, **settings: Any) -> None:
    options = dict(settings)
    if settings["format"] == "camtrap-dp":
        options |= {"coordinate_digits": "2", "contributor": ("A. Person",)}
    export_predictions(predictions, path, ExportSettings(**options))


def test_the_flat_table_has_a_line_for_each_image(reviewed: Predictions, tmp_path: Path) -> None:
    export(reviewed, tmp_path / "flat.csv", format="csv")
    rows = sorted(read_csv(tmp_path / "flat.csv"), key=lambda row: row["file"])
    assert [row["file"] for row in rows] == FILES
    assert [row["taxon"] for row in rows] == [FOX] * 3 + ["human"] * 3 + ["blank"] * 3 + ["Lynx lynx"] * 3
    assert [row["sequence"] for row in rows] == [f"A:{1 + number // 3:05}" for number in range(12)]
    assert [row["source"] for row in rows[:9]] == ["human"] * 9
    assert rows[9]["source"].startswith("classifier")


def test_wildlife_insights_gets_every_image(reviewed: Predictions, tmp_path: Path) -> None:
    export(reviewed, tmp_path / "images.csv", format="wildlife-insights", project="p")
    rows = {row["location"]: row for row in read_csv(tmp_path / "images.csv")}
    assert sorted(rows) == FILES
    assert [rows[file]["species"] for file in FILES[:3]] == ["vulpes"] * 3


def test_a_package_has_a_row_for_each_event(reviewed: Predictions, tmp_path: Path) -> None:
    export(reviewed, tmp_path / "package", format="camtrap-dp")
    assert len(read_csv(tmp_path / "package/media.csv")) == 12
    rows = read_csv(tmp_path / "package/observations.csv")
    events = {row["eventID"]: row for row in rows if row["observationLevel"] == "event"}
    names = ("observationType", "scientificName", "count", "classificationMethod", "classificationProbability")
    assert {event: tuple(row[name] for name in names) for event, row in events.items() if event != "A:00004"} == {
        "A:00001": ("animal", FOX, "2", "human", ""),
        "A:00002": ("human", "", "", "human", ""),
        "A:00003": ("blank", "", "", "human", ""),
    }
    assert events["A:00004"]["classificationMethod"] == "machine"
    spans = [(events[f"A:0000{n}"]["eventStart"][11:19], events[f"A:0000{n}"]["eventEnd"][11:19]) for n in (1, 4)]
    assert spans == [("08:00:00", "08:00:02"), ("11:00:00", "11:00:02")]
    # The rows of the answered images stay, and belong to their events.
    media = [(row["eventID"], row["observationType"]) for row in rows if row["observationLevel"] == "media"]
    assert sorted(media) == [("A:00001", "animal"), ("A:00002", "human"), *[("A:00003", "blank")] * 3]
    assert len(events) + len(media) == len(rows)


def test_timelapse_sees_the_answers(reviewed: Predictions, tmp_path: Path) -> None:
    export(reviewed, tmp_path / "md.json", format="megadetector")
    content = json.loads((tmp_path / "md.json").read_text("utf-8"))
    assert not list_timelapse_faults(content)
    names = content["classification_categories"]
    boxes = {image["file"]: image["detections"] for image in content["images"]}
    assert sorted(boxes) == FILES
    classes = {
        file: [(box["category"], [(names[number], score) for number, score in box.get("classifications", ())])]
        for file in FILES
        for box in boxes[file][:1]
    }
    fox = next(name for name in names.values() if "fox" in name.lower() or "vulpes" in name.lower())
    assert [classes[file] for file in FILES[:3]] == [[("1", [(fox, 1.0)])]] * 3
    # A person was named where the detector has a weak person beside an animal.
    assert [[(box["category"], box["conf"]) for box in boxes[file]] for file in FILES[3:6]].count(
        [("1", 0.9), ("2", 1.0)]
    ) == 1
    assert [boxes[file] for file in FILES[6:9]] == [[]] * 3
    # The model sees whole images: its answer stands at the surest animal.
    (machine,) = classes[FILES[9]][0][1]
    assert machine[0] != fox
    assert machine[1] < 1


def test_answered_events_come_last(reviewed: Predictions) -> None:
    rows = [reviewed.decisions["event"][event.row].as_py() for event in rank_events(reviewed)]
    assert rows[0] == "A:00004"
    assert [event.reasons for event in rank_events(reviewed)][1:] == [("answered by a person",)] * 3
    priorities = [event.priority for event in rank_events(reviewed)]
    assert priorities == sorted(priorities, reverse=True)


def test_a_package_that_comes_back_has_no_new_answer(reviewed: Predictions, tmp_path: Path) -> None:
    export(reviewed, tmp_path / "package", format="camtrap-dp")
    with raises_naming(UserError, tmp_path / "package", "all are known"):
        path = tmp_path / "package"
        apply_corrections(open_target(reviewed.folder), read_corrections(path), path)


def test_a_package_is_collected_with_its_answers(reviewed: Predictions, tmp_path: Path) -> None:
    export(reviewed, tmp_path / "package", format="camtrap-dp")
    for number, file in enumerate(FILES):
        target = tmp_path / "package" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(reviewed.collection.image_bytes(reviewed.collection.find_row(KEYS[number])))
    arguments = ["collect", str(tmp_path / "package"), "--out", str(tmp_path / "again"), "--json", "--quiet"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    survey = Survey.open(tmp_path / "again")
    labels = Counter(survey.labels().tolist())
    # Answers label the frames that were shown, and their events as a whole.
    assert {labels["blank"], labels["human"], labels[""]} == {3, 1, 7}
    events = dict(zip(survey.keys, survey.event_labels().tolist(), strict=True))
    assert [events[key] for key in KEYS[3:9]] == ["human"] * 3 + ["blank"] * 3
    assert len({events[key] for key in KEYS[:3]}) == 1
    assert len(survey) == 12


def test_an_image_that_a_person_called_empty_leaves_the_event(model: SpeciesModel, tmp_path: Path) -> None:
    predictions = predict_card(model, tmp_path, [LYNX] * 12, BOXES)
    (tmp_path / "own.csv").write_text(f"file,species\n{FILES[1]},blank\n{FILES[3]},{FOX}\n{FILES[4]},{HARE}\n")
    apply_corrections(open_target(predictions.folder), read_corrections(tmp_path / "own.csv"), tmp_path / "own.csv")
    predictions = Predictions.open(predictions.folder)
    export(predictions, tmp_path / "flat.csv", format="csv")
    lines = Counter((row["file"], row["taxon"]) for row in read_csv(tmp_path / "flat.csv"))
    assert {file for file, _ in lines} == set(FILES)
    assert [lines[file, "Lynx lynx"] for file in FILES[:3]] == [1, 0, 1]
    assert lines[FILES[1], "blank"] == lines[FILES[3], FOX] == lines[FILES[4], HARE] == 1
    # Two people's animals in one event: the third frame may show either.
    assert lines[FILES[5], FOX] == lines[FILES[5], HARE] == 1
    export(predictions, tmp_path / "package", format="camtrap-dp")
    rows = [row for row in read_csv(tmp_path / "package/observations.csv") if row["observationLevel"] == "event"]
    names = [(row["eventID"], row["scientificName"]) for row in rows if row["eventID"] in ("A:00001", "A:00002")]
    assert sorted(names) == [("A:00001", "Lynx lynx"), ("A:00002", HARE), ("A:00002", FOX)]


def test_a_named_image_without_a_box_gets_one(model: SpeciesModel, tmp_path: Path) -> None:
    predictions = predict_card(model, tmp_path, [LYNX] * 12, BOXES)
    answers = {FILES[7]: FOX, FILES[9]: "vehicle", FILES[11]: "unknown"}
    text = "".join(f"{file},{label}\n" for file, label in answers.items())
    (tmp_path / "own.csv").write_text(f"file,species\n{text}")
    apply_corrections(open_target(predictions.folder), read_corrections(tmp_path / "own.csv"), tmp_path / "own.csv")
    export(Predictions.open(predictions.folder), tmp_path / "md.json", format="megadetector")
    content = json.loads((tmp_path / "md.json").read_text("utf-8"))
    boxes = {image["file"]: image["detections"] for image in content["images"]}
    (made_up,) = boxes[FILES[7]]
    assert (made_up["bbox"], made_up["conf"], made_up["classifications"][0][1]) == ([0, 0, 1, 1], 1.0, 1.0)
    # The detector's animal is a vehicle to the person.
    assert [(box["category"], box["conf"]) for box in boxes[FILES[9]]] == [("3", 1.0)]
    assert boxes[FILES[11]] == []
    # Frames of the event that nobody looked at keep what the detector saw.
    assert [box["category"] for box in boxes[FILES[10]]] == ["3"]


def test_a_survey_that_was_reviewed_before_is_exported(reviewed: Predictions, tmp_path: Path) -> None:
    # Answers of earlier versions are the same rows; their results folders have no name of a detector.
    images = reviewed.images.drop_columns(["detector"])
    folder = tmp_path / "old"
    shutil.copytree(reviewed.folder, folder)
    old = Predictions.open(folder)
    old.images = images
    export(old, tmp_path / "flat.csv", format="csv")
    assert len(read_csv(tmp_path / "flat.csv")) == 12
