"""Camtrap DP packages out: what survives a round trip, and what an export changes."""

from __future__ import annotations

import base64
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_images import jpeg
from made_surveys import (
    EXAMPLE,
    GOLDEN,
    KEYS,
    copy_package,
    import_package,
    make_incomplete_collection,
    needs_example,
    read_descriptor,
    read_rows,
    write_rows,
)

from foveate.core.errors import UserError
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.writer import CollectionWriter
from foveate.survey.camtrap_schema import TABLES, columns, required_columns
from foveate.survey.detections import Decision
from foveate.survey.exporters.camtrap_dp import (
    CamtrapExport,
    CamtrapSettings,
    _complete_event_time,
    _complete_time,
    export_camtrap_dp,
)
from foveate.survey.importers.camtrap_dp import (
    FILES_TABLE,
    import_camtrap_dp,
)
from foveate.survey.importers.camtrap_package import check_written
from foveate.survey.store import survey_rows, write_survey
from foveate.survey.taxa import Taxa
from foveate.survey.types import Deployment, Medium, Observation
from naming import raises_naming

RECORDED = CamtrapSettings(coordinate_digits="recorded")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return make_incomplete_collection(tmp_path_factory.mktemp("camtrap"))


def export(collection: Collection, folder: Path, **options: Any) -> CamtrapExport:
    options.setdefault("settings", RECORDED)
    result = export_camtrap_dp(collection, folder, **options)
    assert check_written(folder)[0] == []
    return result


def assert_equal_content(folder: Path, source: Path) -> None:
    for name in KEYS:
        assert read_rows(folder, name) == read_rows(source, name)
    written, expected = read_descriptor(folder), read_descriptor(source)
    for descriptor in (written, expected):
        del descriptor["created"]
    assert written == expected


def test_reading_and_writing_gives_equal_content(collection: Collection, tmp_path: Path) -> None:
    result = export(collection, tmp_path / "out")
    assert result.rows == {"deployments": 3, "media": 10, "observations": 11}
    assert_equal_content(tmp_path / "out", GOLDEN)


@needs_example
def test_the_standards_example_survives_a_round_trip(tmp_path: Path) -> None:
    collection = import_package(EXAMPLE, tmp_path / "collection")
    assert (len(collection), collection.dataset_table("event_observations").num_rows) == (0, 36)
    export(collection, tmp_path / "out")
    assert_equal_content(tmp_path / "out", EXAMPLE)
    assert {"name": "individuals"}.items() <= read_descriptor(tmp_path / "out")["resources"][-1].items()


CELLS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12).filter(
    lambda text: text not in ("NA", "NaN", "nan")
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    comment=CELLS,
    habitat=CELLS.map(str.strip).filter(lambda text: text not in ("", "NA", "NaN", "nan")),
    box=st.lists(st.integers(0, 10**6), min_size=4, max_size=4),
    probability=st.floats(0, 1),
    count=st.integers(1, 10**6),
)
def test_any_cell_survives_a_round_trip(
    comment: str, habitat: str, box: list[int], probability: float, count: int, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("cells")
    x, y = box[0] / 10**6, box[1] / 10**6
    width, height = max(1e-6, min(box[2] / 10**6, 1 - x)), max(1e-6, min(box[3] / 10**6, 1 - y))
    cells = {"bboxX": x, "bboxY": y, "bboxWidth": width, "bboxHeight": height, "count": count}
    cells |= {"classificationProbability": probability, "observationComments": comment}
    package = copy_package(folder / "package")
    rows = read_rows(package, "observations")
    rows["o01"] |= {name: value if isinstance(value, str) else repr(value) for name, value in cells.items()}
    write_rows(package, "observations", rows)
    places = read_rows(package, "deployments")
    places["dep-A"]["habitat"] = habitat
    write_rows(package, "deployments", places)
    export(import_package(package, folder / "collection"), folder / "out")
    assert read_rows(folder / "out", "deployments") == places
    written = read_rows(folder / "out", "observations")
    for name, value in cells.items():
        back = written["o01"].pop(name)
        assert back == value if isinstance(value, str) else float(back) == pytest.approx(value, abs=1e-11)
        rows["o01"].pop(name)
    assert written == rows


OPTIONAL = [(name, column) for name in TABLES for column in columns(name) if column not in required_columns(name)]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(emptied=st.sets(st.sampled_from(OPTIONAL)))
def test_any_subset_of_the_optional_columns_survives_a_round_trip(
    emptied: set[tuple[str, str]], tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("columns")
    package = copy_package(folder / "package")
    for name in TABLES:
        rows = read_rows(package, name)
        gone = {column: "" for table, column in emptied if table == name}
        write_rows(package, name, {key: row | gone for key, row in rows.items()})
    export(import_package(package, folder / "collection"), folder / "out")
    for name in TABLES:
        assert read_rows(folder / "out", name) == read_rows(package, name), name


def test_further_resources_survive_unless_they_hold_places(tmp_path: Path) -> None:
    descriptor = read_descriptor(GOLDEN)
    descriptor["resources"] += [
        {"name": "individuals", "data": [{"id": 1, "name": "Reinaert"}]},
        {"name": "stations", "path": "more/stations.csv"},
    ]
    package = copy_package(tmp_path / "package", {"datapackage.json": descriptor})
    (package / "more").mkdir()
    (package / "more/stations.csv").write_bytes(b"name,lat,lon\nx,50.69912,4.01345\n")
    collection = import_package(package, tmp_path / "collection")
    export(collection, tmp_path / "recorded")
    assert (tmp_path / "recorded/more/stations.csv").read_bytes() == (package / "more/stations.csv").read_bytes()
    result = export(collection, tmp_path / "rounded", settings=CamtrapSettings(coordinate_digits=2))
    names = [resource["name"] for resource in read_descriptor(tmp_path / "rounded")["resources"]]
    assert names == [*KEYS, "individuals"]
    assert not (tmp_path / "rounded/more").exists()
    assert any("more/stations.csv" in note for note in result.notes)


@pytest.mark.parametrize("path", ["../escaped.txt", "absolute", "media.csv", "./Datapackage.json", "a/../../b.csv"])
def test_a_strangers_collection_cannot_write_elsewhere(path: str, collection: Collection, tmp_path: Path) -> None:
    target = tmp_path / "c"
    shutil.copytree(collection.path, target)
    path = str(tmp_path / "escaped.txt") if path == "absolute" else path
    with CollectionWriter(target) as writer:
        content = base64.b64encode(b"mine").decode()
        writer.replace_dataset_rows(FILES_TABLE, [{"path": path, "content": content}], by="path")
    before = set(tmp_path.rglob("*"))
    with raises_naming(UserError, "survey_files.parquet", path):
        export(Collection.open(target), tmp_path / "out")
    assert set(tmp_path.rglob("*")) == before


def test_an_absolute_path_of_a_resource_is_written_below_the_export(tmp_path: Path) -> None:
    package = copy_package(tmp_path / "package")
    descriptor = read_descriptor(GOLDEN)
    descriptor["resources"] += [{"name": "notes", "path": [str(package / "more/notes.csv"), "./b.csv"]}]
    (package / "datapackage.json").write_text(json.dumps(descriptor))
    (package / "more").mkdir()
    for name in ("more/notes.csv", "b.csv"):
        (package / name).write_text(f"{name}\n")
    export(import_package(package, tmp_path / "collection"), tmp_path / "out")
    assert read_descriptor(tmp_path / "out")["resources"][-1]["path"] == ["more/notes.csv", "b.csv"]
    assert (tmp_path / "out/more/notes.csv").read_text() == "more/notes.csv\n"
    assert (tmp_path / "out/b.csv").read_text() == "b.csv\n"


def test_one_large_resource_and_one_damaged_image_do_not_end_an_import(tmp_path: Path) -> None:
    descriptor = read_descriptor(GOLDEN)
    descriptor["resources"] += [{"name": "raw", "path": "raw.bin"}]
    package = copy_package(tmp_path / "package", {"datapackage.json": descriptor}, images=True)
    (package / "raw.bin").write_bytes(bytes(2**24 + 1))
    source = tmp_path / "package.zip"
    with zipfile.ZipFile(source, "w") as archive:
        for path in package.rglob("*"):
            archive.write(path, path.relative_to(package))
    data = bytearray(source.read_bytes())
    pixels = (package / "media/dep-A/IMG_0001.JPG").read_bytes()
    data[data.index(pixels) + len(pixels) // 2] ^= 255
    source.write_bytes(data)
    summary = import_camtrap_dp(source, tmp_path / "collection")
    assert any("raw.bin" in note for note in summary.notes)
    collection = Collection.open(tmp_path / "collection")
    assert (len(collection), collection.quarantine()["reason"].to_pylist()) == (9, ["unreadable"])
    assert collection.dataset_table("media_without_image")["key"].to_pylist() == ["media/dep-A/IMG_0001"]
    export(collection, tmp_path / "out")
    assert [entry["name"] for entry in read_descriptor(tmp_path / "out")["resources"]] == [*KEYS]


@pytest.mark.parametrize("digits", [1, 2])
def test_coordinates_are_never_finer_than_asked(digits: int, collection: Collection, tmp_path: Path) -> None:
    export(collection, tmp_path / "out", settings=CamtrapSettings.model_validate({"coordinate_digits": str(digits)}))
    descriptor = read_descriptor(tmp_path / "out")
    assert descriptor["coordinatePrecision"] == pytest.approx(10**-digits)
    for row in read_rows(tmp_path / "out", "deployments").values():
        assert all(len(row[name].partition(".")[2]) <= digits for name in ("latitude", "longitude"))
        # 187 m at 3 digits of the band of 50 degrees: 187 - 147 + 14697 or 1470.
        assert row["coordinateUncertainty"] == {1: "14737", 2: "1510"}[digits]
    texts = [path.read_text() for path in (tmp_path / "out").iterdir()]
    assert not any("50.699" in text or "4.013" in text for text in texts)
    with raises_naming(UserError, "coordinatePrecision", "3"):
        export(collection, tmp_path / "three", settings=CamtrapSettings(coordinate_digits=3))


def test_dropped_coordinates_leave_no_place_and_say_so(collection: Collection, tmp_path: Path) -> None:
    result = export_camtrap_dp(collection, tmp_path / "out", settings=CamtrapSettings(coordinate_digits="drop"))
    assert {entry.field for entry in check_written(tmp_path / "out")[0]} == {"latitude", "longitude", "spatial"}
    assert any("validators" in note for note in result.notes)
    with raises_naming(UserError, "coordinate_digits", "recorded", "drop"):
        export_camtrap_dp(collection, tmp_path / "none", settings=CamtrapSettings())


DECISIONS = [
    Decision(
        key="media/dep-A/IMG_0000",
        taxon="Canis lupus",
        rank="species",
        taxon_id="NCBI:9612",
        probability=0.8123456789,
        alternatives=(("Vulpes vulpes", 0.15),),
        source=("temperature", "rollup"),
        box=Box(0.1, 0.2, 0.4, 0.6),
    ),
    Decision(key="media/dep-B/IMG_0004", kind="blank", probability=0.9),
    Decision(key="media/dep-C/IMG_0008", kind="unknown", probability=0.3),
    Decision(event="e3", taxon="Meles meles", rank="species", probability=0.97),
]


def test_decisions_replace_machine_rows_and_leave_people_alone(collection: Collection, tmp_path: Path) -> None:
    moment = "2026-01-02T03:04:05+00:00"
    options = {"decisions": DECISIONS, "created": moment}
    result = export(collection, tmp_path / "out", **options)
    rows, before = read_rows(tmp_path / "out", "observations"), read_rows(GOLDEN, "observations")
    assert rows["o03"] == before["o03"]  # a person's
    # o00, o05 and o09 by decisions about images, o06 and o07 by the pooled event.
    assert before.keys() - rows.keys() == {"o00", "o05", "o06", "o07", "o09"}
    new = rows["m00-machine-1"]
    assert (new["scientificName"], new["observationLevel"], new["classificationProbability"]) == (
        "Canis lupus",
        "media",
        "0.812346",
    )
    assert (new["bboxWidth"], new["classificationTimestamp"]) == ("0.3", moment)
    assert json.loads(new["observationComments"]) == {
        "alternatives": [["Vulpes vulpes", 0.15]],
        "source": ["temperature", "rollup"],
    }
    assert rows["m08-machine-1"]["observationType"] == "unknown"
    event = rows["e3-machine-1"]
    assert (event["observationLevel"], event["mediaID"], event["eventID"]) == ("event", "", "e3")
    assert (event["eventStart"], event["eventEnd"]) == ("2023-05-06T02:00:00+02:00", "2023-05-06T02:00:01+02:00")
    taxonomic = {entry["scientificName"]: entry for entry in read_descriptor(tmp_path / "out")["taxonomic"]}
    assert taxonomic["Canis lupus"]["taxonID"] == "NCBI:9612"
    assert result.counts["decisions written"] == 4
    # The same decisions again: the same rows, none doubled.
    again = import_package(tmp_path / "out", tmp_path / "again")
    export(again, tmp_path / "twice", **options)
    assert read_rows(tmp_path / "twice", "observations") == rows


def test_an_image_that_a_person_reviewed_gets_no_decision(tmp_path: Path) -> None:
    package = copy_package(tmp_path / "package")
    rows = read_rows(package, "observations")
    rows["o00"]["classificationMethod"] = "human"
    rows["o04"]["cameraSetupType"] = "setup"
    del rows["o08"]
    write_rows(package, "observations", rows)
    collection = import_package(package, tmp_path / "collection")
    decisions = [*DECISIONS, Decision(key="media/dep-A/IMG_0003", kind="human"), Decision(event="e1", taxon="Canidae")]
    result = export(collection, tmp_path / "out", decisions=decisions)
    written = read_rows(tmp_path / "out", "observations")
    assert {name: written[name] for name in ("o00", "o03", "o04")} == {
        name: rows[name] for name in ("o00", "o03", "o04")
    }
    assert not {"m00-machine-1", "m03-machine-1", "e1-machine-1"} & written.keys()
    assert result.counts["decisions left out: a person reviewed the image or event"] == 3
    # Nobody labels the vehicle's image any more: it was not processed.
    assert written["m07-machine-1"]["observationType"] == "unclassified"
    assert written["m07-machine-1"]["classificationMethod"] == ""


@pytest.mark.parametrize(
    "decision", [Decision(key="media/dep-A/IMG_000", taxon="Canidae"), Decision(event="e77", taxon="Canidae")]
)
def test_decisions_about_nothing_are_refused(decision: Decision, collection: Collection, tmp_path: Path) -> None:
    with raises_naming(UserError, decision.key or decision.event):
        export(collection, tmp_path / "out", decisions=[decision])
    assert not (tmp_path / "out").exists()


def test_a_survey_of_another_format_asks_for_what_is_missing(tmp_path: Path) -> None:
    place = Deployment("A", "pond", 50.69912, 4.01345, utc_offset="+02:00", clock_shift=3600)
    medium = Medium("A/1", "A", time="2021:05:31 08:25:38", file="C:\\cards\\A\\1.JPG")
    # Two rows of one id, as formats have that number the rows of each image.
    seen = Observation("1", "A", key="A/1", kind="animal", taxon="Lutra lutra", method="human")
    taxa = [
        {"id": "genus:Lutra", "name": "Lutra", "rank": "genus", "parent": ""},
        {"id": "9657", "name": "Lutra lutra", "rank": "species", "parent": "genus:Lutra", "common": "Eurasian otter"},
    ]
    for name, deployment in (("good", place), ("bad", Deployment("A", "pond", 50.7, 4.0))):
        with CollectionWriter(tmp_path / name) as writer:
            writer.add("A/1", jpeg(1), extra=survey_rows(medium, [seen, seen]))
            write_survey(writer, deployments=[deployment])
            writer.replace_dataset_rows("taxa", Taxa.from_rows(taxa).to_rows(), by="id")
    good, bad = Collection.open(tmp_path / "good"), Collection.open(tmp_path / "bad")
    options = {"settings": CamtrapSettings(coordinate_digits=2, contributor=("A. Author",))}
    export(good, tmp_path / "out", **options)
    (row,) = read_rows(tmp_path / "out", "media").values()
    # An hour later by the clock's shift, with the offset that the user states.
    assert (row["timestamp"], row["filePath"]) == ("2021-05-31T09:25:38+02:00", "cards/A/1.JPG")
    assert list(read_rows(tmp_path / "out", "observations")) == ["1", "1-row-1"]
    assert read_descriptor(tmp_path / "out")["taxonomic"] == [
        {
            "scientificName": "Lutra lutra",
            "taxonID": "9657",
            "taxonRank": "species",
            "genus": "Lutra",
            "vernacularNames": {"eng": "Eurasian otter"},
        }
    ]
    (deployment,) = read_rows(tmp_path / "out", "deployments").values()
    assert deployment["deploymentStart"] == row["timestamp"]
    with raises_naming(UserError, "media.csv", "row 1", "timestamp", "utc_offset"):
        export(bad, tmp_path / "bad-out", settings=CamtrapSettings(coordinate_digits="recorded", contributor=("A",)))
    with raises_naming(UserError, "datapackage.json", "contributors", "--contributor"):
        export(good, tmp_path / "anonymous", settings=CamtrapSettings(coordinate_digits=2))


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2021-05-01", "2021-06-01", ("2021-05-01T00:00:00-03:30", "2021-06-01T23:59:59-03:30")),
        ("2021-05-01T08:00:00", "2021-06-01 09:30", ("2021-05-01T08:00:00-03:30", "2021-06-01T09:30:00-03:30")),
        ("2021-05-01T08:00:00+02:00", "someday", ("2021-05-01T08:00:00+02:00", "someday")),
    ],
)
def test_the_stated_offset_completes_start_and_end(start: str, end: str, expected: tuple[str, str]) -> None:
    deployment = Deployment("A", utc_offset="-03:30")
    assert (_complete_time(start, deployment, second=0), _complete_time(end, deployment, second=86399)) == expected
    assert _complete_time(start, Deployment("A"), second=0) == start


def test_event_times_are_shifted_and_get_the_stated_offset(tmp_path: Path) -> None:
    package = copy_package(tmp_path / "package", images=True)
    rows = read_rows(package, "observations")
    rows["o00"] |= {"eventStart": "2023-05-03T05:44:19", "eventEnd": "2023-05-03T05:44:21.75"}
    # As MegaDetector writes the time of its run.
    rows["o01"] |= {"classificationTimestamp": "2024-01-10T12:00:00"}
    write_rows(package, "observations", rows)
    collection = import_package(package, tmp_path / "collection")
    with raises_naming(UserError, "observations.csv", "eventStart", "--utc-offset"):
        export(collection, tmp_path / "none")
    result = export(collection, tmp_path / "out", settings=RECORDED.model_copy(update={"utc_offset": ("+02:00",)}))
    written = read_rows(tmp_path / "out", "observations")
    assert [written["o00"][name] for name in ("eventStart", "eventEnd")] == [
        "2023-05-03T05:44:19+02:00",
        "2023-05-03T05:44:21+02:00",
    ]
    assert written["o01"]["classificationTimestamp"] == ""
    assert result.counts["times of classifications left out, which have no offset from UTC"] == 1


@pytest.mark.parametrize(
    ("text", "shift", "expected"),
    [
        ("2023-05-03T05:44:19Z", 0, "2023-05-03T05:44:19Z"),
        ("2023-05-03T05:44:19+01:00", 3600, "2023-05-03T06:44:19+01:00"),
        ("2023-05-03T23:44:19.9", 3600, "2023-05-04T00:44:19-03:30"),
        ("", 3600, ""),
    ],
)
def test_one_event_time(text: str, shift: int, expected: str) -> None:
    deployment = Deployment("A", utc_offset="-03:30", clock_shift=shift)
    assert _complete_event_time(text, deployment) == expected


def test_a_second_package_leaves_the_first_ones_description(tmp_path: Path) -> None:
    descriptor = read_descriptor(GOLDEN)
    people = [{"title": "Second", "role": "contact"}, *descriptor["contributors"]]
    other = descriptor | {"name": "second", "title": "Other", "contributors": people, "coordinatePrecision": 0.1}
    other["taxonomic"] = [{"scientificName": "Lynx lynx"}]
    target = tmp_path / "both"
    for package in (GOLDEN, copy_package(tmp_path / "second", {"datapackage.json": other})):
        both = import_package(package, target)
    assert len(both.dataset_table("survey")) == 2
    export_camtrap_dp(both, tmp_path / "out", settings=CamtrapSettings(coordinate_digits="recorded"))
    written = read_descriptor(tmp_path / "out")
    assert written["title"] == descriptor["title"]
    assert [entry["title"] for entry in written["contributors"]] == [
        *(entry["title"] for entry in descriptor["contributors"]),
        "Second",
    ]
    assert "coordinatePrecision" not in written


def test_equal_sequence_ids_of_two_deployments_are_two_events(tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "c", source="cct") as writer:
        for number, name in enumerate(("a", "b")):
            medium = Medium(f"{name}/1", name, "1", time=f"2024-05-0{number + 1}T10:00:00+00:00", file=f"{name}/1.jpg")
            writer.add(medium.key, jpeg(number), extra=survey_rows(medium))
        deployments = [Deployment(name, name, 50.0, 4.0) for name in ("a", "b")]
        seen = Observation("1", "a", event="1", level="event", kind="animal", taxon="Lepus", method="human")
        write_survey(writer, deployments=deployments, event_observations=[seen])
    options = CamtrapSettings(coordinate_digits="recorded", contributor=("A",))
    collection = Collection.open(tmp_path / "c")
    pooled = Decision(event="b/1", kind="blank", probability=0.9)
    export_camtrap_dp(collection, tmp_path / "out", settings=options, decisions=[pooled], events={"b/1": ["b/1"]})
    rows = read_rows(tmp_path / "out", "observations").values()
    spans = {(row["observationType"], row["eventStart"][:10], row["eventEnd"][:10]) for row in rows}
    assert ("animal", "2024-05-01", "2024-05-01") in spans
    assert ("blank", "2024-05-02", "2024-05-02") in spans
    with raises_naming(UserError, "event '1'"):
        export_camtrap_dp(collection, tmp_path / "no", settings=options, decisions=[Decision(event="1")])


def test_times_of_two_offsets_are_ordered_by_instant(tmp_path: Path) -> None:
    times = ("2024-10-27T02:59:50+02:00", "2024-10-27T02:00:10+01:00")  # 20 s, over the end of daylight saving
    with CollectionWriter(tmp_path / "c", source="cct") as writer:
        for number, time in enumerate(times):
            medium = Medium(f"a/{number}", "a", "1", time=time, file=f"a/{number}.jpg")
            writer.add(medium.key, jpeg(number), extra=survey_rows(medium))
        write_survey(writer, deployments=[Deployment("a", "a", 50.0, 4.0)])
    pooled = Decision(event="1", kind="blank", probability=0.9)
    settings = CamtrapSettings(coordinate_digits="recorded", contributor=("A",))
    export(Collection.open(tmp_path / "c"), tmp_path / "out", settings=settings, decisions=[pooled])
    (row,) = (row for row in read_rows(tmp_path / "out", "observations").values() if row["observationType"] == "blank")
    assert (row["eventStart"], row["eventEnd"]) == times
    (deployment,) = read_rows(tmp_path / "out", "deployments").values()
    assert (deployment["deploymentStart"], deployment["deploymentEnd"]) == times
