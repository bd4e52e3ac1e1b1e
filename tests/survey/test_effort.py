"""Effort tables against numbers computed by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from made_images import encoded, noise
from made_surveys import EXAMPLE, needs_example

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.records.writer import CollectionWriter
from foveate.survey.effort import (
    count_active_days,
    count_nights,
    filter_independent,
    read_records,
    relative_abundance,
    write_effort,
)
from foveate.survey.importers.camtrap_dp import import_camtrap_dp
from foveate.survey.store import make_context, survey_rows, write_survey
from foveate.survey.survey import Survey
from foveate.survey.types import Deployment, Medium, Observation

FOX, DEER = "Vulpes vulpes", "Cervus elaphus"
# Of station oak: 10 nights of two cameras; of creek: 4 nights, without a stated end.
DEPLOYMENTS = (
    Deployment("oak-1", "oak", start="2026-05-01", end="2026-05-08"),
    Deployment("oak-2", "oak", start="2026-05-12 09:00:00", end="2026-05-15 17:00:00"),
    Deployment("creek", start="2026-05-01"),
)
SEEN = (
    ("oak-1", "2026-05-02 20:00:00", FOX, "human"),
    ("oak-1", "2026-05-02 20:20:00", FOX, "human"),
    ("oak-1", "2026-05-02 20:40:00", FOX, "human"),
    ("oak-1", "2026-05-02 20:40:00", DEER, "machine"),
    ("oak-2", "2026-05-15 06:00:00", FOX, "human"),
    ("creek", "2026-05-05 20:30:00", FOX, "machine"),
    ("creek", "", FOX, "human"),
    ("creek", "2026-05-03 12:00:00", "person", "human"),
)


@pytest.fixture
def survey(tmp_path: Path) -> Survey:
    with CollectionWriter(tmp_path / "survey", source="test") as writer:
        owners = {deployment.id: deployment for deployment in DEPLOYMENTS}
        for number, (owner, time, taxon, method) in enumerate(SEEN):
            medium = Medium(f"{number}", owner, time=time, file=f"{owner}/IMG_{number}.JPG")
            kind = "human" if taxon == "person" else "animal"
            name = "" if taxon == "person" else taxon
            rows = [Observation(f"o{number}", owner, key=medium.key, kind=kind, taxon=name, method=method)]
            if number == 0:
                # A model's answer beside a person's, and a second animal of the person: neither is a record more.
                rows.append(Observation("m", owner, key="0", kind="animal", taxon=DEER, method="machine"))
                rows.append(Observation("p", owner, key="0", kind="animal", taxon=FOX, method="human"))
            context = make_context(medium, owners[owner])
            writer.add(medium.key, encoded(noise(number)), context=context, extra=survey_rows(medium, rows))
        write_survey(writer, deployments=DEPLOYMENTS)
    return Survey.open(tmp_path / "survey")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("minutes", "compared_to", "independent", "seconds"),
    [
        # 0, 20, 40, 70 minutes: after the last independent one, 40 is, and 70 is exactly 30 later.
        (30, "lastIndependentRecord", [True, False, True, True], [0, 1200, 2400, 1800]),
        (30, "lastRecord", [True, False, False, True], [0, 1200, 1200, 1800]),
        (0, "lastIndependentRecord", [True, True, True, True], [0, 1200, 1200, 1800]),
        (60, "lastIndependentRecord", [True, False, False, True], [0, 1200, 2400, 4200]),
    ],
)
def test_independence(minutes: float, compared_to: str, independent: list[bool], seconds: list[float]) -> None:
    times = np.array([0.0, 20, 40, 70]) * 60
    mask, waits = filter_independent(times, np.zeros(4, np.int64), minutes=minutes, compared_to=compared_to)  # type: ignore[arg-type]
    assert (mask.tolist(), waits.tolist()) == (independent, seconds)
    # Another species or station begins anew, and records of one second count once.
    mask, _ = filter_independent(np.array([0.0, 0, 0]), np.array([0, 0, 1]), minutes=0)
    assert mask.tolist() == [True, False, True]


def test_nights_days_and_index() -> None:
    days = np.array([[0.0, 30.0], [10.0, 10.0], [np.nan, 3.0]])
    assert count_nights(days)[:2].tolist() == [30, 0]
    assert np.isnan(count_nights(days)[2])
    # Occasions of 7 days from day 0: the second deployment is active on its one day.
    assert count_active_days(days, np.array([0.0, 7, 14, 21, 28]), 7).tolist() == [
        [7, 7, 7, 7, 3],
        [0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    assert relative_abundance(6, 240) == 2.5
    assert np.isnan(relative_abundance(1, 0))
    with pytest.raises(UserError, match="ends before it begins"):
        count_nights(np.array([[5.0, 4.0]]))


def test_tables_of_a_survey(survey: Survey, tmp_path: Path) -> None:
    records = read_records(survey)
    assert (len(records.taxa_R), records.without_time) == (6, 1)
    result = write_effort(survey, records, tmp_path / "out", occasion_days=5)
    # Nights: 7 of oak-1, 3 of oak-2, 4 of creek, which is dated by its images until May 5.
    assert (result.independent, result.stations, result.nights, result.undated) == (5, 2, 14, ["creek"])
    rows = read(tmp_path / "out/effort.csv")
    assert [(row["deployment"], row["nights"], row["dates"], row["records"]) for row in rows] == [
        ("oak-1", "7", "stated", "3"),
        ("oak-2", "3", "stated", "1"),
        ("creek", "4", "images", "1"),
    ]
    rows = read(tmp_path / "out/records.csv")
    assert [(row["Station"], row["Species"], row["DateTimeOriginal"]) for row in rows] == [
        ("creek", FOX, "2026-05-05 20:30:00"),
        ("oak", DEER, "2026-05-02 20:40:00"),
        ("oak", FOX, "2026-05-02 20:00:00"),
        ("oak", FOX, "2026-05-02 20:40:00"),
        ("oak", FOX, "2026-05-15 06:00:00"),
    ]
    assert (rows[3]["delta.time.secs"], rows[3]["Directory"], rows[3]["FileName"]) == ("2400", "oak-1", "IMG_2.JPG")
    fox, deer = read(tmp_path / "out/abundance.csv")
    # 4 records in 14 nights: 28.57 per 100; 1: 7.143. The fox was at both stations.
    assert (fox["taxon"], fox["records"], fox["rai"], fox["naive_occupancy"]) == (FOX, "4", "28.57", "1")
    assert (deer["rai"], deer["stations"], deer["naive_occupancy"]) == ("7.143", "1", "0.5")
    activity = {row.pop("taxon"): row for row in read(tmp_path / "out/activity.csv")}
    assert {hour: count for hour, count in activity[FOX].items() if count != "0"} == {"06": "1", "20": "3"}
    # Occasions of 5 days from May 1: creek was active on 5 days of the first, oak on 5, 3 and 4.
    assert [list(row.values()) for row in read(tmp_path / "out/detections/effort.csv")] == [
        ["creek", "5", "0", "0"],
        ["oak", "5", "3", "4"],
    ]
    assert [list(row.values()) for row in read(tmp_path / "out/detections/Vulpes_vulpes.csv")] == [
        ["creek", "1", "NA", "NA"],
        ["oak", "1", "0", "1"],
    ]


def test_the_command_and_the_records_of_a_last_record(survey: Survey, tmp_path: Path) -> None:
    command = ["species", "summary", str(survey.collection.path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, [*command, "--compared-to", "lastRecord"], catch_exceptions=False)
    assert result.exit_code == 0
    # The three foxes of one evening are 20 minutes apart: one record.
    assert "4 independent of 6 records at 2 stations in 14 trap nights" in result.output
    assert "1 records left out" in result.output
    assert not any("person" in path.read_text() for path in (tmp_path / "out").rglob("*.csv"))


@needs_example
def test_a_package_without_images_has_tables(tmp_path: Path) -> None:
    import_camtrap_dp(EXAMPLE / "datapackage.json", tmp_path / "survey")
    survey = Survey.open(tmp_path / "survey", without_images=True)
    result = write_effort(survey, read_records(survey), tmp_path / "out")
    with (EXAMPLE / "deployments.csv").open(newline="") as file:
        dates = [(row["deploymentStart"][:10], row["deploymentEnd"][:10]) for row in csv.DictReader(file)]
    assert result.nights == sum(int((np.datetime64(end) - np.datetime64(start)).astype(int)) for start, end in dates)
    with (EXAMPLE / "observations.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["observationLevel"] == "media"]
    names = {row["scientificName"] or "animal" for row in rows if row["observationType"] == "animal"}
    assert {row["taxon"] for row in result.index} == names
