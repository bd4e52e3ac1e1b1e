"""A detector with categories decides people, vehicles and empty frames; animals alone are left to the classifier."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from card_survey import CORNERS, FILES, KEYS, draw_frame, predict_card, train_model, write_card
from click.testing import CliRunner
from training_survey import build_survey

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
from foveate.species.recipe import SpeciesRecipe
from foveate.species.rows import BestDetections
from foveate.species.settings import ExportSettings, PredictSettings
from foveate.species.taxonomy import Classes
from foveate.species.train import train_species
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


_BESIDE = Path(__file__).parents[3] / "shared" / "assets" / "camera-traps"
REAL = Path(os.environ.get("FOVEATE_CAMERA_TRAPS", _BESIDE)) / "frames"
LEFT, RIGHT = [0.05, 0.1, 0.35, 0.8], [0.6, 0.1, 0.35, 0.8]
# Five frames, MegaDetector's boxes (category, confidence, corners), and the kinds that each shows.
FIVE: dict[str, tuple[list[tuple[str, float, list[float]]], list[str]]] = {
    "speciesnet-domestic_dog.jpg": ([("2", 0.84, LEFT), ("1", 0.21, LEFT)], ["human"]),
    "speciesnet-vehicle.jpg": ([("3", 0.91, RIGHT)], ["vehicle"]),
    "speciesnet-blank.jpg": ([("1", 0.06, LEFT)], ["blank"]),
    "ena24-2480.jpg": ([("1", 0.93, LEFT)], ["animal"]),
    "speciesnet-domestic_cattle.jpg": ([("2", 0.8, LEFT), ("1", 0.9, RIGHT)], ["animal", "human"]),
}


@pytest.fixture(scope="module")
def pixel_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pixels")
    survey = build_survey(folder / "train", images=32)
    values = {"method": "linear_probe", "prior": "none", "encoder": {"kind": "lite0", "image_size": 64}}
    recipe = validate(SpeciesRecipe, values, where="test")
    train_species(survey.collection.path, folder / "run", recipe, device="cpu")
    return folder / "run" / "model"


def test_five_frames_of_a_card_through_the_command_line(pixel_model: Path, tmp_path: Path) -> None:
    """Real frames where they are on this machine, drawn ones elsewhere."""
    images = []
    for number, (name, (boxes, _)) in enumerate(FIVE.items()):
        file = tmp_path / "cards" / f"cam-{number}" / name
        file.parent.mkdir(parents=True)
        drawn = [("animal", conf, corners, 2) for category, conf, corners in boxes if category == "1"]
        file.write_bytes((REAL / name).read_bytes() if REAL.is_dir() else draw_frame(number, drawn))
        detections = [{"category": category, "conf": conf, "bbox": corners} for category, conf, corners in boxes]
        images.append({"file": f"cam-{number}/{name}", "detections": detections})
    categories = {"1": "animal", "2": "person", "3": "vehicle"}
    content = {"info": {"format_version": "1.6", "detector": "MDV6"}, "detection_categories": categories}
    (tmp_path / "md.json").write_text(json.dumps({**content, "images": images}))
    rows = [f"cam-{number},{number}.1234,4.5678,2010-01-01,2026-12-31,+02:00" for number in range(len(FIVE))]
    header = "deploymentID,latitude,longitude,deploymentStart,deploymentEnd,utc_offset"
    (tmp_path / "cards/deployments.csv").write_text("\n".join([header, *rows, ""]))

    def run(*arguments: object) -> dict[str, Any]:
        texts = [*map(str, arguments), "--json", "--quiet"]
        result = CliRunner().invoke(cli, ["species", *texts], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout.splitlines()[-1])

    results = tmp_path / "results"
    options = ("--results", tmp_path / "md.json", "--out", results, "--device", "cpu")
    # Whatever the classifier thinks of the animals, it is asked.
    done = run("predict", pixel_model, tmp_path / "cards", *options, "--threshold", 0)
    # One of the crops is the weak animal on a person, which decides nothing.
    assert (done["judged"], done["cropped"]) == (5, 3)
    predictions = Predictions.open(results)
    kinds: dict[str, list[str]] = {}
    for row in predictions.decisions.to_pylist():
        for key in row["keys"]:
            kinds.setdefault(key.rpartition("/")[2], []).append(row["kind"])
    assert {name: sorted(found) for name, found in kinds.items()} == {
        Path(name).stem: expected for name, (_, expected) in FIVE.items()
    }
    for name, did in {
        "speciesnet-domestic_dog.jpg": "human at 0.2 or above",
        "speciesnet-vehicle.jpg": "vehicle at 0.2 or above",
        "speciesnet-blank.jpg": "no box at 0.2 or above",
        "ena24-2480.jpg": "animal at 0.2 or above: classified",
    }.items():
        steps = run("explain", results, name, "--device", "cpu")["steps"]
        assert [step for step in steps if step.startswith(f"detector: {did}")], (name, steps)
        names = [step.partition(":")[0] for step in steps]
        assert names.index("detector") == names.index("model") + 1
    both = run("explain", results, "speciesnet-domestic_cattle.jpg", "--device", "cpu")
    assert both["also"] == ["human 0.80"]
    run("export", results, "--to", "csv", "--out", tmp_path / "flat.csv")
    flat = {(Path(row["file"]).name, row["taxon"]) for row in read_csv(tmp_path / "flat.csv")}
    assert {("speciesnet-domestic_dog.jpg", "human"), ("speciesnet-blank.jpg", "blank")} <= flat
    timed = [row for row in predictions.images.to_pylist() if row["time"]]
    if timed:
        package = ("export", results, "--to", "camtrap-dp", "--out", tmp_path / "package", "--coordinate-digits", 2)
        run(*package, "--contributor", "A. Person")
        types = {
            row["eventID"].partition(":")[0]: set[str]() for row in read_csv(tmp_path / "package/observations.csv")
        }
        for row in read_csv(tmp_path / "package/observations.csv"):
            types[row["eventID"].partition(":")[0]].add(row["observationType"])
        expected = {f"cam-{number}": set(found) for number, (_, found) in enumerate(FIVE.values())}
        assert types == {row["deployment"]: expected[row["deployment"]] for row in timed}
