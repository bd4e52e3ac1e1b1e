"""Regions of foreign conversations: found in texts, converted to pixels, and checked for the right unit.

Which unit the boxes of a data set are in is the most frequent question about it, and wrong boxes train as smoothly as
right ones. So the unit is stated by the user, and the first boxes are compared with their images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, get_args

from PIL import Image, ImageDraw

from foveate.core.errors import UserError
from foveate.core.files import write_bytes_atomically
from foveate.records.boxes import PixelBox
from foveate.records.conversations import REGION, find_shape_problem
from foveate.records.images import BadImage, decode
from foveate.records.importers.formats import Coordinates
from foveate.records.importers.sidecar import CLIP_TOLERANCE
from foveate.records.shapes import Mask, Point, Shape, Stroke, enclosing_box

# The images of the checked boxes are opened before the import, so there must not be too many.
MAX_CHECKED = 1000
_UNITS = tuple(unit for unit in get_args(Coordinates) if unit != "none")
_MAX_OUTSIDE = 0.05  # share of the checked boxes
_MIN_BOXES = 20  # fewer say little about how far boxes reach
_SAMPLES, _SIDE = 12, 320

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
BOX_LIST = rf"\[{','.join([_NUMBER] * 4)}\]"


def extract_regions(text: str, *patterns: str) -> tuple[str, tuple[Shape, ...]]:
    """Replace what matches one of the `patterns` by `<region>`; return the text and the shapes in their order.

    Args:
        patterns: regular expressions whose only groups are two numbers (a point) or four (two corners).
    """
    shapes: list[Shape] = []

    def collect(match: re.Match[str]) -> str:
        values = [float(group) for group in match.groups() if group is not None]
        shapes.append(Point(*values) if len(values) == 2 else PixelBox(*values))
        return REGION

    # One pass over all patterns keeps the regions in the order of the text.
    return re.sub("|".join(patterns), collect, text), tuple(shapes)


@dataclass(frozen=True, slots=True)
class CoordinateFrame:
    """Frame of reference for foreign coordinates of one image.

    Args:
        unit: see `Coordinates`.
        width, height: of the image in pixels.
        stated: width and height that pixels refer to; by default those of the image.
        resized: width and height that resized pixels refer to; by default Qwen's rule with `min_pixels`, `max_pixels`.

    Example:
        >>> frame = CoordinateFrame("0-1000", width=1920, height=1080)
        >>> frame.to_pixels(PixelBox(100, 200, 300, 400))
        PixelBox(x1=192.0, y1=216.0, x2=576.0, y2=432.0)
    """

    unit: str
    width: int
    height: int
    stated: tuple[int, int] | None = None
    resized: tuple[int, int] | None = None
    min_pixels: int = 0
    max_pixels: int = 0

    def to_pixels(self, shape: Shape) -> Shape:
        """Convert a shape to pixels of the image; masks have a size of their own and stay as they are."""
        if isinstance(shape, Point):
            return Point(*self._convert(shape.x, shape.y))
        if isinstance(shape, PixelBox):
            return PixelBox(*self._convert(shape.x1, shape.y1), *self._convert(shape.x2, shape.y2))
        if isinstance(shape, Stroke):
            return Stroke(tuple(Point(*self._convert(point.x, point.y)) for point in shape.points))
        return shape

    def from_pixels(self, shape: Shape) -> Point | PixelBox:
        """Convert a point, or the box around another shape, from pixels of the image to this frame.

        Raises:
            UserError: the shape is empty.
        """
        # Every unit is a scale and a shift of each axis.
        (x0, y0), (x1, y1) = self._convert(0.0, 0.0), self._convert(1.0, 1.0)
        values = list_values(shape)
        if not values:
            raise UserError("region: it is empty")
        moved = [(v - (x0, y0)[i % 2]) / (x1 - x0, y1 - y0)[i % 2] for i, v in enumerate(values)]
        return Point(*moved) if len(moved) == 2 else PixelBox(*moved)

    def _convert(self, x: float, y: float) -> tuple[float, float]:
        width, height = self.width, self.height
        if self.unit == "0-1-padded":
            side = max(width, height)
            # Whole pixels, as LLaVA pastes the image onto its square.
            return x * side - (side - width) // 2, y * side - (side - height) // 2
        if self.unit == "0-1-cropped":
            # The square that processors of CLIP cut out of the middle.
            side = min(width, height)
            return x * side + (width - side) / 2, y * side + (height - side) / 2
        if self.unit in ("0-1", "0-1000"):
            scale = 1000 if self.unit == "0-1000" else 1
            return x * width / scale, y * height / scale
        stated = self.stated
        if self.unit == "resized-pixels":
            stated = self.resized or resize_like_qwen(
                width, height, min_pixels=self.min_pixels, max_pixels=self.max_pixels
            )
        return (x, y) if stated is None else (x * width / stated[0], y * height / stated[1])


def resize_like_qwen(width: int, height: int, *, min_pixels: int, max_pixels: int, factor: int = 28) -> tuple[int, int]:
    """Return width and height to which Qwen2-VL and Qwen2.5-VL resize an image: multiples of `factor`.

    Source: `smart_resize` of transformers' Qwen2VLImageProcessor.
    """
    across, down = (max(factor, round(side / factor) * factor) for side in (width, height))
    # Floor above the maximum and ceil below the minimum: rounded sides must not cross the bound again.
    if across * down > max_pixels:
        scale = math.sqrt(width * height / max_pixels)
        across, down = (max(factor, math.floor(side / scale / factor) * factor) for side in (width, height))
    elif across * down < min_pixels:
        scale = math.sqrt(min_pixels / (width * height))
        across, down = (math.ceil(side * scale / factor) * factor for side in (width, height))
    return across, down


def fit_shape(shape: Shape, *, width: int, height: int) -> Shape:
    """Clip a point or box that reaches out of the image by at most 5 % of the side; others stay as they are."""
    if isinstance(shape, Point):
        x, y = _clip(shape.x, width), _clip(shape.y, height)
        return Point(x, y)
    if isinstance(shape, PixelBox):
        return PixelBox(
            _clip(shape.x1, width), _clip(shape.y1, height), _clip(shape.x2, width), _clip(shape.y2, height)
        )
    return shape


def _clip(value: float, side: int) -> float:
    # A value further outside stays as it is: the check that follows refuses it; clipping would hide a wrong unit.
    slack = CLIP_TOLERANCE * side
    return min(max(value, 0.0), float(side)) if -slack <= value <= side + slack else value


class CheckedBox(NamedTuple):
    """A foreign box with the image that it lies in (a reader, its name) and the text before it."""

    shape: Shape
    frame: CoordinateFrame
    load: Callable[[], bytes]
    name: str
    text: str


class BoxFit(NamedTuple):
    """Fit of boxes to their images in some unit: the number outside, and the reach of the others (1: the edge)."""

    outside: int
    reach: float


def measure_fit(boxes: Sequence[CheckedBox], unit: str) -> BoxFit:
    """Convert boxes as if they were in `unit` and compare them with their images."""
    outside, reach = 0, 0.0
    for box in boxes:
        frame = box.frame
        converted = replace(frame, unit=unit).to_pixels(box.shape)
        fitted = fit_shape(converted, width=frame.width, height=frame.height)
        problem = find_shape_problem(fitted, width=frame.width, height=frame.height)
        # A shape without area has none in any unit, so it is no evidence about this one.
        outside += problem is not None and problem != "region empty"
        around = enclosing_box(fitted)
        if problem is None and around is not None:
            reach = max(reach, around.x2 / frame.width, around.y2 / frame.height)
    return BoxFit(outside, reach)


def check_unit(boxes: Sequence[CheckedBox], unit: str, *, source: Path) -> list[str]:
    """Check that the first boxes of a file are plausible in the stated unit; return notes for the user.

    Raises:
        UserError: more than 5 % of the boxes (and more than two) or all lie outside of their images, or all lie within
            one pixel of the corner; the error names the unit that would fit.
    """
    boxes = [box for box in boxes if not isinstance(box.shape, Mask)]
    if not boxes:
        return []
    count = len(boxes)
    fits = {other: measure_fit(boxes, other) for other in _UNITS}
    outside, reach = fits[unit]
    others = {other: fit for other, fit in fits.items() if other != unit and fit.outside <= _MAX_OUTSIDE * count}
    # The unit whose boxes reach farthest inside the images: too small a unit puts all boxes near the corner.
    best = max(others, key=lambda other: others[other].reach if others[other].reach <= 1 else 0.0, default=None)
    hint = f". Did you mean '{best}'?" if best is not None else ""
    # Data sets have a few bad boxes of their own, so two are allowed even in a short file.
    if outside == count or outside > max(2, _MAX_OUTSIDE * count):
        raise UserError(
            f"--coordinates {unit}: {outside} of the first {count} boxes of {source} do not lie in their images; "
            f"expected the unit of the file{hint}"
        )
    # Fractions read as pixels or thousandths lie inside of every image, in its corner, so `outside` cannot rule them
    # out.
    in_corner = all(_max_value(box.shape) <= 1 for box in boxes) and not unit.startswith("0-1-") and unit != "0-1"
    if in_corner:
        raise UserError(
            f"--coordinates {unit}: none of the first {count} boxes of {source} has a value above 1; expected the unit "
            f"of the file. Did you mean '0-1'?"
        )
    notes = [f"{count} boxes checked as {unit}: {outside} outside, the farthest reaches {reach:.0%} of its image"]
    # This is only a note, because boxes of things in the middle of the image rightly end far from its edges.
    if count >= _MIN_BOXES and best is not None and others[best].outside == 0 and others[best].reach > reach + 0.15:
        notes.append(f"the boxes would also fit as {best}, reaching {others[best].reach:.0%}: look at the drawn sample")
    return notes


def _max_value(shape: Shape) -> float:
    return max(shape.x, shape.y) if isinstance(shape, Point) else max(shape.x2, shape.y2)  # type: ignore[union-attr]


def pick_evenly(boxes: Sequence[CheckedBox], count: int) -> list[CheckedBox]:
    """Return at most `count` boxes, spread over all."""
    return [boxes[index * len(boxes) // count] for index in range(count)] if len(boxes) > count else list(boxes)


def format_sample(boxes: Iterable[CheckedBox]) -> list[str]:
    """Describe boxes in lines: image, text before the box, the values in the file and in pixels."""
    lines = []
    for box in boxes:
        corners = [f"{value:g}" for value in list_values(box.shape)]
        pixels = [f"{value:.1f}" for value in list_values(box.frame.to_pixels(box.shape))]
        text = " ".join(box.text.split())[-40:]
        lines.append(f"  {box.name}: {text!r} ({', '.join(corners)}) -> ({', '.join(pixels)}) pixels")
    return lines


def list_values(shape: Shape) -> list[float]:
    """Return the coordinates of a point, or the corners of the box around another shape."""
    if isinstance(shape, Point):
        return [shape.x, shape.y]
    box = enclosing_box(shape)
    return [] if box is None else [box.x1, box.y1, box.x2, box.y2]


def draw_sample(boxes: Sequence[CheckedBox], path: Path) -> None:
    """Write a sheet of images with one box each, as a PNG."""
    columns = min(4, len(boxes))
    rows = math.ceil(len(boxes) / columns)
    sheet = Image.new("RGB", (columns * _SIDE, rows * _SIDE), "white")
    for number, box in enumerate(boxes):
        try:
            image = decode(box.load(), longest_side=_SIDE - 8)
        except (BadImage, OSError):
            continue
        corners = list_values(box.frame.to_pixels(box.shape))
        across, down = image.width / box.frame.width, image.height / box.frame.height
        scaled = [value * (across, down)[index % 2] for index, value in enumerate(corners)]
        if len(scaled) == 2:
            scaled = [scaled[0] - 3, scaled[1] - 3, scaled[0] + 3, scaled[1] + 3]
        # Foreign values may be infinite, inverted or beyond Pillow's integers; the sample must not fail the import.
        if scaled and all(map(math.isfinite, scaled)) and scaled[0] <= scaled[2] and scaled[1] <= scaled[3]:
            ImageDraw.Draw(image).rectangle([round(min(max(v, -9), 9999)) for v in scaled], outline="red", width=3)
        sheet.paste(image, (number % columns * _SIDE + 4, number // columns * _SIDE + 4))
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(path, buffer.getvalue())
