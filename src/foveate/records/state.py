"""What a writer finds in a collection folder: the committed parts, and what a killed writer left behind.

An index part and the annotation parts of its images have one number. The tar has the same number, until a purge
writes the part's images to another tar: then the column `shard` of the index part has the tar's number.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from foveate.core.errors import UserError, nearest
from foveate.records import layout, tables
from foveate.records.reference import Reference

_TRIES = 10


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`parts` are the numbers of the index parts, `index` their rows without tombstoned images, `splits` the
    splits file or None, `annotations` the files of each annotation table in the order of writing, `dataset_tables` the tables
    that belong to no image."""

    parts: list[int]
    index: pa.Table
    removed: pa.Table
    splits: pa.Table | None
    annotations: dict[str, list[Path]]
    dataset_tables: dict[str, pa.Table]


def take_snapshot(path: Path) -> Snapshot:
    """Read the collection at `path` as it is at one moment. Raises UserError where a file is damaged."""
    before = list(_signature(path))
    for attempt in range(_TRIES):
        try:
            snapshot = _read(path)
        except UserError:
            # A purge may have replaced a file between its listing and its reading.
            if attempt == _TRIES - 1 or before == list(_signature(path)):
                raise
        else:
            after = list(_signature(path))
            if before == after or attempt == _TRIES - 1:
                return snapshot
        before = list(_signature(path))
    raise AssertionError("unreachable")


def _read(path: Path) -> Snapshot:
    parts = layout.committed_shards(path)
    index = tables.read_index(*(layout.index_path(path, part) for part in parts))
    removed = tables.read_removed(path / layout.REMOVED_FILE)
    if len(removed):
        gone = tables.positions(index["key"], among=removed["key"]) >= 0
        index = index.filter(pa.array(~gone)) if np.any(gone) else index
    splits = path / layout.SPLITS_FILE
    return Snapshot(
        parts,
        index.combine_chunks(),
        removed,
        tables.read_known(splits, tables.SPLITS) if splits.is_file() else None,
        {kind: layout.annotation_parts(path, kind, set(parts)) for kind in layout.annotation_kinds(path)},
        {kind: tables.read_table(layout.dataset_table_path(path, kind)) for kind in layout.dataset_table_names(path)},
    )


def _signature(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, inode and size of all files of the state; a file that is replaced gets a new inode."""
    kinds = [path / "annotations" / kind for kind in layout.annotation_kinds(path)]
    for folder in (path / "index", path / layout.DATASET_FOLDER, *kinds):
        if folder.is_dir():
            with os.scandir(folder) as entries:
                files = [(entry.path, entry.inode()) for entry in entries if not entry.name.startswith(".")]
            yield from ((name, inode, 0) for name, inode in sorted(files))
    for name in (layout.REMOVED_FILE, layout.SPLITS_FILE):
        try:
            found = (path / name).stat()
        except FileNotFoundError:
            continue
        yield name, found.st_ino, found.st_mtime_ns


def check_removable(key: str, sha256_by_key: Mapping[str, str], name: str) -> str:
    """The SHA-256 of a key. Raises UserError with the nearest key where the collection `name` does not have it."""
    if key not in sha256_by_key:
        raise UserError(f"no image {key!r} in the collection {name!r}{nearest(key, sha256_by_key)}")
    return sha256_by_key[key]


def add_tombstones(
    collection: Path, sha256_by_key: Mapping[str, str], *, reason: str | Mapping[str, str], created: str, purge: bool
) -> None:
    """Write a tombstone for each key that has none; one that is there is marked for purging where `purge` is true.

    `reason` is one for all keys, or one by key.
    """
    path = collection / layout.REMOVED_FILE
    rows = tables.read_removed(path).to_pylist()
    before = [dict(row) for row in rows]
    for row in rows:
        row["purge"] = row["purge"] or (purge and row["key"] in sha256_by_key)
    there = {row["key"] for row in rows}
    for key, sha256 in sha256_by_key.items():
        if key not in there:
            why = reason if isinstance(reason, str) else reason[key]
            rows.append({"key": key, "sha256": sha256, "reason": why, "created": created, "purge": purge})
    if rows != before:
        tables.write_table(path, pa.Table.from_pylist(rows, schema=tables.REMOVED))


def pending_purge(collection: Path) -> set[str]:
    """Keys whose bytes and rows were to be taken out; those of them that an index part has still wait for it."""
    removed = tables.read_removed(collection / layout.REMOVED_FILE)
    return set(removed.filter(removed["purge"])["key"].to_pylist())


@dataclass(slots=True)
class Committed:
    """The committed state: numbers of the index parts, numbers of the tars they use, images and tombstones.

    `known` and `removed` map keys to SHA-256; a tombstoned image whose bytes are still there is in both.
    `referenced` maps the keys of images that stay in their files to the files' paths. `highest` is the highest
    number of a tar that a purge deleted.
    """

    parts: list[int] = field(default_factory=list)
    tars: set[int] = field(default_factory=set)
    known: dict[str, str] = field(default_factory=dict)
    removed: dict[str, str] = field(default_factory=dict)
    referenced: dict[str, str] = field(default_factory=dict)
    highest: int = -1

    @property
    def next_number(self) -> int:
        """A number that neither a part nor a tar has or had."""
        return max([*self.parts, *self.tars, self.highest]) + 1


def read_committed(collection: Path) -> Committed:
    """Read the index parts and tombstones. Raises UserError where one of the files is damaged."""
    found = Committed(parts=layout.committed_shards(collection))
    for number in found.parts:
        part = tables.read_index(layout.index_path(collection, number))
        found.highest = max(found.highest, tables.highest_tar(part))
        found.known.update(zip(part["key"].to_pylist(), part["sha256"].to_pylist(), strict=True))
        places = zip(part["key"].to_pylist(), part["shard"].to_pylist(), part["path"].to_pylist(), strict=True)
        for key, shard, path in places:
            if path:
                found.referenced[key] = path
            else:
                found.tars.add(shard)
    removed = tables.read_removed(collection / layout.REMOVED_FILE)
    found.removed = dict(zip(removed["key"].to_pylist(), removed["sha256"].to_pylist(), strict=True))
    return found


def move_references(collection: Path, moved: Mapping[str, Reference]) -> None:
    """Let the index point at the new places of referenced files; each index part is replaced whole."""
    wanted = pa.array(sorted(moved), pa.string())
    for number in layout.committed_shards(collection):
        place = layout.index_path(collection, number)
        part = tables.read_index(place)
        rows = np.flatnonzero(tables.positions(part["key"], among=wanted) >= 0)
        if not len(rows):
            continue
        keys, paths = part["key"].to_pylist(), part["path"].to_pylist()
        mtimes = part["mtime_ns"].to_pylist()
        for row in rows.tolist():
            paths[row], mtimes[row] = moved[keys[row]].path, moved[keys[row]].mtime_ns
        for name, values in (("path", paths), ("mtime_ns", mtimes)):
            column = tables.INDEX.field(name)
            part = part.set_column(part.column_names.index(name), column, pa.array(values, column.type))
        tables.write_table(place, part)


def clear_leftovers(collection: Path, committed: Committed) -> None:
    """Delete temporary files, tars that no index part uses, and annotation parts that have no index part."""
    kinds = layout.annotation_kinds(collection)
    images = collection / "images"
    folders = [collection, images, collection / "index", collection / layout.DATASET_FOLDER]
    folders += [collection / "annotations" / kind for kind in kinds]
    parts = set(committed.parts)
    for folder in folders:
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            number = int(path.stem) if path.suffix in (".tar", ".parquet") and path.stem.isdigit() else None
            wanted = committed.tars if folder == images else parts
            unused = folder != collection and number is not None and number not in wanted
            if unused or (path.name.startswith(".") and path.name.endswith(".tmp")):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
