"""Read YOLO text files: a line per box with the number of its class, its center and its size as fractions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from foveate.records.importers.regions import CLIP_TOLERANCE

# "0.0" is what tables of numbers write for a class.
_CLASS = re.compile(r"([0-9]{1,6})(?:\.0+)?")
_NUMBER = re.compile(r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?")


def parse_yolo(text: str, class_names: Sequence[str]) -> list[dict[str, object]] | None:
    """Return the boxes of a YOLO text file as entries of "regions"; None if the text is something else.

    Lines are `class x y width height`, with a score behind it in a detector's output, or `class x1 y1 x2 y2 x3 y3 ...`,
    the outline of a segment, whose box is returned.

    Args:
        class_names: name by number of the class; without them phrases are "class 7".
    """
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    boxes: list[dict[str, object]] = []
    for fields in lines:
        values = _parse_numbers(fields)
        if values is None:
            return None
        # An outline has at least three corners: five numbers are a box with its score.
        if len(values) >= 6 and len(values) % 2 == 0:
            across, down = values[::2], values[1::2]
            box = [min(across), min(down), max(across), max(down)]
        elif len(values) in (4, 5):
            x, y, width, height = values[:4]
            box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        else:
            return None
        score = values[4] if len(values) == 5 else 1.0
        number = int(fields[0].partition(".")[0])
        name = class_names[number] if number < len(class_names) and class_names[number].strip() else f"class {number}"
        boxes.append({"box": box, "unit": "normalized", "phrase": name, "label": name, "score": score})
    return boxes


def has_only_numbers(text: str) -> bool:
    """Whether a text has numbers in each line and nothing else, as a damaged file of YOLO has."""
    words = text.split()
    return bool(words) and all(map(_NUMBER.fullmatch, words))


def _parse_numbers(fields: Sequence[str]) -> list[float] | None:
    """Return the numbers of a line behind its class; None if they cannot be those of a box."""
    if not _CLASS.fullmatch(fields[0]):
        return None
    try:
        values = [float(field) for field in fields[1:]]
    except ValueError:
        return None
    # A caption of numbers, such as "1984 2 4 6 8", is none; what sticks out a little is clipped later.
    fits = all(-CLIP_TOLERANCE <= value <= 1 + CLIP_TOLERANCE for value in values)
    return values if fits else None
