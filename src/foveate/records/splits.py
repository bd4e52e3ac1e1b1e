"""Assign splits: groups, near-duplicates and images of one conversation stay together; adding images moves few others.

Images that share a group or a conversation, or whose perceptual hashes are near, form a component. Its split is a pure
function of the seed and of its first name, so images that are added later move only the components that they join. A
survey of few cameras is the exception: a split without a camera takes the one that was drawn nearest to it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foveate.core.errors import UserError
from foveate.core.files import FolderLock, write_text_atomically
from foveate.core.seeds import uniform
from foveate.records import layout, tables
from foveate.records.collection import Collection
from foveate.records.perceptual_hash import join_pairs, near_pairs

# Images whose 64-bit hashes differ in at most this number of bits count as near-duplicates. Of clip-art drawings up to
# 32 pairs each at 2, 4, 6 and 8 bits were inspected: up to 6 bits nearly all were one drawing, recolored or redrawn; at
# 8 bits pairs of different things appeared.
DISTANCE = 6


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """Result of `assign_splits`.

    Args:
        images: number of images by split.
        components: number of sets that stay together.
        largest: images in the largest component.
        near_duplicates: images that have at least one near-duplicate.
        divided: components whose images were imported with different splits, which they keep.
        cameras: of a camera-trap survey, number of cameras by split.
        moved: images that an earlier assignment had put into another split.
    """

    images: dict[str, int]
    components: int
    largest: int
    near_duplicates: int
    divided: int
    cameras: dict[str, int] = field(default_factory=dict)
    moved: int = 0


def assign_splits(
    path: str | Path,
    *,
    fractions: Mapping[str, float],
    seed: int = 0,
    distance: int = DISTANCE,
    keep_imported: bool = True,
) -> SplitSummary:
    """Write splits.parquet of a collection, and the fractions and the seed into splits.json.

    A camera-trap survey is split by camera, so that events stay whole, too; from three cameras on each split has one.
    Its images of one background are all near one another; across cameras only equal files are linked, since dark frames
    of two cameras are no copies.

    Args:
        fractions: split -> fraction of the components, with the sum 1. Components are drawn independently, so small
            collections meet the fractions only roughly.
        seed: another seed gives an independent assignment.
        distance: maximum number of differing bits of near-duplicates, 0 to 16.
        keep_imported: images that were imported with a split keep it, and the rest of their component follows the first
            of them; False assigns all images.

    Raises:
        UserError: fractions or distance are invalid, or another process writes the collection.
    """
    check_fractions(fractions)
    if not 0 <= distance <= 16:
        raise UserError(f"distance must be 0 to 16 bits (got {distance})")
    path = layout.check_collection(Path(path))
    with FolderLock(path, purpose="assigning splits"), Collection.open(path) as collection:
        is_survey = collection.has_survey
        # Deployments may have been corrected since the import, which stored the group of that day.
        groups = collection.cameras if is_survey else collection.groups
        index = collection.index
        pairs = _link_equal(index["sha256"]) if is_survey else near_pairs(index["perceptual_hash"], distance=distance)
        components = find_components(groups, np.concatenate([pairs, link_conversations(collection)]))
        imported = index["split"] if keep_imported else np.full(len(collection), "", dtype=object)
        # A group keeps its name, and so its split, when images are added to it.
        names = np.where(groups == "", index["key"], groups)
        splits, divided = draw_splits(components, names, imported, fractions=fractions, seed=seed)
        if is_survey:
            is_fixed = np.isin(components, components[imported != ""])
            # An image of no deployment is no camera.
            has_camera = groups != ""
            fill_splits(
                splits, components, names, has_camera & ~is_fixed, has_camera & is_fixed, fractions=fractions, seed=seed
            )
        earlier = _read_earlier(path)
        moved = sum(earlier.get(key, split) != split for key, split in zip(index["key"], splits, strict=True))
        columns = {"key": index["key"], "split": splits, "group": groups}
        # A file of its own: equal splits must have equal bytes, by which an interrupted training knows its data.
        drawn = {"fractions": {name: float(fraction) for name, fraction in fractions.items()}, "seed": int(seed)}
        write_text_atomically(path / layout.DRAWN_FILE, json.dumps(drawn))
        tables.write_table(path / layout.SPLITS_FILE, pa.table(columns, schema=tables.SPLITS))
    sizes = np.bincount(components)
    return SplitSummary(
        images=dict(sorted(Counter(splits.tolist()).items())),
        components=len(sizes),
        largest=int(sizes.max(initial=0)),
        near_duplicates=len(np.unique(pairs)),
        divided=divided,
        cameras=_count_cameras(groups, splits) if is_survey else {},
        moved=moved,
    )


def read_drawn(path: str | Path) -> tuple[dict[str, float], int] | None:
    """Return the fractions and the seed of the last `assign_splits`; None if there was none that stored them."""
    try:
        drawn = json.loads((Path(path) / layout.DRAWN_FILE).read_text())
        fractions = {str(name): float(fraction) for name, fraction in drawn["fractions"].items()}
        check_fractions(fractions)
        return fractions, int(drawn["seed"])
    # A damaged file counts as none: it only gives defaults to the next import.
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _read_earlier(path: Path) -> dict[str, str]:
    """Return the split of each image in splits.parquet."""
    file = path / layout.SPLITS_FILE
    if not file.is_file():
        return {}
    table = tables.read_known(file, tables.SPLITS)
    return dict(zip(table["key"].to_pylist(), table["split"].to_pylist(), strict=True))


def _count_cameras(cameras_N: np.ndarray, splits_N: np.ndarray) -> dict[str, int]:
    pairs = {(split, camera) for split, camera in zip(splits_N.tolist(), cameras_N.tolist(), strict=True)}
    return dict(sorted(Counter(split for split, _ in pairs).items()))


def _link_equal(hashes_N: np.ndarray) -> np.ndarray:
    """Return pairs of rows (P, 2) that connect all images with equal hashes."""
    # Sorting brings equal files together, so that links between neighbors connect all of them.
    order = np.argsort(hashes_N.astype(str), kind="stable")
    equal = hashes_N[order][1:] == hashes_N[order][:-1]
    return np.stack([order[:-1][equal], order[1:][equal]], axis=1).astype(np.int64)


def link_conversations(collection: Collection) -> np.ndarray:
    """Return pairs of rows (P, 2) that connect all images of each conversation."""
    images = collection.table("conversations")["images"].combine_chunks()
    owners = pc.call_function("list_parent_indices", [images]).to_numpy().astype(np.int64)
    rows = tables.positions(pc.call_function("list_flatten", [images]), among=pa.array(collection.keys, pa.string()))
    # A chain connects as well as all pairs do.
    pairs_P2 = np.stack([rows[:-1], rows[1:]], axis=1)
    return pairs_P2[owners[1:] == owners[:-1]]


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Raise UserError unless the fractions have names, lie in [0, 1] and sum to 1 within 1e-6."""
    if not fractions or not all(fractions):
        raise UserError("fractions: expected at least one named split, as in train=0.8,test=0.2")
    for name, fraction in fractions.items():
        if not 0 <= fraction <= 1:
            raise UserError(f"fractions: {name} must be in [0, 1] (got {fraction})")
    total = math.fsum(fractions.values())
    if abs(total - 1) > 1e-6:
        raise UserError(f"fractions: the sum must be 1 (got {total:g})")


def find_components(groups_N: np.ndarray, pairs_P2: np.ndarray) -> np.ndarray:
    """Return the component (N,) of each row, 0 to C-1; rows of one group ("" is none) and paired rows share one."""
    grouped = np.flatnonzero(groups_N != "")
    _, first, inverse = np.unique(groups_N[grouped].astype(str), return_index=True, return_inverse=True)
    # A star per group (each row with the first of its group) connects it with N edges instead of N^2.
    edges = np.concatenate([np.stack([grouped, grouped[first[inverse]]], axis=1), pairs_P2])
    return join_pairs(edges, len(groups_N))


def fill_splits(
    splits_N: np.ndarray,
    components_N: np.ndarray,
    names_N: np.ndarray,
    free_N: np.ndarray,
    fixed_N: np.ndarray,
    *,
    fractions: Mapping[str, float],
    seed: int,
) -> None:
    """Give each split without a component one of another split, in place.

    It gets the one whose number of `draw_splits` is nearest to its interval, from a split that keeps another one: so
    the same components move as long as no other is added between them.

    Args:
        splits_N: of `draw_splits`.
        free_N, fixed_N: rows of the components that may move, and of those that were imported with a split.
    """
    # The smallest name is that of the component; see `draw_splits`.
    drawn: dict[int, float] = {}
    split_of: dict[int, str] = {}
    for row in np.flatnonzero(free_N)[np.argsort(names_N[free_N].astype(str), kind="stable")].tolist():
        component = int(components_N[row])
        drawn.setdefault(component, uniform(seed, "split", names_N[row]))
        split_of.setdefault(component, splits_N[row])
    counts = Counter(split_of.values()) + Counter(dict.fromkeys(splits_N[fixed_N].tolist(), 1))
    wanted = [name for name, fraction in fractions.items() if fraction > 0]
    if len(split_of) + len(np.unique(components_N[fixed_N])) < len(wanted):
        return
    edges = np.concatenate([[0.0], np.cumsum(list(fractions.values()))])
    for index, name in enumerate(fractions):
        if name not in wanted or counts[name]:
            continue
        movable = [component for component, split in split_of.items() if counts[split] > 1]
        if not movable:
            return
        below, above = edges[index], edges[index + 1]
        nearest = min(movable, key=lambda entry: (max(below - drawn[entry], drawn[entry] - above), entry))
        counts[split_of[nearest]] -= 1
        counts[name], split_of[nearest] = 1, name
        splits_N[components_N == nearest] = name


def draw_splits(
    components_N: np.ndarray,
    names_N: np.ndarray,
    imported_N: np.ndarray,
    *,
    fractions: Mapping[str, float],
    seed: int,
) -> tuple[np.ndarray, int]:
    """Draw the split of each row; also return the number of components with several imported splits.

    A component gets the split whose interval, with the fractions laid end to end, has `uniform(seed, "split", name)`;
    its name is the smallest of `names_N` among its rows. Rows with an imported split keep it, and the other rows of the
    component take that of the smallest name.
    """
    order = np.lexsort((names_N.astype(str), components_N))
    starts = np.flatnonzero(np.diff(components_N[order], prepend=-1))
    edges = np.cumsum(list(fractions.values()))
    names = list(fractions)
    # Rounding may leave the last edge a little below 1; then the last split with a fraction above 0 gets the rest.
    last = max(number for number, fraction in enumerate(fractions.values()) if fraction > 0)
    splits = np.full(len(components_N), "", dtype=object)
    divided = 0
    for start, end in zip(starts, np.append(starts, len(order))[1:], strict=True):
        rows = order[start:end]
        imported = [split for split in imported_N[rows].tolist() if split]
        drawn = uniform(seed, "split", names_N[rows[0]])
        # With "right", a split with the fraction 0 has an empty interval and gets no component.
        index = min(int(np.searchsorted(edges, drawn, side="right")), last)
        splits[rows] = imported[0] if imported else names[index]
        divided += len(set(imported)) > 1
    has_imported = imported_N != ""
    splits[has_imported] = imported_N[has_imported]
    return splits, divided
