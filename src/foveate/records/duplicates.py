"""Near-duplicates: the same image shrunk, re-encoded or a little tinted, found by perceptual hash and then compared.

The hash alone also pairs different drawings that share a layout, so every pair is looked at: both images are laid on
a grid of 16 x 16 colors and must agree in shape and in every part. Groups are stars, not chains: each image of a
group was compared with the one that is kept, so that nothing is taken out for the sake of an image unlike it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from foveate.core.errors import UserError
from foveate.core.progress import track
from foveate.records import layout
from foveate.records.collection import Collection
from foveate.records.images import BadImage, decode
from foveate.records.perceptual_hash import hamming, near_pairs
from foveate.records.purge import PurgeSummary
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter

DISTANCE = 6
GRID = 16
# Measured on 150 clip-art drawings of 160 pixels: JPEG at quality 30, half the size (quality 85) and a third of it stay
# below both bounds (largest mean 1.9, 2.4 and 4.1; largest block 6.5, 8.0 and 9.7); of those shrunk to 40 pixels one
# in five does not. Two drawings of one series lie above, unless all they differ in is as small as a star or a word.
MEAN_DIFFERENCE = 4.0
BLOCK_DIFFERENCE = 10.0
SHAPE_TOLERANCE = 0.04
_BLOCK = 2


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Keys of images that look the same: the one to keep, and the others in the order of the rows."""

    kept: str
    others: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DuplicateSummary:
    """What `remove_duplicates` did: the groups, how many images it took out, captions carried over, and what a purge
    took out (None without one)."""

    groups: tuple[DuplicateGroup, ...]
    removed: int
    captions_carried: int
    purged: PurgeSummary | None


def find_duplicates(
    collection: Collection, *, distance: int = DISTANCE, workers: int = 2
) -> tuple[DuplicateGroup, ...]:
    """Groups of near-duplicates of a collection, in the order of the kept images' rows.

    Of a group the image with most pixels is kept, of those with equally many the one with most captions and regions,
    of those the first row. Images whose hashes differ in at most `distance` bits are compared (0 to 16; more finds
    more and takes longer); those that cannot be read are in no group.
    """
    if not 0 <= distance <= 16:
        raise UserError(f"distance: allowed are 0 to 16 bits, got {distance}")
    hashes_N = collection.index["perceptual_hash"].astype(np.uint64)
    rank_N = _ranks(collection)
    groups: dict[int, list[int]] = {}
    components = _components(hashes_N, distance)
    with ThreadPoolExecutor(workers) as pool:
        for rows in track(components, description="comparing near-duplicates"):
            ordered = rows[np.argsort(rank_N[rows], kind="stable")]
            grids = list(pool.map(lambda row: _grid(collection, int(row)), ordered.tolist()))
            readable = [number for number, grid in enumerate(grids) if grid is not None]
            if len(readable) < 2:
                continue
            chosen = ordered[readable]
            shapes = _shapes(collection)[chosen]
            stacked = np.stack([grid for grid in grids if grid is not None])
            leader_of = leaders(stacked, shapes, hashes_N[chosen], distance=distance)
            for place, leader in enumerate(leader_of.tolist()):
                if place != leader:
                    groups.setdefault(int(chosen[leader]), []).append(int(chosen[place]))
    keys = collection.keys
    return tuple(
        DuplicateGroup(keys[row], tuple(keys[other] for other in sorted(others)))
        for row, others in sorted(groups.items())
    )


def leaders(grids_NGGC: np.ndarray, shapes_N: np.ndarray, hashes_N: np.ndarray, *, distance: int) -> np.ndarray:
    """For each image, in order of preference, the number of the first one that it equals and that leads; or itself.

    `grids_NGGC` are uint8 colors, `shapes_N` width / height. An image leads unless it equals an earlier leader.
    """
    leading: list[int] = []
    result = np.arange(len(grids_NGGC))
    for number in range(len(grids_NGGC)):
        earlier = np.array(leading, dtype=np.int64)
        near = hamming(hashes_N[earlier], hashes_N[number]) <= distance
        near &= np.abs(np.log(shapes_N[earlier] / shapes_N[number])) <= SHAPE_TOLERANCE
        match = next((one for one in earlier[near].tolist() if same_grid(grids_NGGC[one], grids_NGGC[number])), None)
        if match is None:
            leading.append(number)
        else:
            result[number] = match
    return result


def same_grid(a_GGC: np.ndarray, b_GGC: np.ndarray) -> bool:
    """Whether two grids of uint8 colors show the same image: their mean absolute difference is at most 4 of 255,
    and that of each block of 2 x 2 cells at most 10."""
    difference_GG = np.abs(a_GGC.astype(np.int16) - b_GGC.astype(np.int16)).mean(axis=2)
    blocks = difference_GG.reshape(GRID // _BLOCK, _BLOCK, GRID // _BLOCK, _BLOCK).mean(axis=(1, 3))
    return bool(difference_GG.mean() <= MEAN_DIFFERENCE and blocks.max() <= BLOCK_DIFFERENCE)


def image_grid(image: Image.Image) -> np.ndarray:
    """An image as 16 x 16 smoothed colors, (16, 16, 3) uint8."""
    return np.asarray(image.resize((GRID, GRID), Image.Resampling.BILINEAR))


def remove_duplicates(
    path: str | Path,
    *,
    distance: int = DISTANCE,
    carry_captions: bool = False,
    purge: bool = False,
    workers: int = 2,
) -> DuplicateSummary:
    """Find near-duplicates of the collection at `path` and take all but one of each group out.

    Those taken out get a tombstone with the reason "duplicate of KEY"; their bytes stay, unless `purge` is true. Which
    one stays: see `find_duplicates`. Nothing of the others is merged into it, unless `carry_captions` is true: then
    captions whose text it does not have yet are added to it, with their own provenance and the source "SOURCE, from
    KEY". Raises UserError where another process writes the collection.
    """
    path = layout.check_collection(Path(path))
    with CollectionWriter(path) as writer:
        # Opened under the lock: what is found is still true when it is taken out.
        with Collection.open(path) as collection:
            groups = find_duplicates(collection, distance=distance, workers=workers)
            carried = 0
            if carry_captions and groups:
                # Before the removal, so that a kill in between loses none.
                carried = writer.annotate("captions", carried_captions(collection, groups), Provenance())
        reasons = {key: f"duplicate of {group.kept}" for group in groups for key in group.others}
        removed = writer.remove(reasons, reason=reasons, purge=purge)
        return DuplicateSummary(groups, removed, carried, writer.purge() if purge else None)


def carried_captions(collection: Collection, groups: tuple[DuplicateGroup, ...]) -> list[dict[str, object]]:
    """Rows of captions of the images that go, for those that stay; a text that one has already is left out."""
    captions = collection.grouped("captions")
    rows: list[dict[str, object]] = []
    for group in groups:
        start, end = captions.bounds(collection.find_row(group.kept))
        texts = set(captions.texts("text", start, end))
        for key in group.others:
            start, end = captions.bounds(collection.find_row(key))
            for row in captions.table.slice(start, end - start).to_pylist():
                if row["text"] in texts:
                    continue
                texts.add(row["text"])
                kept = {name: row[name] for name in ("kind", "text", "model", "recipe_hash", "created")}
                rows.append({"key": group.kept, **kept, "source": f"{row['source']}, from {key}"})
    return rows


def _ranks(collection: Collection) -> np.ndarray:
    """Place of each row in the order of preference: most pixels, then most texts, then first."""
    index = collection.index
    pixels_N = index["width"].astype(np.int64) * index["height"]
    texts_N = collection.grouped("captions").counts + collection.grouped("regions").counts
    order = np.lexsort((np.arange(len(collection)), -texts_N, -pixels_N))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


def _shapes(collection: Collection) -> np.ndarray:
    return collection.index["width"] / collection.index["height"]


def _components(hashes_N: np.ndarray, distance: int) -> list[np.ndarray]:
    """Rows of each set of at least two that chains of near hashes join, in the order of their first rows."""
    pairs = near_pairs(hashes_N, distance=distance)
    if not len(pairs):
        return []
    count = len(hashes_N)
    graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted((part for part in parts if len(part) > 1), key=lambda part: int(part[0]))


def _grid(collection: Collection, row: int) -> np.ndarray | None:
    try:
        return image_grid(decode(collection.image_bytes(row), longest_side=4 * GRID))
    except BadImage:
        return None
