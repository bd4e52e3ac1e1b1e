"""Tables of a collection: their columns, and Parquet files that appear whole or not at all.

Every annotation table has a `key` (the image), an id column, and the four provenance columns.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foveate.core.errors import UserError
from foveate.core.files import write_bytes_atomically


class GroupedTable:
    """An annotation table sorted by the row number of its image (stable: the order of adding is kept)."""

    def __init__(self, table: pa.Table, keys: pa.ChunkedArray) -> None:
        """Group `table` by the position of its column `key` in `keys`; all its keys must be there."""
        rows = positions(table["key"], among=keys)
        assert not len(rows) or rows.min() >= 0, "a row belongs to no image"
        order = np.argsort(rows, kind="stable")
        in_order = bool(np.array_equal(order, np.arange(len(order))))
        self.table = table if in_order else table.take(pa.array(order)).combine_chunks()
        self.row_numbers = rows[order]
        self.offsets = np.concatenate([[0], np.cumsum(np.bincount(self.row_numbers, minlength=len(keys)))])
        self._arrays: dict[str, pa.Array] = {}
        self._numbers: dict[str, np.ndarray] = {}

    def bounds(self, row: int) -> tuple[int, int]:
        """First and past-the-last table row of the image `row`."""
        return int(self.offsets[row]), int(self.offsets[row + 1])

    def texts(self, column: str, start: int, end: int) -> list[str]:
        """Values start..end-1 of a text column."""
        if start == end:
            return []
        array = self._arrays.get(column)
        if array is None:
            array = self.table[column].combine_chunks()
            array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
            self._arrays[column] = array
        return array.slice(start, end - start).to_pylist()

    def numbers(self, column: str) -> np.ndarray:
        """A numeric column as numpy, as long as the table."""
        values = self._numbers.get(column)
        if values is None:
            values = self._numbers[column] = self.table[column].to_numpy()
        return values

    @cached_property
    def counts(self) -> np.ndarray:
        """Number of table rows per image."""
        return np.diff(self.offsets)


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
# What a captioner adds to a caption: the key of its request, how the answer was read, and how it was made (JSON).
_OF_CAPTIONER = {"request": _TEXT, "status": _TEXT, "flags": _TEXT, "score": pa.float32(), "details": _TEXT}
SCHEMAS: dict[str, pa.Schema] = {
    "captions": _schema(key=_TEXT, caption_id=_TEXT, kind=_TEXT, text=_TEXT, **_PROVENANCE, **_OF_CAPTIONER),
    "caption_errors": _schema(
        key=_TEXT,
        row_id=_TEXT,
        request=_TEXT,
        kind=_TEXT,
        error=_TEXT,
        final=pa.bool_(),
        raw=_TEXT,
        attempts=pa.int32(),
        details=_TEXT,
        **_PROVENANCE,
    ),
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
        details=_TEXT,
    ),
    "region_status": _schema(
        key=_TEXT,
        row_id=_TEXT,
        status=_TEXT,
        kind=_TEXT,
        phrases=pa.int32(),
        regions=pa.int32(),
        thin=pa.int32(),
        detail=_TEXT,
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
_INDEX_NUMBERS = {
    "width": (1, 2**31),
    "height": (1, 2**31),
    "length": (1, 2**31),
    "shard": (0, 2**31),
    "offset": (-1, 2**62),
}
# As `foveate.records.layout.check_key` has it, for whole columns.
_NO_KEY = r"(^|/)(|\.|\.\.)(/|$)|[\x00-\x1f\x7f-\x{9f}\\]"
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
    """Fill absent text columns with "", and absent scores of regions with 1, so that readers meet no nulls there."""
    filled: dict[str, object] = {}
    for column in schema:
        value = row.get(column.name)
        if value is None and column.type == _TEXT:
            value = ""
        elif value is None and column.name == "score" and "region_id" in schema.names:
            value = 1.0
        filled[column.name] = value
    return filled


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file that appears whole or not at all; equal tables give equal bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes_atomically(path, buffer.getvalue())


def read_table(path: Path) -> pa.Table:
    """Read one Parquet file. Raises UserError with the file's name where it is damaged, texts that are no UTF-8 too."""
    try:
        table = pq.read_table(path, partitioning=None)
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a Parquet table: {' '.join(str(error).split())[:300]}") from error
    return table


def read_columns(path: Path, schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    """Some columns of one Parquet file of a known table, in that order; the others are not unpacked.

    Raises UserError where it is damaged, has no column `key`, or a column of another type.
    """
    wanted = pa.schema([schema.field(name) for name in columns])
    try:
        there = set(pq.read_schema(path).names)
        table = pq.read_table(path, columns=sorted({"key", *columns} & there), partitioning=None)
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a Parquet table: {' '.join(str(error).split())[:300]}") from error
    return _complete(table, wanted, path)


def read_known(path: Path, schema: pa.Schema) -> pa.Table:
    """Read one Parquet file of a known table; columns that an older release did not write are filled.

    Raises UserError where it is damaged, has no column `key`, or a column of another type.
    """
    return _complete(read_table(path), schema, path)


def read_annotations(paths: Sequence[Path], kind: str) -> pa.Table:
    """Read the parts of the annotation table `kind`, a known one or another; an empty table where there are none.

    Raises UserError where a part is damaged, has no column `key`, or regions that are no boxes.
    """
    schema = SCHEMAS.get(kind)
    if not paths:
        return (schema or pa.schema([])).empty_table()
    if schema is None:
        parts = [_complete(read_table(path), pa.schema([INDEX.field("key")]), path, all_columns=True) for path in paths]
    else:
        parts = [read_known(path, schema) for path in paths]
        for path, part in zip(paths, parts, strict=True):
            _check_regions(part, path) if kind == "regions" else None
    try:
        return pa.concat_tables(parts, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise UserError(f"{paths[-1]} does not fit the other parts of the table: {str(error)[:200]}") from error


def _check_regions(part: pa.Table, path: Path) -> None:
    columns = [part[name].to_numpy() for name in ("x1", "y1", "x2", "y2", "score")]
    x1, y1, x2, y2, score = columns
    with np.errstate(invalid="ignore"):
        good = (x1 >= 0) & (y1 >= 0) & (x1 < x2) & (y1 < y2) & (x2 <= 1) & (y2 <= 1) & (score >= 0) & (score <= 1)
    if not good.all():
        raise UserError(
            f"{path}: row {int(np.argmin(good))} has no box with x1 < x2 and y1 < y2 in [0, 1], or no score"
        )


def positions(values: pa.ChunkedArray | pa.Array, *, among: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Where each of `values` first stands in `among`, as int64; -1 where it does not."""
    keys = among.combine_chunks() if isinstance(among, pa.ChunkedArray) else among
    found = pc.call_function("index_in", [values], pc.SetLookupOptions(value_set=keys))
    return found.fill_null(-1).to_numpy().astype(np.int64)


def read_index(*paths: Path) -> pa.Table:
    """Read index parts; of a part that an older release wrote, all images are packed.

    Raises UserError where a part is damaged or its numbers cannot be those of images.
    """
    parts = [read_known(path, INDEX) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        _check_index(part, path)
    return pa.concat_tables(parts).combine_chunks() if parts else INDEX.empty_table()


def _check_index(part: pa.Table, path: Path) -> None:
    """Keys become names of files when a collection is exported, and numbers places in a file."""
    bad = pc.call_function("match_substring_regex", [part["key"]], pc.MatchSubstringOptions(_NO_KEY)).to_numpy()
    if bad.any():
        raise UserError(f"{path}: {part['key'][int(np.argmax(bad))].as_py()!r} cannot be the key of an image")
    for name, (least, below) in _INDEX_NUMBERS.items():
        values = part[name].to_numpy()
        if len(values) and not (least <= values.min() and values.max() < below):
            raise UserError(f"{path}: column {name!r} holds numbers that no image has")


def highest_tar(part: pa.Table) -> int:
    """The highest number of a tar that an index part ever pointed to, as far as a purge noted it; else -1.

    Such a number is not given again, so that a reader from before the purge never finds other images under it.
    """
    noted = (part.schema.metadata or {}).get(_HIGHEST_TAR, b"-1")
    return int(noted) if re.fullmatch(rb"-1|\d{1,9}", noted) else -1


def with_highest_tar(part: pa.Table, number: int) -> pa.Table:
    """The index part with the note for `highest_tar`."""
    return part.replace_schema_metadata({_HIGHEST_TAR: str(number).encode()})


def read_removed(path: Path) -> pa.Table:
    """Read the tombstones; an empty table where there are none."""
    return read_known(path, REMOVED) if path.is_file() else REMOVED.empty_table()


def _complete(table: pa.Table, schema: pa.Schema, path: Path, *, all_columns: bool = False) -> pa.Table:
    """The columns of the schema (or `all_columns`); absent texts become "", absent whole numbers 0 or false."""
    if "key" not in table.column_names:
        raise UserError(f"{path} has no column 'key': it is no table of a collection")
    columns = {name: table[name] for name in table.column_names} if all_columns else {}
    try:
        for column in schema:
            found = table[column.name] if column.name in table.column_names else pa.nulls(len(table), column.type)
            values = found.cast(column.type)
            fills = not pa.types.is_floating(column.type)
            empty = pa.scalar("" if column.type == _TEXT else 0).cast(column.type)
            columns[column.name] = values.fill_null(empty) if fills and values.null_count else values
        return pa.table(columns, metadata=table.schema.metadata)
    except (pa.ArrowException, KeyError) as error:
        raise UserError(f"{path} is no table of a collection: {' '.join(str(error).split())[:200]}") from error
