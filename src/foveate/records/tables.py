"""Tables of a collection: their columns, atomic Parquet files, and rows grouped by image.

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
    """An annotation table sorted by image, so that the rows of one image are one slice in the order of writing."""

    def __init__(self, table: pa.Table, keys: pa.ChunkedArray) -> None:
        """Group `table` by the position of its column `key` in `keys`, which has all of its keys."""
        rows = positions(table["key"], among=keys)
        assert not len(rows) or rows.min() >= 0, "a row belongs to no image"
        # The sort is stable, because the order of writing decides which of equally old captions is current.
        order = np.argsort(rows, kind="stable")
        # Written in one go, a table is in order already, and taking rows would copy it.
        in_order = bool(np.array_equal(order, np.arange(len(order))))
        self.table = table if in_order else table.take(pa.array(order)).combine_chunks()
        self.row_numbers = rows[order]
        self.offsets = np.concatenate([[0], np.cumsum(np.bincount(self.row_numbers, minlength=len(keys)))])
        self._text_columns: dict[str, pa.Array] = {}
        self._numeric: dict[str, np.ndarray] = {}

    def bounds(self, row: int) -> tuple[int, int]:
        """Return the first and past-the-last table row of an image."""
        return int(self.offsets[row]), int(self.offsets[row + 1])

    def texts(self, column: str, start: int, end: int) -> list[str]:
        """Return the values start..end-1 of a text column."""
        if start == end:
            return []
        array = self._text_columns.get(column)
        if array is None:
            # Slicing one chunk is constant time; slicing a chunked column searches for its chunk.
            array = self.table[column].combine_chunks()
            array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
            self._text_columns[column] = array
        return array.slice(start, end - start).to_pylist()

    def array(self, column: str) -> np.ndarray:
        """Return a numeric column as a NumPy array."""
        values = self._numeric.get(column)
        if values is None:
            values = self._numeric[column] = self.table[column].to_numpy()
        return values

    @cached_property
    def counts(self) -> np.ndarray:
        """Number of table rows per image."""
        return np.diff(self.offsets)


PROVENANCE_COLUMNS = ("source", "model", "recipe_hash", "created")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Origin of a row: data set or person, model, hash of prompt and settings, and time (ISO 8601)."""

    source: str = ""
    model: str = ""
    recipe_hash: str = ""
    created: str = ""


def now() -> str:
    """Return the current time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


_TEXT = pa.string()
_TYPES = {
    "": _TEXT,
    "texts": pa.list_(_TEXT),
    "turns": pa.list_(pa.struct({"role": _TEXT, "text": _TEXT, "regions": _TEXT})),
}


def _schema(columns: str) -> pa.Schema:
    """Return the schema of columns written as "name" (a text) or "name:type"."""
    pairs = (column.partition(":") for column in columns.split())
    return pa.schema([(name, _TYPES.get(kind) or pa.type_for_alias(kind)) for name, _, kind in pairs])


_PROVENANCE = " ".join(PROVENANCE_COLUMNS)
_ORIGIN = "source created"  # columns of rows about the whole data set


def _annotation(columns: str) -> pa.Schema:
    return _schema(f"key row_id {columns} {_PROVENANCE}")


INDEX = _schema(
    "key shard:int32 offset:int64 length:int64 width:int32 height:int32 format sha256 perceptual_hash:uint64 group "
    "split source path mtime_ns:int64"
)
_CORNERS = "x1:{0} y1:{0} x2:{0} y2:{0}"
_MEDIA = "deployment sequence frame_number:int32 time file extra"
_OBSERVATION = (
    f"id deployment event level kind taxon taxon_id count:int32 {_CORNERS.format('float64')} method classifier "
    "classified_at probability:float64 event_start event_end extra"
)
SCHEMAS: dict[str, pa.Schema] = {
    # The last five are those of captioners: key of the request, status of parsing the response, and provenance of the
    # caption (JSON).
    "captions": _schema(f"key caption_id kind text {_PROVENANCE} request status flags score:float32 details"),
    "caption_errors": _annotation("request kind error final:bool raw attempts:int32 details"),
    "regions": _schema(
        f"key region_id {_CORNERS.format('float32')} phrase score:float32 label slice {_PROVENANCE} details"
    ),
    "region_status": _annotation("status kind phrases:int32 regions:int32 thin:int32 detail"),
    "labels": _annotation("field value"),
    "context": _annotation("latitude:float64 longitude:float64 time place"),
    "conversations": _annotation("id images:texts turns:turns group answers:texts choices:texts"),
    # Versions of the files that images were imported from; see `foveate.records.source_files`.
    "files": _annotation("folder file stamp mtime_ns:int64 version:int32 rows:texts"),
    # Images of a camera-trap survey, and what was seen on them; see `foveate.survey.types`. -1: no number.
    "media": _annotation(_MEDIA),
    "observations": _annotation(_OBSERVATION),
}
# Tables about the whole data set whose columns are fixed, so that one whose values are all missing has types, too.
DATASET_SCHEMAS: dict[str, pa.Schema] = {
    "deployments": _schema(
        "id place latitude:float64 longitude:float64 start end utc_offset clock_shift:int64 timestamp_issues:bool "
        f"uncertainty:float64 habitat extra {_ORIGIN}"
    ),
    # See `foveate.records.captions`.
    "caption_verdicts": _schema(
        "kind model data captions:int64 assertions:int64 holds:float64 low:float64 high:float64 control:float64 "
        "control_low:float64 control_high:float64 judge settings created"
    ),
    "event_observations": _schema(f"{_OBSERVATION} {_ORIGIN}"),
    "media_without_image": _schema(f"key {_MEDIA} {_ORIGIN}"),
    "observations_without_image": _schema(f"key {_OBSERVATION} {_ORIGIN}"),
    "survey": _schema(f"format descriptor {_ORIGIN}"),
}
QUARANTINE = _schema("key subject position:int32 reason detail source created")
REMOVED = _schema("key sha256 reason created purge:bool")
SPLITS = _schema("key split group")

_HIGHEST_TAR = b"highest_tar"
_ID_COLUMNS = {"captions": "caption_id", "regions": "region_id"}
_INDEX_BOUNDS = {
    "width": (1, 2**31),
    "height": (1, 2**31),
    "length": (1, 2**31),
    "shard": (0, 2**31),
    "offset": (-1, 2**62),  # -1: a referenced image, which is in no shard
}
# `foveate.records.layout.check_key` for a whole column at once: millions of keys are checked at every opening.
_INVALID_KEY = r"(^|/)(|\.|\.\.)(/|$)|[\x00-\x1f\x7f-\x{9f}\\]"
_KIND = re.compile(r"[a-z][a-z0-9_]{0,63}")


def check_kind(kind: str) -> str:
    """Return `kind`; raise UserError if it cannot name an annotation table."""
    if not _KIND.fullmatch(kind):
        raise UserError(f"annotation kind {kind!r}: expected lower-case letters, digits and '_', as in 'captions'")
    return kind


def id_column(kind: str) -> str:
    """Return the name of the id column of an annotation table."""
    return _ID_COLUMNS.get(kind, "row_id")


def to_table(kind: str, rows: Sequence[Mapping[str, object]]) -> pa.Table:
    """Convert rows to an Arrow table, with the fixed columns of a known kind or else those of the rows."""
    schema = SCHEMAS.get(kind) or DATASET_SCHEMAS.get(kind)
    if schema is not None:
        unknown = sorted({name for row in rows for name in row} - set(schema.names))
        if unknown:
            folder = "annotations" if kind in SCHEMAS else "dataset"
            raise UserError(
                f"{folder}/{kind}: unknown column {unknown[0]!r}; expected one of {', '.join(schema.names)}"
            )
        return pa.Table.from_pylist([_with_defaults(schema, row) for row in rows], schema=schema)
    # Columns of all rows: `from_pylist` without a schema would take only those of the first one.
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})


def _with_defaults(schema: pa.Schema, row: Mapping[str, object]) -> dict[str, object]:
    """Fill missing texts with "" and missing region scores with 1, so that readers find no nulls there."""
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
    """Write a Parquet file atomically; equal tables give equal bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes_atomically(path, buffer.getvalue())


def _read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    # pq.read_table would import pandas, 0.5 s, and make columns from folder names such as "a=b".
    with pq.ParquetFile(path) as file:
        table = file.read(columns=columns)
    # Full validation, since a damaged offset inside a column would read other memory later.
    table.validate(full=True)
    return table


def read_table(path: Path) -> pa.Table:
    """Read one Parquet file; raise UserError if it is damaged or has texts that are not UTF-8."""
    try:
        table = _read(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a Parquet table: {' '.join(str(error).split())[:300]}") from error
    return table


def read_columns(path: Path, schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    """Read some columns of a file of a known table, in that order, without decompressing the others.

    Raises:
        UserError: the file is damaged, has no column `key`, or a column of another type.
    """
    expected = pa.schema([schema.field(name) for name in columns])
    try:
        # Files of earlier versions lack columns, which `_complete` fills. It needs the key, whatever is asked for.
        present = set(pq.read_schema(path).names)
        table = _read(path, columns=sorted({"key", *columns} & present))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a Parquet table: {' '.join(str(error).split())[:300]}") from error
    return _complete(table, expected, path)


def read_known(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a file of a known table; missing columns are filled with defaults.

    Raises:
        UserError: the file is damaged, has no column `key`, or a column of another type.
    """
    return _complete(read_table(path), schema, path)


def read_annotations(paths: Sequence[Path], kind: str) -> pa.Table:
    """Read and join the parts of an annotation table; an empty table if there are none.

    Raises:
        UserError: a part is damaged, has no column `key`, or has regions that are not boxes.
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
        # Tables of other kinds may have gained columns: parts without them get nulls.
        return pa.concat_tables(parts, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise UserError(
            f"{paths[-1]}: its columns differ from the other parts of the table ({str(error)[:200]})"
        ) from error


def _check_regions(part: pa.Table, path: Path) -> None:
    columns = [part[name].to_numpy() for name in ("x1", "y1", "x2", "y2", "score")]
    x1, y1, x2, y2, score = columns
    with np.errstate(invalid="ignore"):
        # Written so that NaN, which compares as false, is refused.
        good = (x1 >= 0) & (y1 >= 0) & (x1 < x2) & (y1 < y2) & (x2 <= 1) & (y2 <= 1) & (score >= 0) & (score <= 1)
    if not good.all():
        raise UserError(
            f"{path}: row {int(np.argmin(good))}: expected a box with x1 < x2 and y1 < y2 in [0, 1] and a score in "
            "[0, 1]"
        )


def positions(values: pa.ChunkedArray | pa.Array, *, among: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return the first index of each of `values` in `among`, as int64; -1 if it is not there."""
    keys = among.combine_chunks() if isinstance(among, pa.ChunkedArray) else among
    indices = pc.call_function("index_in", [values], pc.SetLookupOptions(value_set=keys))
    return indices.fill_null(-1).to_numpy().astype(np.int64)


def count_images(table: pa.Table, *, among: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return per row how many of its images are in `among`, and how many it has.

    A row of most tables has the one image `key`; a conversation has those of its list `images`, maybe none.
    """
    if "images" not in table.column_names or not pa.types.is_list(table["images"].type):
        return (positions(table["key"], among=among) >= 0).astype(np.int64), np.ones(len(table), np.int64)
    images = table["images"].combine_chunks()
    owners = pc.call_function("list_parent_indices", [images]).to_numpy().astype(np.int64)
    present = positions(pc.call_function("list_flatten", [images]), among=among) >= 0
    # Rows without images have no entry in the flat list; the length keeps them, with 0.
    return np.bincount(owners[present], minlength=len(table)), np.bincount(owners, minlength=len(table))


def read_index(*paths: Path) -> pa.Table:
    """Read and join index parts; raise UserError if one is damaged or has impossible keys or numbers."""
    parts = [read_known(path, INDEX) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        _check_index(part, path)
    return pa.concat_tables(parts).combine_chunks() if parts else INDEX.empty_table()


def _check_index(part: pa.Table, path: Path) -> None:
    """Check keys and numbers: a collection may come from others, and an export makes file names of its keys."""
    bad = pc.call_function("match_substring_regex", [part["key"]], pc.MatchSubstringOptions(_INVALID_KEY)).to_numpy()
    if bad.any():
        raise UserError(f"{path}: {part['key'][int(np.argmax(bad))].as_py()!r} is not a valid image key")
    for name, (lowest, below) in _INDEX_BOUNDS.items():
        values = part[name].to_numpy()
        if len(values) and not (lowest <= values.min() and values.max() < below):
            raise UserError(f"{path}: column {name!r} contains values out of range")


def highest_tar(part: pa.Table) -> int:
    """Return the highest number of a tar that an index part ever referred to, as noted by a purge; else -1.

    Such a number is not used again: a reader that was opened before the purge must not find other images under it.
    """
    number = (part.schema.metadata or {}).get(_HIGHEST_TAR, b"-1")
    # The file may come from others: nothing in its metadata may raise or become a huge number.
    return int(number) if re.fullmatch(rb"-1|\d{1,9}", number) else -1


def with_highest_tar(part: pa.Table, number: int) -> pa.Table:
    """Return the index part with the note that `highest_tar` reads."""
    return part.replace_schema_metadata({_HIGHEST_TAR: str(number).encode()})


def read_removed(path: Path) -> pa.Table:
    """Read the tombstones; an empty table if there are none."""
    return read_known(path, REMOVED) if path.is_file() else REMOVED.empty_table()


def _complete(table: pa.Table, schema: pa.Schema, path: Path, *, all_columns: bool = False) -> pa.Table:
    """Return the columns of the schema (or all); missing texts become "", missing integers 0, booleans false."""
    if "key" not in table.column_names:
        raise UserError(f"{path} has no column 'key': not a table of a collection")
    columns = {name: table[name] for name in table.column_names} if all_columns else {}
    try:
        for column in schema:
            column_values = (
                table[column.name] if column.name in table.column_names else pa.nulls(len(table), column.type)
            )
            values = column_values.cast(column.type)
            # Missing floats stay null: a latitude of 0 would be a place, and a score of 0 a measurement.
            fills = values.null_count and not (pa.types.is_floating(column.type) or pa.types.is_nested(column.type))
            empty = pa.scalar("" if column.type == _TEXT else 0).cast(column.type) if fills else None
            columns[column.name] = values.fill_null(empty) if fills else values
        return pa.table(columns, metadata=table.schema.metadata)
    except (pa.ArrowException, KeyError) as error:
        raise UserError(f"{path} is not a table of a collection: {' '.join(str(error).split())[:200]}") from error
