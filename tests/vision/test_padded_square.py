"""The padded square that detectors see, as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from foveate.records.geometry import Letterbox, original_to_padded_square
from foveate.vision.detectors import boxes_in_image, padded_square

SIDES = st.integers(1, 3000)
UNIT = st.floats(0, 1)


@given(SIDES, SIDES, st.lists(st.tuples(UNIT, UNIT, UNIT, UNIT), max_size=8))
def test_boxes_go_to_the_padded_square_and_back(width: int, height: int, corners: list[tuple[float, ...]]) -> None:
    boxes = np.array([(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners]).reshape(-1, 4)
    inside, valid = boxes_in_image(original_to_padded_square(boxes, width, height), width=width, height=height)
    sides = (boxes[:, 2:] - boxes[:, :2]) * (width, height)
    assert valid[(sides >= 1.001).all(axis=1)].all()
    assert not valid[(sides <= 0.999).any(axis=1)].any()
    np.testing.assert_allclose(inside, boxes[valid], atol=1e-9)


@given(SIDES, SIDES, st.lists(st.tuples(*[st.floats(-2, 3)] * 4), min_size=1, max_size=8))
def test_remaining_boxes_lie_in_the_image(width: int, height: int, corners: list[tuple[float, ...]]) -> None:
    inside, valid = boxes_in_image(np.array(corners), width=width, height=height)
    assert len(inside) == valid.sum()
    assert (inside >= 0).all()
    assert (inside <= 1).all()
    assert ((inside[:, 2:] - inside[:, :2]) * (width, height) >= 0.999).all()


def test_boxes_with_nan_or_infinity_are_dropped() -> None:
    boxes = np.array([(0, 0, np.nan, 1), (0, 0, 0.5, 0.5), (np.inf, 0, 1, 1)])
    inside, valid = boxes_in_image(boxes, width=10, height=10)
    assert valid.tolist() == [False, True, False]
    assert len(inside) == 1


@pytest.mark.parametrize(("width", "height"), [(300, 100), (100, 300), (257, 256), (40, 40)])
def test_pixels_and_boxes_use_the_same_square(width: int, height: int) -> None:
    """A drawn rectangle lies in the square where its box says; in the centered letterbox of trainings it does not."""
    image = Image.new("RGB", (width, height))
    box = np.array([0.25, 0.5, 0.75, 1.0])
    x1, y1, x2, y2 = box * (width, height, width, height)
    ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), fill=(255, 0, 0))
    side = 200
    red = np.asarray(padded_square(image, side))[..., 0] > 127
    ys, xs = red.nonzero()
    drawn = np.array((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)) / side
    np.testing.assert_allclose(drawn, original_to_padded_square(box[None], width, height)[0], atol=2 / side)
    if width != height and abs(width - height) > 10:
        assert np.abs(drawn - Letterbox(width, height, side).to_input(box[None])[0]).max() > 0.05
