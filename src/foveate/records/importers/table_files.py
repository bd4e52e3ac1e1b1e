"""Read columns of CSV, TSV and Parquet tables; one bad cell or line of a text file does not affect the others."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from foveate.core.arrow_tables import open_parquet, read_batches, read_csv_columns, read_table
from foveate.core.errors import UserError
from foveate.core.text_tables import ARROW_SUFFIXES, LINES_SUFFIXES, open_text
from foveate.records.importers.json_files import make_finding
from foveate.records.importers.sample import Sample

SUFFIXES = (".csv", ".tsv", ".parquet")
"""Endings by which a source is recognized as a table."""
_SUFFIXES = (*SUFFIXES, *ARROW_SUFFIXES, *LINES_SUFFIXES)


def read_column_names(path: Path) -> list[str]:
    """Return the column names of a table; raise UserError if it cannot be read."""
    suffix = _get_suffix(path)
    if suffix == ".parquet":
        with open_parquet(path) as file:
            return file.schema_arrow.names
    return read_table(path).column_names if _is_stored(suffix) else open_text(path).names


def read_columns(path: Path, names: list[str]) -> tuple[pa.Table, list[Sample]]:
    """Read the columns `names`; also return findings about lines with another number of cells than the header.

    Cells of a text file are unchecked bytes.

    Raises:
        UserError: the table is damaged, or a column has neither text nor lists.
    """
    suffix = _get_suffix(path)
    if _is_stored(suffix):
        return _read_stored(path, names), []
    table, bad_rows = read_csv_columns(open_text(path), names)
    findings = [make_finding(f"row {row.number}", path.name, "row", row.reason, row.detail) for row in bad_rows]
    return table, findings


def has_images(path: Path) -> bool:
    """Whether a Parquet file contains images, as structs of bytes and path."""
    if path.suffix.lower() != ".parquet":
        return False
    try:
        with open_parquet(path) as file:
            schema = file.schema_arrow
    except UserError:
        return False
    return any(pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0 for field in schema)


def _get_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise UserError(f"{path}: expected a table that ends in {', '.join(_SUFFIXES)}")
    return suffix


def _is_stored(suffix: str) -> bool:
    """Whether cells have types, unlike those of text."""
    return suffix == ".parquet" or suffix in ARROW_SUFFIXES or suffix in LINES_SUFFIXES


def _read_stored(path: Path, names: list[str]) -> pa.Table:
    if path.suffix.lower() == ".parquet":
        with open_parquet(path) as file:
            _check_types(path, file.schema_arrow, names)
            table = read_batches(file, names)
    else:
        table = read_table(path)
        _check_types(path, table.schema, names)
    return pa.table([_without_dictionary(table[name]) for name in names], names=names)


def _check_types(path: Path, schema: pa.Schema, names: list[str]) -> None:
    for name in names:
        kind = schema.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_null(kind)
        if not text and not lists:
            raise UserError(f"{path}: column {name!r} has type {kind}; expected text")


def _without_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Decode a dictionary-encoded column."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
