"""Goldens of shared/goldens/cosmo: local hours, months, events, rounded coordinates."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.survey.deployments import round_deployments, round_place
from foveate.survey.hours import (
    days_of_year,
    group_events,
    hours_of_day,
    local_clock,
    months,
    parse_offset,
    parse_times,
)
from foveate.survey.types import Deployment
from naming import raises_naming

GOLDENS = Path(__file__).resolve().parents[1] / "goldens" / "cosmo"


def read(name: str) -> Any:
    return json.loads((GOLDENS / name).read_text(encoding="utf-8"))


def test_local_hours_of_the_golden() -> None:
    cases = read("local_hour.json")
    times = parse_times([case["timestamp"] for case in cases])
    shift_N = np.array([case["clock_shift_seconds"] for case in cases])
    minutes = [case["deployment_utc_offset_minutes"] for case in cases]
    offset_N = np.array([np.nan if value is None else value * 60.0 for value in minutes])
    clock_N = local_clock(times, shift_N=shift_N, place_offset_N=offset_N)
    hours = hours_of_day(np.where([case["timestamp_issues"] for case in cases], np.nan, clock_N))
    expected = [np.nan if case["expected_hour"] is None else case["expected_hour"] for case in cases]
    np.testing.assert_array_equal(hours, expected)


def test_hours_and_months_of_the_golden() -> None:
    cases = read("hours.json")
    wall_N = parse_times([case["timestamp"] for case in cases]).wall_N
    result = np.stack([months(wall_N), hours_of_day(wall_N)], axis=1)
    np.testing.assert_array_equal(result, [case["month_hour"] for case in cases])


def group_rows(rows: list[dict[str, Any]], gap_seconds: float) -> list[list[str]]:
    def codes(name: str) -> np.ndarray:
        values = [row.get(name) for row in rows]
        known = sorted({value for value in values if value is not None})
        return np.array([-1 if value is None else known.index(value) for value in values], np.int64)

    times = parse_times([row["timestamp"] for row in rows])
    files = [row["file"] for row in rows]
    events = group_events(
        codes("deployment"),
        times.wall_N - np.nan_to_num(times.offset_N),
        sequence_N=codes("seq_id"),
        frame_N=np.array([row.get("frame", -1) for row in rows]),
        files=pa.array(files),
        gap_seconds=gap_seconds,
    )
    for event in range(len(events)):
        assert set(events.event_N[events.rows(event)]) == {event}
    return [[files[row] for row in events.rows(event)] for event in range(len(events))]


@pytest.mark.parametrize("case", read("events.json"), ids=lambda case: f"{case['gap_seconds']}")
def test_events_of_the_golden(case: dict[str, Any]) -> None:
    assert group_rows(case["rows"], case["gap_seconds"]) == case["expected_groups"]
    assert group_rows(case["rows"][::-1], case["gap_seconds"]) == case["expected_groups"]


def test_images_of_one_second_are_ordered_by_frame_and_file() -> None:
    rows = [{"deployment": "d", "file": name, "timestamp": "2021-05-31 08:25:40"} for name in ("b", "c", "a")]
    assert group_rows(rows, 60) == [["a", "b", "c"]]
    for row, frame in zip(rows, (1, 0, 2), strict=True):
        row["frame"] = frame
    assert group_rows(rows, 60) == [["c", "b", "a"]]


@pytest.mark.parametrize("rule", ["camtrapdp", "conservative"])
def test_rounded_coordinates_of_the_goldens(rule: Any) -> None:
    golden = read("coordinate_rounding.json" if rule == "conservative" else "coordinate_rounding_camtrapdp.json")
    cases = golden if rule == "conservative" else golden["cases"]
    for case in cases:
        options = {"digits": case["digits"], "uncertainty": case["original_uncertainty_m"], "rule": rule}
        options["precision"] = case.get("original_precision")
        if "error" in case:
            with raises_naming(UserError, "coordinatePrecision", case["original_precision"], case["digits"]):
                round_place(case["latitude"], case["longitude"], **options)
            continue
        place = round_place(case["latitude"], case["longitude"], **options)
        result = [place.latitude, place.longitude, place.precision, place.uncertainty]
        expected = [*case["expected"], case["coordinate_precision"], case["expected_uncertainty_m"]]
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-9)


def test_deployments_are_rounded_or_dropped() -> None:
    known = Deployment("a", latitude=-0.0004, longitude=179.99999, uncertainty=12)
    rounded = round_deployments([known, Deployment("b")], digits=2)
    assert rounded == [Deployment("a", latitude=0.0, longitude=180.0, uncertainty=1582), Deployment("b")]
    assert str(rounded[0].latitude) == "0.0"
    assert round_deployments([known], digits="drop") == [Deployment("a")]
    with raises_naming(UserError, "coordinates", "1 decimals", "2 digits"):
        round_deployments([Deployment("a", latitude=50.5, longitude=4.25)], digits=2)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("+02:00", 7200),
        ("-0330", -12600),
        ("Z", 0),
        ("UTC+1", 3600),
        ("+14:00", 50400),
        ("\N{MINUS SIGN}5", -18000),
    ],
)
def test_offsets_of_places(text: str, seconds: int) -> None:
    assert parse_offset(text) == seconds


@pytest.mark.parametrize("text", ["Europe/Brussels", "+15:00", "+01:75", "CEST", "2"])
def test_offsets_that_are_none_are_refused(text: str) -> None:
    with raises_naming(UserError, "row 3", text, "+02:00"):
        parse_offset(text, where="row 3: utc_offset")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)), min_size=1, max_size=8), st.data())
def test_times_equal_those_of_python(times: list[datetime], data: st.DataObject) -> None:
    zones = data.draw(st.lists(st.none() | st.integers(-840, 840), min_size=len(times), max_size=len(times)))
    zoned = [
        time if minutes is None else time.replace(tzinfo=timezone(timedelta(minutes=minutes)))
        for time, minutes in zip(times, zones, strict=True)
    ]
    parsed = parse_times([time.isoformat(sep=" ") for time in zoned])
    epoch = datetime(1970, 1, 1)
    np.testing.assert_allclose(parsed.wall_N, [(time - epoch).total_seconds() for time in times], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(parsed.offset_N, [np.nan if zone is None else zone * 60 for zone in zones])
    np.testing.assert_array_equal(hours_of_day(parsed.wall_N), [time.hour for time in times])
    np.testing.assert_array_equal(months(parsed.wall_N), [time.month for time in times])
    np.testing.assert_array_equal(days_of_year(parsed.wall_N), [time.timetuple().tm_yday for time in times])


@settings(max_examples=60, deadline=None)
@given(
    st.text(max_size=30) | st.from_regex(r"\d{1,5}[-:]\d{1,3}[-:]\d{1,3} \d{1,3}:\d{1,3}(:\d{1,3})?", fullmatch=True)
)
def test_any_text_is_a_time_or_has_a_reason(text: str) -> None:
    times = parse_times([text])
    assert (times.status_N[0] == 0) == np.isfinite(times.wall_N[0])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-1, 2), st.none() | st.integers(0, 300), st.integers(-1, 1), st.integers(0, 3)),
        min_size=1,
        max_size=25,
    ),
    st.sampled_from([0, 30, 60]),
)
def test_events_equal_those_of_a_loop(rows: list[tuple[int, int | None, int, int]], gap: int) -> None:
    deployment, instants, sequence, frame = zip(*rows, strict=True)
    instant = [np.nan if value is None else float(value) for value in instants]
    files = [f"{number:02}" for number in range(len(rows))]
    columns = (np.array(values) for values in (deployment, instant, sequence, frame))
    deployment_N, instant_N, sequence_N, frame_N = columns
    options = {"sequence_N": sequence_N, "frame_N": frame_N, "files": pa.array(files), "gap_seconds": gap}
    events = group_events(deployment_N, instant_N, **options)
    order = sorted(
        range(len(rows)), key=lambda row: (deployment[row], np.nan_to_num(instant[row], nan=np.inf), frame[row], row)
    )
    expected: list[list[int]] = []
    in_sequence: dict[tuple[int, int], list[int]] = {}
    last: int | None = None
    for row in order:
        if sequence[row] >= 0:
            name = (deployment[row], sequence[row])
            if name not in in_sequence:
                expected.append(in_sequence.setdefault(name, []))
            in_sequence[name].append(row)
            continue
        joins = last is not None and deployment[last] == deployment[row] and instant[row] - instant[last] <= gap
        if joins:
            next(event for event in expected if last in event).append(row)
        else:
            expected.append([row])
        last = row
    assert [events.rows(event).tolist() for event in range(len(events))] == expected


def test_times_that_are_none_have_a_reason() -> None:
    texts = ["", "  ", None, "2021-05-31", "31/05/2021 08:25", "2021-13-01 10:00:00", "2021-05-31T08:25:38+19:00"]
    texts += ["0000:00:00 00:00:00", "NaN", "2021-05-31 08:25", "2021/05/31 08:25:38.5", "2020-02-29T23:59:59.25+0530"]
    times = parse_times(texts)
    assert times.status_N.tolist() == [1, 1, 1, 2, 3, 4, 4, 4, 3, 0, 0, 0]
    assert times.wall_N[-2] - times.wall_N[-3] == 38.5
    assert times.offset_N[-1] == 19800
    assert np.isnan(times.wall_N[:9]).all()
