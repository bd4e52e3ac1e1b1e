"""Splits of a collection: by group, with near-duplicates together, and stable when images are added.

Images that share a group, or whose perceptual hashes are near, form one component. A component's split is a
pure function of the seed and of the component's first name, so that images which come later move only the
components that they join.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from foveate.core.errors import UserError
from foveate.core.files import FolderLock
from foveate.core.seeds import uniform
from foveate.records import layout, tables
from foveate.records.collection import Collection
from foveate.records.perceptual_hash import near_pairs

# Two images whose 64-bit hashes differ in at most this many bits count as near-duplicates. Of the clip-art drawings
# up to 32 pairs each at 2, 4, 6 and 8 bits were looked at: up to 6 bits nearly all were one drawing, recolored or
# redrawn; at 8 bits different things began to pair.
DISTANCE = 6


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """What `assign_splits` did.

    `images` counts by split; `components` are sets that stay together, `largest` has the most images;
    `near_duplicates` counts images that have at least one; `divided` counts components whose images were
    added with different splits and stay so.
    """

    images: dict[str, int]
    components: int
    largest: int
    near_duplicates: int
    divided: int


def assign_splits(
    path: str | Path,
    *,
    fractions: Mapping[str, float],
    seed: int = 0,
    distance: int = DISTANCE,
    keep_given: bool = True,
) -> SplitSummary:
    """Write splits.parquet for the collection at `path`.

    Args:
        fractions: part of the components by split, in [0, 1], with the sum 1. As each component is drawn by
            itself, small collections meet them roughly.
        seed: another seed gives another, independent assignment.
        distance: largest number of differing bits of near-duplicates, 0 to 16.
        keep_given: images that were added with a split keep it, and the rest of their component follows the
            first of them; False assigns all anew.

    Raises:
        UserError: bad fractions or distance, or another process is writing the collection.
    """
    check_fractions(fractions)
    if not 0 <= distance <= 16:
        raise UserError(f"distance: allowed are 0 to 16 bits, got {distance}")
    path = layout.check_collection(Path(path))
    with FolderLock(path, purpose="assigning splits"), Collection.open(path) as collection:
        hashes = collection.index["perceptual_hash"]
        pairs = near_pairs(hashes, distance=distance)
        components = components_of(collection.groups, pairs)
        given = collection.index["split"] if keep_given else np.full(len(collection), "", dtype=object)
        names = np.where(collection.groups == "", collection.index["key"], collection.groups)
        splits, divided = draw_splits(components, names, given, fractions=fractions, seed=seed)
        columns = {"key": collection.index["key"], "split": splits, "group": collection.groups}
        tables.write_table(path / layout.SPLITS_FILE, pa.table(columns, schema=tables.SPLITS))
    sizes = np.bincount(components)
    return SplitSummary(
        images=dict(sorted(Counter(splits.tolist()).items())),
        components=len(sizes),
        largest=int(sizes.max(initial=0)),
        near_duplicates=len(np.unique(pairs)),
        divided=divided,
    )


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Raise UserError unless the fractions have names, lie in [0, 1] and sum to 1 within 1e-6."""
    if not fractions or not all(fractions):
        raise UserError("fractions: at least one split with a name is wanted, as in train=0.8, test=0.2")
    for name, fraction in fractions.items():
        if not 0 <= fraction <= 1:
            raise UserError(f"fractions: {name}={fraction} is not in [0, 1]")
    total = math.fsum(fractions.values())
    if abs(total - 1) > 1e-6:
        raise UserError(f"fractions: the sum must be 1, got {total:g}")


def components_of(groups_N: np.ndarray, pairs_P2: np.ndarray) -> np.ndarray:
    """Component (N,) of each row, 0 .. C-1: rows of one group ("" is none) and paired rows are together."""
    count = len(groups_N)
    grouped = np.flatnonzero(groups_N != "")
    _, first, inverse = np.unique(groups_N[grouped].astype(str), return_index=True, return_inverse=True)
    edges = np.concatenate([np.stack([grouped, grouped[first[inverse]]], axis=1), pairs_P2])
    graph = coo_array((np.ones(len(edges), dtype=bool), (edges[:, 0], edges[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def draw_splits(
    components_N: np.ndarray,
    names_N: np.ndarray,
    given_N: np.ndarray,
    *,
    fractions: Mapping[str, float],
    seed: int,
) -> tuple[np.ndarray, int]:
    """The split of each row, and the number of components with several given splits.

    A component falls where `uniform(seed, "split", name)` in [0, 1) falls among the fractions laid end to
    end; its name is the smallest of its rows' `names_N`. Rows with a given split keep it, and the other rows
    of the component take the one of the smallest name.
    """
    order = np.lexsort((names_N.astype(str), components_N))
    starts = np.flatnonzero(np.diff(components_N[order], prepend=-1))
    edges = np.cumsum(list(fractions.values()))
    labels = list(fractions)
    # Rounding may leave the last edge a little below 1, and a split of fraction 0 at the end gets nothing.
    last = max(number for number, fraction in enumerate(fractions.values()) if fraction > 0)
    splits = np.full(len(components_N), "", dtype=object)
    divided = 0
    for start, end in zip(starts, np.append(starts, len(order))[1:], strict=True):
        rows = order[start:end]
        kept = [split for split in given_N[rows].tolist() if split]
        drawn = uniform(seed, "split", names_N[rows[0]])
        place = min(int(np.searchsorted(edges, drawn, side="right")), last)
        splits[rows] = kept[0] if kept else labels[place]
        divided += len(set(kept)) > 1
    has_given = given_N != ""
    splits[has_given] = given_N[has_given]
    return splits, divided
