"""Shapes with any numbers: each is refused in a sentence, or gives points and a mask inside its image."""

from __future__ import annotations

import random

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.records.boxes import PixelBox
from foveate.records.shapes import Mask, Point, Shape, Stroke
from foveate.vision.regions.masks import draw_points, region_mask

HOSTILE = (float("nan"), float("inf"), -1.0, -1e-9, 0.0, 1e-12, 1e12)


def draw_number(rng: random.Random, side: int) -> float:
    return (
        rng.choice(HOSTILE) if rng.random() < 0.15 else rng.choice((side, side - 1, side - 1e-9, rng.uniform(0, side)))
    )


def draw_shape(rng: random.Random, height: int, width: int) -> Shape:
    def point() -> Point:
        return Point(draw_number(rng, width), draw_number(rng, height))

    kind = rng.randrange(4)
    if kind == 0:
        return point()
    if kind == 1:
        corners = [point(), point()]
        if rng.random() < 0.8:
            x1, x2 = sorted(corner.x for corner in corners)
            y1, y2 = sorted(corner.y for corner in corners)
            return PixelBox(x1, y1, x2, y2)
        return PixelBox(corners[0].x, corners[0].y, corners[1].x, corners[1].y)
    if kind == 2:
        return Stroke(tuple(point() for _ in range(rng.randrange(5))))
    size = (height, width) if rng.random() < 0.8 else (width, height + 1)
    cuts = sorted(rng.randrange(height * width + 1) for _ in range(rng.randrange(4)))
    edges = [0, *cuts, height * width + rng.choice((0, 0, 0, 1, -1))]
    return Mask(size, tuple(end - start for start, end in zip(edges, edges[1:], strict=False)))


@pytest.mark.parametrize("count", [500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_fuzzed_shapes_are_refused_or_lie_in_their_image(count: int) -> None:
    rng, accepted = random.Random(19), 0
    for _ in range(count):
        height, width = rng.randint(1, 30), rng.randint(1, 30)
        shape = draw_shape(rng, height, width)
        try:
            points_N2, distinct = draw_points(shape, (height, width), 8)
        except UserError:
            with pytest.raises(UserError):
                region_mask(shape, (height, width))
            continue
        accepted += 1
        mask_HW = region_mask(shape, (height, width))
        assert mask_HW.shape == (height, width), shape
        assert 1 <= distinct <= min(8, mask_HW.sum()), shape
        columns, rows = np.round(points_N2 * (width, height)).astype(int).T
        assert mask_HW[rows, columns].all(), shape
    assert count / 4 < accepted < count
