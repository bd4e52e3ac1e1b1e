"""Grounding scores, pointing, baselines and slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from foveate.core.errors import UserError
from foveate.metrics.grounding import (
    LARGE_FROM,
    SMALL_BELOW,
    constant_box_mse,
    grounding_scores,
    is_unique_phrase,
    pointing_hits,
    size_slices,
)
from foveate.records.boxes import clamp_and_sort
from naming import raises_naming

TRUE = [[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1]]
PREDICTED = [[0.2, 0.2, 0.4, 0.8], [0.1, 0.1, 0.9, 0.9]]


def test_the_worked_example_of_the_box_loss() -> None:
    scores, summary = grounding_scores(PREDICTED, TRUE)
    assert summary["mse"] == pytest.approx(0.0125)
    np.testing.assert_allclose(scores["iou"], [0.4, 0.64])
    assert scores["acc50"].tolist() == [0, 1]
    assert summary == {
        "mIoU": pytest.approx(0.52),
        "acc50": 0.5,
        "mse": pytest.approx(0.0125),
        "pointing": 1,
    }


def test_iou_agrees_with_torchvision() -> None:
    rng = np.random.default_rng(0)
    predicted = clamp_and_sort(rng.normal(0.5, 0.4, (200, 4)))
    corners = np.sort(rng.random((200, 2, 2)), axis=1)
    true = corners.reshape(200, 4)
    expected = box_iou(torch.tensor(predicted), torch.tensor(true)).diagonal().numpy()
    np.testing.assert_allclose(grounding_scores(predicted, true)[0]["iou"], expected, atol=1e-12)


def test_half_overlap_counts_as_right() -> None:
    assert grounding_scores([[0, 0, 0.5, 1]], [[0, 0, 1, 1]])[1]["acc50"] == 1


def test_pointing_counts_edges_as_inside() -> None:
    true = [[0.25, 0.25, 0.5, 0.5]] * 3
    predicted = [[0.125, 0.25, 0.375, 0.75], [0.25, 0.25, 0.25, 0.25], [0, 0, 0.2, 0.9]]
    assert pointing_hits(predicted, true).tolist() == [True, True, False]


def test_constant_box() -> None:
    true = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])
    assert constant_box_mse(true) == pytest.approx(0.0625)
    assert constant_box_mse(true, reference_R4=[[0, 0, 0.5, 0.5]]) == pytest.approx(0.125)


def test_size_slices() -> None:
    def square(area: float) -> list[float]:
        return [0, 0, area**0.5, area**0.5]

    areas = (SMALL_BELOW * 0.99, SMALL_BELOW * 1.01, LARGE_FROM * 0.99, LARGE_FROM * 1.01, 1)
    names = ["small", "medium", "medium", "large", "large"]
    assert size_slices([square(area) for area in areas]).tolist() == names
    assert size_slices([square(0.25)], small_below=0.5, large_from=0.5).tolist() == ["small"]
    # A limit itself belongs to the larger size.
    assert size_slices([square(0.25)], small_below=0.25, large_from=0.5).tolist() == ["medium"]
    assert size_slices([square(0.25)], small_below=0.1, large_from=0.25).tolist() == ["large"]
    with pytest.raises(UserError, match="size limits"):
        size_slices([square(0.5)], small_below=0.5, large_from=0.1)


def test_phrases_that_occur_once() -> None:
    phrases = ["a cat", "a cat", "a cat", "a dog"]
    assert is_unique_phrase(phrases, ["p", "p", "q", "q"]).tolist() == [False, False, True, True]
    with raises_naming(UserError, "4"):
        is_unique_phrase(phrases, ["p"])


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([np.nan, 0, 1, 1], "finite"),
        ([0.9, 0, 0.1, 1], "x2 must be greater"),
    ],
)
def test_bad_boxes_are_named(bad: list[float], said: str) -> None:
    good = [0.1, 0.1, 0.2, 0.2]
    with raises_naming(UserError, "r2", said):
        grounding_scores([good, bad], [good, good], ids=["r1", "r2"])
    with raises_naming(UserError, "r1", said):
        grounding_scores([good, good], [bad, good], ids=["r1", "r2"])


def test_only_predictions_may_leave_the_image() -> None:
    inside, beyond = [[0.0, 0.0, 1.0, 1.0]], [[0.0, 0.0, 1.25, 1.0]]
    assert grounding_scores(beyond, inside)[1]["mIoU"] == pytest.approx(0.8)
    assert grounding_scores(clamp_and_sort(beyond), inside)[1]["mIoU"] == 1
    assert grounding_scores([[0.5, 0.5, 0.5, 0.5]], inside)[1]["mIoU"] == 0
    with raises_naming(UserError, "r1", "[0", "1]"):
        grounding_scores(inside, beyond, ids=["r1"])
    with raises_naming(UserError, "x2"):
        grounding_scores(inside, [[0.5, 0.5, 0.5, 0.9]])


def test_counts_must_match() -> None:
    with raises_naming(UserError, "1", "2"):
        grounding_scores(PREDICTED[:1], TRUE)
    with raises_naming(UserError, "0"):
        grounding_scores([], [])
    with pytest.raises(UserError, match="at least one box"):
        constant_box_mse([])
