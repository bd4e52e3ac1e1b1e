"""Hints: planted clock faults, mis-filed folders and stones are ranked first; nothing is changed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from foveate.species.hints import (
    RepeatSettings,
    find_clock_hints,
    find_place_hints,
    find_repeated_boxes,
    normalized_ranks,
)

RNG = np.random.default_rng(0)


def test_ranks_equal_those_of_scipy() -> None:
    scores = RNG.integers(0, 4, (50, 7)).astype(float)
    columns = RNG.integers(0, 7, 50)
    expected = [(rankdata(-row)[column] - 1) / 6 for row, column in zip(scores, columns, strict=True)]
    np.testing.assert_allclose(normalized_ranks(scores, columns), expected)
    assert np.isnan(normalized_ranks(scores, np.full(50, -1))).all()
    assert np.isnan(normalized_ranks(scores[:, :1], np.zeros(50, int))).all()


@pytest.mark.parametrize("fault", [0, 3, 12, -5])
def test_a_wrong_clock_is_the_first_hint(fault: int) -> None:
    hours = RNG.normal(6, 2.0, 120) % 24
    deployments = np.repeat(["A", "B", "C"], 40)
    # The graph knows the true hour, up to noise; camera B writes another one.
    distance = np.abs((np.arange(24)[None] - np.floor(hours)[:, None] + 12) % 24 - 12)
    scores = -distance + RNG.normal(0, 1.0, (120, 24))
    recorded = np.where(deployments == "B", (hours + fault) % 24, hours)
    hints = find_clock_hints(scores, np.arange(24), recorded, deployments.tolist())
    by_name = {hint.deployment: hint for hint in hints}
    assert by_name["B"].shift_hours == -fault if fault != 12 else by_name["B"].shift_hours == 12
    assert by_name["A"].shift_hours == 0
    if fault:
        assert hints[0].deployment == "B"
    assert by_name["B"].implausible == (fault == 12)
    few = find_clock_hints(scores[:5], np.arange(24), recorded[:5], ["A"] * 5)
    assert few == []


def test_a_fault_of_three_hours_comes_before_a_camera_that_the_graph_does_not_know() -> None:
    hours = RNG.normal(12, 4.0, 120) % 24
    scores = -np.abs((np.arange(24)[None] - np.floor(hours)[:, None] + 12) % 24 - 12)
    deployments = np.repeat(["right", "late", "unknown"], 40)
    scores[deployments == "unknown"] = RNG.normal(0, 1, (40, 24))
    recorded = np.where(deployments == "late", (hours + 3) % 24, hours)
    hints = find_clock_hints(scores, np.arange(24), recorded, deployments.tolist())
    assert (hints[0].deployment, hints[0].shift_hours) == ("late", -3)
    assert hints[0].rank < next(hint.rank for hint in hints if hint.deployment == "unknown")


def test_a_misfiled_folder_names_the_likelier_camera() -> None:
    cameras = ["north", "south", "east"]
    true_place = np.repeat([0, 1, 1], 20)
    recorded = np.repeat([0, 1, 2], 20)  # the third folder holds images of south
    scores = RNG.normal(0, 0.5, (60, 3)) + 3 * np.eye(3)[true_place]
    hints = find_place_hints(scores, recorded, cameras, np.repeat(["d0", "d1", "d2"], 20).tolist())
    assert (hints[0].deployment, hints[0].likelier, hints[0].implausible) == ("d2", "south", True)
    assert not any(hint.implausible or hint.likelier for hint in hints[1:])


def test_a_stone_is_boxed_day_after_day() -> None:
    stone = np.array([0.4, 0.6, 0.5, 0.7]) + RNG.normal(0, 0.001, (12, 4))
    low = RNG.uniform(0, 0.5, (12, 2))
    animals = np.concatenate([low, low + RNG.uniform(0.2, 0.5, (12, 2))], axis=1)
    boxes = np.concatenate([stone, animals])
    options = {
        "scores_B": RNG.uniform(0.2, 0.9, 24),
        "keys_B": [f"k{n}" for n in range(24)],
        "cameras_B": ["A"] * 24,
        "days_B": np.tile(np.arange(6), 4).astype(float),
    }
    (hint,) = find_repeated_boxes(boxes, **options)
    assert (hint.camera, hint.images, hint.days) == ("A", 12, 6)
    np.testing.assert_allclose(hint.box, [0.4, 0.6, 0.5, 0.7], atol=0.003)
    # One long visit is no stone.
    assert not find_repeated_boxes(boxes, **{**options, "days_B": np.zeros(24)})
    assert not find_repeated_boxes(boxes, **options, settings=RepeatSettings(min_images=13))
