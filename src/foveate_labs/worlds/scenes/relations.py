"""Relations between the boxes of a scene: left of, above, inside, overlapping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.records.boxes import Box

RELATIONS = ("left of", "above", "inside", "overlapping")
_CLEAR = 0.02  # a gap between boxes from which one is beside the other
_TOUCH = 0.10  # share of the smaller box that must be shared to overlap
_INSIDE = 0.95


@dataclass(frozen=True)
class Relation:
    """`first` and `second` are positions in the list of boxes: boxes[first] is `name` boxes[second]."""

    first: int
    name: str
    second: int


def shared_area(a: Box, b: Box) -> float:
    """Return the area of the intersection, as a fraction of the image."""
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    return max(width, 0.0) * max(height, 0.0)


def relate(boxes: Sequence[Box]) -> tuple[Relation, ...]:
    """Find all relations that hold, ordered by pair.

    - left of, above: a clear gap between the boxes on that axis, and their extents on the other axis meet.
    - inside: at least 95 % of the first box lies in the second.
    - overlapping: at least 10 % of the smaller is shared, and neither is inside the other (given once, lower position
      first).
    """
    relations = []
    for i, a in enumerate(boxes):
        for j, b in enumerate(boxes):
            if i == j:
                continue
            shared = shared_area(a, b)
            same_rows = min(a.y2, b.y2) > max(a.y1, b.y1)
            same_columns = min(a.x2, b.x2) > max(a.x1, b.x1)
            if same_rows and a.x2 + _CLEAR <= b.x1:
                relations.append(Relation(i, "left of", j))
            if same_columns and a.y2 + _CLEAR <= b.y1:
                relations.append(Relation(i, "above", j))
            if shared >= _INSIDE * a.area and a.area < b.area:
                relations.append(Relation(i, "inside", j))
            elif i < j and _TOUCH * min(a.area, b.area) <= shared < _INSIDE * min(a.area, b.area):
                relations.append(Relation(i, "overlapping", j))
    return tuple(relations)
