"""COCO Camera Traps with a table of places, and the metadata of iWildCam-WILDS, as surveys."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_images import jpeg

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.importers.formats import detect_format
from foveate.survey.importers.coco_camera_traps import (
    import_coco_camera_traps,
    import_wilds,
    read_camera_traps,
    read_locations,
)
from foveate.survey.store import EMPTY_AND_SPECIES, MOVED
from foveate.survey.survey import Survey
from foveate.survey.types import Deployment, Observation
from foveate.survey.verdicts import RULES
from naming import raises_naming

FORMATS = Path(__file__).parent.parent / "goldens" / "cosmo" / "formats"
MALFORMED = [case for case in json.loads((FORMATS / "malformed.json").read_text()) if case["format"] == "cct"]
NAMED = {
    "cct_unknown_image": ["annotations[0]", "a0", "image_id", "'nope'"],
    "cct_unknown_category": ["annotations[0]", "a0", "category_id", "99"],
    "cct_duplicate_image_id": ["images[5].id", "dep-A/IMG_0000"],
}
INTEGER_IDS, BAD_TIMES, UNLABELED, CORRUPT, UNUSABLE = (
    RULES[name].outcome for name in ("integer-id", "time", "annotation-missing", "corrupt", "unusable-box")
)
WARNED = {"cct_int_ids": INTEGER_IDS, "cct_bad_datetime": BAD_TIMES, "cct_unannotated_image": UNLABELED}


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def golden() -> dict[str, Any]:
    return json.loads((FORMATS / "cct.json").read_text())


def test_a_category_that_is_no_number_is_named(tmp_path: Path) -> None:
    content = golden()
    content["annotations"][1]["category_id"] = [1]
    with raises_naming(UserError, "annotations[1]", "category_id", "[1]"):
        read_camera_traps(write(tmp_path / "cct.json", content))


def test_a_box_beyond_a_float_is_left_out(tmp_path: Path) -> None:
    usual = read_camera_traps(write(tmp_path / "cct.json", golden())).further[UNUSABLE]
    content = golden()
    content["annotations"].append(content["annotations"][0] | {"id": "large", "bbox": [0, 0, 10**400, 1]})
    assert read_camera_traps(write(tmp_path / "cct.json", content)).further[UNUSABLE] == usual + 1


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case["id"])
def test_malformed_files_get_the_verdict_of_the_golden(case: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "cct.json", case["content"])
    if case["ours"] == "error":
        with raises_naming(UserError, path, *NAMED[case["id"]]):
            read_camera_traps(path)
        return
    usual = read_camera_traps(FORMATS / "cct.json").further
    assert {WARNED[case["id"]]} <= {
        name for name, count in read_camera_traps(path).further.items() if count > usual[name]
    }


@pytest.fixture(scope="module")
def survey_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden CCT file with an unlabeled image and a relative box, its images, and places of one camera."""
    folder = tmp_path_factory.mktemp("cct")
    content = golden()
    content["images"] += [
        {"id": "u", "file_name": "dep-B\\IMG_0005.JPG", "location": "loc-2", "seq_id": "sB2", "frame_num": 0},
        {"id": "e", "file_name": "dep-B/IMG_0006.JPG", "location": "loc-2", "datetime": "yesterday"},
    ]
    content["annotations"] += [
        {"id": "r", "image_id": "e", "category_id": 1, "bbox_relative": [0.5, 0.5, 0.75, 0.25], "count": 2},
        {"id": "z", "image_id": "dep-A/IMG_0001", "category_id": 0},
    ]
    write(folder / "traps.json", content)
    write(folder / "places.csv", "location,latitude,longitude,clock_shift\nloc-1,50.7,4.01,-1:00\nloc-9,NA,,\n")
    for number, image in enumerate(content["images"]):
        file = folder / image["file_name"].replace("\\", "/")
        file.parent.mkdir(exist_ok=True)
        width, height = (256, 192) if number < 3 else (192, 108)
        file.write_bytes(jpeg(number, width=width, height=height))
    write(folder / "md.json", (FORMATS / "megadetector_1.6.json").read_text())
    return folder


@pytest.fixture(scope="module")
def collected(survey_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder as a survey, by the command, with results of MegaDetector."""
    target = tmp_path_factory.mktemp("collected") / "survey"
    return target, collect(survey_folder, target)


def collect(folder: Path, target: Path) -> dict[str, Any]:
    """Run `foveate collect` on the survey of `survey_folder`; return what it prints."""
    options = ["--deployments", str(folder / "places.csv"), "--results", str(folder / "md.json"), "--json"]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        cli.main(["collect", str(folder / "traps.json"), "--out", str(target), *options], standalone_mode=False)
    return json.loads(output.getvalue())


def test_a_survey_has_its_labels_and_leaves_out_what_is_none(collected: tuple[Path, dict[str, Any]]) -> None:
    target, result = collected
    assert (result["format"], result["imported"]) == ("coco-camera-traps", 6)
    assert result["further"][CORRUPT] == 1
    assert result["further"][UNLABELED] == 1
    assert (result["results"]["images"], result["results"]["detections"]) == (3, 3)
    survey = Survey.open(target)
    # The frames of a burst have no label from it, an unlabeled image is not empty, two kinds are none.
    labels = dict(zip(survey.keys, survey.labels(), strict=True))
    assert labels == {
        "dep-A/IMG_0000": "Vulpes vulpes",
        "dep-A/IMG_0001": "blank",
        "dep-A/IMG_0002": "",
        "dep-B/IMG_0004": "",
        "dep-B/IMG_0005": "",
        "dep-B/IMG_0006": "Vulpes vulpes",
    }
    rows = survey.collection.dataset_table("event_observations").to_pylist()
    events = [Observation.from_row(row) for row in rows]
    assert [(row.event, row.taxon, row.level, row.deployment) for row in events] == [
        ("sA1", "Vulpes vulpes", "event", "loc-1")
    ]


def test_a_survey_has_cameras_hours_places_and_bursts(collected: tuple[Path, dict[str, Any]]) -> None:
    survey = Survey.open(collected[0])
    rows = {key: row for row, key in enumerate(survey.keys)}
    assert survey.hour_N[rows["dep-A/IMG_0000"]] == 4  # an hour of its clock was taken off
    assert np.isnan(survey.hour_N[[rows["dep-B/IMG_0005"], rows["dep-B/IMG_0006"]]]).all()
    assert survey.places_N2[rows["dep-A/IMG_0001"]].tolist() == [50.7, 4.01]
    assert np.isnan(survey.places_N2[rows["dep-B/IMG_0004"]]).all()
    assert survey.camera_N[rows["dep-B/IMG_0004"]] == "loc-2"
    assert len(set(survey.sequence_N[[rows[f"dep-A/IMG_000{number}"] for number in range(3)]])) == 1
    collection = survey.collection
    assert len(set(collection.splits[[rows[key] for key in rows if key.startswith("dep-A")]])) == 1


def test_boxes_in_pixels_and_fractions_are_regions(collected: tuple[Path, dict[str, Any]]) -> None:
    with Collection.open(collected[0]) as collection:
        human = {
            key: [region for region in collection.read_regions(row) if not region.source.startswith("detector:")]
            for row, key in enumerate(collection.keys)
        }
    (pixels,), (clipped,) = human["dep-A/IMG_0000"], human["dep-B/IMG_0006"]
    assert pixels.label == "Vulpes vulpes"
    # Of the stated 2048 x 1536 pixels, whatever the size of the file at hand.
    assert (pixels.box.x1, pixels.box.y2) == pytest.approx((600 / 2048, 1020 / 1536), abs=1e-6)
    assert (clipped.box.x2, clipped.box.y2) == (1.0, 0.75)


def test_the_same_command_again_changes_nothing(survey_folder: Path, collected: tuple[Path, dict[str, Any]]) -> None:
    def rows() -> list[Any]:
        with Collection.open(collected[0]) as collection:
            tables = [collection.table(kind).to_pylist() for kind in ("media", "observations", "regions")]
            return [*tables, collection.dataset_table("deployments").to_pylist()]

    before = rows()
    collect(survey_folder, collected[0])
    assert rows() == before


@pytest.mark.parametrize(
    ("path", "value", "names"),
    [
        (("annotations", 1, "id"), "a0", ["annotations[1].id", "a0"]),
        (("annotations", 1, "image_id"), None, ["annotations[1]", "image_id"]),
        (("categories", 1, "id"), 0, ["categories[1].id", "0"]),
        (("categories", 1, "name"), 7, ["categories[1]", "name"]),
        (("images", 0, "file_name"), "", ["images[0].file_name"]),
        (("images", 0), "x", ["images[0]", "str"]),
        (("annotations",), {}, ["annotations", "list"]),
    ],
)
def test_other_contradictions_are_refused(
    path: tuple[Any, ...], value: object, names: list[str], tmp_path: Path
) -> None:
    content = golden()
    target: Any = content
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    file = write(tmp_path / "cct.json", content)
    with raises_naming(UserError, file, *names):
        read_camera_traps(file)


def test_formats_are_told_apart(survey_folder: Path, tmp_path: Path) -> None:
    assert detect_format(str(survey_folder / "traps.json"))[0].name == "coco-camera-traps"
    with raises_naming(UserError, survey_folder / "md.json", "--format"):
        detect_format(str(survey_folder / "md.json"))


def test_results_need_a_format_of_surveys(survey_folder: Path, tmp_path: Path) -> None:
    options = ["--format", "folder", "--out", str(tmp_path / "c"), "--results", str(survey_folder / "md.json")]
    with raises_naming(UserError, "--results", "'folder'", "coco-camera-traps"):
        cli.main(["collect", str(survey_folder), *options], standalone_mode=False)


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("cameras.csv", "location,latitude\na,95\n", ["row 2", "latitude", "out of range"]),
        ("cameras.csv", "location,latitude\nloc-7,5\n", ["loc-7", "loc-1", "loc-2"]),
        ("gps.json", '{"loc-1": {"latitude": 5}}', ["'loc-1'.longitude", "missing"]),
        ("gps.json", '{"loc-1": {"latitude": -91, "longitude": 4}}', ["'loc-1'.latitude", "-90 to 90"]),
    ],
)
def test_tables_of_locations_are_checked(name: str, text: str, names: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / name, text)
    with raises_naming(UserError, path, *names):
        import_coco_camera_traps(FORMATS / "cct.json", tmp_path / "survey", deployments=path)


def test_locations_may_be_the_json_of_iwildcam(tmp_path: Path) -> None:
    path = write(tmp_path / "gps_locations.json", {"110": {"latitude": -2.5, "longitude": 29}})
    assert read_locations(path) == {"110": Deployment("110", "110", -2.5, 29)}


WILDS = """,split,location_remapped,location,sequence_remapped,datetime,y,filename
0,train,3,110,12,2013-09-13 22:16:30.000,0,a.jpg
1,train,3,110,12,2013-09-13 22:16:31.000,2,b.jpg
2,val,4,111,13,2013-09-13 02:16:31.000,2,c.jpg
3,id_test,3,110,14,2014-09-13 02:16:31.000,1,d.jpg
"""


def make_wilds(folder: Path, metadata: str = WILDS) -> Path:
    (folder / "train").mkdir(parents=True)
    for number, name in enumerate("abcd"):
        (folder / "train" / f"{name}.jpg").write_bytes(jpeg(number))
    write(
        folder / "categories.csv", "category_id,name,y\n0,empty,0\n10,start,1\n24,tayassu pecari,2\n97,unused,99999\n"
    )
    write(folder / "metadata.csv", metadata)
    return folder


def test_an_image_whose_place_was_corrected_moves(tmp_path: Path) -> None:
    def write_traps(location: str) -> Path:
        images = [{"id": name, "file_name": f"{name}.jpg", "location": location} for name in "ab"]
        labels = [{"id": "1", "image_id": "a", "category_id": 1}, {"id": "2", "image_id": "b", "category_id": 2}]
        categories = [{"id": 1, "name": "start"}, {"id": 2, "name": "misfire"}]
        return write(tmp_path / "t.json", {"images": images, "annotations": labels, "categories": categories})

    places = write(tmp_path / "places.csv", "location,latitude,longitude\nold,1,2\nnew,3,4\n")
    for number, name in enumerate("ab"):
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(number))
    moves = []
    for location in ("old", "old", "new"):
        summary = import_coco_camera_traps(write_traps(location), tmp_path / "c", deployments=places)
        moves.append(summary.further[MOVED])
    survey = Survey.open(tmp_path / "c")
    assert moves == [0, 0, 2]
    np.testing.assert_array_equal(survey.places_N2, [[3, 4], [3, 4]])
    assert survey.collection.table("context")["latitude"].to_pylist()[-2:] == [3, 3]
    # iWildCam's labels that are no kinds.
    assert survey.label_counts() == {"setting up the camera": 1, "nothing that could be named": 1}


def test_a_misspelled_keyword_of_an_importer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'max_pixel'.*'max_pixels'"):
        import_wilds(make_wilds(tmp_path / "w"), tmp_path / "c", max_pixel=10)  # type: ignore[call-arg]
    assert not (tmp_path / "c").exists()


def test_wilds_has_its_splits_cameras_and_classes(tmp_path: Path) -> None:
    folder = make_wilds(tmp_path / "iwildcam_v2.0")
    assert detect_format(str(folder))[0].name == "wilds"
    import_wilds(
        folder,
        tmp_path / "survey",
        deployments=write(tmp_path / "gps.json", {"110": {"latitude": -2.5, "longitude": 29.4}}),
    )
    survey = Survey.open(tmp_path / "survey")
    assert survey.keys == ["a", "b", "c", "d"]
    assert survey.collection.index["split"].tolist() == ["train", "train", "validation", "id_test"]
    assert survey.labels().tolist() == ["blank", "Tayassu pecari", "Tayassu pecari", ""]
    assert survey.camera_N.tolist() == ["110", "110", "111", "110"]
    assert survey.hour_N.tolist() == [22, 22, 2, 2]
    assert survey.places_N2[0].tolist() == [-2.5, 29.4]


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        (WILDS.replace("b.jpg", "a.jpg"), ["row 2", "a.jpg"]),
        (WILDS.replace("30.000,0", "30.000,55"), ["row 1", "'55'"]),
        (WILDS.replace(",y,", ",z,"), ["y"]),
        (WILDS + "4,train\n", ["line 6"]),
    ],
)
def test_wilds_tables_are_checked(metadata: str, names: list[str], tmp_path: Path) -> None:
    with raises_naming(UserError, "metadata.csv", *names):
        import_wilds(make_wilds(tmp_path / "w", metadata), tmp_path / "survey")


def test_images_can_stay_where_they_are(survey_folder: Path, tmp_path: Path) -> None:
    summary = import_coco_camera_traps(survey_folder / "traps.json", tmp_path / "s", reference=True)
    assert summary.imported == 6
    assert not list((tmp_path / "s").glob("images/*.tar"))


def test_an_image_that_is_empty_and_a_species_is_counted(tmp_path: Path) -> None:
    content = golden()
    usual = read_camera_traps(write(tmp_path / "cct.json", content)).further
    image, (empty, fox) = content["images"][0]["id"], content["categories"][:2]
    assert (empty["id"], empty["name"]) == (0, "empty")
    content["annotations"] += [
        {"id": f"new {n}", "image_id": image, "category_id": each["id"]} for n, each in enumerate((empty, fox))
    ]
    assert (
        read_camera_traps(write(tmp_path / "cct.json", content)).further[EMPTY_AND_SPECIES]
        == usual[EMPTY_AND_SPECIES] + 1
    )
    # The number 0 is reserved: a file that counts its species from 0 loses one of them, with a warning that names it.
    empty["name"] = "puma concolor"
    read = read_camera_traps(write(tmp_path / "cct.json", content))
    assert any("puma concolor" in name for names in read.named.values() for name in names)
    assert all(
        row.extra == {"category": "puma concolor"}
        for each in read.images
        for row in each.observations[-1:]
        if row.kind == "blank"
    )
