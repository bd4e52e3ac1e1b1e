"""Flat tables of a survey: our CSV, and the image table of Wildlife Insights."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from made_images import jpeg
from made_surveys import copy_package, import_package

from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.writer import CollectionWriter
from foveate.survey.detections import Decision
from foveate.survey.exporters.image_tables import CSV_COLUMNS, export_observations_csv, export_wildlife_insights
from foveate.survey.exporters.survey_rows import MergedObservations, SurveyRows, list_image_labels
from foveate.survey.store import survey_rows, write_survey
from foveate.survey.taxa import Taxa
from foveate.survey.types import Deployment, Medium, Observation
from naming import raises_naming

FOX = "5a5a5a5a-0000-4000-8000-000000000001"
TAXA = Taxa.from_rows(
    [
        {"id": "c", "name": "Mammalia", "rank": "class"},
        {"id": "f", "name": "Canidae", "rank": "family", "parent": "c"},
        {"id": FOX, "name": "Vulpes vulpes", "rank": "species", "parent": "f", "common": "red fox"},
    ]
)
DECISIONS = [
    Decision(
        event="e1", taxon="Vulpes vulpes", taxon_id=FOX, rank="species", probability=0.9, source=("pool", "rollup")
    ),
    Decision(key="media/dep-B/IMG_0004", kind="blank", probability=0.75),
    Decision(key="media/dep-C/IMG_0007", kind="unknown", probability=0.3, source=("abstain",)),
]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    folder = tmp_path_factory.mktemp("tables")
    package = copy_package(folder / "package")
    # Without the row of a person, which the pooled decision would not touch.
    observations = package / "observations.csv"
    lines = [line for line in observations.read_text().splitlines() if not line.startswith("o03,")]
    observations.write_text("\n".join(lines) + "\n")
    return import_package(package, folder / "collection")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_flat_table_has_a_line_for_each_image_and_taxon(collection: Collection, tmp_path: Path) -> None:
    assert export_observations_csv(collection, tmp_path / "before.csv") == 10
    before = {row["file"].rpartition("_")[2]: row for row in read(tmp_path / "before.csv")}
    assert list(before["0000.JPG"]) == list(CSV_COLUMNS)
    assert list(before["0000.JPG"].values()) == [
        "media/dep-A/IMG_0000.JPG",
        "e1",
        "dep-A",
        "2023-05-03T05:44:19+02:00",
        "Vulpes vulpes",
        "species",
        "0.93",
        "machine",
    ]
    export_observations_csv(collection, tmp_path / "after.csv", decisions=DECISIONS, taxa=TAXA)
    after = {row["file"].rpartition("_")[2]: row for row in read(tmp_path / "after.csv")}
    # A pooled decision is one about each image of its event; the rest stays.
    assert [after[f"000{n}.JPG"]["taxon"] for n in (0, 1, 2, 4, 5, 7)] == [
        *["Vulpes vulpes"] * 3,
        "blank",
        "Meles meles",
        "unknown",
    ]
    assert (after["0002.JPG"]["score"], after["0002.JPG"]["source"]) == ("0.9", "pool;rollup")


def test_the_table_of_wildlife_insights_names_taxa_by_rank(collection: Collection, tmp_path: Path) -> None:
    options = {"project": "p", "classifier": "model 1", "decisions": DECISIONS, "taxa": TAXA}
    export = export_wildlife_insights(collection, tmp_path / "images.csv", **options)
    rows = read(tmp_path / "images.csv")
    assert len(rows) == export.lines
    labels = list_image_labels(MergedObservations(SurveyRows(collection), DECISIONS), taxa=TAXA, classifier="m")
    assert export.left_out.total() == sum(1 for _ in labels) - len(rows) > 0
    by_name = {row["location"].rpartition("_")[2]: row for row in rows}
    fox = by_name["0001.JPG"]
    assert [fox[name] for name in ("wi_taxon_id", "class", "family", "genus", "species", "common_name")] == [
        FOX,
        "Mammalia",
        "Canidae",
        "Vulpes",
        "vulpes",
        "red fox",
    ]
    assert (fox["timestamp"], fox["uncertainty"], fox["number_of_objects"]) == ("2023-05-03 05:44:20", "0.1", "1")
    assert (by_name["0004.JPG"]["number_of_objects"], by_name["0004.JPG"]["common_name"]) == ("0", "Blank")
    # A name that the taxonomy lacks is not placed; abstentions are not written.
    assert by_name["0005.JPG"]["species"] == ""
    assert by_name["0005.JPG"]["number_of_objects"] == "2"
    assert "0007.JPG" not in by_name
    with raises_naming(UserError, "project"):
        export_wildlife_insights(collection, tmp_path / "none.csv", project=" ", classifier="m")


def test_wildlife_insights_gets_the_clock_at_the_place(tmp_path: Path) -> None:
    times = {"utc": "2021-05-31T06:25:38Z", "local": "2021:05:31 08:25:38"}
    with CollectionWriter(tmp_path / "c", source="s") as writer:
        for number, (name, time) in enumerate(times.items()):
            seen = Observation(name, "d", key=name, kind="blank", method="human")
            writer.add(name, jpeg(number), extra=survey_rows(Medium(name, "d", time=time), [seen]))
        write_survey(writer, deployments=[Deployment("d", utc_offset="+02:00", clock_shift=60)])
    collection = Collection.open(tmp_path / "c")
    export_wildlife_insights(collection, tmp_path / "images.csv", project="p", classifier="m")
    assert [row["timestamp"] for row in read(tmp_path / "images.csv")] == ["2021-05-31 08:26:38"] * 2


@pytest.mark.parametrize("shift", [0, 60])
def test_the_flat_table_has_the_time_at_the_place(shift: int, tmp_path: Path) -> None:
    times = {"utc": "2021-05-31T22:25:38Z", "same": "2021-06-01T00:25:38+02:00", "none": ""}
    with CollectionWriter(tmp_path / "c", source="s") as writer:
        for number, (name, time) in enumerate(times.items()):
            seen = Observation(name, "d", key=name, kind="blank", method="human")
            writer.add(name, jpeg(number), extra=survey_rows(Medium(name, "d", time=time), [seen]))
        write_survey(writer, deployments=[Deployment("d", utc_offset="+02:00", clock_shift=shift)])
    export_observations_csv(Collection.open(tmp_path / "c"), tmp_path / "observations.csv")
    expected = f"2021-06-01T00:{25 + shift // 60}:38+02:00"
    assert [row["datetime"] for row in read(tmp_path / "observations.csv")] == [expected, expected, ""]


def test_a_row_that_is_empty_and_a_species_is_left_out_by_name(tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "survey", source="test") as writer:
        for number, taxon in enumerate(("", "Vulpes vulpes")):
            medium = Medium(f"a/{number}", "a", time="2024-05-01T10:00:00", file=f"a/{number}.JPG")
            seen = Observation(f"o{number}", "a", key=medium.key, kind="blank", taxon=taxon, method="human")
            writer.add(medium.key, jpeg(number), extra=survey_rows(medium, [seen]))
        write_survey(writer, deployments=[Deployment("a")])
    survey = Collection.open(tmp_path / "survey")
    export = export_wildlife_insights(survey, tmp_path / "images.csv", project="p", classifier="m")
    assert export.lines == 1
    assert list(export.left_out) == ["called empty and a species at once: a/1.JPG (Vulpes vulpes)"]
    # The flat table has room for both.
    export_observations_csv(survey, tmp_path / "flat.csv")
    assert [row["taxon"] for row in read(tmp_path / "flat.csv")] == ["blank", "Vulpes vulpes"]
