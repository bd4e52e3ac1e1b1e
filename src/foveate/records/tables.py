"""Tables of a collection: their columns, and Parquet files that appear whole or not at all.

Every annotation table has a `key` (the picture), an id column, and the four provenance columns.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foveate.settings.errors import UserError
from foveate.settings.files import write_bytes_atomically

PROVENANCE_COLUMNS = ("source", "model", "recipe_hash", "created")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Who made a row: the data set or person, the model, a hash of prompt and settings, and when (ISO
    8601)."""

    source: str = ""
    model: str = ""
    recipe_hash: str = ""
    created: str = ""


def now() -> str:
    """The present time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in columns.items()])


_TEXT = pa.string()
_PROVENANCE = dict.fromkeys(PROVENANCE_COLUMNS, _TEXT)

INDEX = _schema(
    key=_TEXT,
    shard=pa.int32(),
    offset=pa.int64(),
    length=pa.int64(),
    width=pa.int32(),
    height=pa.int32(),
    format=_TEXT,
    sha256=_TEXT,
    perceptual_hash=pa.uint64(),
    group=_TEXT,
    split=_TEXT,
    source=_TEXT,
    path=_TEXT,
    mtime_ns=pa.int64(),
)
SCHEMAS: dict[str, pa.Schema] = {
    "captions": _schema(key=_TEXT, caption_id=_TEXT, kind=_TEXT, text=_TEXT, **_PROVENANCE),
    "regions": _schema(
        key=_TEXT,
        region_id=_TEXT,
        x1=pa.float32(),
        y1=pa.float32(),
        x2=pa.float32(),
        y2=pa.float32(),
        phrase=_TEXT,
        score=pa.float32(),
        label=_TEXT,
        slice=_TEXT,
        **_PROVENANCE,
    ),
    "labels": _schema(key=_TEXT, row_id=_TEXT, field=_TEXT, value=_TEXT, **_PROVENANCE),
    "context": _schema(
        key=_TEXT,
        row_id=_TEXT,
        latitude=pa.float64(),
        longitude=pa.float64(),
        time=_TEXT,
        place=_TEXT,
        **_PROVENANCE,
    ),
    "turns": _schema(
        key=_TEXT, row_id=_TEXT, position=pa.int32(), role=_TEXT, text=_TEXT, regions=_TEXT, **_PROVENANCE
    ),
}
QUARANTINE = _schema(
    key=_TEXT, subject=_TEXT, position=pa.int32(), reason=_TEXT, detail=_TEXT, source=_TEXT, created=_TEXT
)
REMOVED = _schema(key=_TEXT, sha256=_TEXT, reason=_TEXT, created=_TEXT, purge=pa.bool_())
SPLITS = _schema(key=_TEXT, split=_TEXT, group=_TEXT)

_HIGHEST_TAR = b"highest_tar"
_ID_COLUMNS = {"captions": "caption_id", "regions": "region_id"}
_KIND = re.compile(r"[a-z][a-z0-9_]{0,63}")


def check_kind(kind: str) -> str:
    """Return `kind` if it can name an annotation table, else raise UserError."""
    if not _KIND.fullmatch(kind):
        raise UserError(f"annotation kind {kind!r}: allowed are small letters, digits and '_', as in 'captions'")
    return kind


def id_column(kind: str) -> str:
    """The name of the id column of the annotation table `kind`."""
    return _ID_COLUMNS.get(kind, "row_id")


def to_table(kind: str, rows: Sequence[Mapping[str, object]]) -> pa.Table:
    """Rows as an Arrow table: of a known kind with its fixed columns, else with those that the rows have."""
    if kind in SCHEMAS:
        schema = SCHEMAS[kind]
        unknown = sorted({name for row in rows for name in row} - set(schema.names))
        if unknown:
            allowed = ", ".join(schema.names)
            raise UserError(f"annotations/{kind}: unknown column {unknown[0]!r}: allowed are {allowed}")
        return pa.Table.from_pylist([_with_defaults(schema, row) for row in rows], schema=schema)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})


def _with_defaults(schema: pa.Schema, row: Mapping[str, object]) -> dict[str, object]:
    """Fill absent text columns with "" and an absent score with 1, so that readers meet no nulls there."""
    filled: dict[str, object] = {}
    for column in schema:
        value = row.get(column.name)
        if value is None and column.type == _TEXT:
            value = ""
        elif value is None and column.name == "score":
            value = 1.0
        filled[column.name] = value
    return filled


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file that appears whole or not at all; equal tables give equal bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes_atomically(path, buffer.getvalue())


def read_table(path: Path) -> pa.Table:
    """Read one Parquet file. Raises UserError with the file's name where it is damaged."""
    try:
        return pq.read_table(path, partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read as a Parquet table: {error}") from error


def positions(values: pa.ChunkedArray | pa.Array, *, among: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Where each of `values` first stands in `among`, as int64; -1 where it does not."""
    keys = among.combine_chunks() if isinstance(among, pa.ChunkedArray) else among
    found = pc.call_function("index_in", [values], pc.SetLookupOptions(value_set=keys))
    return found.fill_null(-1).to_numpy().astype(np.int64)


def read_tables(paths: Sequence[Path], schema: pa.Schema | None = None) -> pa.Table:
    """Read parts of one table and join them; columns that a part lacks become null."""
    if not paths:
        return (schema or pa.schema([])).empty_table()
    return pa.concat_tables([read_table(path) for path in paths], promote_options="permissive").combine_chunks()


def read_index(*paths: Path) -> pa.Table:
    """Read index parts; of a part that an older release wrote, all pictures are packed."""
    return _complete(read_tables(paths, INDEX), INDEX)


def highest_tar(part: pa.Table) -> int:
    """The highest number of a tar that an index part ever pointed to, as far as a purge noted it; else -1.

    Such a number is not given again, so that a reader from before the purge never finds other pictures under it.
    """
    return int((part.schema.metadata or {}).get(_HIGHEST_TAR, b"-1"))


def with_highest_tar(part: pa.Table, number: int) -> pa.Table:
    """The index part with the note for `highest_tar`."""
    return part.replace_schema_metadata({_HIGHEST_TAR: str(number).encode()})


def read_removed(path: Path) -> pa.Table:
    """Read the tombstones; an empty table where there are none."""
    return _complete(read_table(path), REMOVED) if path.is_file() else REMOVED.empty_table()


def _complete(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of the schema, those that an older release did not write filled with "", 0 or false."""
    columns = []
    for column in schema:
        empty = pa.scalar("" if column.type == _TEXT else 0, _TEXT if column.type == _TEXT else pa.int64())
        empty = empty.cast(column.type)
        if column.name not in table.column_names:
            columns.append(pa.array([empty] * 0, column.type) if not len(table) else pa.repeat(empty, len(table)))
        else:
            values = table[column.name].cast(column.type)
            columns.append(values.fill_null(empty) if values.null_count else values)
    return pa.table(columns, schema=schema.with_metadata(table.schema.metadata))
