"""The committed state of a collection folder: snapshots for readers, parts and tombstones for writers.

An index part and the annotation parts of its images have the same number, and so has the tar, until a purge writes the
images of the part to another tar: the column `shard` of the index part always has the number of the tar.
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
from foveate.records.source_files import Reference

_MAX_ATTEMPTS = 10  # a purge replaces files in milliseconds; more attempts would not help against steady writing


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files and tables of a collection at one moment.

    Args:
        parts: numbers of the index parts.
        index: their rows, without removed images.
        removed: the tombstones.
        splits: content of splits.parquet, or None.
        annotations: kind -> files of the table, in the order of writing.
        dataset_tables: kind -> table about the whole data set.
    """

    parts: list[int]
    index: pa.Table
    removed: pa.Table
    splits: pa.Table | None
    annotations: dict[str, list[Path]]
    dataset_tables: dict[str, pa.Table]


def take_snapshot(path: Path) -> Snapshot:
    """Read the state of a collection at one moment; raise UserError if a file is damaged."""
    # Readers never wait, so there is no lock: list the files, read them, list them again, and read again if the two
    # lists differ, so that everything is of one moment.
    before = list(_signature(path))
    for attempt in range(_MAX_ATTEMPTS):
        try:
            snapshot = _read(path)
        except UserError:
            # A purge may have replaced a file between listing and reading; it is damaged only if nothing changed.
            if attempt == _MAX_ATTEMPTS - 1 or before == list(_signature(path)):
                raise
        else:
            after = list(_signature(path))
            if before == after or attempt == _MAX_ATTEMPTS - 1:
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
        # Read only those of committed parts: the annotations of a shard are on disk before its index part.
        {kind: layout.annotation_parts(path, kind, set(parts)) for kind in layout.annotation_kinds(path)},
        {kind: tables.read_table(layout.dataset_table_path(path, kind)) for kind in layout.dataset_table_names(path)},
    )


def _signature(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, inode and time of all files of the state: replacing a file by a rename gives it a new inode."""
    kinds = [path / "annotations" / kind for kind in layout.annotation_kinds(path)]
    for folder in (path / "index", path / layout.DATASET_FOLDER, *kinds):
        if folder.is_dir():
            with os.scandir(folder) as entries:
                # Names that begin with a dot are temporary files: they come and go while a writer works.
                files = [(entry.path, entry.inode()) for entry in entries if not entry.name.startswith(".")]
            # The order of `scandir` is arbitrary; sorted, two lists of the same files are equal.
            yield from ((name, inode, 0) for name, inode in sorted(files))
    for name in (layout.REMOVED_FILE, layout.SPLITS_FILE):
        try:
            status = (path / name).stat()
        except FileNotFoundError:
            continue
        yield name, status.st_ino, status.st_mtime_ns


def check_removable(key: str, sha256_by_key: Mapping[str, str], name: str) -> str:
    """Return the SHA-256 of a key; raise UserError with the nearest key if the collection `name` lacks it."""
    if key not in sha256_by_key:
        raise UserError(f"no image {key!r} in the collection {name!r}{nearest(key, sha256_by_key)}")
    return sha256_by_key[key]


def add_tombstones(
    collection: Path, sha256_by_key: Mapping[str, str], *, reason: str | Mapping[str, str], created: str, purge: bool
) -> None:
    """Write a tombstone for each key that has none; with `purge` also mark existing ones for purging.

    Tombstones keep images out by key and by SHA-256.

    Args:
        reason: one for all keys, or one per key.
    """
    path = collection / layout.REMOVED_FILE
    rows = tables.read_removed(path).to_pylist()
    before = [dict(row) for row in rows]
    for row in rows:
        row["purge"] = row["purge"] or (purge and row["key"] in sha256_by_key)
    existing = {row["key"] for row in rows}
    for key, sha256 in sha256_by_key.items():
        if key not in existing:
            row_reason = reason if isinstance(reason, str) else reason[key]
            rows.append({"key": key, "sha256": sha256, "reason": row_reason, "created": created, "purge": purge})
    # A repeated removal keeps the file and its inode, because readers would take a new file for a change.
    if rows != before:
        tables.write_table(path, pa.Table.from_pylist(rows, schema=tables.REMOVED))


def pending_purge(collection: Path) -> set[str]:
    """Return keys marked for purging; those that an index part still has are not purged yet."""
    removed = tables.read_removed(collection / layout.REMOVED_FILE)
    return set(removed.filter(removed["purge"])["key"].to_pylist())


@dataclass(slots=True)
class Committed:
    """The committed state, as a writer needs it.

    Args:
        parts: numbers of the index parts.
        tars: numbers of the tars that they use.
        known: key -> SHA-256 of all images that the index has, removed ones included.
        removed: key -> SHA-256 of the tombstones.
        referenced: key -> path of images that stay in their own files.
        highest: highest number of a tar that a purge deleted; -1 if none.
    """

    parts: list[int] = field(default_factory=list)
    tars: set[int] = field(default_factory=set)
    known: dict[str, str] = field(default_factory=dict)
    removed: dict[str, str] = field(default_factory=dict)
    referenced: dict[str, str] = field(default_factory=dict)
    highest: int = -1

    @property
    def next_number(self) -> int:
        """A number that no part or tar has or had: an open reader must not find other images under an old number."""
        return max([*self.parts, *self.tars, self.highest]) + 1


def read_committed(collection: Path) -> Committed:
    """Read index parts and tombstones; raise UserError if a file is damaged."""
    committed = Committed(parts=layout.committed_shards(collection))
    for number in committed.parts:
        part = tables.read_index(layout.index_path(collection, number))
        committed.highest = max(committed.highest, tables.highest_tar(part))
        committed.known.update(zip(part["key"].to_pylist(), part["sha256"].to_pylist(), strict=True))
        locations = zip(part["key"].to_pylist(), part["shard"].to_pylist(), part["path"].to_pylist(), strict=True)
        for key, shard, path in locations:
            # The shard number of a referenced image belongs to no tar.
            if path:
                committed.referenced[key] = path
            else:
                committed.tars.add(shard)
    removed = tables.read_removed(collection / layout.REMOVED_FILE)
    committed.removed = dict(zip(removed["key"].to_pylist(), removed["sha256"].to_pylist(), strict=True))
    return committed


def move_references(collection: Path, moved: Mapping[str, Reference]) -> None:
    """Write new paths of referenced files to the index; each index part is replaced atomically."""
    # A kill between two parts leaves old paths in the rest; the next import of the files moves them again.
    moved_keys = pa.array(sorted(moved), pa.string())
    for number in layout.committed_shards(collection):
        part_path = layout.index_path(collection, number)
        part = tables.read_index(part_path)
        rows = np.flatnonzero(tables.positions(part["key"], among=moved_keys) >= 0)
        if not len(rows):
            continue
        keys, paths = part["key"].to_pylist(), part["path"].to_pylist()
        mtimes = part["mtime_ns"].to_pylist()
        for row in rows.tolist():
            paths[row], mtimes[row] = moved[keys[row]].path, moved[keys[row]].mtime_ns
        for name, values in (("path", paths), ("mtime_ns", mtimes)):
            column = tables.INDEX.field(name)
            part = part.set_column(part.column_names.index(name), column, pa.array(values, column.type))
        tables.write_table(part_path, part)


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
            # Added parts ("added-00000") are never unused: they have no index part, and their rename commits them.
            number = int(path.stem) if path.suffix in (".tar", ".parquet") and path.stem.isdigit() else None
            used = committed.tars if folder == images else parts
            unused = folder != collection and number is not None and number not in used
            if unused or (path.name.startswith(".") and path.name.endswith(".tmp")):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
