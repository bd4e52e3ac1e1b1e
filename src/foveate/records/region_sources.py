"""Select regions by source: data sets and people, or pseudo-labels of detectors.

Pseudo-labels are in the same table as all other regions, marked by their `source`. Trainings choose among sources; an
index and an export leave pseudo-labels out by default; evaluations never use them as ground truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from foveate.core.errors import UserError, nearest
from foveate.records.collection import Collection
from foveate.records.record import Region

PSEUDO = "vesl:"
LABELED = "mllm:"
DETECTED = "detector:"
# Names for everything except pseudo-labels, and for everything.
OWN_SOURCES, ALL_SOURCES = "own", "all"
# The field of every settings model that selects regions, with the help of --region-source.
RegionSources = Annotated[
    tuple[str, ...] | None,
    Field(
        description="sources of regions: own (not made by a detector; default), all, or a source such as vesl:nanodet"
    ),
]


def pseudo_label_source(detector: str) -> str:
    """Return the value of the column `source` for pseudo-labels of a detector."""
    return f"{PSEUDO}{detector}"


def model_label_source(model: str) -> str:
    """Return the value of the column `source` for pseudo-labels of a multimodal model."""
    return f"{LABELED}{model}"


def detector_source(detector: str) -> str:
    """Return the value of the column `source` for boxes that a detector proposed without words."""
    return f"{DETECTED}{detector}"


def is_pseudo_label(source: str) -> bool:
    """Whether regions of this source are pseudo-labels of a detector or a multimodal model."""
    return source.startswith((PSEUDO, LABELED, DETECTED))


def select_region_rows(
    regions: pa.Table, sources: Sequence[str] | None, *, where: str = "field sources"
) -> NDArray[np.bool_]:
    """Select the rows of a region table that have one of the sources, as bool [rows].

    Args:
        sources: names, each optionally with `@` and the recipe hash of one labeling run; "own" for everything except
            pseudo-labels, "all" for everything; None selects all rows.
        where: field or option, for errors.

    Raises:
        UserError: no region has the source; the error lists the sources and the nearest.
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
    # Only pseudo-labels come from labeling runs, which the hash distinguishes.
    single = {f"{source}@{recipe}": (source, recipe) for source, recipe in there if is_pseudo_label(source)}
    names = {source for source, _ in there}
    selected_rows = np.zeros(regions.num_rows, dtype=bool)
    for name in sources:
        if name in (OWN_SOURCES, ALL_SOURCES):
            selected = [source for source in names if name == ALL_SOURCES or not is_pseudo_label(source)]
            selected_rows |= np.isin(regions["source"].to_numpy().astype(str), selected)
            continue
        if name not in names and name not in single:
            allowed = [OWN_SOURCES, ALL_SOURCES, *sorted(names | set(single))]
            raise UserError(
                f"{where}: no region has the source '{name}'; expected one of {', '.join(allowed)}"
                f"{nearest(name, allowed)}"
            )
        # A name without a run takes the rows of all runs.
        source, recipe = single.get(name, (name, None))
        mask = regions["source"].to_numpy() == source
        if recipe is not None:
            mask &= regions["recipe_hash"].to_numpy() == recipe
        selected_rows |= mask
    return selected_rows


class SelectedRegions:
    """The regions of a collection that have one of the sources; see `select_region_rows`."""

    def __init__(
        self, collection: Collection, sources: Sequence[str] = (OWN_SOURCES,), *, where: str = "--region-source"
    ) -> None:
        self._collection, self._grouped = collection, collection.grouped("regions")
        self._mask_R = select_region_rows(self._grouped.table, sources, where=where)

    def labels(self) -> list[str]:
        """Return the different labels of the selected regions, "" included where a region has none."""
        labels: list[str] = self._grouped.table["label"].filter(pa.array(self._mask_R)).unique().to_pylist()
        return labels

    @property
    def left_out(self) -> int:
        """Number of regions of other sources."""
        return int((~self._mask_R).sum())

    def count_left_out(self, rows: Iterable[int]) -> int:
        """Count the regions of other sources of some images."""
        return int((~self._mask_R & np.isin(self._grouped.row_numbers, list(rows))).sum())

    def read_numbered(self, row: int) -> list[tuple[int, Region]]:
        """Return the selected regions of an image, each with its position among all regions of the image."""
        mask_R = self._mask_R[slice(*self._grouped.bounds(row))]
        return [
            (position, region) for position, region in enumerate(self._collection.read_regions(row)) if mask_R[position]
        ]

    def read(self, row: int) -> list[Region]:
        """Return the selected regions of an image, in the order in which they were added."""
        return [region for _, region in self.read_numbered(row)]

    def describe_left_out(self, rows: Iterable[int] | None = None) -> str:
        """Describe what is left out, of all images or of some, in a sentence; "" if nothing is."""
        count = self.left_out if rows is None else self.count_left_out(rows)
        return f"{count:,} regions of other sources are left out; --region-source all takes them" if count else ""
