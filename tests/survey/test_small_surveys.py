"""Small surveys: a camera in each split, clocks that were reset, two seasons in a row, packages of addresses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_images import encoded, noise
from made_surveys import EXAMPLE, needs_example

from foveate.core.errors import UserError
from foveate.records.splits import assign_splits
from foveate.records.writer import CollectionWriter
from foveate.survey.checks import check_survey
from foveate.survey.hours import find_clock_faults
from foveate.survey.importers.camtrap_dp import import_camtrap_dp
from foveate.survey.store import make_context, survey_rows, write_survey
from foveate.survey.survey import Survey
from foveate.survey.types import Deployment, Medium

FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}


def write_cameras(folder: Path, times: Sequence[Sequence[str]], *, start: str = "") -> Survey:
    """Write a survey with a deployment for each list of times."""
    with CollectionWriter(folder, source="test") as writer:
        deployments = [Deployment(f"d{number}", start=start) for number in range(len(times))]
        for number, deployment in enumerate(deployments):
            for index, time in enumerate(times[number]):
                medium = Medium(f"{number}/{index:03}", deployment.id, time=time)
                context = make_context(medium, deployment)
                writer.add(medium.key, encoded(noise(100 * number + index)), context=context, extra=survey_rows(medium))
        write_survey(writer, deployments=deployments)
    return Survey.open(folder)


@pytest.mark.parametrize("cameras", [3, 10])
def test_each_split_has_a_camera_from_three_on(cameras: int, tmp_path: Path) -> None:
    write_cameras(tmp_path / "survey", [["2026-05-01 08:00:00"]] * cameras)
    for seed in range(40):
        summary = assign_splits(tmp_path / "survey", fractions=FRACTIONS, seed=seed)
        assert summary.cameras.keys() == FRACTIONS.keys(), seed
        assert summary.cameras["train"] >= cameras // 3, seed
        again = assign_splits(tmp_path / "survey", fractions=FRACTIONS, seed=seed)
        assert (again.moved, again.cameras) == (0, summary.cameras)


def test_two_cameras_and_splits_without_a_share_stay_as_drawn(tmp_path: Path) -> None:
    write_cameras(tmp_path / "survey", [["2026-05-01 08:00:00"]] * 2)
    counts = [assign_splits(tmp_path / "survey", fractions=FRACTIONS, seed=seed).cameras for seed in range(10)]
    assert {"train": 2} in counts
    fractions = {"train": 1.0, "test": 0.0}
    assert assign_splits(tmp_path / "survey", fractions=fractions).cameras == {"train": 2}


def find_faults(times: list[list[str]], starts: Sequence[str] = ()) -> list[str]:
    """Return the fault of each image of deployments, "" for none."""
    clock_N = np.array([np.datetime64(time, "s").astype(float) for group in times for time in group])
    deployment_N = np.repeat(np.arange(len(times)), [len(group) for group in times])
    bounds = np.full((len(times), 2), np.nan)
    for index, start in enumerate(starts):
        bounds[index, 0] = np.datetime64(start, "s").astype(float)
    files = [f"{number}.jpg" for number in range(len(clock_N))]
    imported_N = np.full(len(clock_N), np.datetime64("2026-12-01", "s").astype(float))
    masks = find_clock_faults(clock_N, deployment_N, bounds_D2=bounds, imported_N=imported_N, files=pa.array(files))
    return [next((name for name, mask in masks.items() if mask[row]), "") for row in range(len(clock_N))]


TRUE = ["2026-05-01 08:00:00", "2026-05-02 09:00:00"]


@pytest.mark.parametrize("reset", ["2000-01-03 10:00:00", "2015-01-01 00:10:00", "2019-01-01 12:00:00"])
def test_a_clock_that_was_reset_is_found_where_no_start_is_known(reset: str) -> None:
    later = str(np.datetime64(reset, "s") + np.timedelta64(20, "D"))
    assert find_faults([[*TRUE, reset, later]]) == ["", "", "factory date", "factory date"]
    # The same times at a place whose start is known were found before.
    assert find_faults([[*TRUE, reset]], ["2026-04-30"])[2] != ""


def test_a_camera_that_was_reset_before_its_first_image_is_compared_with_the_others() -> None:
    assert find_faults([TRUE, ["2015-01-01 00:10:00", "2015-01-09 08:00:00"]]) == ["", "", *["factory date"] * 2]
    assert find_faults([TRUE, ["2000-01-03 10:00:00"]])[2] == "factory date"
    # A season that began in January, and one of another year.
    assert find_faults([TRUE, ["2025-01-02 10:00:00"]]) == [""] * 3
    assert find_faults([["2025-05-01 08:00:00"], TRUE]) == [""] * 3
    assert find_faults([["2015-01-01 00:10:00"]]) == [""]


def test_two_seasons_in_one_row_are_told(tmp_path: Path) -> None:
    seasons = ["2026-03-01 08:00:00", "2026-04-01 08:00:00", "2026-07-20 08:00:00", "2026-08-01 08:00:00"]
    survey = write_cameras(tmp_path / "survey", [seasons, ["2026-05-01 08:00:00", "2026-06-15 08:00:00"]])
    (finding,) = check_survey(survey, only=["gap of months"]).findings
    assert (finding.subject, finding.count) == ("d0", 4)
    assert "110 days, from 2026-04-01 08:00:00 to 2026-07-20 08:00:00" in finding.detail
    assert finding.examples == ("0/001", "0/002")
    # The hours are those of a clock that runs well.
    assert survey.hour_N.tolist() == [8.0] * 6


@needs_example
def test_a_package_of_addresses_is_checked_without_an_image(tmp_path: Path) -> None:
    import_camtrap_dp(EXAMPLE / "datapackage.json", tmp_path / "survey")
    with pytest.raises(UserError, match="none of the images"):
        Survey.open(tmp_path / "survey")
    survey = Survey.open(tmp_path / "survey", without_images=True)
    # 423 media of 4 deployments in its tables; all have a time with an offset.
    assert (len(survey), len(survey.deployments), int(np.isnan(survey.hour_N).sum())) == (423, 4, 0)
    assert sorted(set(survey.camera_N.tolist())) == sorted({entry.camera for entry in survey.deployments})
    result = check_survey(survey)
    assert result.counts["images"] == 423
    assert not {"factory date", "years off", "no time", "gap of months"} & {entry.code for entry in result.findings}
