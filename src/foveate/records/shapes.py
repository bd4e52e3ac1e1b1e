"""Shapes that a conversation points at, in pixels of the original image, and masks as COCO's run lengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError
from foveate.records.boxes import PixelBox


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
    # Before `repeat`, which would take any memory that the counts of a damaged file ask for.
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


def decode_counts(text: str) -> list[int]:
    """Decode the run lengths of COCO's compressed encoding, a text of 6-bit characters.

    Each number is written in groups of 5 bits, least significant first, and from the fourth on as the difference to the
    number two before.

    Raises:
        UserError: a character is out of range, or the text ends within a number.

    >>> decode_counts("06")
    [0, 6]
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        # Integers of Python have no bound, so a damaged text could build one as long as itself.
        if not 0 <= bits < 64 or shift > 60:
            raise UserError(f"compressed mask: character {letter!r} is not of COCO's run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # sign
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise UserError("compressed mask: the text ends within a number")
    return counts


@dataclass(frozen=True, slots=True)
class Point:
    """A position in pixels, x to the right and y downwards; the upper left corner of the image is (0, 0).

    Example:
        >>> open_mllm("mini").ask(image_file, "What is <1>?", regions=[Point(8, 8)]).finished
        True
    """

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Stroke:
    """A scribble: the points of a line, in the order of drawing.

    Example:
        >>> len(Stroke((Point(1, 1), Point(4, 5))).points)
        2
    """

    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask of the whole image as COCO's uncompressed run lengths: down the columns, zeros first.

    Args:
        size: height and width of the image in pixels.
        counts: run lengths with the sum height x width; see `encode_mask`.

    Example:
        >>> sum(Mask((2, 3), (1, 2, 3)).counts)
        6
    """

    size: tuple[int, int]
    counts: tuple[int, ...]


Shape = Point | PixelBox | Stroke | Mask


def describe_shape(shape: Shape) -> str:
    """Return a shape in a few words, for messages.

    >>> describe_shape(PixelBox(1, 2, 30.5, 40))
    'box 1, 2, 30.5, 40'
    """
    if isinstance(shape, Mask):
        return f"mask of {shape.size[1]} x {shape.size[0]}"
    if isinstance(shape, Stroke):
        return f"stroke of {len(shape.points)} points"
    if isinstance(shape, Point):
        return f"point {shape.x:g}, {shape.y:g}"
    return f"box {shape.x1:g}, {shape.y1:g}, {shape.x2:g}, {shape.y2:g}"


def enclosing_box(shape: Shape) -> PixelBox | None:
    """Return the smallest box around a shape; without area for a point, None for an empty mask or stroke."""
    if isinstance(shape, PixelBox):
        return shape
    if isinstance(shape, Mask):
        bounds = mask_bounds(decode_mask({"size": list(shape.size), "counts": list(shape.counts)}))
        return None if bounds is None else PixelBox(*bounds)
    points = (shape,) if isinstance(shape, Point) else shape.points
    if not points:
        return None
    xs, ys = [point.x for point in points], [point.y for point in points]
    return PixelBox(min(xs), min(ys), max(xs), max(ys))
