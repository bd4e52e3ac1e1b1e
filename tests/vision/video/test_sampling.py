"""Which frames are sampled: stored numbers of the official code, rates, times as text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.vision.video.sampling import format_time, parse_time, sample
from naming import raises_naming

GOLDENS = Path(__file__).parents[2] / "goldens" / "slowfast"
SAMPLER = json.loads((GOLDENS / "sampler.json").read_text())


def _hash(rows: list[list[int]]) -> str:
    return hashlib.sha256(np.concatenate([np.array(row, dtype="<i4") for row in rows]).tobytes()).hexdigest()


def test_golden_sampler() -> None:
    for case in SAMPLER["cases"]:
        assert sample(case["total"], case["n"]) == case["idx"], case
    for case in SAMPLER["range_hashes"]:
        rows = [sample(total, case["n"]) for total in range(case["first_total"], case["last_total"] + 1)]
        assert _hash(rows) == case["sha256"], case


@given(st.integers(1, 3000), st.integers(1, 100))
def test_uniform_mid_repeats_nothing(total: int, num_frames: int) -> None:
    frames = sample(total, num_frames, rule="uniform_mid")
    assert len(frames) == len(set(frames)) == min(total, num_frames)
    assert [total - 1 - frame for frame in reversed(frames)] == pytest.approx(frames, abs=1)  # centered


def test_rate_follows_times_and_not_positions() -> None:
    times = [0.0, 0.1, 0.2, 0.3, 2.0, 4.0]
    assert sample(6, rule="fps", fps=1, times=times) == [0, 3, 4, 5]
    assert sample(6, 2, rule="fps", fps=1, times=times) == [0, 5]
    assert sample(6, 1, rule="fps", fps=1, times=times) == [0]
    assert sample(100, rule="fps", fps=2, times=[5 + index / 25 for index in range(100)]) == [
        0,
        12,
        25,
        37,
        50,
        62,
        75,
        87,
    ]


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=50), st.floats(0.01, 100), st.integers(1, 20))
def test_rate_gives_frames_of_the_clip_in_order(times: list[float], fps: float, num_frames: int) -> None:
    frames = sample(len(times), num_frames, rule="fps", fps=fps, times=sorted(times))
    assert frames == sorted(set(frames))
    assert 1 <= len(frames) <= num_frames
    assert 0 <= frames[0] <= frames[-1] < len(times)


def test_sampling_refuses_what_it_cannot_do() -> None:
    with raises_naming(UserError, "midpiont", "midpoint"):
        sample(10, rule="midpiont")  # type: ignore[arg-type]
    for options in ({"rule": "fps"}, {"fps": 2.0}, {"rule": "fps", "fps": float("nan"), "times": [0.0] * 10}):
        with raises_naming(UserError, "fps"):
            sample(10, **options)
    with raises_naming(UserError, "times", 10, 3):
        sample(10, rule="fps", fps=1, times=[0.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("text", "seconds"), [("80", 80), ("1:20", 80), ("1:02:03.5", 3723.5), ("0:05", 5), ("90:00", 5400), (" .5", None)]
)
def test_times_as_text(text: str, seconds: float | None) -> None:
    if seconds is None:
        with raises_naming(UserError, text):
            parse_time(text)
    else:
        assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "-3", "1:60", "1:60:00", "1:2:3:4", "1m", "nan", "1e3", "٣"])
def test_unreadable_times_are_refused(text: str) -> None:
    with raises_naming(UserError, f"'{text}'"):
        parse_time(text)


@given(st.floats(0, 1e5))
def test_formatted_times_read_back(seconds: float) -> None:
    assert parse_time(format_time(seconds)) == pytest.approx(seconds, abs=0.0501)
