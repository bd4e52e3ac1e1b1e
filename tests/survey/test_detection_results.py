"""Results of MegaDetector and SpeciesNet: reading, verdicts about malformed files, adding to a survey."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_cameras import FILES, make_survey
from result_files import FORMATS, FOX, change, observations_of, write

from foveate.core.errors import UserError
from foveate.records.appender import AnnotationAppender
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.survey.detections import DetectedImage
from foveate.survey.file_index import FileIndex
from foveate.survey.importers.results import add_results, read_results
from foveate.survey.types import Observation
from naming import raises_naming

MALFORMED = [
    case
    for case in json.loads((FORMATS / "malformed.json").read_text())
    if case["format"].startswith(("mega", "species"))
]
# What the error must name besides the file: the record and the field.
NAMED = {
    "md_no_info": ["info"],
    "md_unmapped_category": ["images[0]", "dep-A/IMG_0000.JPG", "category", "'9'", "1, 2, 3"],
    "md_failure_with_detections": ["images[4]", "dep-B/IMG_0099.JPG", "failure"],
    "md_video_without_rate": ["images[5]", "dep-C/VID_0001.MP4", "frame_rate"],
    "md_duplicate_file": ["images[6]", "dep-A/IMG_0002.JPG", "images[2]"],
    "md_not_a_dict": ["list"],
    "sn_length_mismatch": ["predictions[0]", "raw_classifications", "classes", "scores", "2", "1"],
    "sn_unsorted": ["predictions[0]", "raw_classifications.scores[1]", "0.93", "0.03"],
    "sn_six_field_label": ["predictions[0]", "prediction", "t044;mammalia", "seven"],
    "sn_no_predictions": ["predictions"],
}


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case["id"])
def test_malformed_files_get_the_verdict_of_the_golden(case: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, case["content"])
    if case["ours"] == "error":
        with raises_naming(UserError, path, *NAMED[case["id"]]):
            read_results(path)
    else:
        assert bool(+read_results(path).repairs) == (case["ours"] == "warn")


@pytest.mark.parametrize(
    ("path", "value", "names"),
    [
        ("images/0/detections/0/conf", float("nan"), ["detections[0].conf", "nan"]),
        ("images/0/detections/0/conf", True, ["detections[0].conf", "True"]),
        ("images/0/detections/0/conf", 1.5, ["detections[0].conf", "1.5"]),
        ("images/0/detections/0/bbox", [0.1, 0.1, -0.2, 0.2], ["detections[0].bbox", "-0.2"]),
        ("images/0/detections/0/bbox", [10, 10, 400, 300], ["detections[0].bbox", "pixels"]),
        ("images/0/detections/0/bbox", [0.1, 0.1, float("nan"), 0.2], ["detections[0].bbox", "nan"]),
        ("images/0/detections/0/bbox", [0.1, 0.1], ["detections[0].bbox"]),
        ("images/0/detections/0/classifications/0", ["7", 0.9], ["classifications[0]", "'7'"]),
        ("images/0/detections/0/classifications/0", ["0", float("nan")], ["classifications[0]", "nan"]),
        ("images/0/detections", None, ["images[0]", "detections", "failure"]),
        ("images/0/file", "", ["images[0].file"]),
        ("images/1/file", "dep-A\\IMG_0000.JPG", ["images[1].file", "dep-A/IMG_0000.JPG"]),
        ("images/5/detections/0/frame_number", ..., ["VID_0001.MP4", "frame_number"]),
        ("images/5/frames_processed", ..., ["VID_0001.MP4", "frames_processed"]),
        ("images/5/frame_rate", 10**400, ["VID_0001.MP4", "frame_rate", "1000"]),
        ("info/format_version", "newest", ["info.format_version", "newest"]),
        ("info/format_version", 10**400, ["info.format_version", "1000"]),
        ("detection_categories", ..., ["detection_categories"]),
    ],
)
def test_what_the_public_validator_misses_is_refused(
    path: str, value: object, names: list[str], tmp_path: Path
) -> None:
    file = write(tmp_path, change(path, value))
    with raises_naming(UserError, file, *names):
        read_results(file)


def test_repairs_leave_usable_rows(tmp_path: Path) -> None:
    content = change("images/0/detections/0/classifications", [["2", 0.04], ["0", 0.93]])
    content["images"][0]["file"] = "C:\\cards\\dep-A\\IMG_0000.JPG"
    content["images"][0]["detections"][0]["bbox"] = [-0.1, 0.9, 0.2, 0.2]
    content["images"][0]["detections"][1] |= {"category": 0, "conf": 1}
    content["images"][1]["detections"][0]["bbox"] = [1.0, 0.2, 0.1, 0.1]
    content["info"]["format_version"] = 1.6
    results = read_results(write(tmp_path, content))
    first = results.images[0]
    assert first.file == "cards/dep-A/IMG_0000.JPG"
    assert first.detections[0].box == Box(0.0, 0.9, 0.1, 1.0)
    assert [label.taxon for label, _ in first.detections[0].classifications] == ["Vulpes vulpes", "Canidae"]
    # A box of nothing and one of the category "empty" are left out, and said.
    assert len(first.detections) == 1
    assert not results.images[1].detections
    # The first image has a fox and a box called empty.
    assert sum(results.repairs.values()) == 9
    assert len(+results.repairs) == 9


def test_rows_keep_failures_videos_and_empty_images() -> None:
    images = {image.file: image for image in read_results(FORMATS / "megadetector_1.6.json").images}
    assert images["dep-B/IMG_0099.JPG"].failure == "image access failure"
    assert images["dep-A/IMG_0002.JPG"] == DetectedImage("dep-A/IMG_0002.JPG")
    video = images["dep-C/VID_0001.MP4"]
    assert (video.frame_rate, video.frames, video.detections[0].frame) == (29.97, (0, 30), 30)


def test_new_speciesnet_reads_as_its_published_conversion() -> None:
    own = read_results(FORMATS / "speciesnet_new.json").images
    converted = read_results(FORMATS / "speciesnet_new_as_megadetector.json").images
    assert [replace(image, file=image.file.removeprefix("images/")) for image in own] == converted


def test_old_speciesnet_has_a_class_for_the_image() -> None:
    results = read_results(FORMATS / "speciesnet_old.json")
    first, rolled_up, blank, failed = results.images
    assert first.prediction is not None
    assert first.prediction.label.taxon == "Vulpes vulpes"
    assert rolled_up.prediction is not None
    assert (rolled_up.prediction.label.taxon, rolled_up.prediction.source) == ("Canidae", "classifier+rollup_to_family")
    assert blank.prediction is not None
    assert blank.prediction.label.kind == "blank"
    assert failed.failure
    assert results.classifier == "SpeciesNet 4.0.1a"


def test_whole_image_class_of_new_speciesnet_is_no_box(tmp_path: Path) -> None:
    whole = {"category": "0", "label": "whole_image_classification", "conf": 1.0, "bbox": [0, 0, 1, 1]}
    whole["processed_classification"] = {"class": FOX, "score": 0.8, "source": "classifier"}
    box = {"category": "1", "label": "animal", "conf": 0.7, "bbox": [0.1, 0.1, 0.2, 0.2]}
    content = {
        "info": {"format_version": "20261015"},
        "predictions": [{"filepath": "a.jpg", "detections": [whole, box]}],
    }
    image = read_results(write(tmp_path, content)).images[0]
    assert len(image.detections) == 1
    assert image.prediction is not None
    assert image.prediction.score == 0.8


@pytest.fixture
def survey(tmp_path: Path) -> Path:
    reviewed = Observation("human-1", "dep-A", "dep-A/IMG_0000", kind="animal", taxon="Felis catus", method="human")
    return make_survey(tmp_path / "survey", observations=(reviewed,))


def test_results_become_machine_observations_with_boxes(survey: Path) -> None:
    summary = add_results(survey, FORMATS / "megadetector_1.6.json")
    assert (summary.images, summary.detections, summary.failures, summary.videos, summary.missing) == (5, 4, 1, 1, 0)
    rows = observations_of(survey)
    person, fox, low = rows["dep-A/IMG_0000"]
    assert (person.method, person.taxon) == ("human", "Felis catus")
    assert (fox.method, fox.taxon, fox.probability, fox.classifier) == (
        "machine",
        "Vulpes vulpes",
        0.93,
        "foveate-cosmo v0",
    )
    assert fox.box is not None
    assert fox.box.x1 == pytest.approx(0.31)
    assert fox.deployment == "dep-A"
    assert (low.kind, low.taxon, low.probability, low.classifier) == ("animal", "", 0.12, "md_v5a.0.1")
    assert rows["dep-A/IMG_0002"][0].kind == "blank"
    assert rows["dep-A/IMG_0003"][0].kind == "human"
    failed = rows["dep-B/IMG_0099"][0]
    assert (failed.kind, failed.extra["failure"]) == ("unclassified", "image access failure")
    ids = [row.id for each in rows.values() for row in each]
    assert len(set(ids)) == len(ids)
    with Collection.open(survey) as collection:
        regions = collection.read_regions(collection.find_row("dep-A/IMG_0000"))
        assert [region.label for region in regions] == ["Vulpes vulpes", "animal"]
        assert {region.source for region in regions} == {"detector:md_v5a.0.1"}


def test_results_again_change_nothing_and_new_ones_replace(survey: Path, tmp_path: Path) -> None:
    add_results(survey, FORMATS / "megadetector_1.6.json")
    first = observations_of(survey)
    add_results(survey, FORMATS / "megadetector_1.6.json")
    assert observations_of(survey) == first
    content = change("images/0/detections", [])
    del content["images"][1:]
    add_results(survey, write(tmp_path, content))
    changed = observations_of(survey)
    assert [row.method for row in changed["dep-A/IMG_0000"]] == ["human", "machine"]
    assert changed["dep-A/IMG_0000"][1].kind == "blank"
    # The second file says nothing of the others.
    assert {key: rows for key, rows in changed.items() if key != "dep-A/IMG_0000"} == {
        key: rows for key, rows in first.items() if key != "dep-A/IMG_0000"
    }


def test_a_killed_addition_is_repeated_and_goes_on(survey: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append, tables = AnnotationAppender.append, []

    def stop(self: AnnotationAppender, kind: str, *arguments: Any) -> int:
        tables.append(kind)
        if len(tables) == 2:
            raise KeyboardInterrupt
        return append(self, kind, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(AnnotationAppender, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            add_results(survey, FORMATS / "megadetector_1.6.json")
    add_results(survey, FORMATS / "megadetector_1.6.json")
    with Collection.open(survey) as collection:
        assert collection.table("regions").num_rows == 4
        assert collection.table("observations").num_rows == 7


def test_old_speciesnet_gives_boxes_the_class_of_the_image(survey: Path) -> None:
    add_results(survey, FORMATS / "speciesnet_old.json")
    rows = observations_of(survey)
    assert [(row.taxon, row.box is not None) for row in rows["dep-A/IMG_0001"]] == [("Canidae", True)]
    assert [(row.kind, row.probability) for row in rows["dep-A/IMG_0002"]] == [("blank", 0.97)]


def test_results_of_other_images_are_refused(survey: Path, tmp_path: Path, tiny_collection: Path) -> None:
    content = change("images/0/file", "elsewhere/X.JPG")
    del content["images"][1:]
    path = write(tmp_path, content)
    with raises_naming(UserError, path, survey, "elsewhere/X.JPG", FILES[0]):
        add_results(survey, path)
    with raises_naming(UserError, tiny_collection, "media"):
        add_results(tiny_collection, FORMATS / "megadetector_1.6.json")
    for content, names in (
        ({"pictures": []}, ["predictions", "images"]),
        (json.loads((FORMATS / "cct.json").read_text()), ["SOURCE"]),
    ):
        with raises_naming(UserError, *names):
            read_results(write(tmp_path, content))


@pytest.mark.parametrize(
    ("paths", "rows", "ambiguous"),
    [
        (["A/1.JPG", "B/1.JPG"], [0, 1], []),
        (["cards\\A\\1.JPG", "/data/cards/B/1.JPG", "C:\\B\\2.JPG"], [0, 1, -1], []),
        (["1.JPG"], [-1], ["1.JPG"]),
        (["x/A/1.JPG", "y/A/1.JPG"], [-1, -1], ["x/A/1.JPG", "y/A/1.JPG"]),
        (["x/A/1.JPG", "A/1.JPG", "root.jpg"], [-1, 0, 2], []),
        (["A/1", "deep/root.JPG"], [0, 2], []),
        (["A/1.JPG", "A/1.MP4", "B/1.MP4"], [0, -1, -1], []),
        (["A/1.CR2", "x/A/1.JPG", "B/1.CR2"], [-1, 0, 1], []),
    ],
)
def test_paths_find_their_image(paths: list[str], rows: list[int], ambiguous: list[str]) -> None:
    index = FileIndex(["A/1.JPG", "B/1.JPG", "root.jpg"], ["A/1", "B/1", "root"])
    assert index.find_all(paths) == (rows, ambiguous)


def test_a_video_beside_a_photo_of_its_name_is_counted_once(survey: Path, tmp_path: Path) -> None:
    content = change("images/5/file", "dep-A/IMG_0000.MP4")
    summary = add_results(survey, write(tmp_path, content))
    assert (summary.images, summary.videos, summary.missing, summary.ambiguous) == (5, 1, 0, 0)
    assert len(observations_of(survey)["dep-A/IMG_0000"]) == 3


def test_paths_below_a_folder_find_their_image() -> None:
    index = FileIndex(["media/cards/A/1.JPG", "media/cards/B/2.JPG"], ["k1", "k2"])
    assert index.find_all(["A/1.JPG", "2.JPG"]) == ([0, 1], [])
    assert index.find_all(["A/1.JPG", "A/1.MP4", "A/1.CR2"]) == ([0, -1, -1], [])
