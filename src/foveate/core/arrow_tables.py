"""Read tables as Arrow columns: typed or as bytes from text, as stored from Parquet, Arrow and JSON Lines.

`read_typed_csv` guesses numbers, with a decimal point or comma. `read_csv_columns` leaves cells as bytes, so that one
bad cell or line does not affect the others. Encodings and delimiters are those of `foveate.core.tables`.
"""

from __future__ import annotations

import codecs
import contextlib
import mmap
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from foveate.core.errors import UserError
from foveate.core.json_fields import read_lines
from foveate.core.text_tables import (
    ARROW_SUFFIXES,
    LINES_SUFFIXES,
    NO_LIMITS,
    Limits,
    TextTable,
    check_bytes,
    check_names,
    check_width,
    open_text,
)

# pyarrow needs a whole row within one block; a block is never larger than twice the file.
_MAX_ROW_BYTES = 2**28
_TYPED_BLOCK = 2**24
_BATCH_ROWS = 4096
DAMAGE = (pa.ArrowException, OSError, ValueError, LookupError, ArithmeticError, TypeError, RuntimeError)
"""What pyarrow raises on damaged files: met in fuzzing."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line of a text table that cannot be read.

    Args:
        number: of the row below the header, from 1.
        reason: "wrong number of cells" or "unclosed quote".
    """

    number: int
    reason: str
    detail: str


# Parquet, Arrow, JSON Lines.


def read_table(path: Path, *, limits: Limits = NO_LIMITS) -> pa.Table:
    """Read a whole table of any kind by its ending; text is read as texts.

    Raises:
        UserError: the file is damaged, or has a column twice.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return read_parquet(path, limits=limits)
    if suffix in ARROW_SUFFIXES:
        return read_arrow(path, limits=limits)
    if suffix in LINES_SUFFIXES:
        return _read_lines(path, limits)
    return read_text_columns(path, limits=limits)


@contextlib.contextmanager
def open_parquet(path: Path, limits: Limits = NO_LIMITS) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; damage that the block meets becomes a UserError that names the file."""
    try:
        # Not pq.read_table: it makes columns from folder names such as "a=b".
        with pq.ParquetFile(path) as file:
            check_width(path, file.schema_arrow.names, limits)
            yield file
    # `DAMAGE` would catch it as a ValueError, but its message already says what is wrong.
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} cannot be read as a Parquet table ({type(error).__name__}: {reason})") from error


def read_batches(
    file: pq.ParquetFile, names: Sequence[str] | None = None, *, check: Callable[[int], None] | None = None
) -> pa.Table:
    """Read columns of an open Parquet file.

    Args:
        check: called with the bytes that are read so far, and raises where they are too many: the sizes that a file
            states need not be true, so that a small one may unpack to more than the memory.
    """
    columns = None if names is None else list(names)
    if check is None:
        table = file.read(columns=columns)
    else:
        batches, num_bytes = [], 0
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            num_bytes += batch.nbytes
            check(num_bytes)
            batches.append(batch)
        empty = file.schema_arrow.empty_table()
        table = pa.Table.from_batches(batches) if batches else empty if columns is None else empty.select(columns)
    # Lists and dictionaries point into other arrays, and texts need not be UTF-8: a wrong index would read memory that
    # is not theirs.
    table.validate(full=True)
    return table


def read_parquet(path: Path, names: Sequence[str] | None = None, *, limits: Limits = NO_LIMITS) -> pa.Table:
    """Read columns of a Parquet file, all by default.

    Raises:
        UserError: the file is damaged, or unpacks to more than `limits` allow.
    """

    def check(num_bytes: int) -> None:
        assert limits.max_bytes is not None
        if num_bytes > limits.max_bytes:
            raise UserError(f"{path} unpacks to more than {limits.max_bytes:,} bytes")

    with open_parquet(path, limits) as file:
        check_rows(path, file.metadata.num_rows, limits)
        if names is None:
            check_names(path, file.schema_arrow.names)
        table = read_batches(file, names, check=None if limits.max_bytes is None else check)
        return table.replace_schema_metadata(file.schema_arrow.metadata)


def read_arrow(path: Path, *, limits: Limits = NO_LIMITS) -> pa.Table:
    """Read an Arrow (Feather) file or stream; raise UserError if it is damaged."""
    try:
        check_bytes(path, limits)
        # Not from a memory map: a file that changes later would change the table.
        data = path.read_bytes()
        # Files begin with this mark, streams do not.
        is_file = data.startswith(b"ARROW1")
        with pa.ipc.open_file(data) if is_file else pa.ipc.open_stream(data) as reader:
            table = reader.read_all()
        table.validate(full=True)
    except UserError:
        raise
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} cannot be read as an Arrow table ({type(error).__name__}: {reason})") from error
    check_width(path, table.column_names, limits)
    check_names(path, table.column_names)
    check_rows(path, table.num_rows, limits)
    return table


def _read_lines(path: Path, limits: Limits) -> pa.Table:
    check_bytes(path, limits)
    rows = read_lines(path)
    check_rows(path, len(rows), limits)
    # The columns of all rows: `from_pylist` without a schema would take only those of the first one.
    names = list(dict.fromkeys(name for row in rows for name in row))
    check_width(path, names, limits)
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError) as error:
            raise UserError(f"{path}: column '{name}' has values of several types; expected one type") from error
    return pa.table(columns)


def check_rows(path: Path, num_rows: int, limits: Limits) -> None:
    """Raise UserError if a table has more rows than allowed."""
    if limits.max_rows is not None and num_rows > limits.max_rows:
        raise UserError(f"{path} has {num_rows:,} rows; expected at most {limits.max_rows:,}")


# Text, as bytes.


def read_csv_columns(table: TextTable, names: Sequence[str]) -> tuple[pa.Table, list[BadRow]]:
    """Read columns of a text table as bytes, and list the lines with another number of cells than the header.

    Raises:
        UserError: the file is no table.
    """
    bad_rows: list[BadRow] = []

    def note(row: pa_csv.InvalidRow) -> str:
        number = len(bad_rows) + 1 if row.number is None else row.number - 1
        # Only `_blank_lines` leaves a line of nothing but spaces.
        if row.text.strip(" "):
            detail = f"the line has {row.actual_columns} cells, the header has {row.expected_columns}"
            bad_rows.append(BadRow(number, "wrong number of cells", detail))
        else:
            detail = "a quote opens a cell of this line and is not closed"
            bad_rows.append(BadRow(number, "unclosed quote", detail))
        return "skip"

    try:
        with _map(table) as data:
            lines = find_unclosed_quotes(data, table.delimiter)
            # Twice the size: bytes above 127 take two each where they are read as Latin-1.
            block = min(max(2 * len(data) + 1, 2**16), _MAX_ROW_BYTES)
            source: Path | pa.BufferReader = table.path
            if lines or table.damage or table.content is not None:
                content = _blank_lines(data, lines) if lines else bytes(data)
                # pyarrow passes bad lines to the handler as text and fails on other encodings; as Latin-1 any bytes are
                # text.
                source = pa.BufferReader(content.decode("latin-1").encode() if table.damage else content)
        columns = pa_csv.read_csv(
            source,
            # One thread: only then rows have numbers.
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=block),
            parse_options=pa_csv.ParseOptions(
                delimiter=table.delimiter, newlines_in_values=True, invalid_row_handler=note
            ),
            convert_options=pa_csv.ConvertOptions(
                include_columns=list(names),
                column_types=dict.fromkeys(table.names, pa.large_binary()),
                check_utf8=False,
            ),
        )
    except (pa.ArrowException, KeyError, OSError) as error:
        raise UserError(f"{table.path} cannot be read as a table: {str(error).splitlines()[0][:200]}") from error
    return _restore_bytes(columns) if table.damage else columns, bad_rows


def read_text_columns(path: Path, names: Sequence[str] | None = None, *, limits: Limits = NO_LIMITS) -> pa.Table:
    """Read columns of a text table as texts, all by default; every row counts.

    Raises:
        UserError: the file is no table, a column occurs twice, or a row cannot be read; the error names the row.
    """
    text = open_text(path, limits)
    names = text.names if names is None else names
    check_names(path, [name for name in text.names if name in names])
    text.refuse_damage()
    table, bad_rows = read_csv_columns(text, names)
    if bad_rows:
        raise UserError(f"{path}, row {bad_rows[0].number}: {bad_rows[0].detail}")
    check_rows(path, table.num_rows, limits)
    return pa.table({name: table[name].cast(pa.large_string()) for name in table.column_names})


@contextlib.contextmanager
def _map(table: TextTable) -> Iterator[bytes | mmap.mmap]:
    if table.content is not None:
        yield table.content
        return
    with table.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def find_unclosed_quotes(data: bytes | mmap.mmap, delimiter: str) -> list[tuple[int, int]]:
    """Find the lines of a text table in which a cell's opening quote has no closing one.

    A CSV reader would take everything up to some later quote, or to the end of the file, as one cell: whole rows would
    vanish in a text. A quote closes a cell only in front of a delimiter or a line's end; one that stands elsewhere on
    a later line belongs to another row.

    Returns:
        (start, end) of these lines in bytes, without the newline.
    """
    lines: list[tuple[int, int]] = []
    ends = {delimiter.encode(), b"\n", b"\r", b""}
    start = 3 if data[:3] == codecs.BOM_UTF8 else 0
    quote = data.find(b'"', start)
    while quote >= 0:
        # A quote inside an unquoted cell (5" pipe) is an ordinary character.
        if quote > start and data[quote - 1 : quote] not in ends:
            quote = data.find(b'"', quote + 1)
            continue
        close = data.find(b'"', quote + 1)
        # Two quotes in a row are one quote of the text.
        while close >= 0 and data[close + 1 : close + 2] == b'"':
            close = data.find(b'"', close + 2)
        line_end = data.find(b"\n", quote)
        line_end = len(data) if line_end < 0 else line_end
        # On its own line any quote closes. On a later one only a quote at the end of a cell does: others belong to
        # other rows.
        closed = close >= 0 and (close < line_end or data[close + 1 : close + 2] in ends)
        if not closed:
            lines.append((data.rfind(b"\n", 0, quote) + 1, line_end))
        quote = data.find(b'"', (close if closed else line_end) + 1)
    return lines


def _blank_lines(data: bytes | mmap.mmap, lines: list[tuple[int, int]]) -> bytes:
    """Replace lines by spaces, so that the rows after them keep their numbers."""
    content = bytearray(data)
    for start, end in lines:
        content[start:end] = b" " * (end - start)
    return bytes(content)


def _restore_bytes(table: pa.Table) -> pa.Table:
    """Return the cells with their original bytes, after the file was read as Latin-1."""
    columns = {
        name: pa.array([cell.decode("utf-8").encode("latin-1") for cell in table[name].to_pylist()], pa.large_binary())
        for name in table.column_names
    }
    return pa.table({name: pa.chunked_array([column]) for name, column in columns.items()})


# Text, typed.


def read_typed_csv(
    path: Path,
    *,
    limits: Limits = NO_LIMITS,
    labels: Collection[str] = (),
    null_texts: bool = True,
    mixed: Literal["refuse", "point"] = "refuse",
) -> tuple[pa.Table, str]:
    """Read a text table with the types of its columns, and numbers with a decimal point or comma.

    Args:
        labels: columns that say nothing about the decimal comma.
        null_texts: whether "" and NA are missing values in columns of text, too.
        mixed: columns with a decimal comma beside ones with a point are an error, or text.

    Returns:
        The table, and what about the file differs from plain CSV, for people; "" for nothing.

    Raises:
        UserError: no text, a row with another number of cells (the line is named, its cells are not: they may be a
            patient's), a column that occurs twice, or numbers that may be read in two ways; names the column.
    """
    text = open_text(path, limits)
    text.refuse_damage()
    # A quote that is never closed would swallow all rows after it as one text.
    with _map(text) as data:
        for start, _ in find_unclosed_quotes(data, text.delimiter)[:1]:
            line = data[:start].count(b"\n") + 1
            raise UserError(f"{path}: line {line} has double quotes that are not closed")
    table = _parse_typed(text, ".", null_texts)
    check_names(path, table.column_names)
    comma = _has_decimal_comma(path, table, labels, mixed)
    if comma:
        table = _parse_typed(text, ",", null_texts)
    check_rows(path, table.num_rows, limits)
    notes = (text.describe(), "numbers have a decimal comma" if comma else "")
    return table, ", ".join(note for note in notes if note)


def _parse_typed(text: TextTable, decimal: str, null_texts: bool) -> pa.Table:
    broken: list[Any] = []

    def refuse(row: Any) -> str:
        broken.append(row)
        return "error"

    path, delimiter = text.path, text.delimiter
    try:
        table = pa_csv.read_csv(
            path if text.content is None else pa.BufferReader(text.content),
            # One thread: only then rows have numbers.
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=_TYPED_BLOCK),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refuse),
            convert_options=pa_csv.ConvertOptions(decimal_point=decimal, strings_can_be_null=null_texts),
        )
        # Names of columns are decoded when they are asked for.
        return table.rename_columns([name.removeprefix("\ufeff") for name in table.column_names])
    except DAMAGE as error:
        if broken:
            # The text of the row stays out of the error: it is a patient's.
            row = broken[0]
            raise UserError(
                f"{path}: line {row.number} has {row.actual_columns} columns; expected {row.expected_columns}, "
                f"separated by {delimiter!r}"
            ) from None
        raise UserError(
            f"{path}: not a readable CSV file ({type(error).__name__}); expected text with a header line"
        ) from None


def _has_decimal_comma(path: Path, table: pa.Table, labels: Collection[str], mixed: str) -> bool:
    """Whether numbers are written as 36,5.

    Raises:
        UserError: 1,234 may be a decimal comma or a thousand, or the table has numbers of both kinds.
    """
    commas, certain = [], False
    names = [name for name in table.column_names if name not in labels]
    for name in names:
        if pa.types.is_string(table[name].type) and table[name].null_count < len(table):
            texts = table[name].drop_null()
            if count_matches(texts, r"^\s*[+-]?\d+(,\d+)?([eE][+-]?\d+)?\s*$") == len(texts):
                commas.append(name)
                # In a column of thousands, 950 stands beside 1,234 as well, but neither 0,125 nor 12500 does.
                num_doubtful = count_matches(texts, r"^\s*[+-]?([1-9]\d{0,2},\d{3}|\d{1,3})\s*$")
                certain = certain or num_doubtful < len(texts)
    if not commas:
        return False
    points = [name for name in names if pa.types.is_floating(table[name].type)]
    if points and mixed == "point":
        return False
    if not certain:
        raise UserError(
            f"{path}: column '{commas[0]}' has numbers such as 1,234, which may be a decimal comma or thousands; write "
            "them with a decimal point"
        )
    if points:
        raise UserError(f"{path}: column '{commas[0]}' has a decimal comma, column '{points[0]}' a decimal point")
    return True


def count_matches(texts: pa.ChunkedArray, pattern: str) -> int:
    """Count the texts that a regular expression matches."""
    matches = pc.match_substring_regex(texts, pattern)  # pyrefly: ignore[missing-attribute]
    return pc.sum(matches).as_py() or 0  # pyrefly: ignore[missing-attribute]
