"""Checks that results of MegaDetector and SpeciesNet share: paths, scores and boxes; repairs are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError, nearest
from foveate.records.boxes import EDGE_ROUNDING, Box
from foveate.records.importers.files import is_number
from foveate.survey.detections import ClassLabel, ScoredLabel
from foveate.survey.file_index import is_absolute, normalize_path

# A box may leave the image by rounding or by a padded input; one that ends beyond twice the image is in pixels.
_MAX_CORNER = 2.0

BACKSLASHES = "paths with back-slashes"
ABSOLUTE = "absolute paths (the drive or the leading slash was dropped)"
INTEGER_SCORES = "confidences written as integers"
UNSORTED = "lists of classifications that were not sorted"
CLIPPED = "boxes that left the image and were clipped"
EMPTY_BOXES = "boxes without any area in the image, left out"
NUMBER_AS_CATEGORY = "categories written as numbers"


class ResultsParser:
    """Checks of the fields that both formats have; counts what is doubtful, and refuses files that occur twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.repairs: Counter[str] = Counter()
        self.contradictions = 0
        self._positions: dict[str, str] = {}

    def error(self, where: str, problem: str) -> UserError:
        """Make the error about a record or field of the file."""
        return UserError(f"{self.path}: {where}: {problem}")

    def get(self, entry: Mapping[str, Any], field: str, kind: type[Any], *, where: str) -> Any:
        """Return a field of the type `kind` that must be there."""
        if field not in entry:
            hint = nearest(field, map(str, entry))
            raise self.error(where, f"field {field!r} is missing{hint}")
        if not isinstance(entry[field], kind):
            expected = {dict: "an object", list: "a list", str: "a text"}[kind]
            raise self.error(where, f"field {field!r}: expected {expected} (got {type(entry[field]).__name__})")
        return entry[field]

    def parse_file(self, value: object, where: str) -> str:
        """Return the path with forward slashes and relative; raise UserError if the file occurred before."""
        if not isinstance(value, str) or not value.strip():
            raise self.error(where, f"expected the path of an image (got {value!r:.40})")
        # The format allows backslashes and absolute paths, so both are counted as repairs instead of refused.
        self.repairs[BACKSLASHES] += "\\" in value
        self.repairs[ABSOLUTE] += is_absolute(value)
        file = normalize_path(value)
        if file in self._positions:
            raise self.error(where, f"{file!r} occurs twice, first as {self._positions[file]}; which one counts?")
        self._positions[file] = where
        return file

    def parse_category(self, value: object) -> str:
        """Return the id of a category as the text that the tables of categories use."""
        if isinstance(value, int) and not isinstance(value, bool):
            self.repairs[NUMBER_AS_CATEGORY] += 1
        return str(value)

    def parse_score(self, value: object, where: str) -> float:
        """Return a score in [0, 1]."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(where, f"expected a number in [0, 1] (got {value!r:.40})")
        # 1 means 1.0, but the public validator wants the decimal point.
        self.repairs[INTEGER_SCORES] += isinstance(value, int)
        # NaN compares false, so it is refused, too.
        if not 0 <= value <= 1:
            raise self.error(where, f"expected a number in [0, 1] (got {value})")
        return float(value)

    def parse_pairs(self, value: object, labels: Mapping[str, ClassLabel], where: str) -> tuple[ScoredLabel, ...]:
        """Return (class, score) pairs of MegaDetector, best first."""
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.error(where, f"expected a list of [category, score] (got {value!r:.40})")
        scored = []
        for position, pair in enumerate(value):
            at = f"{where}[{position}]"
            if not isinstance(pair, list) or len(pair) != 2:
                raise self.error(at, f"expected [category, score] (got {pair!r:.40})")
            number = self.parse_category(pair[0])
            if number not in labels:
                raise self.error(at, f"category {number!r} is not in classification_categories")
            scored.append((labels[number], self.parse_score(pair[1], at)))
        if any(first[1] < second[1] for first, second in zip(scored, scored[1:], strict=False)):
            self.repairs[UNSORTED] += 1
            scored.sort(key=lambda pair: -pair[1])
        return tuple(scored)

    def parse_box(self, value: object, where: str) -> Box | None:
        """Return the box `[x, y, width, height]` in fractions, clipped to the image; None if nothing is left of it."""
        if not isinstance(value, list) or len(value) != 4 or not all(map(is_number, value)):
            raise self.error(where, f"expected [x, y, width, height] (got {value!r:.60})")
        x, y, width, height = map(float, value)
        if width < 0 or height < 0:
            raise self.error(where, f"width and height must not be negative (got {value})")
        corners = (x, y, x + width, y + height)
        if min(corners) < -_MAX_CORNER or max(corners) > _MAX_CORNER:
            raise self.error(where, f"expected fractions of the image, not pixels (got {value})")
        # A detector with padded input may return a box that leaves the image; clipping removes only padding.
        clipped = [min(max(corner, 0.0), 1.0) for corner in corners]
        if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
            self.repairs[EMPTY_BOXES] += 1
            return None
        self.repairs[CLIPPED] += max(-x, -y, corners[2] - 1, corners[3] - 1) > EDGE_ROUNDING
        return Box(*clipped)
