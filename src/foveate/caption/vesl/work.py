"""What is to be labeled: the caption of every image, its phrases, and which images a recipe has done already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection as Collection_
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.caption.vesl.settings import RegionLabelSettings
from foveate.core import seeds
from foveate.core.errors import UserError, nearest
from foveate.records.annotate import matching_parts
from foveate.records.collection import Collection
from foveate.records.current import current_captions
from foveate.records.grouped import GroupedTable

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
        captions = current_captions(collection, prefer=settings.prefer)
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
