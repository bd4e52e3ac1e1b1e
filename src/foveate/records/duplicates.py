"""Find and remove near-duplicates: the same image shrunk, re-encoded or slightly tinted.

The perceptual hash also pairs different drawings with one layout, so candidates are compared: both images are reduced
to 16 x 16 colors and must agree in aspect and in every part. Groups are stars, not chains: every image of a group was
compared with the one that stays, so no image is removed because of an unlike one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from foveate.core.errors import UserError
from foveate.core.progress import track
from foveate.records import layout
from foveate.records.collection import Collection
from foveate.records.images import BadImage, decode
from foveate.records.perceptual_hash import hamming, join_pairs, near_pairs
from foveate.records.purge import PurgeSummary
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter

DISTANCE = 6  # bits; as in `splits`
GRID = 16
# Measured on 150 clip-art drawings of 160 pixels: JPEG at quality 30, half the size (quality 85) and a third of it stay
# below both bounds (largest mean 1.9, 2.4 and 4.1; largest block 6.5, 8.0 and 9.7); of those shrunk to 40 pixels one
# in five does not. Two drawings of one series lie above, unless all they differ in is as small as a star or a word.
MEAN_DIFFERENCE = 4.0
BLOCK_DIFFERENCE = 10.0
SHAPE_TOLERANCE = 0.04
SURVEY_REFUSAL = (
    "near-duplicates of a camera-trap survey must not be removed: the images of a burst are evidence, and those that "
    "look alike often differ in the animal; splits by camera already keep them together"
)
_BLOCK = 2


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Keys of images that look the same: the one that stays, and the others in row order."""

    leader: str
    others: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DuplicateSummary:
    """Result of `remove_duplicates`: groups, removed images, copied captions, and the purge if there was one."""

    groups: tuple[DuplicateGroup, ...]
    removed: int
    captions_carried: int
    purged: PurgeSummary | None


def find_duplicates(
    collection: Collection, *, distance: int = DISTANCE, workers: int = 2
) -> tuple[DuplicateGroup, ...]:
    """Find groups of near-duplicates, in the row order of their leaders.

    The leader of a group has the most pixels, then the most captions and regions, then the lowest row. Images that
    cannot be read are in no group.

    Args:
        distance: images whose hashes differ in at most this number of bits, 0 to 16, are compared; more finds more
            duplicates and takes longer.
    """
    if not 0 <= distance <= 16:
        raise UserError(f"distance must be 0 to 16 bits (got {distance})")
    hashes_N = collection.index["perceptual_hash"].astype(np.uint64)
    rank_N = _rank_rows(collection)
    shapes_N = collection.index["width"] / collection.index["height"]
    groups: dict[int, list[int]] = {}
    components = _components(hashes_N, distance)
    with ThreadPoolExecutor(workers) as pool:
        for rows in track(components, description="comparing near-duplicates"):
            # Best first: of equal images the first becomes the leader.
            ordered = rows[np.argsort(rank_N[rows], kind="stable")]
            grids = list(pool.map(lambda row: _grid(collection, int(row)), ordered.tolist()))
            readable = [number for number, grid in enumerate(grids) if grid is not None]
            if len(readable) < 2:
                continue
            readable_rows = ordered[readable]
            shapes = shapes_N[readable_rows]
            stacked = np.stack([grid for grid in grids if grid is not None])
            leader_of = find_leaders(stacked, shapes, hashes_N[readable_rows], distance=distance)
            for position, leader in enumerate(leader_of.tolist()):
                if position != leader:
                    groups.setdefault(int(readable_rows[leader]), []).append(int(readable_rows[position]))
    keys = collection.keys
    return tuple(
        DuplicateGroup(keys[row], tuple(keys[other] for other in sorted(others)))
        for row, others in sorted(groups.items())
    )


def find_leaders(grids_NGGC: np.ndarray, shapes_N: np.ndarray, hashes_N: np.ndarray, *, distance: int) -> np.ndarray:
    """Return for each image the position of the first leader that it equals, or its own; shape (N,).

    An image is a leader unless it equals an earlier one.

    Args:
        grids_NGGC: uint8 colors, in order of preference.
        shapes_N: width / height.
    """
    leading: list[int] = []
    result = np.arange(len(grids_NGGC))
    for number in range(len(grids_NGGC)):
        earlier = np.array(leading, dtype=np.int64)
        near = hamming(hashes_N[earlier], hashes_N[number]) <= distance
        # On a log scale, a ratio and its inverse are equally far from 1, whichever image is wider.
        near &= np.abs(np.log(shapes_N[earlier] / shapes_N[number])) <= SHAPE_TOLERANCE
        # Hashes and aspects of all leaders are compared at once; only what passes pays for a comparison of colors.
        match = next((row for row in earlier[near].tolist() if is_same_grid(grids_NGGC[row], grids_NGGC[number])), None)
        if match is None:
            leading.append(number)
        else:
            result[number] = match
    return result


def is_same_grid(a_GGC: np.ndarray, b_GGC: np.ndarray) -> bool:
    """Whether two grids show one image: mean absolute difference at most 4 of 255, at most 10 per 2 x 2 block."""
    # int16, since the difference of two uint8 would wrap around.
    difference_GG = np.abs(a_GGC.astype(np.int16) - b_GGC.astype(np.int16)).mean(axis=2)
    blocks = difference_GG.reshape(GRID // _BLOCK, _BLOCK, GRID // _BLOCK, _BLOCK).mean(axis=(1, 3))
    return bool(difference_GG.mean() <= MEAN_DIFFERENCE and blocks.max() <= BLOCK_DIFFERENCE)


def compute_grid(image: Image.Image) -> np.ndarray:
    """Return the 16 x 16 smoothed colors of an image, (16, 16, 3) uint8."""
    return np.asarray(image.resize((GRID, GRID), Image.Resampling.BILINEAR))


def remove_duplicates(
    path: str | Path,
    *,
    distance: int = DISTANCE,
    carry_captions: bool = False,
    purge: bool = False,
    workers: int = 2,
) -> DuplicateSummary:
    """Find near-duplicates and remove all but the leader of each group.

    Removed images get a tombstone with the reason "duplicate of KEY".

    Args:
        distance: see `find_duplicates`.
        carry_captions: copy captions with new texts to the leader, with their provenance and the source "SOURCE, from
            KEY"; nothing else is merged.
        purge: also delete the bytes of removed images.

    Raises:
        UserError: another process writes the collection, or it is a camera-trap survey.
    """
    path = layout.check_collection(Path(path))
    with CollectionWriter(path) as writer:
        # Opened under the lock, so that the groups are still true when images are removed.
        with Collection.open(path) as collection:
            if collection.has_survey:
                raise UserError(f"{path}: {SURVEY_REFUSAL}")
            groups = find_duplicates(collection, distance=distance, workers=workers)
            carried = 0
            if carry_captions and groups:
                # Copy captions before the removal, so that a kill in between loses no caption.
                carried = writer.annotate("captions", copy_captions(collection, groups), Provenance())
        reasons = {key: f"duplicate of {group.leader}" for group in groups for key in group.others}
        removed = writer.remove(reasons, reason=reasons, purge=purge)
        return DuplicateSummary(groups, removed, carried, writer.purge() if purge else None)


def copy_captions(collection: Collection, groups: tuple[DuplicateGroup, ...]) -> list[dict[str, object]]:
    """Return caption rows for the leaders: those of removed images whose text the leader does not have."""
    captions = collection.grouped("captions")
    rows: list[dict[str, object]] = []
    for group in groups:
        start, end = captions.bounds(collection.find_row(group.leader))
        texts = set(captions.texts("text", start, end))
        for key in group.others:
            start, end = captions.bounds(collection.find_row(key))
            for row in captions.table.slice(start, end - start).to_pylist():
                if row["text"] in texts:
                    continue
                texts.add(row["text"])
                copied = {name: row[name] for name in ("kind", "text", "model", "recipe_hash", "created")}
                rows.append({"key": group.leader, **copied, "source": f"{row['source']}, from {key}"})
    return rows


def _rank_rows(collection: Collection) -> np.ndarray:
    """Return the rank of each row: most pixels first, then most texts, then lowest row."""
    index = collection.index
    pixels_N = index["width"].astype(np.int64) * index["height"]
    texts_N = collection.grouped("captions").counts + collection.grouped("regions").counts
    # `lexsort` sorts by its last key first.
    order = np.lexsort((np.arange(len(collection)), -texts_N, -pixels_N))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


def _components(hashes_N: np.ndarray, distance: int) -> list[np.ndarray]:
    """Return the rows of each set of two or more that chains of near hashes join, in the order of first rows."""
    pairs = near_pairs(hashes_N, distance=distance)
    if not len(pairs):
        return []
    labels = join_pairs(pairs, len(hashes_N))
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted((part for part in parts if len(part) > 1), key=lambda part: int(part[0]))


def _grid(collection: Collection, row: int) -> np.ndarray | None:
    try:
        # A small image is enough for 16 x 16 colors, and a JPEG decodes faster at a fraction of its size.
        return compute_grid(decode(collection.image_bytes(row), longest_side=4 * GRID))
    except BadImage:
        return None
