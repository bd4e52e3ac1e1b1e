"""Results of MegaDetector and SpeciesNet: what is written is what was read, for this house and for others."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_cameras import FILES, make_survey
from result_files import FORMATS, FOX, change, observations_of, write

from foveate.core.errors import UserError
from foveate.records.boxes import Box
from foveate.survey.detections import ClassLabel, DetectedImage, Detection, Prediction
from foveate.survey.exporters.megadetector import ResultsInfo, describe, export_megadetector
from foveate.survey.importers.results import add_results, read_results
from naming import raises_naming
from timelapse import list_timelapse_faults

INFO = ResultsInfo(detector="nanodet", classifier="cosmo", detected_at="2024-01-10 12:00:00")


def export(path: Path, images: list[DetectedImage], info: ResultsInfo = INFO) -> dict[str, Any]:
    export_megadetector(path, images, info)
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["megadetector_1.6", "speciesnet_new", "speciesnet_new_as_megadetector"])
def test_reading_and_writing_again_gives_equal_rows(name: str, tmp_path: Path) -> None:
    images = read_results(FORMATS / f"{name}.json").images
    content = export(tmp_path / "again.json", images)
    assert not list_timelapse_faults(content)
    again = read_results(tmp_path / "again.json")
    assert not +again.repairs
    assert again.images == images


NAMES = (
    *("red fox", "Vulpes vulpes", "wild boar", "European roe deer", "Füchsin; alt", "Red Fox", "cow", "snow"),
    *("animal", "blank", "person", "human", "vehicle", "unknown", "Animal", "no cv result"),
)
LINEAGES = {
    "red fox": FOX,
    "Vulpes vulpes": "animalia;chordata;mammalia;carnivora;canidae;vulpes vulpes",
    "wild boar": "a1;;;;sus;scrofa;wild boar",
    "European roe deer": ";mammalia;cetartiodactyla;cervidae;;;roe deer",
    "Füchsin; alt": ";;;;;;another name",
    "Red Fox": ";;;;vulpes;macrotis;Red Fox",
    "cow": ";;;;bos;taurus;cow",
    "snow": ";;;;;;snow",
    "human": "990a;mammalia;primates;hominidae;homo;sapiens;human",
    "no cv result": "f2ef;no cv result;no cv result;no cv result;no cv result;no cv result;no cv result",
    **{name: f"id;;;;;;{name}" for name in ("animal", "blank", "person", "vehicle", "unknown", "Animal")},
}
FRACTIONS = st.integers(0, 10**6).map(lambda number: number / 10**6)


@st.composite
def files_of_megadetector(draw: st.DrawFn) -> dict[str, Any]:
    """The content of a file: any subset of the optional fields."""
    names = dict(enumerate(draw(st.lists(st.sampled_from(NAMES), unique=True))))
    further = draw(st.lists(st.sampled_from(["snow", "cow", "unknown", "red fox"]), unique=True))
    categories = {"1": "animal", "2": "person", "3": "vehicle", **{str(n): name for n, name in enumerate(further, 4)}}

    def draw_pairs() -> list[list[Any]]:
        scores = draw(st.lists(FRACTIONS, max_size=3)) if names else []
        return [[str(draw(st.sampled_from(list(names)))), score] for score in sorted(scores, reverse=True)]

    def draw_detection() -> dict[str, Any]:
        x, y = (draw(st.integers(0, 10**6 - 1)) for _ in "xy")
        width, height = draw(st.integers(1, 10**6 - x)), draw(st.integers(1, 10**6 - y))
        box = [number / 10**6 for number in (x, y, width, height)]
        category = draw(st.sampled_from(list(categories)))
        detection = {"category": category, "conf": draw(FRACTIONS), "bbox": box}
        return detection | {
            name: draw_pairs() for name in ("classifications", "raw_classifications") if draw(st.booleans())
        }

    def draw_image(number: int) -> dict[str, Any]:
        is_video = draw(st.booleans())
        image: dict[str, Any] = {"file": f"A/{number}.{'mp4' if is_video else 'JPG'}"}
        if draw(st.booleans()):
            image["datetime"] = "2024:01:10 12:00:00"
        if draw(st.booleans()):
            return image | {"failure": "Failure image access", "detections": None}
        image["detections"] = [draw_detection() for _ in range(draw(st.integers(0, 3)))]
        if is_video:
            image |= {"frame_rate": draw(st.sampled_from([0.0, 29.97])), "frames_processed": None}
            image["frames_processed"] = draw(st.sampled_from([None, [], [0, 30]]))
            for detection in image["detections"]:
                detection["frame_number"] = draw(st.sampled_from([0, 30]))
        return image

    content: dict[str, Any] = {
        "info": {"format_version": "1.6", "detector": "md"},
        "detection_categories": categories,
        "images": [draw_image(number) for number in range(draw(st.integers(0, 3)))],
    }
    if names:
        content["classification_categories"] = {str(number): name for number, name in names.items()}
        described = draw(st.one_of(st.none(), st.sets(st.sampled_from(list(names)))))
        if described is not None:
            content["classification_category_descriptions"] = {str(n): LINEAGES[names[n]] for n in described}
    return content


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=files_of_megadetector())
def test_any_file_of_megadetector_survives_a_round_trip(content: dict[str, Any], tmp_path: Path) -> None:
    images = read_results(write(tmp_path, content)).images
    # Also the second way through: it reads what the first one wrote.
    for _ in range(2):
        export_megadetector(tmp_path / "again.json", images, INFO)
        again = read_results(tmp_path / "again.json")
        assert again.images == images
        assert not +again.repairs


@st.composite
def files_of_speciesnet(draw: st.DrawFn) -> dict[str, Any]:
    """The content of a file, old or new: any subset of the optional fields."""
    labels = [description for description in LINEAGES.values() if description.count(";") == 6]

    def draw_classes() -> dict[str, Any]:
        classes = draw(st.lists(st.sampled_from(labels), unique=True, max_size=4))
        scores = sorted((draw(FRACTIONS) for _ in classes), reverse=True)
        return {"classes": classes, "scores": scores}

    def draw_box(label: str) -> dict[str, Any]:
        box = {"category": {"animal": "1", "human": "2", "vehicle": "3"}[label], "label": label}
        box |= {"conf": draw(FRACTIONS), "bbox": [0.1, 0.2, 0.3, 0.4]}
        if draw(st.booleans()):
            box["raw_classifications"] = draw_classes()
        if draw(st.booleans()):
            box["processed_classification"] = {"class": draw(st.sampled_from(labels)), "score": draw(FRACTIONS)}
        return box

    def draw_image(number: int) -> dict[str, Any]:
        image: dict[str, Any] = {"filepath": f"A/{number}.JPG"}
        if draw(st.booleans()):
            image["detections"] = [draw_box(label) for label in draw(st.lists(st.sampled_from(["animal", "human"])))]
        if draw(st.booleans()):
            image["classifications"] = draw_classes()
        if draw(st.booleans()):
            image |= {"prediction": draw(st.sampled_from(labels)), "prediction_score": draw(FRACTIONS)}
        return image

    return {"predictions": [draw_image(number) for number in range(draw(st.integers(0, 3)))]}


def list_species(images: list[DetectedImage]) -> list[set[str]]:
    """The taxa that each image has as first class of a box or of itself."""
    firsts = [[*(box.classifications[:1] for box in image.detections)] for image in images]
    predictions = [[] if image.prediction is None else [image.prediction.label] for image in images]
    return [
        {label.taxon for label in (*(pair[0] for each in boxes for pair in each), *whole) if label.is_species}
        for boxes, whole in zip(firsts, predictions, strict=True)
    ]


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=files_of_speciesnet())
def test_any_file_of_speciesnet_is_written_without_losing_a_species(content: dict[str, Any], tmp_path: Path) -> None:
    images = read_results(write(tmp_path, content)).images
    assert not list_timelapse_table_faults(export(tmp_path / "r.json", images))
    written = read_results(tmp_path / "r.json").images
    assert [now >= before for now, before in zip(list_species(written), list_species(images), strict=True)] == [
        True for _ in images
    ]
    # What the other format has no place for stands beside boxes now, and stays there.
    export(tmp_path / "s.json", written)
    assert read_results(tmp_path / "s.json").images == written


def list_timelapse_table_faults(content: dict[str, Any]) -> list[str]:
    return [fault for fault in list_timelapse_faults(content) if not fault.endswith("too low to be kept")]


def test_a_species_without_a_description_survives_every_way_through(tmp_path: Path) -> None:
    content = change("classification_categories", {"0": "red fox", "1": "Vulpes lagopus"})
    del content["classification_category_descriptions"]
    content["images"] = [
        content["images"][0] | {"detections": [DETECTION | {"classifications": [["0", 0.8], ["1", 0.1]]}]}
    ]
    images = read_results(write(tmp_path, content)).images
    for _ in range(3):
        labels = [label for label, _ in images[0].detections[0].classifications]
        assert [(label.name, label.taxon) for label in labels] == [
            ("red fox", "Red fox"),
            ("Vulpes lagopus", "Vulpes lagopus"),
        ]
        assert not list_timelapse_faults(export(tmp_path / "again.json", images))
        images = read_results(tmp_path / "again.json").images


DETECTION = {"category": "1", "conf": 0.9, "bbox": [0.1, 0.1, 0.2, 0.2]}


def test_a_file_that_calls_an_image_empty_and_a_species_says_so(tmp_path: Path) -> None:
    collection = make_survey(tmp_path / "survey")
    fox, empty = DETECTION | {"classifications": [["0", 0.8]]}, {"category": "0", "conf": 0.9}
    content = change("classification_categories", {"0": "red fox", "1": "blank"})
    del content["classification_category_descriptions"]

    def count(*detections: dict[str, Any]) -> int:
        content["images"] = [{"file": FILES[0], "detections": list(detections)}]
        summary = add_results(collection, write(tmp_path, content))
        assert any("empty and a species" in line for line in summary.lines()) == bool(summary.contradictions)
        return summary.contradictions

    assert count(fox) == count(empty, DETECTION) == count(empty | {"classifications": [["1", 0.8]]}) == 0
    assert count(fox, empty) == count(empty | {"classifications": [["0", 0.8]]}) == 1


@pytest.mark.parametrize(("category", "detections", "left_out"), [("empty", 1, 1), ("person", 2, 0)])
def test_a_species_without_a_box_of_its_kind_gets_one(
    category: str, detections: int, left_out: int, tmp_path: Path
) -> None:
    box = Detection(category, 0.9, Box(0.1, 0.1, 0.2, 0.2))
    fox = Prediction(ClassLabel("red fox", FOX), 0.7)
    image = DetectedImage("a.jpg", (box,), prediction=fox)
    written = export_megadetector(tmp_path / "r.json", [image], INFO)
    assert (written.detections, written.made_up, written.left_out) == (detections, 1, left_out)
    whole = read_results(tmp_path / "r.json").images[0].detections[-1]
    assert (whole.category, whole.confidence, whole.classifications) == ("unknown", 0.7, ((fox.label, 0.7),))


def test_the_species_of_what_is_called_empty_is_kept_and_named(tmp_path: Path) -> None:
    content = change("images/0/detections/0/category", "0")
    collection = make_survey(tmp_path / "survey")
    summary = add_results(collection, write(tmp_path, content))
    assert summary.contradictions == 1
    assert any("dep-A/IMG_0000.JPG (Vulpes vulpes)" in line for line in summary.lines())
    row = observations_of(collection)["dep-A/IMG_0000"][0]
    assert (row.kind, row.taxon, row.probability, row.extra["category"]) == ("animal", "Vulpes vulpes", 0.93, "unknown")
    images = read_results(write(tmp_path, content)).images
    assert not list_timelapse_faults(export(tmp_path / "again.json", images))
    assert read_results(tmp_path / "again.json").images == images


def test_the_own_scores_of_speciesnet_are_kept(tmp_path: Path) -> None:
    """As the public converter writes them: beside every box, and a box that nobody drew is of an unknown kind."""
    blank, animal = (
        "f1856211-cfb7-4a5b-9158-c0f72fd09ee6;;;;;;blank",
        "1f689929-883d-4dae-958c-3d57ab5b6c16;;;;;;animal",
    )
    raw = {"classes": [FOX, animal, blank], "scores": [0.6, 0.3, 0.1]}
    box = {"category": "1", "label": "animal", "conf": 0.7, "bbox": [0.1, 0.1, 0.2, 0.2]}

    def predict(file: str, label: str, *boxes: dict[str, Any]) -> dict[str, Any]:
        decision = {"prediction": label, "prediction_score": 0.6, "prediction_source": "classifier"}
        return {"filepath": file, "classifications": raw, "detections": list(boxes), **decision}

    entries = [
        predict("a.jpg", FOX),
        predict("b.jpg", blank, box),
        predict("c.jpg", animal),
        predict("d.jpg", FOX, box),
    ]
    images = read_results(write(tmp_path, {"predictions": entries})).images
    content = export(tmp_path / "again.json", images)
    assert not list_timelapse_faults(content)
    boxes, classes = content["detection_categories"], content["classification_categories"]
    written = [entry["detections"][0] for entry in content["images"]]
    assert [len(entry["detections"]) for entry in content["images"]] == [1, 1, 1, 1]
    assert [boxes[each["category"]] for each in written] == ["unknown", "animal", "unknown", "animal"]
    assert [classes[each["classifications"][0][0]] for each in written] == ["red fox", "blank", "animal", "red fox"]
    for each in written:
        assert [(classes[name], score) for name, score in each["raw_classifications"]] == [
            ("red fox", 0.6),
            ("animal", 0.3),
            ("blank", 0.1),
        ]
    again = read_results(tmp_path / "again.json").images
    export(tmp_path / "third.json", again)
    assert read_results(tmp_path / "third.json").images == again


def test_an_image_called_empty_by_speciesnet_keeps_its_box_and_that_it_is_empty(tmp_path: Path) -> None:
    content = json.loads((FORMATS / "speciesnet_old.json").read_text())
    content["predictions"][0] |= {"prediction": "f185;;;;;;blank", "prediction_score": 0.6}
    content["predictions"][0]["detections"][0]["raw_classifications"] = {"classes": [FOX], "scores": [0.5]}
    collection = make_survey(tmp_path / "survey")
    summary = add_results(collection, write(tmp_path, content))
    (row,) = observations_of(collection)["dep-A/IMG_0000"]
    assert (row.taxon, json.loads(row.extra["image_class"])) == ("Vulpes vulpes", [["blank", "f185;;;;;;blank", 0.6]])
    assert any("dep-A/IMG_0000.JPG (Vulpes vulpes)" in line for line in summary.lines())


def test_written_speciesnet_is_the_published_conversion(tmp_path: Path) -> None:
    images = [
        replace(image, file=image.file.removeprefix("images/"))
        for image in read_results(FORMATS / "speciesnet_new.json").images
    ]
    content, golden = (
        export(tmp_path / "r.json", images),
        json.loads((FORMATS / "speciesnet_new_as_megadetector.json").read_text()),
    )

    def spelled(results: dict[str, Any]) -> list[Any]:
        def names(pairs: list[list[Any]]) -> list[list[Any]]:
            return [
                [results["classification_categories"][number], pytest.approx(score, abs=1e-5)]
                for number, score in pairs
            ]

        fields = ("classifications", "raw_classifications")
        return [
            image
            | {
                "detections": image["detections"]
                and [
                    box
                    | {"category": results["detection_categories"][box["category"]]}
                    | {name: names(box.get(name, [])) for name in fields}
                    for box in image["detections"]
                ]
            }
            for image in results["images"]
        ]

    assert spelled(content) == spelled(golden)
    assert set(content["classification_category_descriptions"].values()) == set(
        golden["classification_category_descriptions"].values()
    )


@pytest.mark.parametrize("name", ["red fox", "Red fox", "Vulpes vulpes"])
def test_a_name_without_a_description_is_no_lineage(name: str) -> None:
    assert describe(ClassLabel(name)) == f";;;;;;{name}"
    assert describe(ClassLabel("vulpes vulpes", "Vulpes vulpes")) == ";;;;vulpes;vulpes;vulpes vulpes"


def test_names_of_classes_are_unique_and_no_reason_to_refuse_the_file(tmp_path: Path) -> None:
    animal, blank = ClassLabel("animal", "1f68;;;;;;animal"), ClassLabel("blank", "f185;;;;;;blank")
    red = ClassLabel("fox", "a;mammalia;carnivora;canidae;vulpes;vulpes;fox")
    gray = ClassLabel("Fox", "b;mammalia;carnivora;canidae;urocyon;cinereoargenteus;Fox")
    # The name of a category that the detector has, and one that it gets later.
    person, cow = (
        ClassLabel("person", ";mammalia;primates;hominidae;homo;sapiens;person"),
        ClassLabel("cow", ";;;;bos;taurus;cow"),
    )
    box = Box(0.1, 0.1, 0.4, 0.4)
    pairs = [(animal, 0.9), (red, 0.5), (gray, 0.7), (person, 0.1), (blank, 0.05), (cow, 0.2)]
    images = [
        DetectedImage("a.jpg", (Detection("animal", 1, box, tuple(pairs)),)),
        DetectedImage("b.jpg", (Detection("cow", 0.5, box),)),
    ]
    content = export(tmp_path / "r.json", images)
    assert not list_timelapse_faults(content)
    names = content["classification_categories"]
    # A name of a category is never that of the class with the lowest number, which makes Timelapse refuse the file.
    assert [names[number] for number, _ in content["images"][0]["detections"][0]["classifications"]] == [
        "animal",
        "Fox",
        "fox (Vulpes vulpes)",
        "cow",
        "person",
        "blank",
    ]
    assert names[min(names)] == "Fox"
    assert content["detection_categories"]["4"] == "cow (box)"
    assert isinstance(content["images"][0]["detections"][0]["conf"], float)
    again = read_results(tmp_path / "r.json").images
    assert [label for label, _ in again[0].detections[0].classifications] == [animal, gray, red, cow, person, blank]
    assert again[1] == images[1]


def test_the_rules_of_timelapse_catch_what_breaks_one(tmp_path: Path) -> None:
    fox = ClassLabel("red fox", FOX)
    box = Detection("animal", 0.8, Box(0.1, 0.1, 0.4, 0.4), ((fox, 0.7),))
    content = export(tmp_path / "r.json", [DetectedImage("A/a.JPG", (box,)), DetectedImage("A/b.JPG", failure="cut")])
    assert not list_timelapse_faults(content)
    image = content["images"][0]
    detection = image["detections"][0]
    breaks: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (content["classification_categories"], {"0": "animal"}),
        (content["detection_categories"], {"4": "Animal"}),
        (content["detection_categories"], {"0": "empty"}),
        (content["info"], {"detector_metadata": {"typical_detection_threshold": 0.2}}),
        (content["info"], {"classifier_metadata": {}}),
        (content["classification_category_descriptions"], {"0": "vulpes vulpes"}),
        (image, {"file": "../a.JPG"}),
        (image, {"file": "A/a.png"}),
        (image, {"detections": None}),
        (detection, {"conf": 1}),
        (detection, {"conf": 0.02}),
        (detection, {"bbox": [0.8, 0.1, 0.4, 0.1]}),
        (detection, {"classifications": [[0, 0.7]]}),
        (detection, {"classifications": [["0", 0.2], ["0", 0.7]]}),
    ]
    for record, broken in breaks:
        before = dict(record)
        record |= broken
        assert list_timelapse_faults(content), broken
        record.clear()
        record |= before


def test_a_class_of_the_image_gets_a_box_only_where_there_is_none(tmp_path: Path) -> None:
    fox = ClassLabel("red fox", FOX)
    box = Detection("animal", 0.8, Box(0.1, 0.1, 0.4, 0.4))
    images = [
        DetectedImage("a.jpg", prediction=Prediction(fox, 0.7)),
        DetectedImage("b.jpg", (box,), prediction=Prediction(fox, 0.7)),
        DetectedImage("c.jpg", prediction=Prediction(ClassLabel("blank", "f1;;;;;;blank"), 0.9)),
        DetectedImage("d.jpg", prediction=Prediction(ClassLabel("animal", "1f;;;;;;animal"), 0.9)),
    ]
    made_up, boxed, blank, rolled_up = export(tmp_path / "r.json", images)["images"]
    assert made_up["detections"] == [
        {"category": "4", "conf": 0.7, "bbox": [0, 0, 1, 1], "classifications": [["0", 0.7]]}
    ]
    assert boxed["detections"][0]["bbox"] == [0.1, 0.1, 0.3, 0.3]
    assert boxed["detections"][0]["classifications"] == [["0", 0.7]]
    assert blank["detections"] == []
    assert rolled_up["detections"][0]["classifications"] == [["1000000", 0.9]]


def test_boxes_stay_inside_after_rounding(tmp_path: Path) -> None:
    image = DetectedImage("a.jpg", (Detection("animal", 0.123456789, Box(0.4999996, 1 / 3, 1.0, 1.0)),))
    x, y, width, height = export(tmp_path / "r.json", [image])["images"][0]["detections"][0]["bbox"]
    assert x + width <= 1
    assert y + height <= 1


@pytest.mark.parametrize(
    ("images", "names"),
    [
        (lambda: [DetectedImage("A\\1.JPG"), DetectedImage("A/1.JPG")], ["A/1.JPG", "images[1]"]),
        (lambda: [DetectedImage("v.mp4", frames=(0,))], ["v.mp4", "frame_rate"]),
    ],
)
def test_what_cannot_be_written_is_refused(
    images: Callable[[], list[DetectedImage]], names: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "r.json"
    with raises_naming(UserError, path, *names):
        export_megadetector(path, images(), INFO)
    assert not path.exists()
