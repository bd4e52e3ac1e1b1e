"""One moment of a collection: its index, tombstones, splits, and which annotation parts there are.

A writer may commit while the files are listed. They are listed again after they were read, and read again where the
two lists differ, so that all of them are of the same moment. Nothing waits: a writer that commits faster than the
files can be read gets its last state read as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from foveate.core.errors import UserError
from foveate.records import layout, tables

_TRIES = 10


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`parts` are the numbers of the index parts, `index` their rows without tombstoned images, `splits` the
    splits file or None, `annotations` the files of each annotation table in the order of writing, `about` the tables
    that belong to no image."""

    parts: list[int]
    index: pa.Table
    removed: pa.Table
    splits: pa.Table | None
    annotations: dict[str, list[Path]]
    about: dict[str, pa.Table]


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
        {kind: tables.read_table(layout.about_path(path, kind)) for kind in layout.about_kinds(path)},
    )


def _signature(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, inode and size of all files of the state; a file that is replaced gets a new inode."""
    kinds = [path / "annotations" / kind for kind in layout.annotation_kinds(path)]
    for folder in (path / "index", path / layout.ABOUT_FOLDER, *kinds):
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
