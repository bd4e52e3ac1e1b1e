"""Regions that a user points at: named `<1>`, `<2>` in a question, and given as numbers or files.

A person who points numbers what they point at; a training sample has a `<region>` where each region stands. So a
question may name a region twice, or the second before the first.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from foveate.core.errors import UserError
from foveate.records.boxes import PixelBox
from foveate.records.conversations import IMAGE, REGION, decode_shape
from foveate.records.images import BadImage, decode
from foveate.records.shapes import Mask, Point, Shape, Stroke, encode_mask

GROUNDING_REQUEST = "Give the boxes of all things that you mention."
"""Behind a question whose answer shall have boxes; training and asking use the same words."""
_NAME = re.compile(r"<(\d{1,4})>")
# Match from the first of several brackets on: trying each of them would take quadratic time on a run of brackets.
_PLACEHOLDER = re.compile(rf"(?<!<)<+({IMAGE[1:-1]}|{REGION[1:-1]}|\d{{1,4}})>+")


def name_regions(question: str, regions: Sequence[Shape]) -> tuple[str, tuple[Shape, ...]]:
    """Replace the names `<1>`, `<2>` in a question by `<region>`; return it, and the regions in the order of the text.

    A question with `<region>` already stays as it is.

    Raises:
        UserError: a name has no region, or a region no name.

    >>> name_regions("Is <2> left of <1>?", [Point(1, 1), Point(9, 9)])
    ('Is <region> left of <region>?', (Point(x=9, y=9), Point(x=1, y=1)))
    """
    references = [int(number) for number in _NAME.findall(question)]
    if REGION in question and not references:
        return question, tuple(regions)
    if REGION in question:
        raise UserError(f"question: has both {REGION} and <{references[0]}>; expected one way to name regions")
    for number in references:
        if not 1 <= number <= len(regions):
            available = f"<1> to <{len(regions)}>" if regions else "a region for each name"
            raise UserError(f"question: names <{number}> (got {len(regions)} regions); expected {available}")
    named = set(references)
    for number in range(1, len(regions) + 1):
        if number not in named:
            raise UserError(
                f"region {number}: the question does not name it (got {question[:80]!r}); expected <{number}> in it, "
                f"such as 'What is <{number}>?'"
            )
    return _NAME.sub(REGION, question), tuple(regions[number - 1] for number in references)


def mute_placeholders(text: str) -> str:
    """Remove placeholders from a foreign text, such as an AltText, so it names no image or region.

    >>> mute_placeholders("Box <1> of <image>")
    'Box  1  of  image '
    """
    # Blanks, because "<1<2>3>" would else become a name that was not there.
    return _PLACEHOLDER.sub(r" \1 ", text)


def parse_box(text: str, *, name: str = "box") -> PixelBox:
    """Parse "x1,y1,x2,y2"; raise UserError naming `name` if it is no box."""
    x1, y1, x2, y2 = _parse_numbers(text, 4, name, "X1,Y1,X2,Y2")
    if x2 <= x1 or y2 <= y1:
        raise UserError(f"{name}: it has no area (got {text}); expected X1 < X2 and Y1 < Y2")
    return PixelBox(x1, y1, x2, y2)


def parse_point(text: str, *, name: str = "point") -> Point:
    """Parse "x,y"; raise UserError naming `name` if it is no point."""
    return Point(*_parse_numbers(text, 2, name, "X,Y"))


def _parse_numbers(text: str, count: int, name: str, form: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    # `float` reads "nan" and "inf", too.
    if len(values) != count or not np.isfinite(values).all():
        raise UserError(f"{name}: not {count} numbers (got '{text}'); expected {form}")
    return values


def read_stroke(path: Path) -> Stroke:
    """Read a stroke from a JSON file: a list of [x, y], or an object with it as "stroke".

    Raises:
        UserError: the file cannot be read, or holds no points.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); expected a list of [x, y]") from error
    stored = content if isinstance(content, dict) else {"stroke": content}
    try:
        shape = decode_shape(stored)
        values = [value for point in shape.points for value in (point.x, point.y)]  # type: ignore[union-attr]
    except (UserError, AttributeError) as error:
        raise UserError(f"{path}: no stroke (got {str(content)[:60]}); expected a list of [x, y]") from error
    if not values or not all(map(math.isfinite, values)):
        raise UserError(f"{path}: {'a coordinate is not finite' if values else 'no points'}; expected a list of [x, y]")
    return shape  # type: ignore[return-value]


def read_mask(path: Path) -> Mask:
    """Read a mask from an image file; everything that is not black and not transparent belongs to it.

    Raises:
        UserError: the file cannot be read, or nothing in it is set.
    """
    try:
        data = path.read_bytes()
        pixels_HWC = np.asarray(decode(data))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except BadImage as problem:
        raise UserError(f"{path}: cannot be read: {problem}") from problem
    image = Image.open(io.BytesIO(data))
    if image.has_transparency_data:
        # `decode` makes transparent pixels white, which in a mask would be set.
        pixels_HWC = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))
        pixels_HWC = pixels_HWC[..., :3] * (pixels_HWC[..., 3:] > 0)
    mask_HW = pixels_HWC.any(axis=-1)
    if not mask_HW.any():
        raise UserError(f"{path}: the mask is empty; expected pixels that are not black")
    encoded = encode_mask(mask_HW)
    return Mask((mask_HW.shape[0], mask_HW.shape[1]), tuple(encoded["counts"]))
