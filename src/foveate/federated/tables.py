"""Tables as sources of points: .csv and .parquet files, which of their columns are points, and which are doubtful.

Columns of decimal numbers are points by themselves. A column of whole numbers may be a measurement, a label or an id,
and a table does not say which: it is named in an error until the user decides (`ReadOptions.columns`).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from foveate.core.errors import UserError, nearest
from foveate.core.progress import say
from foveate.federated.points import Feature, Points, ReadOptions, as_matrix

POINT_NAMES = ("points", "embedding", "embeddings", "features", "X")
_ASIDE = ("key", "kind", "box", "phrase", "norm", "row", "__index_level_0__", "Unnamed: 0")
"""Columns that exports and tables of runs have besides points."""
_DELIMITERS = ",;\t|"
_MAX_COLUMNS = 100_000
_BLOCK = 1 << 24
_BATCH = 4096
_MAX_CODES = 20
_DAMAGE = (pa.ArrowException, OSError, ValueError, LookupError, ArithmeticError, TypeError, RuntimeError)

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
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            _check_names(path, schema.names)
            if metadata.num_rows < 1:
                raise UserError(f"{path} has no rows")
            for name in schema.names:
                if (name in POINT_NAMES or name in options.columns) and _kind(schema.field(name).type) == OTHER:
                    type_ = schema.field(name).type
                    raise UserError(
                        f"{path}: column '{name}' must hold numbers or lists of numbers (got {type_!s:.60})"
                    )
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
            batches, held = [], 0
            # Sizes in the file's header may be wrong, so the sum is checked again while reading.
            for batch in file.iter_batches(batch_size=_BATCH, columns=names):
                held += batch.nbytes
                options.check_size(str(path), held)
                batches.append(batch)
            table = pa.Table.from_batches(batches) if batches else schema.empty_table().select(names)
            # Lists and dictionaries point into other arrays; a wrong index would read memory that is not theirs.
            table.validate(full=True)
            unread = [name for name in schema.names if name not in names]
            return table.replace_schema_metadata({b"unread": "\0".join(unread).encode()})
    except UserError:
        raise
    except _DAMAGE as error:
        raise UserError(f"{path}: not a readable Parquet file ({type(error).__name__}: {error!s:.120})") from None


def _check_names(path: Path, names: Sequence[str]) -> None:
    if len(names) > _MAX_COLUMNS:
        raise UserError(f"{path}: has {len(names):,} columns; expected at most {_MAX_COLUMNS:,}")
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if twice:
        raise UserError(f"{path}: has the column '{sorted(twice)[0]}' twice")


def read_csv(path: Path, options: ReadOptions) -> pa.Table:
    """Read a CSV file with a header line; the delimiter and a decimal comma are recognized.

    Raises:
        UserError: no UTF-8 text, rows of different lengths, numbers that may be read in two ways, or a file larger than
            allowed.
    """
    options.check_size(str(path), path.stat().st_size)
    quotes, head, decoder = 0, "", codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                quotes += block.count(b'"')
                text = decoder.decode(block)
                head = head or text.removeprefix("\ufeff")
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a readable CSV file; expected UTF-8 text with a header line") from None
    # A quote that is never closed would swallow all rows after it as one text.
    if quotes % 2:
        raise UserError(f"{path}: has {quotes:,} double quotes, an odd number: one is not closed")
    header = next((line for line in head.splitlines() if line.strip()), "")
    if not header or "\0" in header:
        raise UserError(f"{path}: not a readable CSV file; expected UTF-8 text with a header line")
    bare = re.sub(r'"[^"]*"', "", header)
    delimiter = max(_DELIMITERS, key=bare.count)
    if bare.count(delimiter) > _MAX_COLUMNS:
        raise UserError(f"{path}: has {bare.count(delimiter):,} columns; expected at most {_MAX_COLUMNS:,}")
    table = _parse_csv(path, delimiter, ".")
    comma = _decimal_comma(path, table)
    if comma:
        table = _parse_csv(path, delimiter, ",")
    if delimiter != "," or comma:
        named = "a tab" if delimiter == "\t" else f"'{delimiter}'"
        say(f"{path}: columns are separated by {named}{', numbers have a decimal comma' if comma else ''}")
    options.check_size(str(path), table.num_rows * 8 * table.num_columns)
    return table


def _parse_csv(path: Path, delimiter: str, decimal: str) -> pa.Table:
    broken: list[Any] = []

    def refuse(row: Any) -> str:
        broken.append(row)
        return "error"

    try:
        table = pacsv.read_csv(
            path,
            # One thread: only then rows have numbers.
            read_options=pacsv.ReadOptions(use_threads=False, block_size=_BLOCK),
            parse_options=pacsv.ParseOptions(delimiter=delimiter, invalid_row_handler=refuse),
            convert_options=pacsv.ConvertOptions(decimal_point=decimal, strings_can_be_null=True),
        )
        table = table.rename_columns([name.strip().removeprefix("\ufeff") for name in table.column_names])
    except _DAMAGE as error:
        if broken:
            # The text of the row stays out of the error: it is a patient's.
            row = broken[0]
            raise UserError(
                f"{path}: line {row.number} has {row.actual_columns} columns; expected {row.expected_columns}, "
                f"separated by {delimiter!r}"
            ) from None
        raise UserError(
            f"{path}: not a readable CSV file ({type(error).__name__}); expected UTF-8 text with a header line"
        ) from None
    _check_names(path, table.column_names)
    return table


def _decimal_comma(path: Path, table: pa.Table) -> bool:
    """Whether numbers are written as 36,5.

    Raises:
        UserError: 1,234 may be a decimal comma or a thousand, or the table has numbers of both kinds.
    """
    commas, certain = [], False
    for name in table.column_names:
        if pa.types.is_string(table[name].type) and table[name].null_count < len(table):
            texts = table[name].drop_null()
            if _count_matches(texts, r"^\s*[+-]?\d+(,\d+)?([eE][+-]?\d+)?\s*$") == len(texts):
                commas.append(name)
                # In a column of thousands, 950 stands beside 1,234 as well, but neither 0,125 nor 12500 does.
                num_doubtful = _count_matches(texts, r"^\s*[+-]?([1-9]\d{0,2},\d{3}|\d{1,3})\s*$")
                certain = certain or num_doubtful < len(texts)
    if not commas:
        return False
    if not certain:
        raise UserError(
            f"{path}: column '{commas[0]}' has numbers such as 1,234, which may be a decimal comma or thousands; write "
            "them with a decimal point"
        )
    points = [name for name in table.column_names if pa.types.is_floating(table[name].type)]
    if points:
        raise UserError(f"{path}: column '{commas[0]}' has a decimal comma, column '{points[0]}' a decimal point")
    return True


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
    numeric = _count_matches(texts, r"^\s*[+-]?\d+([.,]\d+)?\s*$")
    return 0 < numeric < len(texts) <= 2 * numeric


def _count_matches(texts: pa.ChunkedArray, pattern: str) -> int:
    matches = pc.match_substring_regex(texts, pattern)  # pyrefly: ignore[missing-attribute]
    return pc.sum(matches).as_py() or 0  # pyrefly: ignore[missing-attribute]


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
