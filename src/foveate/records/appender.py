"""Adding rows to annotation tables for hours: each append is a new part, and no part is read twice.

`CollectionWriter.annotate` looks for equal rows in all parts at every call, which is right for a few calls. The
appender reads the id column of a table once, one part at a time, and from then on remembers 8 bytes per row: 8 MB for
a million rows, 200 MB for 25 million, and 8 bytes per image for the keys. A part is one file, renamed into place when
it is whole: a kill loses at most what was not appended yet.
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
from foveate.records.rows import check_row, finish_rows
from foveate.records.tables import Provenance

_ID = re.compile(r"[0-9a-f]{16}")
_FEW = 100_000


class Names:
    """A growing set of names that keeps 8 bytes of each: 16 hexadecimal digits as they are, of others a hash.

    Two names are mixed up with a probability of about n^2 / 2^65: 3 in 10^8 for a million, 3 in 10^4 for 100 million.
    """

    def __init__(self) -> None:
        self._sorted = np.empty(0, dtype=np.uint64)
        self._recent: set[int] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def __contains__(self, name: str) -> bool:
        number = _number(name)
        if number in self._recent:
            return True
        place = int(np.searchsorted(self._sorted, np.uint64(number)))
        return place < len(self._sorted) and int(self._sorted[place]) == number

    def update(self, names: Iterable[str]) -> None:
        """Add names."""
        for name in names:
            if name not in self:
                self._recent.add(_number(name))
            if len(self._recent) > _FEW:
                self._merge()

    def update_column(self, column: pa.ChunkedArray) -> None:
        """Add the names in a text column; quicker than one by one."""
        numbers = np.fromiter((_number(name) for name in column.to_pylist()), np.uint64, count=len(column))
        self._recent.update(set(numbers.tolist()))
        self._merge()

    def _merge(self) -> None:
        recent = np.fromiter(self._recent, np.uint64, count=len(self._recent))
        self._sorted = np.union1d(self._sorted, recent)
        self._recent.clear()


def _number(name: str) -> int:
    if _ID.fullmatch(name):
        return int(name, 16)
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def read_parts(collection: Path, kind: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of an annotation table of a known kind, one part after the other, in the order of writing.

    Rows of removed images are among them. Raises UserError where a part is damaged.
    """
    for path in layout.annotation_parts(collection, kind, set(layout.committed_shards(collection))):
        yield tables.read_columns(path, tables.SCHEMAS[kind], columns)


class AnnotationAppender:
    """The one writer of a collection that only adds annotation rows, as a context manager.

    Entering it takes the writer's lock of the collection, so that nobody else adds images or rows meanwhile; readers
    never wait. Rows are on disk when `append` returns.
    """

    def __init__(self, path: str | Path, *, purpose: str, created: str | None = None) -> None:
        """Prepare to write to the collection at `path`; nothing is touched before the `with` block.

        Args:
            purpose: what the lock says to others, such as "captioning".
            created: time stamp of the rows (ISO 8601); by default the time of each append.
        """
        self.path = layout.check_collection(Path(path))
        self._created = created
        self._lock = FolderLock(self.path, purpose=purpose)
        self._keys = Names()
        self._ids: dict[str, Names] = {}
        self._next: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._lock.__enter__()
        try:
            self._prepare()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: object) -> None:
        self._lock.__exit__(None, None, None)

    def _prepare(self) -> None:
        place = self.path / layout.DESCRIPTION
        description = read_json(place)
        check_description(self.path, description)
        check_writable(self.path, description)
        for kind in layout.annotation_kinds(self.path):
            for left in (self.path / "annotations" / kind).glob(".*.tmp"):
                with contextlib.suppress(FileNotFoundError):
                    left.unlink()
        removed = tables.read_removed(self.path / layout.REMOVED_FILE)["key"]
        for number in layout.committed_shards(self.path):
            part = tables.read_columns(layout.index_path(self.path, number), tables.INDEX, ["key"])
            gone = tables.positions(part["key"], among=removed) >= 0 if len(removed) else np.zeros(len(part), bool)
            self._keys.update_column(part["key"].filter(pa.array(~gone)))

    def append(self, kind: str, rows: Sequence[Mapping[str, object]], provenance: Provenance) -> int:
        """Add rows to the table `kind` as one new part; returns how many were new, for equal ones are skipped.

        Each row has a `key` and columns of the table; the table must be a known one. A row's id is that of
        `foveate.records.rows.finish_rows`: a hash of its content.

        Raises:
            UserError: a key that is not there or was removed, a column that the table does not have, a text or a box
                that cannot be stored. Then nothing is written.
        """
        if kind not in tables.SCHEMAS:
            raise UserError(f"annotations/{kind}: allowed are the known tables {', '.join(tables.SCHEMAS)}")
        for number, row in enumerate(rows):
            key = row.get("key")
            if not isinstance(key, str) or key not in self._keys:
                raise UserError(f"annotations/{kind}: row {number} has the key {key!r}, which is not there")
        created = provenance.created or self._created or tables.now()
        made = Provenance(provenance.source, provenance.model, provenance.recipe_hash, created)
        finished = finish_rows(kind, [check_row(kind, row) for row in rows], made)
        column = tables.id_column(kind)
        ids = self._known_ids(kind)
        new = [row for row in finished if str(row[column]) not in ids]
        if new:
            tables.write_table(self._next_path(kind), tables.to_table(kind, new))
            self._next[kind] += 1
            ids.update(str(row[column]) for row in new)
        return len(new)

    def _known_ids(self, kind: str) -> Names:
        if kind not in self._ids:
            found = self._ids[kind] = Names()
            column = tables.id_column(kind)
            for part in read_parts(self.path, kind, [column]):
                found.update_column(part[column])
        return self._ids[kind]

    def _next_path(self, kind: str) -> Path:
        if kind not in self._next:
            self._next[kind] = layout.added_number(layout.next_added_path(self.path, kind))
        return layout.added_path(self.path, kind, self._next[kind])
