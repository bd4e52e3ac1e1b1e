"""Boxes: one canonical form, typed other forms that convert through it, and vectorized arithmetic.

The canonical box is `(x1, y1, x2, y2)`: two corners as fractions of the width and height of the original image, x to
the right and y downwards, so it is independent of the size at which the image is decoded. Other forms (pixels, COCO's
x-y-width-height, YOLO's center and size) are separate types, so that they cannot be mixed up. Arrays named `boxes_R4`
have one canonical box per row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError

Floats = NDArray[np.floating[Any]]

# Rounding in other forms may put a corner this far outside of the image; it is snapped to the edge.
EDGE_ROUNDING = 1e-6
_MAX_SIDE = 2**53  # beyond, floats skip whole pixels


@dataclass(frozen=True, slots=True)
class PixelBox:
    """Two corners in pixels: edges, not pixel centers, so the whole image is (0, 0, width, height).

    Example:
        >>> PixelBox(10, 20, 110, 70)
        PixelBox(x1=10, y1=20, x2=110, y2=70)
    """

    x1: float
    y1: float
    x2: float
    y2: float


def normalize_box(box: PixelBox, width: int, height: int) -> tuple[float, float, float, float]:
    """Return the corners of a box, sorted and as fractions of its image; a model may write them in any order.

    >>> normalize_box(PixelBox(50, 0, 0, 20), 100, 40)
    (0.0, 0.0, 0.5, 0.5)
    """
    (x1, x2), (y1, y2) = sorted((box.x1, box.x2)), sorted((box.y1, box.y2))
    return x1 / width, y1 / height, x2 / width, y2 / height


def raster_key(box: PixelBox) -> tuple[float, float]:
    """Return what boxes in raster order are sorted by: the upper edge, then the left one."""
    # A design decision: Ferret-v2 mentions raster order without defining it.
    return box.y1, box.x1


@dataclass(frozen=True, slots=True)
class PixelXYWH:
    """Upper left corner and size in pixels, as in COCO annotation files.

    Example:
        >>> Box.from_xywh(PixelXYWH(10, 20, 100, 50), width=200, height=100)
        Box(x1=0.05, y1=0.2, x2=0.55, y2=0.7)
    """

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class CenterBox:
    """Center and size as fractions of the image, as in YOLO label files and in DETR-like detectors."""

    cx: float
    cy: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Box:
    """A box as two corners in fractions [0, 1] of the original image: the canonical form everywhere.

    Raises:
        UserError: a corner is not finite or outside [0, 1], or the box is empty or inverted.

    >>> box = Box.from_xywh(PixelXYWH(64, 48, 320, 240), width=640, height=480)
    >>> box
    Box(x1=0.1, y1=0.1, x2=0.6, y2=0.6)
    >>> box.to_pixels(width=1280, height=960)
    PixelBox(x1=128.0, y1=96.0, x2=768.0, y2=576.0)
    """

    x1: float
    y1: float
    x2: float
    y2: float

    def __post_init__(self) -> None:
        for name in ("x1", "y1", "x2", "y2"):
            # Compare the exact type: a NumPy float is a float, too, but is written otherwise in texts.
            if type(value := getattr(self, name)) is not float:
                object.__setattr__(self, name, _as_float(value))
        problem = find_box_problem(self.x1, self.y1, self.x2, self.y2)
        if problem:
            raise UserError(f"box {_format_corners(self.x1, self.y1, self.x2, self.y2)}: {problem}")

    @property
    def width(self) -> float:
        """Fraction of the image's width."""
        return self.x2 - self.x1

    @property
    def height(self) -> float:
        """Fraction of the image's height."""
        return self.y2 - self.y1

    @property
    def area(self) -> float:
        """Fraction of the image's area, in (0, 1]."""
        return self.width * self.height

    @property
    def center(self) -> tuple[float, float]:
        """The middle point (x, y) in fractions of the image."""
        return (self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2

    def to_pixels(self, width: int, height: int) -> PixelBox:
        """Return the corners in pixels of an image of `width` by `height`."""
        return PixelBox(self.x1 * width, self.y1 * height, self.x2 * width, self.y2 * height)

    def to_xywh(self, width: int, height: int) -> PixelXYWH:
        """Return the upper left corner and size in pixels of an image of `width` by `height`."""
        return PixelXYWH(self.x1 * width, self.y1 * height, self.width * width, self.height * height)

    def to_center(self) -> CenterBox:
        """Return center and size as fractions of the image."""
        return CenterBox(*self.center, self.width, self.height)

    def to_array(self) -> NDArray[np.float64]:
        """Return x1, y1, x2, y2 as float64, shape [4]."""
        return np.array((self.x1, self.y1, self.x2, self.y2), dtype=np.float64)

    @classmethod
    def whole(cls) -> Box:
        """Return the box of the whole image."""
        return cls(0.0, 0.0, 1.0, 1.0)

    @classmethod
    def from_array(cls, corners_4: ArrayLike, *, clipped: bool = False) -> Box:
        """Create a box from x1, y1, x2, y2 as fractions of the image."""
        x1, y1, x2, y2 = np.asarray(corners_4, dtype=np.float64).tolist()
        return cls._from_fractions(x1, y1, x2, y2, clipped=clipped)

    @classmethod
    def from_pixels(cls, box: PixelBox, width: int, height: int, *, clipped: bool = False) -> Box:
        """Create a box from corners in pixels of an image of `width` by `height`.

        Args:
            clipped: clip the box to the image first; a box completely outside is still refused.

        Raises:
            UserError: the image has no area, or the box is not valid.
        """
        _check_image(width, height)
        # Converted before the division, which raises OverflowError for an integer beyond the range of floats.
        x1, y1, x2, y2 = map(_as_float, (box.x1, box.y1, box.x2, box.y2))
        return cls._from_fractions(x1 / width, y1 / height, x2 / width, y2 / height, clipped=clipped)

    @classmethod
    def from_xywh(cls, box: PixelXYWH, width: int, height: int, *, clipped: bool = False) -> Box:
        """Create a box from upper left corner and size in pixels; see `from_pixels`."""
        corners = PixelBox(box.x, box.y, box.x + box.width, box.y + box.height)
        return cls.from_pixels(corners, width, height, clipped=clipped)

    @classmethod
    def from_center(cls, box: CenterBox, *, clipped: bool = False) -> Box:
        """Create a box from center and size as fractions of the image; see `from_pixels`."""
        cx, cy = _as_float(box.cx), _as_float(box.cy)
        half_width, half_height = _as_float(box.width) / 2, _as_float(box.height) / 2
        return cls._from_fractions(
            cx - half_width,
            cy - half_height,
            cx + half_width,
            cy + half_height,
            clipped=clipped,
        )

    @classmethod
    def _from_fractions(cls, x1: float, y1: float, x2: float, y2: float, *, clipped: bool) -> Box:
        return cls(*(_snap_to_edge(value, clipped=clipped) for value in (x1, y1, x2, y2)))


def _as_float(value: float) -> float:
    """Convert to float; an integer beyond its range becomes infinite, which the check refuses with a reason."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _format_corners(*corners: float) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in corners) + ")"


def _check_image(width: float, height: float) -> None:
    if not (0 < width < _MAX_SIDE and 0 < height < _MAX_SIDE):
        raise UserError(f"image size {width!s:.20} x {height!s:.20}: both sides must be at least 1 pixel, below 2**53")


def _snap_to_edge(value: float, *, clipped: bool) -> float:
    """Clip to [0, 1] if `clipped`, else only what rounding put over the edge; NaN is left to the check."""
    slack = math.inf if clipped else EDGE_ROUNDING
    if -slack <= value < 0.0:
        return 0.0
    if 1.0 < value <= 1.0 + slack:
        return 1.0
    return value


def find_box_problem(x1: float, y1: float, x2: float, y2: float, *, inside: bool = True) -> str | None:
    """Describe what is wrong with four corners as a box (`inside` the image), or return None."""
    # Most boxes are valid, and one comparison for all corners takes a sixth of the time: servers read 65,536 at once.
    if 0.0 <= x1 < x2 <= 1.0 and 0.0 <= y1 < y2 <= 1.0:
        return None
    corners = (x1, y1, x2, y2)
    if not all(math.isfinite(value) for value in corners):
        return "every corner must be a finite number"
    if inside and (min(corners) < 0.0 or max(corners) > 1.0):
        return "corners must lie in [0, 1] of the image"
    if x2 <= x1:
        return "x2 must be greater than x1 (corner order is x1, y1, x2, y2)"
    if y2 <= y1:
        return "y2 must be greater than y1 (corner order is x1, y1, x2, y2)"
    return None


def as_boxes(boxes_R4: ArrayLike) -> NDArray[np.float64]:
    """Convert boxes to a float64 array of shape [R, 4]; an empty list becomes [0, 4].

    Raises:
        UserError: the shape is wrong, or a value is not a number.
    """
    try:
        array = np.asarray(boxes_R4, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"boxes must be an array of numbers of shape [R, 4] ({str(error)[:120]})") from error
    if array.size == 0 and array.ndim <= 2:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise UserError(f"boxes must be an array of shape [R, 4] (got {list(array.shape)})")
    return array


def validate_boxes(
    boxes_R4: ArrayLike,
    ids: Sequence[object] | None = None,
    *,
    what: str = "region",
    predicted: bool = False,
) -> NDArray[np.float64]:
    """Check R canonical boxes and return them as float64.

    Args:
        ids: R names of the rows for the error; row numbers by default.
        what: the noun for a row in the error.
        predicted: boxes of a model, which may be empty and reach outside [0, 1], but not be inverted.

    Raises:
        UserError: a row is not finite, not inside [0, 1], empty or inverted; the error names the first.
    """
    boxes = as_boxes(boxes_R4)
    if ids is not None and len(ids) != len(boxes):
        raise UserError(f"{len(boxes)} boxes but {len(ids)} {what} names; expected equal numbers")
    x1, y1, x2, y2 = boxes.T
    # NaN compares as false and is refused by isfinite; the warning would only be noise.
    with np.errstate(invalid="ignore"):
        good_R = np.isfinite(boxes).all(1)
        if predicted:
            good_R &= (x2 >= x1) & (y2 >= y1)
        else:
            good_R &= (x2 > x1) & (y2 > y1) & (boxes.min(1, initial=0) >= 0) & (boxes.max(1, initial=1) <= 1)
    if not good_R.all():
        row = int(np.flatnonzero(~good_R)[0])
        name = ids[row] if ids is not None else row
        corners = boxes[row].tolist()
        problem = find_box_problem(*corners, inside=not predicted)
        raise UserError(f"{what} '{name}': box {_format_corners(*corners)}: {problem}")
    return boxes


def clamp_and_sort(boxes_R4: ArrayLike) -> NDArray[np.float64]:
    """Clamp raw predicted corners to [0, 1] and sort each axis; NaN stays NaN."""
    boxes = np.clip(as_boxes(boxes_R4), 0.0, 1.0)
    return np.concatenate((np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])), axis=1)


def areas(boxes_R4: ArrayLike) -> NDArray[np.float64]:
    """Compute the area of each box in the squared unit of its corners, shape [R]; inverted boxes count as empty."""
    boxes = as_boxes(boxes_R4)
    return (boxes[:, 2] - boxes[:, 0]).clip(min=0) * (boxes[:, 3] - boxes[:, 1]).clip(min=0)


def centers(boxes_R4: ArrayLike) -> NDArray[np.float64]:
    """Compute the center (x, y) of each box, shape [R, 2]."""
    boxes = as_boxes(boxes_R4)
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _ratio(intersection: Floats, union: Floats) -> NDArray[np.float64]:
    # 0 instead of NaN for two empty boxes, which predictions may have.
    return np.divide(intersection, union, out=np.zeros(intersection.shape), where=union > 0)


def _overlap(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Return the areas of intersection of boxes [..., 4] that broadcast: [...]."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    # Clipped before the product: two negative sides would make a positive area of boxes that do not meet.
    return sides.clip(min=0).prod(-1)


def intersection_over_union(a_R4: ArrayLike, b_R4: ArrayLike) -> NDArray[np.float64]:
    """Compute the IoU of matching rows, shape [R], in [0, 1]; 0 where the union is empty.

    Any unit does as long as both use the same one.

    Raises:
        UserError: the two have different numbers of rows.

    Example:
        >>> intersection_over_union([[0.0, 0.0, 0.5, 0.5]], [[0.0, 0.0, 0.5, 1.0]]).tolist()
        [0.5]
    """
    a, b = as_boxes(a_R4), as_boxes(b_R4)
    if len(a) != len(b):
        raise UserError(f"row-wise IoU needs as many boxes on both sides (got {len(a)} and {len(b)})")
    intersection_R = _overlap(a, b)
    return _ratio(intersection_R, areas(a) + areas(b) - intersection_R)


def pairwise_iou(a_N4: ArrayLike, b_M4: ArrayLike) -> NDArray[np.float64]:
    """Compute the IoU of every box of `a` with every box of `b`, shape [N, M], in [0, 1].

    Example:
        >>> pairwise_iou([[0.0, 0.0, 0.5, 0.5]], [[0.0, 0.0, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]]).tolist()
        [[0.5, 0.0]]
    """
    a, b = as_boxes(a_N4), as_boxes(b_M4)
    intersection_NM = _overlap(a[:, None], b[None, :])
    return _ratio(intersection_NM, areas(a)[:, None] + areas(b)[None, :] - intersection_NM)
