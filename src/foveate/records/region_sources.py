"""Who made a region: the data set, a person, or a detector that was asked about a caption's phrases.

Labels that a detector made stand in the same table as all others, marked by their `source`. Trainings may choose among
sources; an index and an export take what no detector made, if not told otherwise; evaluations never take such labels
for the truth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.core.errors import UserError, nearest
from foveate.records.collection import Collection
from foveate.records.record import Region

PSEUDO = "vesl:"
# Names for all regions that no detector made, and for all there are.
OWN, ALL = "own", "all"


def pseudo_label_source(detector: str) -> str:
    """What the column `source` says of the labels of a detector."""
    return f"{PSEUDO}{detector}"


def is_pseudo_label(source: str) -> bool:
    """Whether regions of this source are labels that a detector made."""
    return source.startswith(PSEUDO)


def select_region_rows(
    regions: pa.Table, sources: Sequence[str] | None, *, where: str = "field sources"
) -> NDArray[np.bool_]:
    """Which rows of a table of regions are of the sources, as bool [rows]; all of them for None.

    Args:
        sources: names of sources, each optionally with `@` and the recipe hash of one labeling; "own" for whatever no
            detector made, "all" for everything. where: for errors.

    Raises:
        UserError: for a source that made no region in the table, with those that did and the nearest.
    """
    if sources is None:
        return np.ones(regions.num_rows, dtype=bool)
    there = {
        (row["source"], row["recipe_hash"])
        for row in regions.select(["source", "recipe_hash"])
        .group_by(["source", "recipe_hash"])
        .aggregate([])
        .to_pylist()
    }
    single = {f"{source}@{recipe}": (source, recipe) for source, recipe in there if is_pseudo_label(source)}
    names = {source for source, _ in there}
    chosen = np.zeros(regions.num_rows, dtype=bool)
    for one in sources:
        if one in (OWN, ALL):
            wanted = [name for name in names if one == ALL or not is_pseudo_label(name)]
            chosen |= np.isin(regions["source"].to_numpy().astype(str), wanted)
            continue
        if one not in names and one not in single:
            allowed = [OWN, ALL, *sorted(names | set(single))]
            raise UserError(
                f"{where}: no region has the source '{one}'; allowed are {', '.join(allowed)}{nearest(one, allowed)}"
            )
        source, recipe = single.get(one, (one, None))
        mask = regions["source"].to_numpy() == source
        if recipe is not None:
            mask &= regions["recipe_hash"].to_numpy() == recipe
        chosen |= mask
    return chosen


class SelectedRegions:
    """The regions of a collection's images that some sources made.

    Args:
        sources: as in `select_region_rows`. where: for errors.

    Raises:
        UserError: for a source that made no region of the collection.
    """

    def __init__(
        self, collection: Collection, sources: Sequence[str] = (OWN,), *, where: str = "--region-source"
    ) -> None:
        self._collection, self._grouped = collection, collection.grouped("regions")
        self._chosen_R = select_region_rows(self._grouped.table, sources, where=where)

    @property
    def left_out(self) -> int:
        """How many regions of the collection are of other sources."""
        return int((~self._chosen_R).sum())

    def numbered(self, row: int) -> list[tuple[int, Region]]:
        """An image's chosen regions, each with its place among all regions of the image."""
        chosen_R = self._chosen_R[slice(*self._grouped.bounds(row))]
        return [(place, region) for place, region in enumerate(self._collection.read_regions(row)) if chosen_R[place]]

    def of(self, row: int) -> list[Region]:
        """An image's chosen regions, in the order of adding."""
        return [region for _, region in self.numbered(row)]

    def describe_left_out(self) -> str:
        """A sentence on what is left out; "" where nothing is."""
        count = self.left_out
        return f"{count:,} regions of other sources are left out; --region-source all takes them" if count else ""
