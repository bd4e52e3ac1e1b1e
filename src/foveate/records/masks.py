"""Masks as run lengths, in the order and form of COCO's uncompressed run-length encoding."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError


def encode_mask(mask_HW: ArrayLike) -> dict[str, list[int]]:
    """Encode a mask as {"size": [height, width], "counts": [...]}: run lengths down the columns, zeros first.

    >>> encode_mask([[0, 1], [1, 1]])
    {'size': [2, 2], 'counts': [1, 3]}
    """
    mask = np.asarray(mask_HW, bool)
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    # The first run is of zeros by definition, so a mask that begins with a one gets an empty run in front.
    counts = np.diff(edges).tolist() if flat.size else []
    return {"size": list(mask.shape), "counts": [0, *counts] if flat.size and flat[0] else counts}


def decode_mask(encoded: dict[str, list[int]]) -> NDArray[np.bool_]:
    """Decode the result of `encode_mask` to a mask (height, width).

    Raises:
        UserError: the counts are negative or do not fill the size.
    """
    height, width = encoded["size"]
    counts = np.asarray(encoded["counts"], np.int64)
    if (counts < 0).any() or counts.sum() != height * width:
        raise UserError(
            f"mask counts: negative, or of another size (sum {int(counts.sum())}); expected counts >= 0 that add up to "
            f"{height} x {width} = {height * width}"
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")


def mask_bounds(mask_HW: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Return the pixel edges (left, top, right, bottom) of what is set, or None if nothing is."""
    columns, rows = np.flatnonzero(mask_HW.any(0)), np.flatnonzero(mask_HW.any(1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
