"""Delete bytes and rows of removed images: the only case in which shards are rewritten.

The order makes a kill at any moment harmless: the collection reads as before, and the same command finishes the purge.
Tombstones exist already. First annotation tables, splits and the cache lose the rows of the images. Then, for each
index part, a new tar is written under a new number, the index part is replaced by one that refers to it, and the old
tar is deleted. An image counts as not purged as long as an index part has it, so index parts come last. The next writer
deletes tars that no index part refers to.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from foveate.core.errors import UserError
from foveate.core.files import commit_atomically, fsync_path, name_in_errors
from foveate.records import layout, tables
from foveate.records.packing import append_member
from foveate.records.state import read_committed


@dataclass(slots=True)
class PurgeSummary:
    """Counts of a purge.

    Args:
        packed, referenced: images with bytes in shards, and in files of their own (which stay).
        bytes: of the packed images.
        shards: rewritten shards.
        rows: deleted rows by table.
        cache_cleared: whether cached features were deleted.
    """

    packed: int = 0
    referenced: int = 0
    bytes: int = 0
    shards: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    cache_cleared: bool = False

    @property
    def images(self) -> int:
        return self.packed + self.referenced


def purge_images(collection: Path, keys: set[str], *, dry_run: bool = False) -> PurgeSummary:
    """Delete removed images from shards, tables and cache. The caller holds the writer's lock.

    Args:
        dry_run: only count.

    Raises:
        UserError: a shard that must be rewritten is missing or damaged; parts before it stay purged.
    """
    summary = PurgeSummary()
    removed_keys = pa.array(sorted(keys), pa.string())
    for kind in layout.annotation_kinds(collection):
        parts = layout.annotation_parts(collection, kind, set(layout.committed_shards(collection)))
        for path in parts:
            summary.rows[kind] += _drop_rows(path, removed_keys, dry_run=dry_run)
    splits = collection / layout.SPLITS_FILE
    if splits.is_file():
        summary.rows["splits"] += _drop_rows(splits, removed_keys, dry_run=dry_run)
    summary.rows = Counter({name: count for name, count in summary.rows.items() if count})
    cache = collection / layout.CACHE_FOLDER
    if keys and cache.is_dir():
        # Each file has features of many images, and all are computed again on demand.
        entries = list(cache.iterdir())
        summary.cache_cleared = bool(entries)
        for entry in entries if not dry_run else ():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for number in layout.committed_shards(collection):
        _purge_part(collection, number, removed_keys, summary, dry_run=dry_run)
    return summary


def _drop_rows(path: Path, keys: pa.Array, *, dry_run: bool) -> int:
    """Rewrite a table without the rows of images `keys`; return how many there were."""
    table = tables.read_table(path)
    if "key" not in table.column_names:
        raise UserError(f"{path} has no column 'key': not a table of a collection")
    gone = tables.count_images(table, among=keys)[0] > 0
    if gone.any() and not dry_run:
        tables.write_table(path, table.filter(pa.array(~gone)).combine_chunks())
    return int(gone.sum())


def _purge_part(collection: Path, number: int, keys: pa.Array, summary: PurgeSummary, *, dry_run: bool) -> None:
    part_path = layout.index_path(collection, number)
    part = tables.read_index(part_path)
    gone = tables.positions(part["key"], among=keys) >= 0
    if not gone.any():
        return
    packed = part["path"].to_numpy() == ""
    summary.packed += int((gone & packed).sum())
    summary.referenced += int((gone & ~packed).sum())
    summary.bytes += int(part["length"].to_numpy()[gone & packed].sum())
    rewritten = bool((gone & packed).any())
    summary.shards += rewritten
    if dry_run:
        return
    remaining = part.filter(pa.array(~gone)).combine_chunks()
    old_tars = np.unique(part["shard"].to_numpy()[packed]).tolist() if rewritten else []
    if rewritten:
        remaining = _repack(collection, remaining)
    # Old numbers are noted and never used again: an open reader must not find other images under them.
    highest = max([tables.highest_tar(part), *old_tars, *remaining["shard"].to_pylist()])
    tables.write_table(part_path, tables.with_highest_tar(remaining, highest))
    for tar in old_tars:
        layout.tar_path(collection, tar).unlink(missing_ok=True)
    if old_tars:
        fsync_path(collection / "images")


def _repack(collection: Path, part: pa.Table) -> pa.Table:
    """Write the packed images of an index part to a new tar; return the part that refers to it."""
    shards, offsets = part["shard"].to_numpy().copy(), part["offset"].to_numpy().copy()
    packed = np.flatnonzero(part["path"].to_numpy() == "")
    if not len(packed):
        return part
    number = read_committed(collection).next_number
    final = layout.tar_path(collection, number)
    temporary = final.with_name(f".{final.name}.tmp")
    keys, lengths = part["key"].to_pylist(), part["length"].to_pylist()
    formats = part["format"].to_pylist()
    try:
        with name_in_errors(temporary), tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for row in packed.tolist():
                source = layout.tar_path(collection, int(shards[row]))
                data = _read_image(source, int(offsets[row]), lengths[row])
                offsets[row] = append_member(tar, keys[row], formats[row], data)
        commit_atomically(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
    shards[packed] = number
    for name, values in (("shard", shards), ("offset", offsets)):
        part = part.set_column(part.column_names.index(name), tables.INDEX.field(name), pa.array(values))
    return part


def _read_image(tar: Path, offset: int, length: int) -> bytes:
    try:
        with tar.open("rb") as file:
            data = os.pread(file.fileno(), length, offset)
    except FileNotFoundError as error:
        raise UserError(
            f"{tar} is missing: nothing of it is purged, since its other images could not be kept"
        ) from error
    if len(data) != length:
        raise UserError(f"{tar} is truncated: nothing of it is purged, since its other images could not be kept")
    return data
