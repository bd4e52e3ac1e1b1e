"""Planted faults of a survey: each gives its finding and masks the hours that it makes unknown, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from made_images import jpeg

from foveate.cli.verbs.species.survey import check_command as command
from foveate.core.errors import UserError
from foveate.records.writer import CollectionWriter
from foveate.survey.checks import MEANINGS, CheckResult, check_survey, measure_km
from foveate.survey.health import HEALTH_CODES
from foveate.survey.hours import find_clock_faults, find_set_back, parse_times
from foveate.survey.store import survey_rows, write_survey
from foveate.survey.survey import Survey
from foveate.survey.types import Deployment, Medium, Observation
from naming import raises_naming

BOUNDS = parse_times(["2024-05-01 08:00:00", "2024-06-01 08:00:00"]).wall_N


@pytest.mark.parametrize(
    ("time", "fault"),
    [
        ("2024-05-02 03:00:00", None),
        ("2024-04-30 09:00:00", None),
        ("2024-04-30 07:59:59", "outside the deployment"),
        ("2024-06-02 08:00:01", "outside the deployment"),
        ("2023-05-02 03:00:00", "years off"),
        ("2025-05-02 03:00:00", "years off"),
        ("2018-01-01 00:12:00", "factory date"),
        ("2018-01-01 03:00:00", "years off"),
        ("", None),
    ],
)
def test_clocks_of_a_known_deployment(time: str, fault: str | None) -> None:
    assert find_fault(time, BOUNDS) == fault


@pytest.mark.parametrize(
    ("time", "fault"),
    [
        ("2000-01-01 00:12:00", "factory date"),
        ("2018-01-01 00:12:00", None),
        ("1999-07-01 10:00:00", "years off"),
        ("2030-01-01 12:00:00", "later than the import"),
        ("2024-07-01 12:00:00", None),
    ],
)
def test_clocks_of_an_unknown_deployment(time: str, fault: str | None) -> None:
    assert find_fault(time, np.array([np.nan, np.nan])) == fault


def find_fault(time: str, bounds: np.ndarray) -> str | None:
    masks = find_clock_faults(
        parse_times([time]).wall_N,
        np.zeros(1, np.int64),
        bounds_D2=bounds[None],
        imported_N=parse_times(["2024-07-01T00:00:00+00:00"]).wall_N,
        files=pa.array(["a"]),
    )
    faults = [fault for fault, mask_N in masks.items() if mask_N[0]]
    assert len(faults) <= 1
    return faults[0] if faults else None


def set_back(files: list[str], clock: list[float]) -> bool:
    zeros = np.zeros(len(files), np.int64)
    return bool(find_set_back(np.array(clock), zeros, pa.array(files), num_deployments=1)[0])


STEADY = [600.0 * n for n in range(12)]


def count_files(first: int, folder: str = "100RECNX") -> list[str]:
    return [f"{folder}/IMG_{first + n}" for n in range(12)]


@pytest.mark.parametrize(
    ("files", "clock", "expected"),
    [
        (count_files(1), STEADY, False),
        (count_files(1), [*STEADY[:6], *(time - 3600 for time in STEADY[6:])], True),
        (count_files(1), [*STEADY[6:], *STEADY[:6]], True),  # reset by new batteries
        (count_files(1)[:4], [7200, 9000, 0, 600], False),  # too few to tell names in another order from a clock
        (count_files(1), [*STEADY[:6], STEADY[6] - 630, *STEADY[7:]], False),  # files of a burst
        (count_files(1), [*STEADY[:6], np.nan, *(time - 7200 for time in STEADY[7:])], True),
        (["I_0001", "I_0002", *(f"I_{n}" for n in range(9988, 10000))], [90000, 91000, *STEADY, 0][:14], False),
        ([f"{n * 7919 % 65536:04x}-{n}" for n in range(12)], STEADY[::-1], False),  # hashes
        ([f"IMG_{7 * n % 40}" for n in range(40)], [300.0 * n for n in range(40)], False),  # named in another order
        (count_files(1) + count_files(1, "101RECNX"), [*(9e4 + time for time in STEADY), *STEADY], True),
        (count_files(1) + count_files(1, "101RECNX"), [*STEADY, *(9e4 + time for time in STEADY)], False),
        ([], [], False),
    ],
)
def test_clocks_that_run_backwards(files: list[str], clock: list[float], expected: bool) -> None:
    assert set_back(files, clock) == expected
    assert set_back(files[::-1], clock[::-1]) == expected


def build(folder: Path) -> Survey:
    """A survey with one of every fault."""
    zone = "2024-05-01T00:00:00+02:00"
    deployments = [
        Deployment("good", "creek", 51.50, 4.0, "2024-05-01", "2024-06-01"),
        Deployment("moved", "creek", 51.53, 4.0),
        Deployment("utc", "hill", 51.5, 4.1, zone),
        Deployment("mixed", "wood", 51.6, 4.2),
        Deployment("issues", "fen", 51.6, 4.0, timestamp_issues=True),
        Deployment("factory", "pond", 4.3, 51.4, "2024-05-01", "2024-06-01"),
        Deployment("null", latitude=0, longitude=0),
        Deployment("Good", "Creek", 51.5, 4.0),
        Deployment("empty"),
    ]
    media = [Medium(f"good/{n}", "good", time=f"2024-05-02 10:00:{n:02}") for n in range(3)]
    media += [Medium(f"back/{n:02}", "moved", time=f"2024-05-{(n + 6) % 12 + 1:02} 10:00:00") for n in range(12)]
    media += [Medium("utc", "utc", time="2024-05-02T08:00:00Z")]
    media += [
        Medium("mixed/1", "mixed", time="2024-05-02T08:00:00Z"),
        Medium("mixed/2", "mixed", time="2024-05-02 09:00:00"),
        Medium("mixed/3", "mixed", time="2024-09-02 09:00:00"),
    ]
    media += [Medium("issues", "issues", "s", time="2024-05-02 10:00:00"), Medium("utc2", "utc", "s")]
    media += [
        Medium("factory", "factory", time="2016-01-01 00:00:10"),
        Medium("null", "null", time="0000:00:00 00:00:00"),
    ]
    media += [Medium("stranger", "unlisted", time="2024-05-02"), Medium("top", "")]
    media += [Medium(f"stuck/{n:02}", "Good", time="2024-05-02 10:00:00") for n in range(20)]
    media += [
        Medium("long/1", "null", "q", time="2024-05-02 10:00:00"),
        Medium("long/2", "null", "q", time="2024-05-03 10:00:00"),
    ]
    seen = {
        "good/0": ["Lepus europaeus"],
        "good/1": ["Lepus europeus"],
        "good/2": ["Lepus europaeus", "Vulpes vulpes"],
        "back/00": [""],
    }
    with CollectionWriter(folder) as writer:
        for number, medium in enumerate(media):
            rows = [
                Observation("1", "good", medium.key, kind="animal", taxon=name) for name in seen.get(medium.key, ())
            ]
            data = jpeg(99 if medium.key in ("utc", "mixed/1") else number)
            writer.add(medium.key, data, extra=survey_rows(medium, rows))
        write_survey(writer, deployments=deployments)
    return Survey.open(folder)


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    return build(tmp_path_factory.mktemp("checks") / "c")


@pytest.fixture(scope="module")
def result(survey: Survey) -> CheckResult:
    return check_survey(survey)


EXPECTED = {
    ("no time", "utc", 1),
    ("no time", "unlisted", 1),
    ("no time", "", 1),
    ("impossible time", "null", 1),
    ("factory date", "factory", 1),
    ("set back", "moved", 12),
    ("stuck clock", "Good", 20),
    ("timestamp issues", "issues", 1),
    ("UTC at a place with another offset", "utc", 1),
    ("times with and without offset", "mixed", 3),
    ("gap of months", "mixed", 3),
    ("images without a deployment", "", 1),
    ("deployment without a row", "unlisted", 1),
    ("deployment without images", "empty", 0),
    ("similar names", "Good", 2),
    ("similar names", "Creek", 2),
    ("similar names", "Lepus europaeus", 3),
    ("no coordinates", "unlisted", 1),
    ("coordinates 0, 0", "null", 3),
    ("far from the others", "pond", 1),
    ("place with several coordinates", "creek", 2),
    ("equal files", "hill", 2),
    ("equal ids", "1", 5),
    ("long burst", "null", 2),
    ("sequence over deployments", "", 2),
    ("animal without a name", "", 1),
    ("several kinds in one image", "", 1),
}


def test_every_planted_fault_and_no_other_is_reported(result: CheckResult) -> None:
    assert {(entry.code, entry.subject, entry.count) for entry in result.findings} == EXPECTED
    elsewhere = {
        "dated by file",
        "years off",
        "outside the deployment",
        "later than the import",
        "stopped early",
        *HEALTH_CODES,
    }
    assert {entry.code for entry in result.findings} == set(MEANINGS) - elsewhere
    order = [list(MEANINGS).index(entry.code) for entry in result.findings]
    assert order == sorted(order)


def test_findings_say_what_people_need(result: CheckResult) -> None:
    by_code = {(entry.code, entry.subject): entry for entry in result.findings}
    assert "2016-01-01 00:00:10" in by_code["factory date", "factory"].detail
    assert by_code["factory date", "factory"].examples == ("factory",)
    assert "'0000:00:00 00:00:00'" in by_code["impossible time", "null"].detail
    assert "swapped" in by_code["far from the others", "pond"].detail
    assert "wood" in by_code["equal files", "hill"].detail
    text = "\n".join(result.lines())
    assert all(code in text and repair in text for code, (_, repair) in MEANINGS.items() if f"\n{code}:" in text)
    assert "clock_shift" in text
    # What is printed is often sent to others.
    assert "51.4" not in text
    assert "4.3" not in text


def test_faults_mask_hours_and_are_counted(survey: Survey, result: CheckResult) -> None:
    hours = dict(zip(survey.keys, survey.hour_N.tolist(), strict=True))
    known = {key for key, hour in hours.items() if not np.isnan(hour)}
    stuck = {key for key in hours if key.startswith("stuck")}
    assert known == {"good/0", "good/1", "good/2", "mixed/1", "mixed/2", "mixed/3", "long/1", "long/2", *stuck}
    assert result.counts["clock: set back"] == 12
    assert result.counts["clock: factory date"] == 1
    assert result.as_dict()["findings"][0]["repair"]  # type: ignore[index]


def test_a_shift_repairs_what_it_can(survey: Survey, tmp_path: Path) -> None:
    factory = next(entry for entry in survey.deployments if entry.id == "factory")
    shift = int(BOUNDS[0] - parse_times(["2016-01-01 00:00:10"]).wall_N[0])
    with CollectionWriter(tmp_path / "c") as writer:
        writer.add("factory", jpeg(1), extra=survey_rows(Medium("factory", "factory", time="2016-01-01 00:00:10")))
        write_survey(writer, deployments=[replace(factory, clock_shift=shift)])
    repaired = Survey.open(tmp_path / "c")
    assert repaired.hour_N.tolist() == [8.0]
    assert not check_survey(repaired).findings
    assert check_survey(repaired).lines()[-1] == "nothing is doubtful"


def test_single_checks_and_unknown_ones(survey: Survey) -> None:
    assert {entry.code for entry in check_survey(survey, only=["equal ids"]).findings} == {"equal ids"}
    with raises_naming(UserError, "no tine", "no time"):
        check_survey(survey, only=["no tine"])


def test_the_command_prints_findings_and_json(survey: Survey) -> None:
    arguments = [str(survey.collection.path), "--only", "set back", "--only", "no time", "--max-listed", "2"]
    text = CliRunner().invoke(command, arguments, catch_exceptions=False).output
    assert "set back" in text
    assert "stuck clock" not in text
    assert "and 1 more" in text
    result = json.loads(CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert [finding["code"] for finding in result["findings"]] == ["no time"] * 3 + ["set back"]
    assert result["findings"][3]["repair"] == MEANINGS["set back"][1]


def test_the_page_explains_every_check() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "surveys.md").read_text(encoding="utf-8")
    missing = [code for code, texts in MEANINGS.items() if f"| `{code}` | {texts[0]} | {texts[1]} |" not in page]
    assert not missing


def test_distances() -> None:
    places = np.array([[0, 1], [0, 180], [90, 7], [51.5, -0.25]])
    km = measure_km(places, np.array([[0.0, 0.0]]))
    np.testing.assert_allclose(km[:3], np.array([1, 180, 90]) * np.pi / 180 * 6371, rtol=1e-12)
