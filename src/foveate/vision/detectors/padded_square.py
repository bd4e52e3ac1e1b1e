"""The padded square that detectors see, and the way of boxes back to the image.

Detectors pad an image on the right and below, training pads on all sides (`foveate.records.geometry.Letterbox`). That
the two differ is why a region is stored in [0, 1] of the original image only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from foveate.records.boxes import as_boxes
from foveate.records.geometry import padded_square_to_original

# A box thinner than this on the image, after clipping, shows nothing that could be learned.
MIN_SIDE_PX = 1.0


def padded_square(
    image: Image.Image,
    side: int,
    *,
    fill: tuple[int, int, int] = (0, 0, 0),
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Paste an image into the upper left of a square and resize the square.

    Args:
        side: of the result in pixels.
        fill: color of the padding, right and below.
    """
    # Pad first: resizing first would round width and height separately, so the scale would differ between the axes.
    square = Image.new("RGB", (max(image.size),) * 2, fill)
    square.paste(image.convert("RGB"))
    return square.resize((side, side), resample)


def boxes_in_image(
    boxes_K4: ArrayLike, *, width: int, height: int, min_side_px: float = MIN_SIDE_PX
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Map boxes in [0, 1] of the padded square to [0, 1] of the image, and drop unusable ones.

    Boxes are clipped at the image's edges; those with a NaN, and those thinner than `min_side_px` pixels of the
    original, are dropped.

    Args:
        width, height: of the original image in pixels.

    Returns:
        The remaining boxes [J, 4], and which of the K they are [K].
    """
    boxes = as_boxes(boxes_K4)
    finite_K: NDArray[np.bool_] = np.asarray(np.isfinite(boxes).all(axis=1))
    inside_K4 = padded_square_to_original(np.where(finite_K[:, None], boxes, 0.0), width, height)
    sides_K2 = (inside_K4[:, 2:] - inside_K4[:, :2]) * (width, height)
    # The tolerance keeps a side of exactly one pixel, whatever the last bit of the quotient is.
    wide_K2: NDArray[np.bool_] = sides_K2 >= min_side_px - 1e-9 * max(width, height)
    valid_K = np.logical_and(finite_K, wide_K2.all(axis=1))
    return inside_K4[valid_K], valid_K
