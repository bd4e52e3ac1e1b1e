"""A detector with categories decides people, vehicles and empty frames; animals alone are left to the classifier."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from card_survey import CORNERS, FILES, KEYS, predict_card, train_model, write_card
from click.testing import CliRunner

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.core.recipes import validate
from foveate.records.collection import Collection
from foveate.species.crops import CropSettings, collection_boxes
from foveate.species.decide_results import decide_results
from foveate.species.decisions import Decisions, Stages, decide, prepare_stages
from foveate.species.export import export_predictions
from foveate.species.model import SpeciesModel
from foveate.species.predict import _needs_boxes
from foveate.species.predictions import Predictions
from foveate.species.rows import BestDetections
from foveate.species.settings import ExportSettings, PredictSettings
from foveate.species.taxonomy import Classes
from foveate.survey.importers.results import add_results
from foveate.survey.store import name_detectors
from foveate.survey.taxa import Taxa

LYNX = 1
ANIMAL, HUMAN, VEHICLE = range(3)
# Three frames each of a lynx, a person, a car, and nothing; to the classifier all of them show a lynx.
BOXES: dict[int, list[tuple[str, float]]] = {
    **dict.fromkeys(range(3), [("animal", 0.9)]),
    3: [("person", 0.84)],
    4: [("person", 0.3), ("animal", 0.25)],
    5: [],
    6: [("vehicle", 0.7)],
    7: [("vehicle", 0.21)],
    8: [("vehicle", 0.1)],
    9: [],
    10: [("animal", 0.19)],
    11: [],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SpeciesModel:
    return train_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def results(model: SpeciesModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    predict_card(model, folder, [LYNX] * 12, BOXES)
    return folder / "results"


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def export_package(predictions: Predictions, folder: Path) -> list[dict[str, str]]:
    options = ExportSettings(format="camtrap-dp", coordinate_digits="2", contributor=("A. Person",))
    export_predictions(predictions, folder, options)
    return read_csv(folder / "observations.csv")


def test_people_vehicles_and_empty_frames_get_no_animal(results: Path) -> None:
    rows = Predictions.open(results).decisions.to_pylist()
    assert (rows[0]["kind"], rows[0]["name"]) == ("animal", "Lynx lynx")
    assert [(row["kind"], row["name"], round(row["score"], 4)) for row in rows[1:]] == [
        ("human", "human", 0.84),
        ("vehicle", "vehicle", 0.7),
        ("blank", "blank", 0.81),
    ]
    steps = {step["stage"]: (step["did"], step["answer"]) for step in json.loads(rows[1]["source"])}
    assert steps == {
        "classifier": ("probabilities of the model", "Lynx lynx"),
        "detector": ("human at 0.2 or above", "human"),
        "pooling": ("mean_logprob, max_animal: 3 of 3 images", "human"),
        "rollup": ("decided by the detector", "human"),
        "threshold": ("decided by the detector", "human"),
    }


@pytest.mark.parametrize("blank_mode", ["max_animal", "as_class"])
@pytest.mark.parametrize("method", ["mean_logprob", "mean_prob", "max_prob", "vote", "megadetector", "none"])
def test_no_stage_changes_what_the_detector_decided(results: Path, method: str, blank_mode: str) -> None:
    stages = {"pooling": {"method": method, "blank_mode": blank_mode}, "rollup": {"enabled": False}}
    stages |= {"threshold": {"threshold": 0.99}, "temperature": {"temperature": 3}}
    table = decide_results(Predictions.open(results), validate(Stages, stages, where="test"))
    kinds = {key: row["kind"] for row in table.to_pylist() for key in row["keys"]}
    expected = ["human"] * 3 + ["vehicle"] * 3 + ["blank"] * 3
    if method in ("megadetector", "none"):
        expected[2] = expected[5] = "blank"
    assert [kinds[key] for key in KEYS[3:]] == expected
    decide_results(Predictions.open(results), Stages())


def test_the_threshold_is_an_option(results: Path) -> None:
    verb = ["species", "decide", str(results), "--json", "--quiet"]
    options: dict[tuple[str, ...], dict[str, int]] = {
        ("--detector-threshold", "0.75"): {"animal": 1, "human": 1, "blank": 2},
        ("--detector-threshold", "0.05"): {"animal": 2, "human": 1, "vehicle": 1},
        ("--no-detector",): {"animal": 4},
        (): {"animal": 1, "human": 1, "vehicle": 1, "blank": 1},
    }
    for arguments, counts in options.items():
        result = CliRunner().invoke(cli, [*verb, *arguments], catch_exceptions=False)
        assert json.loads(result.stdout.splitlines()[-1])["counts"] == counts, arguments


def test_exports_agree(results: Path, tmp_path: Path) -> None:
    predictions = Predictions.open(results)
    export_predictions(predictions, tmp_path / "flat.csv", ExportSettings(format="csv"))
    labels = {row["file"]: row["taxon"] for row in read_csv(tmp_path / "flat.csv")}
    expected = ["Lynx lynx"] * 3 + ["human"] * 3 + ["vehicle"] * 3 + ["blank"] * 3
    assert [labels[file] for file in FILES] == expected
    rows = export_package(predictions, tmp_path / "package")
    assert [(row["observationType"], row["scientificName"]) for row in rows] == [
        ("animal", "Lynx lynx"),
        ("human", ""),
        ("vehicle", ""),
        ("blank", ""),
    ]
    export_predictions(predictions, tmp_path / "md.json", ExportSettings(format="megadetector"))
    content = json.loads((tmp_path / "md.json").read_text("utf-8"))
    boxes = {image["file"]: image["detections"] for image in content["images"]}
    assert [[box["category"] for box in boxes[file]] for file in FILES[3:]] == [
        ["2"], ["2", "1"], [], ["3"], ["3"], ["3"], [], ["1"], [],
    ]  # fmt: skip
    assert not any("classifications" in box for file in FILES[3:] for box in boxes[file])


def test_a_person_beside_an_animal_is_an_answer_of_its_own(model: SpeciesModel, tmp_path: Path) -> None:
    boxes: dict[int, list[tuple[str, float]]] = {0: [("person", 0.9)], 1: [], 2: [("animal", 0.8)]}
    predictions = predict_card(model, tmp_path, [LYNX] * 12, boxes)
    rows = [(row["event"], row["kind"], row["keys"]) for row in predictions.decisions.to_pylist()]
    # The empty frame belongs to the animal that left it.
    assert rows[:2] == [("A:00001", "human", KEYS[:1]), ("A:00001", "animal", KEYS[1:3])]
    # No detector looked at the other images.
    assert {kind for _, kind, _ in rows[2:]} == {"animal"}
    written = [row for row in export_package(predictions, tmp_path / "package") if row["eventID"] == "A:00001"]
    assert [row["observationType"] for row in written] == ["human", "animal"]
    assert {(row["eventStart"][11:19], row["eventEnd"][11:19]) for row in written} == {("08:00:00", "08:00:02")}
    export_predictions(predictions, tmp_path / "flat.csv", ExportSettings(format="csv"))
    labels = {row["file"]: row["taxon"] for row in read_csv(tmp_path / "flat.csv")}
    assert [labels[file] for file in FILES[:3]] == ["human", "Lynx lynx", "Lynx lynx"]


def test_without_a_detector_the_classifier_decides_all(model: SpeciesModel, tmp_path: Path) -> None:
    predictions = predict_card(model, tmp_path, [LYNX] * 12, None)
    assert {row["kind"] for row in predictions.decisions.to_pylist()} == {"animal"}
    assert "detector" not in predictions.decisions["source"][0].as_py()


def test_a_card_on_which_a_detector_saw_nothing_is_blank(model: SpeciesModel, tmp_path: Path) -> None:
    predictions = predict_card(model, tmp_path, [LYNX] * 12, dict.fromkeys(range(12), []))
    assert [row["kind"] for row in predictions.decisions.to_pylist()] == ["blank"] * 4
    provenance: dict[str, Any] = {}
    cropping: Any = SimpleNamespace(view=CropSettings(), info=SimpleNamespace(provenance=provenance))
    assert not _needs_boxes(cropping, tmp_path / "card", PredictSettings())


def test_results_folders_without_the_detectors_name_are_read(results: Path) -> None:
    predictions = Predictions.open(results)
    predictions.images = predictions.images.drop_columns(["detector"])
    kinds = {key: row["kind"] for row in decide_results(predictions, Stages()).to_pylist() for key in row["keys"]}
    # Whether anything looked at a frame without a box is not known there.
    assert [kinds[KEYS[number]] for number in (0, 3, 6, 9, 10)] == ["animal", "human", "vehicle", "animal", "animal"]
    decide_results(Predictions.open(results), Stages())


def test_images_that_no_detector_looked_at_are_told_apart(tmp_path: Path) -> None:
    write_card(tmp_path / "card")
    images = [
        {"file": FILES[0], "detections": []},
        {"file": FILES[1], "failure": "bad image", "detections": None},
        {"file": FILES[2], "detections": [{"category": "1", "conf": 0.5, "bbox": CORNERS}]},
    ]
    content = {"info": {"format_version": "1.6", "detector": "MD"}, "images": images}
    (tmp_path / "md.json").write_text(json.dumps({**content, "detection_categories": {"1": "animal"}}))
    add_results(tmp_path / "card", tmp_path / "md.json")
    collection = Collection.open(tmp_path / "card")
    named = dict(zip(collection.keys, name_detectors(collection.table("observations"), collection.keys), strict=True))
    assert [named[key] for key in KEYS[:4]] == ["MD", "", "MD", ""]
    # A model of whole images is no detector, although it leaves rows without a box.
    write_card(tmp_path / "other")
    label = "1;mammalia;carnivora;felidae;lynx;lynx;lynx"
    entry = {"filepath": FILES[0], "prediction": label, "prediction_score": 0.9, "prediction_source": "classifier"}
    (tmp_path / "sn.json").write_text(json.dumps({"predictions": [entry]}))
    add_results(tmp_path / "other", tmp_path / "sn.json")
    collection = Collection.open(tmp_path / "other")
    assert not any(name_detectors(collection.table("observations"), collection.keys))


def test_people_and_vehicles_are_never_cropped(results: Path) -> None:
    collection = Predictions.open(results).collection
    boxes = collection_boxes(collection, range(12), CropSettings())
    assert {collection.keys[row] for row in boxes} == {KEYS[number] for number in (0, 1, 2, 4)}


def run(
    p: Any, kinds: list[int], scores: list[float], stages: dict[str, Any] | None = None, **context: Any
) -> Decisions:
    taxa = Taxa.from_rows([{"id": "1", "name": "Lynx lynx", "rank": "species"}])
    classes = Classes(("lynx", "blank", "human", "vehicle"), np.array([0, -1, -1, -1]))
    detections = BestDetections(np.array(kinds), np.array(scores), np.ones(len(kinds), dtype=bool))
    prepared = prepare_stages(validate(Stages, stages or {}, where="test"), classes, taxa)
    return decide(p, classes, taxa, prepared, detections=detections, **context)


def test_a_box_at_the_threshold_counts_and_an_unreadable_image_stays_failed() -> None:
    p = np.tile([0.9, 0.1, 0.0, 0.0], (4, 1))
    p[3] = np.nan
    decisions = run(p, [HUMAN, HUMAN, VEHICLE, HUMAN], [0.2, 0.19, 0.5, 0.9])
    assert decisions.names().to_pylist() == ["human", "blank", "vehicle", ""]
    np.testing.assert_allclose(decisions.scores_R[:3], [0.2, 0.81, 0.5])


def test_split_events_keep_the_order_of_their_first_images() -> None:
    p = np.tile([0.9, 0.1, 0.0, 0.0], (6, 1))
    kinds, scores = [HUMAN, ANIMAL, ANIMAL, -1, VEHICLE, HUMAN], [0.9, 0.9, 0.9, 0.0, 0.9, 0.8]
    decisions = run(p, kinds, scores, events=[7, 3, 7, 7, 3, 7])
    assert decisions.names().to_pylist() == ["human", "Lynx lynx", "Lynx lynx", "vehicle"]
    assert decisions.decisions_N.tolist() == [0, 1, 2, 2, 3, 0]
    assert decisions.images_R.tolist() == [0, 1, 2, 4]


def test_speciesnet_rules_decide_by_thresholds_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    p = np.array([[0.9, 0.1, 0.0, 0.0]])
    stages = {"rules": {"rules": "speciesnet"}, "detector": {"threshold": 0.4}, "pooling": {"method": "none"}}
    # SpeciesNet's detector needs more than 0.7 to overrule the classifier.
    decisions = run(p, [HUMAN], [0.5], stages)
    assert decisions.names().to_pylist() == ["animal"]
    assert "detector" not in {trace.stage for trace in decisions.traces}
    assert "threshold 0.4 has no effect" in capsys.readouterr().err


def test_a_class_that_the_detector_answers_with_must_be_there() -> None:
    taxa = Taxa.from_rows([{"id": "1", "name": "Lynx lynx", "rank": "species"}])
    classes = Classes(("lynx",), np.array([0]))
    detections = BestDetections(np.array([1]), np.array([0.9]), np.ones(1, dtype=bool))
    with pytest.raises(UserError, match="class 'blank'"):
        decide([[1.0]], classes, taxa, prepare_stages(Stages(), classes, taxa), detections=detections)
