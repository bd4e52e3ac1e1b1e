"""Every animal box of a frame is classified: species of one frame are answers of their own, and boxes are counted."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from card_survey import FILES, KEYS, ColorModel, draw_frame, write_boxes, write_card
from training_survey import KINDS

from foveate.core.recipes import validate
from foveate.species.decide_results import decide_results
from foveate.species.decisions import Decisions, Stages, decide, prepare_stages
from foveate.species.export import export_predictions
from foveate.species.predict import predict
from foveate.species.predictions import Predictions, ScorePart, read_part
from foveate.species.rows import BestDetections
from foveate.species.settings import ExportSettings, PredictSettings
from foveate.species.stages.mixed import find_species
from foveate.species.subjects import Boxes, find_subjects
from foveate.species.taxonomy import Classes
from foveate.survey.importers.results import add_results
from foveate.survey.taxa import Taxa

DEER, LYNX, FOX = 0, 1, 2
LEFT, RIGHT, TOP = (0.05, 0.5, 0.4, 0.45), (0.55, 0.5, 0.4, 0.45), (0.3, 0.02, 0.4, 0.4)
# Category, confidence, place, and the kind whose color the box has: four bursts of three frames.
FRAMES: list[list[tuple[str, float, tuple[float, float, float, float], int]]] = [
    [("animal", 0.9, LEFT, LYNX), ("animal", 0.8, RIGHT, FOX)],
    [("animal", 0.9, LEFT, FOX), ("animal", 0.7, RIGHT, FOX), ("animal", 0.6, TOP, LYNX)],
    [],
    [("person", 0.84, LEFT, DEER), ("animal", 0.8, RIGHT, FOX)],
    [("person", 0.5, LEFT, DEER), ("person", 0.4, RIGHT, DEER), ("animal", 0.3, LEFT, FOX)],
    [],
    [("animal", 0.9, LEFT, DEER), ("animal", 0.5, RIGHT, DEER), ("animal", 0.1, TOP, FOX)],
    [("animal", 0.9, LEFT, DEER), ("animal", 0.3, RIGHT, DEER), ("animal", 0.25, TOP, DEER)],
    [("animal", 0.9, LEFT, DEER)],
    [("vehicle", 0.91, LEFT, DEER)],
    [],
    [],
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    model: Any = ColorModel(folder)
    write_card(folder / "card", [draw_frame(number, frame) for number, frame in enumerate(FRAMES)])
    boxes = {number: [box[:3] for box in frame] for number, frame in enumerate(FRAMES)}
    add_results(folder / "card", write_boxes(folder / "md.json", boxes))
    # Fewer images a pass than a frame has boxes.
    predict(model, folder / "card", folder / "results", PredictSettings(batch=2), device="cpu", workers=1)
    decide_results(Predictions.open(folder / "results"), Stages())
    return folder / "results"


def list_answers(predictions: Predictions) -> list[tuple[str, str, int, list[int]]]:
    rows = predictions.decisions.to_pylist()
    return [(row["event"], row["name"], row["count"], [KEYS.index(key) for key in row["keys"]]) for row in rows]


def test_every_animal_box_is_classified(results: Path) -> None:
    part = read_part(results, 0)
    assert part.box_rows_B.tolist() == [0, 1, 1, 6, 7, 7]
    assert part.box_probabilities_BK is not None
    kinds = part.box_probabilities_BK.argmax(axis=1).tolist()
    assert kinds == [FOX, FOX, LYNX, DEER, DEER, DEER]
    crops = Predictions.open(results).boxes.filter(Predictions.open(results).boxes["score"].to_numpy() < 0.2)
    assert crops["crop"].to_pylist() == [-1]


def test_species_of_one_frame_are_answers_with_counts(results: Path) -> None:
    predictions = Predictions.open(results)
    assert list_answers(predictions) == [
        ("A:00001", KINDS[LYNX], 1, [0, 1]),
        # The empty frame belongs to the species that more boxes show.
        ("A:00001", KINDS[FOX], 2, [0, 1, 2]),
        # A weak animal on a person is the person; the one beside it is an animal.
        ("A:00002", "human", 2, [3, 4]),
        ("A:00002", KINDS[FOX], 1, [3, 5]),
        # A box below the threshold does not count.
        ("A:00003", KINDS[DEER], 3, [6, 7, 8]),
        ("A:00004", "vehicle", 1, [9, 10, 11]),
    ]
    steps = {step["stage"]: step["did"] for step in json.loads(predictions.decisions["source"][0].as_py())}
    assert steps["mixed"] == f"2 species in one frame: {KINDS[FOX]}, {KINDS[LYNX]}"
    assert steps["pooling"].endswith("2 of 2 animals and frames")


def test_one_species_an_event_and_no_pooling(results: Path) -> None:
    predictions = Predictions.open(results)
    try:
        decide_results(predictions, validate(Stages, {"mixed": {"enabled": False}}, where="test"))
        assert [row[:1] + row[2:] for row in list_answers(Predictions.open(results))][0] == ("A:00001", 3, [0, 1, 2])
        decide_results(predictions, validate(Stages, {"pooling": {"method": "none"}}, where="test"))
        rows = [row[1:] for row in list_answers(Predictions.open(results))]
        assert rows[:4] == [(KINDS[LYNX], 1, [0]), (KINDS[FOX], 1, [0]), (KINDS[FOX], 2, [1]), (KINDS[LYNX], 1, [1])]
        assert {image for *_, images in rows for image in images} == set(range(12))
        package = export(Predictions.open(results), results.parent / "frames", "camtrap-dp")
        boxes = [float(row["bboxX"]) for row in package if row["mediaID"] == KEYS[0]]
        assert boxes == pytest.approx([LEFT[0], RIGHT[0]])
        decide_results(predictions, validate(Stages, {"rules": {"rules": "speciesnet"}}, where="test"))
        assert len(list_answers(Predictions.open(results))) == 4
    finally:
        decide_results(predictions, Stages())


def export(predictions: Predictions, path: Path, format: str) -> list[dict[str, str]]:
    more = {"coordinate_digits": "2", "contributor": ("A. Person",)} if format == "camtrap-dp" else {}
    export_predictions(predictions, path, validate(ExportSettings, {"format": format, **more}, where="test"))
    table = path / "observations.csv" if format == "camtrap-dp" else path
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_exports_have_each_species_with_its_count(results: Path, tmp_path: Path) -> None:
    predictions = Predictions.open(results)
    rows = export(predictions, tmp_path / "package", "camtrap-dp")
    assert [(row["eventID"], row["observationType"], row["scientificName"], row["count"]) for row in rows] == [
        ("A:00001", "animal", KINDS[LYNX], "1"),
        ("A:00001", "animal", KINDS[FOX], "2"),
        ("A:00002", "human", "", "2"),
        ("A:00002", "animal", KINDS[FOX], "1"),
        ("A:00003", "animal", KINDS[DEER], "3"),
        ("A:00004", "vehicle", "", "1"),
    ]
    assert {(row["eventStart"][11:19], row["eventEnd"][11:19]) for row in rows[:2]} == {("08:00:00", "08:00:02")}
    lines = {(row["file"], row["taxon"]) for row in export(predictions, tmp_path / "flat.csv", "csv")}
    assert {taxon for file, taxon in lines if file == FILES[0]} == {KINDS[LYNX], KINDS[FOX]}
    assert {file for file, _ in lines} == set(FILES)
    settings = ExportSettings(format="megadetector")
    export_predictions(predictions, tmp_path / "md.json", settings)
    content = json.loads((tmp_path / "md.json").read_text("utf-8"))
    descriptions = content["classification_category_descriptions"]
    classes = [
        [descriptions[box["classifications"][0][0]].split(";")[4] if "classifications" in box else "" for box in boxes]
        for boxes in (image["detections"] for image in content["images"])
    ]
    assert classes[:4] == [["lynx", "vulpes"], ["vulpes", "vulpes", "lynx"], [], ["", "vulpes"]]
    assert classes[6] == ["cervus", "cervus", ""]


def test_older_results_have_one_box_an_image(results: Path) -> None:
    predictions = Predictions.open(results)
    table = predictions.boxes
    predictions.__dict__["boxes"] = table.set_column(
        table.column_names.index("crop"), "crop", [[0 if used else -1 for used in table["used"].to_pylist()]]
    )
    try:
        rows = decide_results(predictions, Stages()).to_pylist()
        assert [row["name"] for row in rows][1:] == ["human", KINDS[FOX], KINDS[DEER], "vehicle"]
        # Boxes without a view of their own are counted with that of their image.
        assert rows[0]["count"] == 3
    finally:
        decide_results(Predictions.open(results), Stages())


def test_images_that_are_tried_again_bring_their_boxes() -> None:
    def part(rows: list[int], count: int, value: float) -> ScorePart:
        boxes_BK = np.full((len(rows), 2), value, np.float32) if rows else None
        return ScorePart("h", np.full((count, 2), value, np.float32), {}, {}, np.array(rows, np.int64), boxes_BK)

    joined = part([0, 1, 1, 3], 4, 0.0).replace_rows([1, 2], part([0, 1, 1], 2, 1.0))
    assert joined.box_rows_B.tolist() == [0, 1, 2, 2, 3]
    assert joined.box_probabilities_BK is not None
    assert joined.box_probabilities_BK[:, 0].tolist() == [0, 1, 1, 1, 0]
    assert part([], 2, 0.0).replace_rows([1], part([], 1, 1.0)).box_probabilities_BK is None
    alone = part([0], 2, 0.0).replace_rows([0], part([], 1, 1.0))
    assert alone.box_rows_B.tolist() == []


def test_every_image_is_a_subject_and_every_counted_box_belongs_to_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        count, num = int(rng.integers(1, 8)), int(rng.integers(0, 20))
        corners = rng.random((num, 2, 2))
        corners_B4 = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        images_B = rng.integers(count, size=num)
        crops_B = np.array(
            [-1 if rng.random() < 0.3 else np.sum(images_B[:index] == images_B[index]) for index in range(num)]
        )
        boxes = Boxes(images_B, rng.integers(-1, 3, size=num), rng.random(num), crops_B.astype(np.int64), corners_B4)
        best = BestDetections(np.full(count, -1), np.zeros(count), rng.random(count) < 0.7)
        subjects = find_subjects(boxes, best, 0.3)
        assert np.all(np.diff(subjects.images_S) >= 0)
        assert set(subjects.images_S.tolist()) == set(range(count))
        members = [
            row
            for of_subject, counted in zip(subjects.boxes, subjects.is_counted_S, strict=True)
            if counted
            for row in of_subject
        ]
        assert len(members) == len(set(members))
        assert best.is_judged_N is not None
        strong = np.flatnonzero((boxes.scores_B >= 0.3) & best.is_judged_N[images_B] & (boxes.kinds_B >= 0)).tolist()
        assert set(members) <= set(strong)
        # The surest box of an image is never hidden by another.
        for image in set(images_B[strong].tolist()):
            assert (
                max((row for row in strong if images_B[row] == image), key=lambda row: boxes.scores_B[row]) in members
            )
        assert len(find_subjects(boxes, best, None)) == count


NAMES = ("Canidae", "Vulpes vulpes", "Canis lupus", "Lynx lynx")
TAXA = Taxa(NAMES, NAMES, ("family", "species", "species", "species"), np.array([-1, 0, 0, -1]))


@pytest.mark.parametrize(
    ("answers", "frames", "expected"),
    [
        ([1, 3], [0, 0], [1, 3]),
        # Never side by side, or one within the other.
        ([1, 3], [0, 1], []),
        ([0, 1], [0, 0], []),
        ([-1, 3], [0, 0], []),
        # The family is what another frame shows exactly.
        ([0, 3, 1, 3], [0, 0, 1, 1], [3, 1]),
        # A single box beside four of another species.
        ([3, 3, 3, 3, 1], [0, 0, 1, 2, 2], [3]),
        ([3, 3, 3, 3, 1, 1], [0, 0, 1, 2, 2, 3], [3, 1]),
    ],
)
def test_species_are_told_apart_side_by_side(answers: list[int], frames: list[int], expected: list[int]) -> None:
    assert find_species(np.array(answers), np.array(frames), TAXA) == expected


def test_a_decision_about_rows_of_frames() -> None:
    classes = Classes((*NAMES[1:], "blank"), np.array([1, 2, 3, -1]))
    p = [[0.9, 0.05, 0.05, 0.0], [0.0, 0.1, 0.9, 0.0], [0.4, 0.2, 0.4, 0.0]]

    def run(frames: list[int] | None) -> Decisions:
        return decide(p, classes, TAXA, prepare_stages(Stages(), classes, TAXA), events=[0, 0, 0], frames=frames)

    assert run([0, 0, 1]).names().to_pylist() == [NAMES[1], NAMES[3]]
    assert len(run([0, 1, 2])) == len(run(None)) == 1
