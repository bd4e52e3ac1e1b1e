"""Delete bytes and rows of removed images: the only case in which shards are rewritten.

The order makes a kill at any moment harmless: the collection reads as before, and the same command finishes the purge.
Tombstones exist already. First annotation tables, splits and the cache lose the rows of the images. Then, for each
index part, a new tar is written under a new number, the index part is replaced by one that refers to it, and the old
tar is deleted. An image counts as not purged as long as an index part has it, so index parts come last. The next writer
deletes tars that no index part refers to.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.files import commit_atomically, fsync_path, name_in_errors, read_at
from foveate.records import layout, tables
from foveate.records.images import SUFFIXES
from foveate.records.layout import member_name
from foveate.records.state import read_committed


def append_member(tar: tarfile.TarFile, key: str, format: str, data: bytes) -> int:
    """Write one image of a format ("JPEG") to an open tar; return the offset of its bytes."""
    # With TarInfo's defaults, time 0 and no owner, a repeated import has the same bytes.
    member = tarfile.TarInfo(member_name(key, SUFFIXES[format]))
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    # tarfile does not return the start of a member, so count back from its padded end.
    blocks = -(-len(data) // tarfile.BLOCKSIZE)
    return tar.offset - blocks * tarfile.BLOCKSIZE


def pad_member(end: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where the member behind one begins whose bytes end at `end`."""
    # A tar pads the bytes of each member to whole blocks.
    return -(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def write_end(file: BinaryIO) -> None:
    """Write what tarfile writes at the end: two empty blocks, and zeros up to a whole record."""
    size = file.tell() + 2 * tarfile.BLOCKSIZE
    file.write(bytes(-(-size // tarfile.RECORDSIZE) * tarfile.RECORDSIZE - file.tell()))


def abandon(tar: tarfile.TarFile) -> None:
    """Close a tar without writing its end mark, which would fail on a full disk."""
    with contextlib.suppress(OSError):
        if tar.fileobj is not None:
            tar.fileobj.close()


_NOT_PURGED = "nothing of it is purged, since its other images could not be kept"


@dataclass(slots=True)
class PurgeSummary:
    """Counts of a purge.

    Args:
        packed, referenced: images with bytes in shards, and in files of their own (which stay).
        bytes: of the packed images.
        shards: rewritten shards.
        rows: deleted rows by table.
        cache_cleared: whether cached features were deleted.
        next_tar: a number that no part or tar has or had, after the purge.
    """

    packed: int = 0
    referenced: int = 0
    bytes: int = 0
    shards: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    cache_cleared: bool = False
    next_tar: int = 0

    @property
    def images(self) -> int:
        return self.packed + self.referenced

    def as_dict(self) -> dict[str, object]:
        """Return all counts as JSON values."""
        counts = {name: getattr(self, name) for name in ("images", "packed", "referenced", "bytes", "shards")}
        return {**counts, "rows": dict(self.rows), "cache_cleared": self.cache_cleared}


def purge_images(
    collection: Path, keys: set[str], *, dry_run: bool = False, keep_until_last: str = "", next_tar: int | None = None
) -> PurgeSummary:
    """Delete images from shards, tables and cache. The caller holds the writer's lock.

    Args:
        dry_run: only count.
        keep_until_last: annotation table that loses its rows after all else, as the note of what is not finished
            where there are no tombstones.
        next_tar: see `Committed.next_number`, if the caller knows it; else the whole index is read for it.

    Raises:
        UserError: a shard that must be rewritten is missing or damaged; parts before it stay purged.
    """
    summary = PurgeSummary()
    removed_keys = pa.array(sorted(keys), pa.string())
    kinds = layout.annotation_kinds(collection)
    for kind in kinds:
        if kind != keep_until_last:
            _drop_rows_of_kind(collection, kind, removed_keys, summary, dry_run=dry_run)
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
            # Only a link itself is deleted, because what it points to is not part of the cache.
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    next_tar = read_committed(collection).next_number if next_tar is None else next_tar
    for number in layout.committed_shards(collection):
        next_tar += _purge_part(collection, number, removed_keys, summary, next_tar=next_tar, dry_run=dry_run)
    summary.next_tar = next_tar
    if keep_until_last in kinds:
        _drop_rows_of_kind(collection, keep_until_last, removed_keys, summary, dry_run=dry_run)
    return summary


def _drop_rows_of_kind(collection: Path, kind: str, keys: pa.Array, summary: PurgeSummary, *, dry_run: bool) -> None:
    for path in layout.annotation_parts(collection, kind, set(layout.committed_shards(collection))):
        count = _drop_rows(path, keys, dry_run=dry_run)
        if count:
            summary.rows[kind] += count


def _drop_rows(path: Path, keys: pa.Array, *, dry_run: bool) -> int:
    """Rewrite a table without the rows of images `keys`; return how many there were."""
    # All columns are read, also those unknown to this version, because the table is written back.
    table = tables.read_table(path)
    if "key" not in table.column_names:
        raise UserError(f"{path} has no column 'key': not a table of a collection")
    # A conversation goes as soon as one of its images does.
    gone = tables.count_images(table, among=keys)[0] > 0
    if gone.any() and not dry_run:
        tables.write_table(path, table.filter(pa.array(~gone)).combine_chunks())
    return int(gone.sum())


def _purge_part(
    collection: Path, number: int, keys: pa.Array, summary: PurgeSummary, *, next_tar: int, dry_run: bool
) -> bool:
    """Rewrite an index part and its tars without the images `keys`; return whether `next_tar` was used."""
    part_path = layout.index_path(collection, number)
    part = tables.read_index(part_path)
    gone = tables.positions(part["key"], among=keys) >= 0
    if not gone.any():
        return False
    packed = part["path"].to_numpy() == ""
    summary.packed += int((gone & packed).sum())
    summary.referenced += int((gone & ~packed).sum())
    summary.bytes += int(part["length"].to_numpy()[gone & packed].sum())
    rewritten = bool((gone & packed).any())
    summary.shards += rewritten
    if dry_run:
        return False
    old_tars = np.unique(part["shard"].to_numpy()[packed]).tolist() if rewritten else []
    remaining = (_repack(collection, part, gone, next_tar) if rewritten else part).filter(pa.array(~gone))
    # Old numbers are noted and never used again: an open reader must not find other images under them.
    highest = max([tables.highest_tar(part), *old_tars, *remaining["shard"].to_pylist()])
    tables.write_table(part_path, tables.with_highest_tar(remaining.combine_chunks(), highest))
    for tar in old_tars:
        layout.tar_path(collection, tar).unlink(missing_ok=True)
    if old_tars:
        # The deletion is flushed to disk, so that a power failure does not bring purged images back.
        fsync_path(collection / "images")
    return rewritten


def _repack(collection: Path, part: pa.Table, gone: np.ndarray, number: int) -> pa.Table:
    """Write the packed images of an index part that stay to the tar `number`; return the part that refers to it."""
    shards, offsets = part["shard"].to_numpy().copy(), part["offset"].to_numpy().copy()
    lengths = part["length"].to_numpy()
    packed = np.flatnonzero(part["path"].to_numpy() == "")
    # No image stays: the old tars are deleted and no new one is written.
    if gone[packed].all():
        return part
    final = layout.tar_path(collection, number)
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        with name_in_errors(temporary), temporary.open("wb") as target:
            for tar in np.unique(shards[packed]).tolist():
                rows = packed[shards[packed] == tar]
                _copy_members(layout.tar_path(collection, tar), target, rows[~gone[rows]], rows, offsets, lengths)
            write_end(target)
        commit_atomically(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
    shards[packed] = number
    for name, values in (("shard", shards), ("offset", offsets)):
        part = part.set_column(part.column_names.index(name), tables.INDEX.field(name), pa.array(values))
    return part


def _copy_members(
    tar: Path, target: BinaryIO, staying: np.ndarray, rows: np.ndarray, offsets: np.ndarray, lengths: np.ndarray
) -> None:
    """Copy the members of the rows `staying` with their headers, and set their `offsets` in the target.

    Args:
        rows: of all images that the tar has.
    """
    # In the order of the tar, because the headers of a member are located by the end of the one before.
    rows = rows[np.argsort(offsets[rows])]
    ends = pad_member(offsets[rows] + lengths[rows])
    # Members follow one another: the headers of one begin where the one before ends.
    starts = np.concatenate([[0], ends[:-1]])
    copied = np.isin(rows, staying)
    try:
        source = tar.open("rb")
    except FileNotFoundError as error:
        raise UserError(f"{tar} is missing: {_NOT_PURGED}") from error
    with source:
        for row, start, end in zip(rows[copied].tolist(), starts[copied].tolist(), ends[copied].tolist(), strict=True):
            data = read_at(source.fileno(), end - start, start)
            if len(data) != end - start:
                raise UserError(f"{tar} is truncated: {_NOT_PURGED}")
            offsets[row] += target.tell() - start
            target.write(data)
