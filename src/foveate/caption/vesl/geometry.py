"""A detector's square: the image padded right and below, and its boxes back in the image (steps 3 and 4 of VESL).

Trainings pad on all sides instead (`foveate.records.geometry.Letterbox`): that the two differ is why a region is stored
in [0, 1] of the original image only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from foveate.records.boxes import as_boxes
from foveate.records.geometry import padded_square_to_original

# A box thinner than this on the image, after clipping, shows nothing.
LEAST_PX = 1.0


def padded_square(
    image: Image.Image,
    side: int,
    *,
    fill: tuple[int, int, int] = (0, 0, 0),
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """The image in the upper left of a square, padded with `fill` and then resized, so that the scale is exact."""
    square = Image.new("RGB", (max(image.size),) * 2, fill)
    square.paste(image.convert("RGB"))
    return square.resize((side, side), resample)


def in_image(
    boxes_K4: ArrayLike, *, width: int, height: int, least_px: float = LEAST_PX
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Boxes in [0, 1] of the padded square, in [0, 1] of the image: those that are left, [J, 4], and which, [K].

    They are clipped at the image's edges; then those thinner than `least_px` pixels of the original are dropped, and
    those with a corner that is no number.

    Args:
        width, height: of the original image in pixels.
    """
    boxes = as_boxes(boxes_K4)
    finite_K: NDArray[np.bool_] = np.asarray(np.isfinite(boxes).all(axis=1))
    inside_K4 = padded_square_to_original(np.where(finite_K[:, None], boxes, 0.0), width, height)
    sides_K2 = (inside_K4[:, 2:] - inside_K4[:, :2]) * (width, height)
    # A side of exactly one pixel must not depend on the last bit of a quotient.
    wide_K2: NDArray[np.bool_] = sides_K2 >= least_px - 1e-9 * max(width, height)
    kept_K = np.logical_and(finite_K, wide_K2.all(axis=1))
    return inside_K4[kept_K], kept_K
