"""Shapes that users point with, as masks of an image and as points drawn from them.

Rectangles are read in closed form, so that a box costs no mask of its image. Sources: Ferret (arXiv 2310.07704),
section 3.2; apple/ml-ferret, `generate_mask_for_feature`. Two differences: a point is a square window, as in the code,
where the paper has a circle; and the far edges of a box are edges, where the code counts one pixel more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.records.boxes import PixelBox
from foveate.records.conversations import find_shape_problem
from foveate.records.shapes import Mask, Point, Shape, Stroke, decode_mask

POINT_RADIUS = (5.0, 5.0)
"""Pixels to each side of a point, across and down: 11 x 11 pixels in every image, as in the official code."""

# Samples of a stroke at a time.
_MAX_SAMPLES = 2**20


def patch_radius(size: tuple[int, int], grid: tuple[int, int], patches: float) -> tuple[float, float]:
    """Return the radius across and down, in pixels, of a point's window of so many patches to each side.

    Args:
        size: height and width of the image in pixels. grid: rows and columns of patches over it.
        patches: so that a point means the same part of an image at any resolution.
    """
    return patches * size[1] / grid[1], patches * size[0] / grid[0]


def region_mask(
    shape: Shape,
    size: tuple[int, int],
    *,
    within: Shape | None = None,
    radius: tuple[float, float] = POINT_RADIUS,
) -> NDArray[np.bool_]:
    """Return the mask (height, width) of a shape.

    Args:
        shape: in pixels. A stroke is the pixels that its line crosses; a stroke of one point is that point.
        size: height and width of the image in pixels.
        within: cut to this shape, such as the object's mask; ignored where nothing would be left.
        radius: of a point's window in pixels, see `POINT_RADIUS` and `patch_radius`.

    Raises:
        UserError: the shape is empty, not finite, of another size, or does not lie in the image.
    """
    _check(shape, size)
    mask_HW = np.zeros(size, dtype=bool)
    shape = _simplify(shape)
    if isinstance(shape, Mask):
        mask_HW = decode_mask({"size": list(shape.size), "counts": list(shape.counts)})
    elif isinstance(shape, Stroke):
        for rows, columns in _trace(shape, size):
            mask_HW[rows, columns] = True
    else:
        left, top, right, bottom = _rectangle(shape, size, radius)
        mask_HW[top:bottom, left:right] = True
    if within is not None:
        inside_HW = mask_HW & region_mask(within, size, radius=radius)
        mask_HW = inside_HW if inside_HW.any() else mask_HW
    return mask_HW


def draw_points(
    shape: Shape,
    size: tuple[int, int],
    count: int,
    *,
    rng: np.random.Generator | None = None,
    radius: tuple[float, float] = POINT_RADIUS,
) -> tuple[NDArray[np.float32], int]:
    """Draw positions x, y of a region's pixels as fractions of the image's size, [count, 2] below 1.

    A region of fewer pixels gives all of them and then repeats; one of more is cut into `count` runs of pixels in
    reading order, and each run gives one.

    Args:
        shape, size, radius: see `region_mask`.
        rng: None draws the same for equal regions, whatever else is in the call.

    Returns:
        The positions, and how many of them, in front, are distinct.
    """
    height, width = size
    _check(shape, size)
    shape = _simplify(shape)
    if isinstance(shape, Point | PixelBox):
        left, top, right, bottom = _rectangle(shape, size, radius)
        total = (right - left) * (bottom - top)
        rows, columns = np.divmod(_choose(total, count, rng), right - left)
        rows, columns = rows + top, columns + left
    else:
        flat = np.flatnonzero(region_mask(shape, size))
        total = len(flat)
        rows, columns = np.divmod(flat[_choose(total, count, rng)], width)
    # Corners of pixels, i / W, not their centers: the official sampler was trained on these positions.
    points_N2 = np.stack([columns / width, rows / height], axis=1).astype(np.float32)
    return points_N2, min(total, count)


def _choose(total: int, count: int, rng: np.random.Generator | None) -> NDArray[np.int64]:
    """Choose `count` of `total` pixels, see `draw_points`."""
    # Without jitter, runs as long as the region is wide would all give the same column.
    jitter_N = (rng or seeds.generator("region points", count)).random(count)
    index_N = np.arange(count)
    if total <= count:
        chosen_N = np.where(index_N < total, index_N, jitter_N * total)
        return np.minimum(chosen_N.astype(np.int64), total - 1)
    # Runs of whole pixels, so that no two give the same one.
    edge_N = np.arange(count + 1) * total // count
    return edge_N[:-1] + (jitter_N * np.diff(edge_N)).astype(np.int64)


def _check(shape: Shape, size: tuple[int, int]) -> None:
    problem = find_shape_problem(shape, width=size[1], height=size[0])
    if problem:
        raise UserError(f"region {str(shape)[:80]}: {problem}; expected pixels of an image of {size[1]} x {size[0]}")


def _simplify(shape: Shape) -> Shape:
    return shape.points[0] if isinstance(shape, Stroke) and len(shape.points) == 1 else shape


def _rectangle(
    shape: Point | PixelBox, size: tuple[int, int], radius: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom edge of the pixels of a box or a point's window: at least one pixel."""
    height, width = size
    if isinstance(shape, PixelBox):
        return math.floor(shape.x1), math.floor(shape.y1), math.ceil(shape.x2), math.ceil(shape.y2)
    across, down = radius
    # Cut off at both ends, as in the official code: 11 pixels also around 10.999.
    left, top = int(max(0, shape.x - across)), int(max(0, shape.y - down))
    right, bottom = int(min(width, shape.x + across + 1)), int(min(height, shape.y + down + 1))
    left, top = min(left, width - 1), min(top, height - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _trace(stroke: Stroke, size: tuple[int, int]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield rows and columns of the pixels under a line, sampled twice a pixel, some segments at a time."""
    xy_P2 = np.array([(point.x, point.y) for point in stroke.points], dtype=np.float64)
    steps_S = np.ceil(2 * np.abs(np.diff(xy_P2, axis=0)).max(axis=1)).astype(np.int64) + 1
    # Scribbles of thousands of points across a large image would be gigabytes at once.
    part_S = np.cumsum(steps_S) // _MAX_SAMPLES
    for segments in np.split(np.arange(len(steps_S)), np.flatnonzero(np.diff(part_S)) + 1):
        steps_K = steps_S[segments]
        segment_K = np.repeat(segments, steps_K)
        step_K = np.arange(steps_K.sum()) - np.repeat(np.cumsum(steps_K) - steps_K, steps_K)
        share_K1 = (step_K / steps_S[segment_K])[:, None]
        line_K2 = xy_P2[segment_K] * (1 - share_K1) + xy_P2[segment_K + 1] * share_K1
        # Samples of a segment stop short of its end, which is the start of the next one: only the last end is missing.
        line_K2 = np.concatenate([line_K2, xy_P2[segments[-1:] + 1]])
        # A point on the far edge of the image belongs to the last pixel.
        columns, rows = np.minimum(np.floor(line_K2), np.array(size[::-1]) - 1).astype(np.int64).T
        yield rows, columns
