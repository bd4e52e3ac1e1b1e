"""The candidate boxes: near enough to any box of ordinary size, inside the content, few enough to score."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from foveate.records.boxes import pairwise_iou
from foveate.vision.localizer.inference import candidate_boxes

CANDIDATES = candidate_boxes()


@given(
    side=st.floats(0.15, 0.9),
    aspect=st.floats(0.5, 2.0),
    x=st.floats(0, 1),
    y=st.floats(0, 1),
)
def test_any_box_has_a_candidate_near_it(side: float, aspect: float, x: float, y: float) -> None:
    width, height = min(1.0, side * aspect**0.5), min(1.0, side / aspect**0.5)
    left, top = x * (1 - width), y * (1 - height)
    box = np.array([[left, top, left + width, top + height]])
    assert pairwise_iou(box, CANDIDATES).max() >= 0.4


def test_they_are_boxes_inside_the_content() -> None:
    content = np.array([0.0, 0.25, 1.0, 0.75])
    for boxes_C4, (x1, y1, x2, y2) in ((CANDIDATES, (0, 0, 1, 1)), (candidate_boxes(content), content)):
        assert boxes_C4.dtype == np.float32
        assert (boxes_C4[:, :2] < boxes_C4[:, 2:]).all()
        assert (boxes_C4 >= np.array([x1, y1, x1, y1]) - 1e-6).all()
        assert (boxes_C4 <= np.array([x2, y2, x2, y2]) + 1e-6).all()
        assert len(np.unique(boxes_C4, axis=0)) == len(boxes_C4)
        assert 200 < len(boxes_C4) < 1000
