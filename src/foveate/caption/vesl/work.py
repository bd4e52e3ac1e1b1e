"""What is to be labeled: the caption of every image, its phrases, and which images a recipe has done already."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection as Collection_
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from foveate.caption.vesl.detection import Detector
from foveate.caption.vesl.phrases import PhraseSettings
from foveate.caption.vesl.tagging import Extractor
from foveate.core import seeds
from foveate.core.errors import UserError, nearest
from foveate.core.recipes import Settings
from foveate.records.annotate import matching_parts
from foveate.records.collection import Collection
from foveate.records.current_captions import load_current_captions
from foveate.records.tables import GroupedTable

# Of the steps themselves: raised when the same settings come to give other rows.
STEPS = "vesl-1"


class RegionLabelSettings(Settings):
    """`foveate regions COLLECTION`."""

    phrases: PhraseSettings = PhraseSettings()
    captions: tuple[str, ...] = Field(
        ("dsc_plus", "dsc", "alt"), min_length=1, description="kinds of captions, best first; the first there is counts"
    )
    prefer: tuple[str, ...] = Field((), description="captioners whose captions come first, best first")
    shuffle_phrases: bool = Field(
        False, description="negative control: every image is asked about the phrases of another"
    )


def recipe_of(
    settings: RegionLabelSettings, extractor: Extractor, detector: Detector, detector_settings: Settings
) -> dict[str, Any]:
    """All that decides which rows come out, as JSON values."""
    return {
        "steps": STEPS,
        **settings.model_dump(mode="json"),
        "tagger": {"name": extractor.name, "version": extractor.version},
        "detector": {
            "name": detector.name,
            "version": detector.version,
            "input_px": detector.input_px,
            # Where the weights lie says nothing of them; their version does.
            "settings": {k: v for k, v in detector_settings.model_dump(mode="json").items() if k != "model"},
        },
    }


def recipe_hash(recipe: dict[str, Any]) -> str:
    """16 hexadecimal digits of a recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


OK, NO_CAPTION, NO_PHRASES, NO_BOXES, DECODE_ERROR, DETECTOR_ERROR = STATUSES = (
    "ok",
    "no_caption",
    "no_phrases",
    "no_boxes",
    "decode_error",
    "detector_error",
)


@dataclass(frozen=True, slots=True)
class Said:
    """The texts about an image that were chosen: their kind ("" where there is none)."""

    kind: str = ""
    texts: tuple[str, ...] = ()


class Captions:
    """The current captions of a collection by row and kind.

    Raises:
        UserError: when the collection has no caption of any wanted kind.
    """

    def __init__(self, collection: Collection, settings: RegionLabelSettings) -> None:
        self.kinds = settings.captions
        captions = load_current_captions(collection, prefer=settings.prefer)
        there = sorted(captions["kind"].unique().to_pylist())
        if not set(there) & set(self.kinds):
            hint = nearest(self.kinds[0], there)
            raise UserError(
                f"collection '{collection.name}': no caption of the kinds {', '.join(self.kinds)}; it has "
                f"{', '.join(there) or 'none at all'}{hint}"
            )
        self._grouped = GroupedTable(captions, pa.chunked_array([pa.array(collection.keys, pa.string())]))

    def of(self, row: int) -> Said:
        """The texts of the first wanted kind that the image has."""
        bounds = self._grouped.bounds(row)
        by_kind: dict[str, list[str]] = {}
        for kind, text in zip(self._grouped.texts("kind", *bounds), self._grouped.texts("text", *bounds), strict=True):
            if text.strip():
                by_kind.setdefault(kind, []).append(text)
        kind = next((one for one in self.kinds if one in by_kind), "")
        return Said(kind, tuple(by_kind.get(kind, ())))


@dataclass(slots=True)
class Done:
    """Of the wanted images that a recipe has labeled: their keys, counts of statuses, regions and thin boxes; and
    the regions of those whose status a kill left unwritten."""

    keys: set[str] = field(default_factory=set)
    status: Counter[str] = field(default_factory=Counter)
    regions: int = 0
    thin: int = 0
    unfinished: Counter[str] = field(default_factory=Counter)


def done_before(collection: Collection, recipe: str, wanted: Collection_[str]) -> Done:
    """What rows with this recipe hash say of the images `wanted`, by key.

    An image's regions are all in one part, so they are there or they are not.
    """
    done = Done()
    of_recipe = {"recipe_hash": recipe}
    statuses = matching_parts(collection.path, "region_status", ["key", "status", "regions", "thin"], where=of_recipe)
    for part in statuses:
        for row in part.to_pylist():
            if row["key"] in wanted:
                done.keys.add(row["key"])
                done.status[row["status"]] += 1
                done.regions += row["regions"]
                done.thin += row["thin"]
    for part in matching_parts(collection.path, "regions", ["key"], where=of_recipe):
        done.unfinished.update(key for key in part["key"].to_pylist() if key in wanted and key not in done.keys)
    return done


def partner_of(rows: Sequence[int] | NDArray[np.int64], seed: int) -> dict[int, int]:
    """For every row another one of `rows`: each is the partner of one, none of itself (where there are two)."""
    order = seeds.generator("shuffled phrases", seed).permutation(np.asarray(rows))
    return dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
