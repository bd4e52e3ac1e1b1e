"""Tables as sources of points: .csv and .parquet files, which of their columns are points, and which are doubtful.

Columns of decimal numbers are points by themselves. A column of whole numbers may be a measurement, a label or an id,
and a table does not say which: it is named in an error until the user decides (`ReadOptions.columns`).
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foveate.core.arrow_tables import count_matches, open_parquet, read_batches, read_typed_csv
from foveate.core.errors import UserError, nearest
from foveate.core.progress import say
from foveate.core.text_tables import check_names
from foveate.federated.points import Feature, Points, ReadOptions, as_matrix

POINT_NAMES = ("points", "embedding", "embeddings", "features", "X")
_ASIDE = ("key", "kind", "box", "phrase", "norm", "row", "__index_level_0__", "Unnamed: 0")
"""Columns that exports and tables of runs have besides points."""
_MAX_CODES = 20

DECIMAL, WHOLE, BOOL, LIST, TEXT, OTHER = "decimal numbers", "whole numbers", "booleans", "lists", "text", "values"


def _kind(type_: pa.DataType) -> str:
    """Class of a column's type, as errors name it."""
    if pa.types.is_dictionary(type_):
        return _kind(type_.value_type)
    if pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return DECIMAL
    if pa.types.is_integer(type_):
        return WHOLE
    if pa.types.is_boolean(type_):
        return BOOL
    if _is_list(type_):
        return LIST if _kind(type_.value_type) in (DECIMAL, WHOLE, BOOL) else OTHER
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_null(type_):
        return TEXT
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_temporal(type_):
        return TEXT
    return OTHER


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


# Reading.


def read_parquet(path: Path, options: ReadOptions) -> pa.Table:
    """Read a Parquet file, without columns that can be neither points nor labels.

    Raises:
        UserError: the file is damaged, has one name twice, or is larger than allowed.
    """
    with open_parquet(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
        check_names(path, schema.names)
        if metadata.num_rows < 1:
            raise UserError(f"{path} has no rows")
        for name in schema.names:
            if (name in POINT_NAMES or name in options.columns) and _kind(schema.field(name).type) == OTHER:
                type_ = schema.field(name).type
                raise UserError(f"{path}: column '{name}' must hold numbers or lists of numbers (got {type_!s:.60})")
        lists = [name for name in schema.names if _kind(schema.field(name).type) == LIST]
        list_names = set(_list_points(lists, options))
        names = [n for n in schema.names if n in list_names or _kind(schema.field(n).type) not in (LIST, OTHER)]
        num_bytes = metadata.num_rows * 8 * max(1, len(names) - len(list_names))
        for number in range(metadata.num_row_groups if list_names else 0):
            group = metadata.row_group(number)
            for index in range(group.num_columns):
                column = group.column(index)
                if column.path_in_schema.partition(".")[0] in list_names:
                    num_bytes += column.num_values * 8
        options.check_size(str(path), num_bytes)
        table = read_batches(file, names, check=lambda size: options.check_size(str(path), size))
    unread = [name for name in schema.names if name not in names]
    return table.replace_schema_metadata({b"unread": "\0".join(unread).encode()})


def read_csv(path: Path, options: ReadOptions) -> pa.Table:
    """Read a text table with a header line; encoding, delimiter and a decimal comma are recognized.

    Raises:
        UserError: no text, rows of different lengths, numbers that may be read in two ways, or a file larger than
            allowed. It repeats no cell: a cell is a patient's.
    """
    if path.is_file():
        options.check_size(str(path), path.stat().st_size)
    table, about = read_typed_csv(path)
    table = table.rename_columns([name.strip() for name in table.column_names])
    check_names(path, table.column_names)
    if about:
        say(f"{path}: {about}")
    options.check_size(str(path), table.num_rows * 8 * table.num_columns)
    return table


# Choosing.


def _list_points(lists: Sequence[str], options: ReadOptions) -> list[str]:
    """The column of lists that holds the points: the first with one of their names, or the one that the user names."""
    if options.columns:
        return [name for name in options.columns if name in lists]
    return [name for name in lists if name in POINT_NAMES][:1]


def table_points(name: str, table: pa.Table, options: ReadOptions, others: Sequence[str] = ()) -> Points:
    """Points of a table, with all its other columns beside them.

    Args:
        name: of the source.
        others: columns that are no points, such as labels.

    Raises:
        UserError: no column of numbers, doubtful columns, or lists of different lengths.
    """
    if table.num_columns and not table.num_rows:
        raise UserError(f"{name} has no rows")
    kinds = {column: _kind(table.schema.field(column).type) for column in table.column_names}
    lists = _list_points([column for column, kind in kinds.items() if kind == LIST], options)
    aside: dict[str, str] = {}
    if lists:
        if len(lists) > 1 or len(options.columns) > 1:
            raise UserError(f"{name}: --columns names a column of lists, '{lists[0]}', which is all points by itself")
        points_ND = _stack_lists(table[lists[0]], f"{name}: column '{lists[0]}'")
        used, features = set(lists), ()
    else:
        # `read_parquet` stores the names of columns that it skipped, so that errors can list them.
        unread = (table.schema.metadata or {}).get(b"unread", b"").decode().split("\0")
        names_D, aside = _choose(name, table, kinds, options, others, [text for text in unread if text])
        used = set(names_D)
        features = tuple(Feature(column, "boolean" if kinds[column] == BOOL else "number") for column in names_D)
        points_ND = np.empty((table.num_rows, len(names_D)))
        for index, column in enumerate(names_D):
            points_ND[:, index] = _to_float(table[column])
    rest = {column: _entries(table[column]) for column in table.column_names if column not in used}
    columns = {column: values for column, values in rest.items() if values is not None}
    return Points(name, points_ND, columns, features, aside)


def _choose(
    name: str,
    table: pa.Table,
    kinds: dict[str, str],
    options: ReadOptions,
    others: Sequence[str],
    unread: Sequence[str],
) -> tuple[list[str], dict[str, str]]:
    """Columns that are points, and why the others are not."""
    numeric = [column for column, kind in kinds.items() if kind in (DECIMAL, WHOLE, BOOL)]
    free = [column for column in numeric if column not in others and column not in _ASIDE]
    if options.columns:
        picked = _pick(name, options.columns, free, kinds, unread)
        return picked, {column: kind for column, kind in kinds.items() if column not in picked}
    # Row numbers, which many programs write: the user need not be asked about them.
    counting = {column for column in free if kinds[column] == WHOLE and _counts_rows(table[column])}
    decimals = [column for column in free if kinds[column] == DECIMAL]
    codes = _codes(table, decimals)
    doubtful = [
        column
        for column in table.column_names
        if column in codes
        or (column in free and kinds[column] in (WHOLE, BOOL) and column not in counting)
        or (kinds[column] == TEXT and column not in others and _mostly_numbers(table[column]))
    ]
    # Refuse instead of guessing: an id among the points would dominate distances unnoticed.
    if doubtful:
        listed = ", ".join(f"'{column}' ({_describe(table[column], kinds[column])})" for column in doubtful[:10])
        certain = [column for column in decimals if column not in codes][:5]
        only = f"; --columns {','.join(certain)} takes these alone" if certain else ""
        raise UserError(
            f"{name}: {listed}{' and more' if len(doubtful) > 10 else ''} may be points, labels or ids; say which "
            f"columns are points: --columns '*' takes all numbers, '!NAME' leaves one out{only}"
        )
    if not decimals:
        raise UserError(
            f"{name}: has no column of decimal numbers, and none of lists called {', '.join(POINT_NAMES)}; there are "
            f"{', '.join([*table.column_names, *unread][:20]) or 'none'}"
        )
    aside = {column: "counts the rows" if column in counting else kinds[column] for column in kinds}
    return decimals, {column: reason for column, reason in aside.items() if column not in decimals}


def _pick(
    name: str, patterns: Sequence[str], free: Sequence[str], kinds: dict[str, str], unread: Sequence[str]
) -> list[str]:
    """Columns that the user names, by name, pattern, or `!` and what to leave out."""
    included = [pattern for pattern in patterns if not pattern.startswith("!")] or ["*"]
    excluded = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    picked: list[str] = []
    for pattern in included:
        # A name that is spelled out may be a column that patterns pass over, such as `row` or a label.
        matches = [pattern] if pattern in kinds else [column for column in free if fnmatchcase(column, pattern)]
        if not matches:
            listed = ", ".join([*kinds, *unread][:20])
            raise UserError(f"{name}: no column of numbers '{pattern}'; there are {listed}{nearest(pattern, kinds)}")
        picked += [column for column in matches if column not in picked]
    for pattern in excluded:
        if not any(fnmatchcase(column, pattern) for column in kinds):
            raise UserError(f"{name}: no column '{pattern}' to leave out{nearest(pattern, kinds)}")
    picked = [column for column in picked if not any(fnmatchcase(column, pattern) for pattern in excluded)]
    for column in picked:
        if kinds[column] not in (DECIMAL, WHOLE, BOOL):
            raise UserError(f"{name}: column '{column}' holds {kinds[column]}; points are numbers")
    if not picked:
        raise UserError(f"{name}: --columns leaves no column")
    return picked


def _codes(table: pa.Table, decimals: Sequence[str]) -> set[str]:
    """Columns of decimal numbers that hold a few whole numbers only, where others of the table do not."""
    # Labels and codes with a missing value come as 0.0, 1.0, 2.0 from most programs.
    codes = set()
    for column in decimals:
        values = _to_float(table[column])
        values = values[np.isfinite(values)]
        # Codes have few values, so a part of the rows shows whether there are more; sorting all takes longer.
        distinct = np.unique(values[: 1 << 16])
        is_whole = bool(len(values)) and bool((values == np.round(values)).all())
        if is_whole and len(distinct) <= _MAX_CODES and len(values) >= 3 * len(distinct):
            codes.add(column)
    # If all columns look like codes, none stands out: the table may hold counts, which are valid points.
    return codes if len(codes) < len(decimals) else set()


def _counts_rows(column: pa.ChunkedArray) -> bool:
    if column.null_count or len(column) < 2:
        return False
    return bool((np.diff(_to_float(column)) == 1).all())


def _mostly_numbers(column: pa.ChunkedArray) -> bool:
    """Whether at least half of a column of text are numbers: a column with a few '<5' or '12*' in it."""
    if not pa.types.is_string(column.type):
        return False
    texts = column.drop_null()
    numeric = count_matches(texts, r"^\s*[+-]?\d+([.,]\d+)?\s*$")
    return 0 < numeric < len(texts) <= 2 * numeric


def _describe(column: pa.ChunkedArray, kind: str) -> str:
    if kind == TEXT:
        return "text, mostly numbers"
    distinct = pc.count_distinct(column).as_py()  # pyrefly: ignore[missing-attribute]
    return f"{kind if kind != DECIMAL else WHOLE}, {distinct:,} different"


# Values.


def _to_float(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column of numbers; NaN where it is missing."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    # An unsafe cast is intended: whole numbers above 2^53 are rounded, as everywhere in float64.
    return column.cast(pa.float64(), safe=False).to_numpy()


def _stack_lists(column: pa.ChunkedArray, what: str) -> NDArray[np.float64]:
    """Matrix of a column of lists of equal length; NaN in rows without a list."""
    widths = {
        int(width)
        for chunk in column.chunks
        for width in pc.unique(pc.list_value_length(chunk).drop_null()).to_pylist()  # pyrefly: ignore[missing-attribute]
    }
    if len(widths) != 1:
        raise UserError(f"{what}: the lists have different lengths ({', '.join(map(str, sorted(widths)[:5]))})")
    width = widths.pop()
    if not width:
        raise UserError(f"{what}: the lists are empty")
    parts = []
    for chunk in column.chunks:
        part = np.full((len(chunk), width), np.nan)
        valid_N = chunk.is_valid().to_numpy(zero_copy_only=False)
        part[valid_N] = _to_float(pa.chunked_array([chunk.flatten()])).reshape(-1, width)
        parts.append(part)
    return as_matrix(np.concatenate(parts), what)


def _entries(column: pa.ChunkedArray) -> NDArray[Any] | None:
    """One string or number per row, None where it is missing; None for types without one."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    type_ = column.type
    if pa.types.is_floating(type_) or (pa.types.is_integer(type_) and not column.null_count):
        return column.to_numpy()
    if pa.types.is_temporal(type_) or pa.types.is_decimal(type_):
        try:
            column = column.cast(pa.string())
        except pa.ArrowException:  # durations, and times beyond the calendar
            return None
    elif _kind(type_) not in (WHOLE, BOOL, TEXT):
        return None
    values = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in column.to_pylist()]
    result = np.empty(len(values), dtype=object)
    result[:] = values
    return result
