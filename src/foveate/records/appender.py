"""Append rows to annotation tables in long runs, one new part per call.

`CollectionWriter.annotate` compares with all existing parts at every call, which is fine for a few calls. The appender
reads the id column of a table once and then keeps 8 bytes per row in memory: 8 MB for a million rows, 200 MB for 25
million, and 8 bytes per image for the keys. A part is one atomically written file: a kill loses at most rows that were
not appended yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from foveate.core.errors import UserError
from foveate.core.files import FolderLock, read_json
from foveate.records import layout, tables
from foveate.records.collection import check_description, check_writable
from foveate.records.rows import check_row, finish_rows, row_image_keys
from foveate.records.tables import Provenance

_ID = re.compile(r"[0-9a-f]{16}")
_MAX_RECENT = 100_000  # merging sorts everything, so not for every name


class NameSet:
    """A set of names that stores 8 bytes of each: 16 hexadecimal digits as they are, a hash of others.

    The probability that any two of n names collide is about n^2 / 2^65: 3e-8 for a million, 3e-4 for 100 million.
    """

    def __init__(self) -> None:
        self._sorted = np.empty(0, dtype=np.uint64)
        self._recent: set[int] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def __contains__(self, name: str) -> bool:
        number = _hash_name(name)
        if number in self._recent:
            return True
        position = int(np.searchsorted(self._sorted, np.uint64(number)))
        return position < len(self._sorted) and int(self._sorted[position]) == number

    def update(self, names: Iterable[str]) -> None:
        """Add names."""
        for name in names:
            # Known names must not fill the set of recent ones: every merge of that set sorts all names.
            if name not in self:
                self._recent.add(_hash_name(name))
            if len(self._recent) > _MAX_RECENT:
                self._merge()

    def update_column(self, column: pa.ChunkedArray) -> None:
        """Add all names of a text column, faster than one by one."""
        hashes = np.fromiter((_hash_name(name) for name in column.to_pylist()), np.uint64, count=len(column))
        self._recent.update(set(hashes.tolist()))
        self._merge()

    def _merge(self) -> None:
        recent = np.fromiter(self._recent, np.uint64, count=len(self._recent))
        self._sorted = np.union1d(self._sorted, recent)
        self._recent.clear()


def _hash_name(name: str) -> int:
    if _ID.fullmatch(name):
        return int(name, 16)
    # A name with half a surrogate pair is only unknown here; encoding it strictly would raise.
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def read_parts(collection: Path, kind: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield some columns of a known annotation table part by part, rows of removed images included.

    Raises:
        UserError: a part is damaged.
    """
    for path in layout.annotation_parts(collection, kind, set(layout.committed_shards(collection))):
        yield tables.read_columns(path, tables.SCHEMAS[kind], columns)


class AnnotationAppender:
    """The single writer of a collection that only adds annotation rows, as a context manager.

    It holds the writer's lock of the collection; readers never wait. Rows are on disk when `append` returns.
    """

    def __init__(self, path: str | Path, *, purpose: str, created: str | None = None) -> None:
        """Prepare to write to the collection at `path`; nothing changes before the `with` block.

        Args:
            purpose: for the error that another writer gets, such as "captioning".
            created: time stamp of the rows (ISO 8601); by default the time of each append.
        """
        self.path = layout.check_collection(Path(path))
        self._created = created
        self._lock = FolderLock(self.path, purpose=purpose)
        self._keys = NameSet()
        self._ids: dict[str, NameSet] = {}
        self._next: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._lock.__enter__()
        try:
            self._prepare()
        except BaseException:
            # A failed preparation must not leave the collection locked.
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: object) -> None:
        self._lock.__exit__(None, None, None)

    def _prepare(self) -> None:
        file = self.path / layout.DESCRIPTION
        description = read_json(file)
        check_description(self.path, description)
        check_writable(self.path, description)
        for kind in layout.annotation_kinds(self.path):
            # Remove only leftovers of annotations, which this writer writes; `CollectionWriter` clears the others.
            for leftover in (self.path / "annotations" / kind).glob(".*.tmp"):
                with contextlib.suppress(FileNotFoundError):
                    leftover.unlink()
        removed = tables.read_removed(self.path / layout.REMOVED_FILE)["key"]
        for number in layout.committed_shards(self.path):
            part = tables.read_columns(layout.index_path(self.path, number), tables.INDEX, ["key"])
            gone = tables.positions(part["key"], among=removed) >= 0 if len(removed) else np.zeros(len(part), bool)
            self._keys.update_column(part["key"].filter(pa.array(~gone)))

    def append(self, kind: str, rows: Sequence[Mapping[str, object]], provenance: Provenance) -> int:
        """Append rows to a known table as one new part; return how many were new. Existing rows are skipped.

        Args:
            rows: each with a `key` and columns of the table; its id is a hash of its content, see
                `foveate.records.rows.finish_rows`.

        Raises:
            UserError: a key is unknown or was removed, the table lacks a column, or a text or box cannot be stored.
                Then nothing is written.
        """
        if kind not in tables.SCHEMAS:
            raise UserError(f"annotations/{kind}: unknown table; expected one of {', '.join(tables.SCHEMAS)}")
        for number, row in enumerate(rows):
            for key in row_image_keys(kind, row):
                if not isinstance(key, str) or key not in self._keys:
                    raise UserError(f"annotations/{kind}: row {number}: no image has the key {key!r}")
        created = provenance.created or self._created or tables.now()
        completed = Provenance(provenance.source, provenance.model, provenance.recipe_hash, created)
        finished = finish_rows(kind, [check_row(kind, row) for row in rows], completed)
        column = tables.id_column(kind)
        ids = self._known_ids(kind)
        new = [row for row in finished if str(row[column]) not in ids]
        if new:
            tables.write_table(self._next_path(kind), tables.to_table(kind, new))
            self._next[kind] += 1
            # Only after the part is on disk: a failed write must not make its rows count as stored.
            ids.update(str(row[column]) for row in new)
        return len(new)

    def _known_ids(self, kind: str) -> NameSet:
        if kind not in self._ids:
            ids = self._ids[kind] = NameSet()
            column = tables.id_column(kind)
            for part in read_parts(self.path, kind, [column]):
                ids.update_column(part[column])
        return self._ids[kind]

    def _next_path(self, kind: str) -> Path:
        # Look the number up once: no other process adds parts while the lock is held.
        if kind not in self._next:
            self._next[kind] = layout.added_number(layout.next_added_path(self.path, kind))
        return layout.added_path(self.path, kind, self._next[kind])
