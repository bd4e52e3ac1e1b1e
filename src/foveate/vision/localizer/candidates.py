"""Multi-scale candidate boxes for locating a phrase by the best-matching region embedding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIDES = (0.18, 0.28, 0.42, 0.62, 0.9)
ASPECTS = (0.6, 1.0, 1.67)
STEP = 0.45
# Few enough to keep for every image of a large collection.
COARSE_SIDES = (0.35, 0.55, 0.8)
COARSE_STEP = 0.5


def candidate_boxes(content: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
    """Tile a square with boxes [C, 4] in [0, 1] of several sizes and aspects, clipped to its content.

    Args:
        content: (x1, y1, x2, y2) of the part of the model input that shows the image; the whole by default.

    Each size is the square root of the box's share of the area; neighbors overlap by about half.
    """
    return _tiles(content, sides=SIDES, aspects=ASPECTS, step=STEP)


def coarse_boxes(content: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
    """Tile a square with few boxes [38, 4], of the content's shape, at three sizes, for an index of every image.

    Else as `candidate_boxes`.
    """
    return _tiles(content, sides=COARSE_SIDES, aspects=(1.0,), step=COARSE_STEP)


def _tiles(
    content: NDArray[np.float64] | None, *, sides: tuple[float, ...], aspects: tuple[float, ...], step: float
) -> NDArray[np.float32]:
    x1, y1, x2, y2 = (0.0, 0.0, 1.0, 1.0) if content is None else content
    boxes = []
    for side in sides:
        for aspect in aspects:
            width, height = side * aspect**0.5, side / aspect**0.5
            if width > 1 or height > 1:  # elongated boxes of the largest sizes do not fit
                continue
            lefts = _starts(width, step)
            tops = _starts(height, step)
            grid = np.stack(np.meshgrid(lefts, tops), axis=-1).reshape(-1, 2)
            boxes.append(np.concatenate([grid, grid + (width, height)], axis=1))
    scale, shift = np.array([x2 - x1, y2 - y1] * 2), np.array([x1, y1] * 2)
    return (np.concatenate(boxes) * scale + shift).clip(0, 1).astype(np.float32)


def _starts(length: float, step: float) -> NDArray[np.float64]:
    # Less a little, so that a quotient that is whole but for rounding gives no additional box.
    count = int(np.ceil((1 - length) / (step * length) - 1e-9)) + 1
    return np.linspace(0, 1 - length, count)
