"""Boxes: validation, conversions between conventions, overlap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou

from foveate.core.errors import UserError
from foveate.records.boxes import (
    Box,
    CenterBox,
    PixelBox,
    PixelXYWH,
    areas,
    as_boxes,
    centers,
    clamp_and_sort,
    intersection_over_union,
    pairwise_iou,
    validate_boxes,
)
from naming import raises_naming


@st.composite
def legal_boxes(draw: st.DrawFn) -> Box:
    """Boxes at least a ten-thousandth of the image wide and high."""
    x1, y1 = draw(st.floats(0, 0.99)), draw(st.floats(0, 0.99))
    x2, y2 = draw(st.floats(x1 + 1e-4, 1)), draw(st.floats(y1 + 1e-4, 1))
    return Box(x1, y1, x2, y2)


sides = st.integers(1, 5000)


@given(legal_boxes(), sides, sides)
def test_every_form_returns_to_the_same_box(box: Box, width: int, height: int) -> None:
    forms = (
        Box.from_pixels(box.to_pixels(width, height), width, height),
        Box.from_xywh(box.to_xywh(width, height), width, height),
        Box.from_center(box.to_center()),
        Box.from_array(box.to_array()),
    )
    for other in forms:
        np.testing.assert_allclose(other.to_array(), box.to_array(), atol=1e-12)


def test_known_numbers() -> None:
    assert Box.from_pixels(PixelBox(10, 20, 30, 60), 100, 200) == Box(0.1, 0.1, 0.3, 0.3)
    assert Box.from_xywh(PixelXYWH(10, 20, 20, 40), 100, 200) == Box(0.1, 0.1, 0.3, 0.3)
    assert Box.from_center(CenterBox(0.5, 0.5, 0.5, 0.25)) == Box(0.25, 0.375, 0.75, 0.625)
    assert Box.whole().area == 1
    assert Box(0, 0.25, 0.5, 0.75).center == (0.25, 0.5)
    assert Box(0, 0.25, 0.5, 0.75).area == 0.25


def test_numpy_numbers_become_plain_floats() -> None:
    box = Box(*np.array([0.25, 0.25, 0.5, 0.5], dtype=np.float32))  # type: ignore[arg-type]
    assert all(type(value) is float for value in (box.x1, box.y1, box.x2, box.y2))


@pytest.mark.parametrize(
    ("corners", "said"),
    [
        ((float("nan"), 0, 1, 1), "finite"),
        ((0, 0, float("inf"), 1), "finite"),
        ((-0.1, 0, 1, 1), "[0, 1]"),
        ((0, 0, 1, 1.1), "[0, 1]"),
        ((0.5, 0, 0.5, 1), "x2 must be greater"),
        ((0, 0.8, 1, 0.2), "y2 must be greater"),
    ],
)
def test_illegal_boxes_are_refused(corners: tuple[float, float, float, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Box(*corners)
    rows = [(0.1, 0.1, 0.2, 0.2), corners, (0.3, 0.3, 0.4, 0.4)]
    with raises_naming(UserError, "cat-7", said):
        validate_boxes(rows, ["dog-1", "cat-7", "cow-2"])
    with raises_naming(UserError, "1"):
        validate_boxes(rows)


def test_predicted_boxes_may_be_empty_or_reach_outside() -> None:
    assert len(validate_boxes([[1, 0, 1, 1], [-0.2, 0, 1.3, 1]], predicted=True)) == 2
    for bad, said in (([0.5, 0, 0.4, 1], "x2 must be"), ([-0.2, 1.2, 0.4, 1.1], "y2 must be")):
        with raises_naming(UserError, "a", said):
            validate_boxes([bad], ["a"], what="row", predicted=True)
    with raises_naming(UserError, "finite"):
        validate_boxes([[0, 0, np.nan, 1]], predicted=True)


def test_shapes_are_checked() -> None:
    assert as_boxes([]).shape == (0, 4)
    assert validate_boxes(np.zeros((0, 4))).shape == (0, 4)
    with raises_naming(UserError, "4]"):
        as_boxes([0, 0, 1, 1])
    with raises_naming(UserError, "2", "1"):
        validate_boxes([[0, 0, 1, 1]] * 2, ["a"])
    with raises_naming(UserError, "as many boxes"):
        intersection_over_union([[0, 0, 1, 1]], [[0, 0, 1, 1]] * 2)


def test_clipping() -> None:
    beyond = PixelBox(-20, 10, 50, 250)
    with raises_naming(UserError, "[0", "1]"):
        Box.from_pixels(beyond, 100, 200)
    assert Box.from_pixels(beyond, 100, 200, clipped=True) == Box(0, 0.05, 0.5, 1)
    with pytest.raises(UserError):
        Box.from_pixels(PixelBox(120, 0, 150, 50), 100, 200, clipped=True)
    with raises_naming(UserError, "finite"):
        Box.from_pixels(PixelBox(float("nan"), 0, 150, 50), 100, 200, clipped=True)
    with raises_naming(UserError, "image size"):
        Box.from_pixels(PixelBox(0, 0, 1, 1), 0, 10)
    # A rounding error at the edge is no mistake of the user.
    assert Box.from_pixels(PixelBox(0, 0, 100.00001, 200), 100, 200) == Box.whole()


@given(st.lists(legal_boxes(), min_size=1, max_size=8), st.lists(legal_boxes(), min_size=1, max_size=8))
def test_iou_is_symmetric_bounded_and_agrees_with_torchvision(first: list[Box], second: list[Box]) -> None:
    a, b = (np.array([box.to_array() for box in boxes]) for boxes in (first, second))
    iou_NM = pairwise_iou(a, b)
    np.testing.assert_array_equal(iou_NM, pairwise_iou(b, a).T)
    assert iou_NM.min() >= 0
    assert iou_NM.max() <= 1 + 1e-12
    np.testing.assert_allclose(np.diag(pairwise_iou(a, a)), 1, atol=1e-9)
    np.testing.assert_allclose(iou_NM, box_iou(torch.tensor(a), torch.tensor(b)).numpy(), atol=1e-9)
    n = min(len(a), len(b))
    np.testing.assert_array_equal(intersection_over_union(a[:n], b[:n]), np.diag(iou_NM[:n, :n]))


def test_iou_of_empty_boxes_is_zero() -> None:
    assert intersection_over_union([[0.5, 0.5, 0.5, 0.5]], [[0.5, 0.5, 0.5, 0.5]]).tolist() == [0]
    assert pairwise_iou([], [[0, 0, 1, 1]]).shape == (0, 1)


def test_clamp_and_sort_areas_centers() -> None:
    raw = [[1.2, 0.5, 0.4, -0.1], [0.1, 0.2, 0.3, 0.4]]
    np.testing.assert_allclose(clamp_and_sort(raw), [[0.4, 0, 1, 0.5], [0.1, 0.2, 0.3, 0.4]])
    np.testing.assert_allclose(areas(clamp_and_sort(raw)), [0.3, 0.04])
    assert areas([[0.5, 0.5, 0.4, 0.9]]).tolist() == [0]
    np.testing.assert_allclose(centers([[0, 0, 0.5, 1]]), [[0.25, 0.5]])
    assert np.isnan(clamp_and_sort([[np.nan, 0, 1, 1]])).any()
