"""Who made a region: the data set, a person, or a detector that was asked about a caption's phrases.

Labels that a detector made stand in the same table as all others, marked by their `source`. Trainings may choose among
sources; evaluations never take such labels for the truth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.settings.errors import UserError, nearest

PSEUDO = "vesl:"


def pseudo_source(detector: str) -> str:
    """What the column `source` says of the labels of a detector."""
    return f"{PSEUDO}{detector}"


def is_pseudo(source: str) -> bool:
    """Whether regions of this source are labels that a detector made."""
    return source.startswith(PSEUDO)


def from_sources(regions: pa.Table, sources: Sequence[str] | None, *, where: str = "sources") -> NDArray[np.bool_]:
    """Which rows of a table of regions are of the sources, as bool [rows]; all of them for None.

    Args:
        sources: names of sources, each optionally with `@` and the recipe hash of one labelling. where: for errors.

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
    single = {f"{source}@{recipe}": (source, recipe) for source, recipe in there if is_pseudo(source)}
    names = {source for source, _ in there}
    chosen = np.zeros(regions.num_rows, dtype=bool)
    for one in sources:
        if one not in names and one not in single:
            allowed = sorted(names | set(single))
            listed = ", ".join(allowed) or "none"
            raise UserError(
                f"field {where}: no region has the source '{one}'; allowed are {listed}{nearest(one, allowed)}"
            )
        source, recipe = single.get(one, (one, None))
        mask = regions["source"].to_numpy() == source
        if recipe is not None:
            mask &= regions["recipe_hash"].to_numpy() == recipe
        chosen |= mask
    return chosen
