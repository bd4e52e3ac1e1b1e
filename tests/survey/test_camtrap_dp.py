"""Camtrap DP packages in: what is read of their tables, files, times and taxa."""

from __future__ import annotations

import gzip
import json
import zipfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from made_images import jpeg
from made_surveys import (
    GOLDEN,
    copy_package,
    import_package,
    make_incomplete_collection,
    read_descriptor,
    read_rows,
    write_rows,
)

from foveate.core.errors import UserError
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.importers.formats import detect_format
from foveate.survey.exporters.camtrap_dp import CamtrapSettings, export_camtrap_dp
from foveate.survey.importers.camtrap_dp import (
    BOX_COLUMNS,
    NOT_THERE,
    assign_sequences,
    import_camtrap_dp,
    make_box,
    make_deployment,
    make_keys,
    read_taxa,
)
from foveate.survey.importers.camtrap_package import Files, open_package
from foveate.survey.store import EMPTY_AND_SPECIES
from foveate.survey.survey import Survey
from naming import raises_naming


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return make_incomplete_collection(tmp_path_factory.mktemp("camtrap"))


def test_images_get_their_rows_camera_and_boxes(collection: Collection) -> None:
    assert len(collection) == 8
    row = collection.find_row("media/dep-A/IMG_0001")
    record = collection.record(row)
    assert record.group == "loc-1"
    assert record.context is not None
    assert (record.context.latitude, record.context.longitude) == (50.699, 4.013)
    assert record.context.time == "2023-05-03T05:44:20+02:00"
    (region,) = record.regions
    assert (region.phrase, region.source) == ("Canidae", "foveate-cosmo v0")
    assert region.score == pytest.approx(0.71)
    assert (region.box.x1, region.box.y2) == pytest.approx((0.5, 0.64))
    survey = Survey.open(collection)
    # A deployment with timestampIssues has no hours; the second visit to loc-1 is the same camera.
    assert survey.hour_N.tolist()[:4] == [5, 5, 5, 23]
    assert survey.count_missing()["timestamp issues"] == 3
    assert set(survey.camera_N) == {"loc-1", "loc-2"}


def test_media_of_one_name_get_a_key_each() -> None:
    paths = ["dep1/m2.jpg", "dep1/m2.png", "dep1/m2.gif"]
    media = pa.table({"mediaID": ["m1", "m2", "m2"], "deploymentID": ["dep1"] * 3, "filePath": paths})
    assert make_keys(media) == ["dep1/m2", "dep1/m2-2", "dep1/m2-3"]


def test_rows_without_an_image_are_counted_and_stored(collection: Collection) -> None:
    media = collection.dataset_table("media_without_image").to_pylist()
    assert [row["file"] for row in media] == ["media/dep-C/IMG_0008.JPG", "media/dep-C/IMG_0009.JPG"]
    assert collection.dataset_table("observations_without_image")["id"].to_pylist() == ["o09", "o10"]
    assert collection.quarantine()["reason"].to_pylist() == ["truncated"]
    assert collection.dataset_table("event_observations")["id"].to_pylist() == ["o03"]


def test_only_a_persons_rows_about_an_image_are_labels(tmp_path: Path) -> None:
    package = copy_package(tmp_path / "package", images=True)
    rows = read_rows(package, "observations")
    for name in ("o00", "o04", "o07", "o10"):
        rows[name]["classificationMethod"] = "human"
    rows["o10"]["cameraSetupType"] = "calibration"
    write_rows(package, "observations", rows)
    survey = Survey.open(import_package(package, tmp_path / "collection"))
    # o03, a person's row about the event of o00 to o02, labels none of its frames and is no second fox.
    labels = dict(zip(survey.keys, survey.labels(), strict=True))
    expected = {"dep-A/IMG_0000": "Vulpes vulpes", "dep-A/IMG_0003": "human", "dep-B/IMG_0006": "Meles meles"}
    assert {key.removeprefix("media/"): label for key, label in labels.items() if label} == expected


def test_images_that_are_empty_and_a_species_are_counted(tmp_path: Path) -> None:
    package = copy_package(tmp_path / "package", images=True)
    rows = read_rows(package, "observations")
    usual = import_camtrap_dp(package, tmp_path / "usual").further[EMPTY_AND_SPECIES]
    row = next(row for row in rows.values() if row["observationLevel"] == "media" and row["scientificName"])
    # A second row of the same person about the same image, and one row that is both.
    rows["empty"] = row | {"observationID": "empty", "observationType": "blank", "scientificName": "", "count": ""}
    write_rows(package, "observations", rows)
    summary = import_camtrap_dp(package, tmp_path / "two")
    assert summary.further[EMPTY_AND_SPECIES] == usual + 1
    assert any(EMPTY_AND_SPECIES in line and row["scientificName"] in line for line in summary.notes)


def test_a_row_that_is_empty_and_a_species_is_kept_named_and_no_label(tmp_path: Path) -> None:
    package = copy_package(tmp_path / "package", images=True)
    rows = read_rows(package, "observations")
    number = next(number for number, row in rows.items() if row["mediaID"] and row["scientificName"])
    media = read_rows(package, "media")[rows[number]["mediaID"]]
    rows[number] |= {"observationType": "blank", "classificationMethod": "human", "classificationProbability": ""}
    write_rows(package, "observations", rows)
    summary = import_camtrap_dp(package, tmp_path / "survey")
    assert any(f"{media['filePath']} ({rows[number]['scientificName']})" in line for line in summary.notes)
    survey = Survey.open(tmp_path / "survey")
    assert survey.labels()[survey.keys.index(media["filePath"].rsplit(".", 1)[0])] == ""
    assert survey.label_counts()["called empty and a species at once"] == 1
    export_camtrap_dp(survey.collection, tmp_path / "again", settings=CamtrapSettings(coordinate_digits="recorded"))
    again = read_rows(tmp_path / "again", "observations")[number]
    assert (again["observationType"], again["scientificName"]) == ("blank", rows[number]["scientificName"])


@pytest.mark.parametrize("form", ["json", "zip", "nested zip", "csv.gz", "parquet"])
def test_other_forms_of_a_package_give_the_same_survey(form: str, collection: Collection, tmp_path: Path) -> None:
    package = copy_package(tmp_path / "package", images=True)
    source = package
    if form == "json":
        source = package / "datapackage.json"
    elif form.endswith("zip"):
        source = tmp_path / "package.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for path in package.rglob("*"):
                archive.write(path, ("folder/" if form == "nested zip" else "") + str(path.relative_to(package)))
    else:
        descriptor = read_descriptor(package)
        for resource in descriptor["resources"]:
            path = package / resource["path"]
            resource["path"] = f"{resource['name']}.{form}"
            if form == "parquet":
                pq.write_table(pa_csv.read_csv(path), package / resource["path"])
            else:
                (package / resource["path"]).write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
        (package / "datapackage.json").write_text(json.dumps(descriptor))
    assert detect_format(str(source))[0].name == "camtrap-dp"
    read = import_package(source, tmp_path / "collection")
    assert len(read) == 10
    columns = ["key", "id", "deployment", "kind", "taxon", "count", "x1", "y2", "probability"]
    known = {row["id"]: row for row in collection.table("observations").select(columns).to_pylist()}
    rows = {row["id"]: row for row in read.table("observations").select(columns).to_pylist()}
    assert len(rows) == 10
    assert {name: rows[name] for name in known} == known
    with open_package(source) as opened:
        # Typed times have lost the offset of the place.
        assert any("UTC" in entry.problem for entry in opened.warnings) == (form == "parquet")


def test_a_zip_cannot_reach_outside(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("x\n")
    source = tmp_path / "package.zip"
    with zipfile.ZipFile(source, "w") as archive:
        for path in GOLDEN.iterdir():
            archive.write(path, f"package/{path.name}")
        archive.writestr("package/../../evil.jpg", jpeg(1))
    collection = import_package(source, tmp_path / "collection")
    assert len(collection) == 0
    descriptor = read_descriptor(GOLDEN)
    for path in ("../secret.csv", "/etc/passwd", "https://example.org/media.csv"):
        descriptor["resources"][1]["path"] = path
        package = copy_package(tmp_path / path.replace("/", "_"), {"datapackage.json": descriptor})
        with raises_naming(UserError, path):
            import_package(package, tmp_path / "other")


def test_a_file_of_a_zip_that_is_too_large_names_the_limit(tmp_path: Path) -> None:
    source = tmp_path / "package.zip"
    with zipfile.ZipFile(source, "w") as archive:
        for path in GOLDEN.iterdir():
            archive.write(path, path.name)
    with (
        closing(Files(source)) as files,
        raises_naming(UserError, "media.csv", "expected at most 10"),
        files.open("media.csv", max_bytes=10),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("media.csv", b"mediaID,mediaID\n1,1\n", ("media.csv", "mediaID")),
        ("media.csv", b"", ("media.csv",)),
        ("media.csv.gz", b"no gzip", ("media.csv.gz",)),
        ("media.parquet", b"PAR1 no parquet", ("media.parquet",)),
        ("media.csv", b"mediaID,deploymentID\nm1,dep-A,too much\n", ("media.csv", "row 1", "3")),
        ("datapackage.json", b"{", ("datapackage.json",)),
        ("datapackage.json", b"[]", ("datapackage.json",)),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes, names: tuple[str, ...], tmp_path: Path) -> None:
    package = copy_package(tmp_path / "package")
    (package / name).write_bytes(content)
    if name.startswith("media") and name != "media.csv":
        descriptor = read_descriptor(package)
        descriptor["resources"][1]["path"] = name
        (package / "datapackage.json").write_text(json.dumps(descriptor))
    with raises_naming(UserError, *names):
        import_package(package, tmp_path / "collection")


def test_images_are_found_by_file_name_and_videos_are_counted(tmp_path: Path) -> None:
    package = copy_package(tmp_path / "package")
    media = read_rows(package, "media")
    media["m00"] |= {"filePath": "https://example.org/assets/1/file", "fileName": "IMG 1.JPG"}
    media["m01"] |= {"filePath": "https://example.org/assets/2/file", "fileName": "IMG 1.JPG"}
    media["m02"] |= {"fileMediatype": "video/mp4", "filePath": "a.mp4"}
    write_rows(package, "media", media)
    (tmp_path / "images/dep-A").mkdir(parents=True)
    (tmp_path / "images/dep-A/IMG 1.JPG").write_bytes(jpeg(1))
    summary = import_camtrap_dp(package, tmp_path / "collection", images=tmp_path / "images")
    # Two media of one file name: the second gets a key of its own, and the same bytes.
    assert Collection.open(tmp_path / "collection").keys == ["dep-A/IMG 1", "dep-A/m01"]
    assert summary.further["media that are no images (videos, sounds)"] == 1
    assert summary.further[NOT_THERE] == 7


def test_a_bare_name_of_two_media_is_no_image_of_either(tmp_path: Path) -> None:
    package = copy_package(tmp_path / "package")
    media = read_rows(package, "media")
    # On the cards of two deployments, in a folder of one of them.
    media["m04"] |= {"filePath": "media/dep-B/IMG_0000.JPG", "fileName": "IMG_0000.JPG"}
    write_rows(package, "media", media)
    (tmp_path / "card").mkdir()
    for number, name in enumerate(("IMG_0000.JPG", "IMG_0001.JPG")):
        (tmp_path / "card" / name).write_bytes(jpeg(number))
    summary = import_camtrap_dp(package, tmp_path / "collection", images=tmp_path / "card")
    assert Collection.open(tmp_path / "collection").keys == ["media/dep-A/IMG_0001"]
    assert summary.further[NOT_THERE] == 9


def test_an_event_has_the_media_that_lie_in_its_times() -> None:
    media = [
        ("A", "2023-05-03T05:44:20"),
        ("A", "2023-05-03T05:50:00"),
        ("A", "2023-05-03T06:00:00"),
        ("A", ""),
        ("B", "2023-05-03T05:44:20+02:00"),
        ("B", "2023-05-03T03:50:00Z"),
        ("C", "2023-05-03T05:44:20"),
    ]
    events = [
        ("no start", "A", "", "2023-05-03T07:00:00"),
        ("no end", "A", "2023-05-03T05:00:00", None),
        ("a1", "A", "2023-05-03T05:44:20", "2023-05-03T05:50:00"),
        # One offset does not help where the others have none.
        ("a2", "A", "2023-05-03T05:59:00+02:00", "2023-05-03T06:00:00"),
        ("b", "B", "2023-05-03T05:50:00+02:00", "2023-05-03T05:50:00+02:00"),
        ("nowhere", "D", "2023-05-03T05:44:20", "2023-05-03T05:50:00"),
    ]
    media_table = pa.table(dict(zip(("deploymentID", "timestamp"), zip(*media, strict=True), strict=True)))
    names = ("eventID", "deploymentID", "eventStart", "eventEnd")
    observations = pa.table(dict(zip(names, zip(*events, strict=True), strict=True)))
    sequences = assign_sequences(media_table, observations, np.full(len(events), -1))
    assert sequences == ["a1", "a1", "a2", "", "", "b", ""]


def test_a_package_may_state_offsets_and_shifts_of_clocks() -> None:
    row = next(iter(read_rows(GOLDEN, "deployments").values()))
    deployment = make_deployment({**row, "utc_offset": "+02:00", "clock_shift": "-1:00"})
    assert (deployment.utc_offset, deployment.clock_shift) == ("+02:00", -3600)
    assert not {"utc_offset", "clock_shift"} & deployment.extra.keys()
    for name, value in (("utc_offset", "Europe/Paris"), ("clock_shift", "an hour")):
        with raises_naming(UserError, row["deploymentID"], name, value):
            make_deployment({**row, name: value})


def test_boxes_that_do_not_lie_in_the_image_are_none() -> None:
    assert make_box(dict.fromkeys(BOX_COLUMNS, "1e-6") | {"bboxY": "1"}) is None
    cells = dict(zip(("bboxX", "bboxY", "bboxWidth", "bboxHeight"), ("0.5", "0.5", "0.5000001", "0.5"), strict=True))
    assert make_box(cells) == Box(0.5, 0.5, 1.0, 1.0)
    assert make_box(cells | {"bboxWidth": "0.7"}) is None
    assert make_box(cells | {"bboxWidth": None}) is None


def test_taxa_are_linked_by_what_the_entries_name() -> None:
    fox = {"scientificName": "Vulpes vulpes", "taxonRank": "species", "genus": "Vulpes", "family": "Canidae"}
    family = {"scientificName": "Canidae", "taxonRank": "family", "taxonID": "9608", "order": "Carnivora"}
    taxa = read_taxa([fox | {"vernacularNames": {"nld": "vos", "eng": "red fox"}}, family])
    lineage = [taxa.names[index] for index in taxa.lineage(taxa.find("Vulpes vulpes"))]
    assert lineage == ["Vulpes vulpes", "Vulpes", "Canidae", "Carnivora"]
    assert taxa.ids[taxa.find("Canidae")] == "9608"
    assert taxa.common[taxa.find("Vulpes vulpes")] == "red fox"
