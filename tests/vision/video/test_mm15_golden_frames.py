"""Frames of a video against stored numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.vision.video.sampling import MM15_NUM_FRAMES, sample
from naming import raises_naming

GOLDENS = Path(__file__).parents[2] / "goldens" / "mm15"
CASES = json.loads((GOLDENS / "video_frames.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["n_total"]))
def test_golden_frames(case: dict) -> None:
    assert sample(case["n_total"], case["n_frames"], rule="linspace") == case["linspace_floor"]
    assert sample(case["n_total"], case["n_frames"], rule="midpoint") == case["midpoint"]


def test_default_is_the_papers() -> None:
    assert json.loads((GOLDENS / "stages.json").read_text())["mm15_video"]["frames"] == MM15_NUM_FRAMES


@given(st.integers(1, 5000), st.integers(1, 64), st.sampled_from(["linspace", "midpoint"]))
def test_frames_are_in_order_and_inside(length: int, num_frames: int, rule: str) -> None:
    frames = sample(length, num_frames, rule=rule)
    assert len(frames) == num_frames
    assert frames == sorted(frames)
    assert 0 <= frames[0] <= frames[-1] < length
    gaps = np.diff(frames)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(("length", "num_frames"), [(0, 24), (-3, 24), (10, 0)])
def test_no_frames_are_refused(length: int, num_frames: int) -> None:
    with raises_naming(UserError, "video", length, num_frames):
        sample(length, num_frames, rule="linspace")
