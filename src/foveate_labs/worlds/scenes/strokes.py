"""Points and strokes inside masks: how people point at a thing without drawing its box.

The paper does not say how its free-form regions were drawn. These are ours: a random walk with inertia that never
leaves the mask. Scores of models that were asked with them are not comparable with published ones for free-form
regions.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError, choose
from foveate.records.shapes import Point, Stroke

PointMode = Literal["uniform", "center"]
_STEP = 0.12  # of the square root of the mask's area
_TURN = 0.35  # standard deviation of the change of direction, in radians
_ATTEMPTS = 12  # directions tried at a dead end
_CANDIDATES = 1000  # of a central point, as in Ferret


def _list_pixels(mask_HW: NDArray[np.bool_]) -> NDArray[np.int64]:
    pixels_P2 = np.argwhere(mask_HW)[:, ::-1]
    if not len(pixels_P2):
        raise UserError("mask: empty; expected at least one pixel to point at")
    return pixels_P2


def draw_point(mask_HW: NDArray[np.bool_], rng: np.random.Generator, *, mode: PointMode = "uniform") -> Point:
    """Draw the center of a pixel of a mask.

    Args:
        mode: "uniform", any pixel; "center", of at most 1000 random ones the nearest to the center of their box.

    Raises:
        UserError: the mask is empty.

    Source: ferret/train/train.py at apple/ml-ferret 3c9e5c9 (modes segment_mask|uniform and segment_mask|center).
    """
    pixels_P2 = _list_pixels(mask_HW)
    if choose(mode, ("uniform", "center"), "point mode") == "uniform":
        x, y = pixels_P2[rng.integers(len(pixels_P2))].tolist()
        return Point(x + 0.5, y + 0.5)
    middle = (pixels_P2.min(0) + pixels_P2.max(0)) / 2
    candidates = rng.permutation(pixels_P2)[:_CANDIDATES]
    x, y = candidates[np.square(candidates - middle).sum(1).argmin()].tolist()
    return Point(x + 0.5, y + 0.5)


def draw_stroke(mask_HW: NDArray[np.bool_], rng: np.random.Generator, *, max_points: int = 24) -> Stroke:
    """Draw a stroke of at least two points whose line stays inside a mask.

    Args:
        mask_HW: True on the thing.
        max_points: longest stroke; most are as long, at dead ends they are shorter.

    Raises:
        UserError: the mask is empty, or fewer than two points are allowed.
    """
    if max_points < 2:
        raise UserError(f"max_points: too few for a stroke (got {max_points}); expected at least 2")
    pixels_P2 = _list_pixels(mask_HW)
    x, y = (pixels_P2[rng.integers(len(pixels_P2))] + 0.5).tolist()
    step = max(_STEP * math.sqrt(len(pixels_P2)), 0.4)  # less than half a pixel stays in a mask of one pixel
    heading = float(rng.uniform(0, 2 * math.pi))
    points = [Point(x, y)]
    while len(points) < max_points:
        end = _step_inside(mask_HW, rng, points[-1], heading, step)
        if end is None and len(points) > 1:
            break
        if end is None:
            # The first pixel is a corner of the mask: steps become shorter until one fits.
            step /= 2
            continue
        point, heading = end
        points.append(point)
    return Stroke(tuple(points))


def _step_inside(
    mask_HW: NDArray[np.bool_], rng: np.random.Generator, start: Point, heading: float, step: float
) -> tuple[Point, float] | None:
    """Return the end of a step that stays inside, and its direction; wider turns are tried at a dead end."""
    for attempt in range(_ATTEMPTS):
        direction = heading + float(rng.normal(0, _TURN * (1 + attempt)))
        end = Point(start.x + step * math.cos(direction), start.y + step * math.sin(direction))
        if is_inside(mask_HW, start, end):
            return end, direction
    return None


def is_inside(mask_HW: NDArray[np.bool_], start: Point, end: Point) -> bool:
    """Whether the line between two points lies in a mask, looked at every quarter of a pixel."""
    height, width = mask_HW.shape
    count = max(2, math.ceil(4 * math.dist((start.x, start.y), (end.x, end.y))) + 1)
    columns = np.floor(np.linspace(start.x, end.x, count)).astype(int)
    rows = np.floor(np.linspace(start.y, end.y, count)).astype(int)
    if min(columns[0], columns[-1], rows[0], rows[-1]) < 0:
        return False
    if max(columns[0], columns[-1]) >= width or max(rows[0], rows[-1]) >= height:
        return False
    return bool(mask_HW[rows, columns].all())
