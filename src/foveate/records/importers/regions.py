"""Parse regions of sidecars in the usual box formats, or report why they are not usable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from foveate.core.errors import UserError, choose, nearest
from foveate.records.boxes import EDGE_ROUNDING, Box
from foveate.records.importers.sample import Problem
from foveate.records.record import Region

FORMATS = ("xyxy", "xywh")
UNITS = ("pixel", "normalized")
FIELDS = ("box", "phrase", "format", "unit", "score", "label", "slice", "source")
# A box may reach out of the image by this fraction of the side and is then clipped. One that reaches further was most
# likely written in another unit or format, and clipping would hide that.
CLIP_TOLERANCE = 0.05


def are_fractions(regions: Sequence[object]) -> bool:
    """Whether boxes without a unit must be fractions of the image: none of their numbers is above 1.

    In pixels no such box would have more than one pixel. 1.05 is allowed, as boxes may reach out of the image.
    """
    boxes = [raw["box"] for raw in regions if isinstance(raw, Mapping) and "box" in raw and raw.get("unit") is None]
    entries = [value for box in boxes if isinstance(box, list) for value in box]
    values = [value for value in entries if isinstance(value, int | float) and not isinstance(value, bool)]
    return len(values) == len(entries) > 0 and all(-CLIP_TOLERANCE <= value <= 1 + CLIP_TOLERANCE for value in values)


def read_region(
    raw: object, *, position: int, width: int, height: int, unit: str = "pixel"
) -> tuple[Region, bool] | Problem:
    """Parse one entry of "regions"; return the region and whether its box was clipped, or the problem.

    Args:
        raw: an object with `box` (four numbers), `phrase` and/or `label`, `format` ("xyxy", the default, or "xywh"),
            `unit` ("pixel" or "normalized"), `score` in [0, 1], `slice`, `source`.
        position: number of the entry, for the problem.
        width, height: of the image after EXIF rotation, in pixels.
        unit: of a box that states none.
    """
    try:
        if not isinstance(raw, Mapping):
            raise UserError("a region must be an object with the field 'box'")
        texts = {name: _text(raw, name) for name in ("phrase", "label", "slice", "source")}
        score = _number(raw.get("score", 1.0), "score")
        if not 0 <= score <= 1:
            raise UserError(f"field 'score': {score:g} is not in [0, 1]")
        if not texts["phrase"].strip() and not texts["label"].strip():
            raise UserError(f"neither field 'phrase' nor 'label' has text{_hint(raw, 'phrase')}")
        corners = _corners(raw, width=width, height=height, unit=unit)
    except UserError as error:
        # Whatever is wrong with the entry: one bad region becomes a finding and never ends the import.
        return Problem("region", "malformed region", str(error), position)
    texts["phrase"] = texts["phrase"] if texts["phrase"].strip() else texts["label"]
    outcome = _fit(corners)
    if isinstance(outcome, str):
        listed = ", ".join(f"{corner:.4g}" for corner in corners)
        detail = f"box ({listed}) in parts of the image's width and height"
        return Problem("region", outcome, detail, position)
    box, clipped = outcome
    return Region(box, texts["phrase"], score, texts["label"], texts["slice"], texts["source"]), clipped


def _corners(raw: Mapping[str, object], *, width: int, height: int, unit: str) -> tuple[float, float, float, float]:
    if "box" not in raw:
        raise UserError(f"field 'box' is missing{_hint(raw, 'box')}")
    box = raw["box"]
    if not isinstance(box, list) or len(box) != 4:
        raise UserError("field 'box' must be a list of four numbers")
    x1, y1, x2, y2 = (_number(value, "box") for value in box)
    if choose(_text(raw, "format") or "xyxy", FORMATS, "box format") == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    if choose(_text(raw, "unit") or unit, UNITS, "box unit") == "pixel":
        x1, y1, x2, y2 = x1 / width, y1 / height, x2 / width, y2 / height
    return x1, y1, x2, y2


def _fit(corners: tuple[float, float, float, float]) -> tuple[Box, bool] | str:
    """Return the box and whether it was clipped, or the reason code why it is refused."""
    if not all(math.isfinite(corner) for corner in corners):
        return "box not finite"
    x1, y1, x2, y2 = corners
    if x2 < x1 or y2 < y1:
        return "box inverted"
    if x2 == x1 or y2 == y1:
        return "box empty"
    sticks_out = max(-x1, -y1, x2 - 1, y2 - 1)
    if sticks_out > CLIP_TOLERANCE or min(x2, y2) <= 0 or max(x1, y1) >= 1:
        return "box outside the image"
    x1, y1, x2, y2 = max(0.0, x1), max(0.0, y1), min(1.0, x2), min(1.0, y2)
    # Corners are stored as float32, in which a very thin box would be empty.
    if np.float32(x1) >= np.float32(x2) or np.float32(y1) >= np.float32(y2):
        return "box empty"
    return Box(x1, y1, x2, y2), sticks_out > EDGE_ROUNDING


def _text(raw: Mapping[str, object], name: str) -> str:
    value = raw.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"field {name!r} must be text")
    return value


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"field {name!r} must hold numbers")
    try:
        return float(value)
    # JSON integers have any length; one too large for a float lies outside of every image.
    except OverflowError:
        return math.inf


def _hint(raw: Mapping[str, object], field: str) -> str:
    """Return the nearest of the unknown fields of an entry, for a misspelled name."""
    return nearest(field, [str(name) for name in raw if name not in FIELDS])
