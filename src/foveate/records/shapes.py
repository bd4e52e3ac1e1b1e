"""Shapes that a conversation points at, in pixels of the original image: points, boxes, strokes and masks."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.records.boxes import PixelBox
from foveate.records.masks import decode_mask, mask_bounds


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
        counts: run lengths with the sum height x width; see `foveate.records.masks.encode_mask`.

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
