"""Read CSV, TSV and Parquet tables; one bad cell or line of a text file does not affect the others."""

from __future__ import annotations

import codecs
import csv
import mmap
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from foveate.core.errors import UserError
from foveate.records.importers.json_files import make_finding
from foveate.records.importers.sample import Sample

SUFFIXES = (".csv", ".tsv", ".parquet")
_HEAD_BYTES = 2**20
# pyarrow needs a whole row within one block; a block is never larger than the file.
_MAX_ROW_BYTES = 2**28


def read_column_names(path: Path) -> list[str]:
    """Return the column names of a table; raise UserError if it cannot be read."""
    if _kind(path) == ".parquet":
        return _parquet_schema(path).names
    return _header(path)[0]


def read_columns(path: Path, names: list[str]) -> tuple[pa.Table, list[Sample]]:
    """Read the columns `names`; also return findings about lines with another number of cells than the header.

    Cells of a text file are unchecked bytes.

    Raises:
        UserError: the table is damaged, or a column has neither text nor lists.
    """
    return _read_parquet(path, names) if _kind(path) == ".parquet" else _read_text(path, names)


def read_texts(path: Path, names: list[str]) -> dict[str, list[str]]:
    """Read the columns `names` as stripped texts, "" for empty cells; for tables of which every row counts.

    Raises:
        UserError: the table is damaged, or a row cannot be read; the error names the row.
    """
    table, findings = read_columns(path, names)
    if findings:
        raise UserError(f"{path}: {findings[0].key}: {findings[0].problems[0].detail}")
    texts = {}
    for name in names:
        values = table[name].to_pylist()
        try:
            texts[name] = [_decode_cell(value).strip() for value in values]
        except UnicodeDecodeError:
            row = next(row for row, value in enumerate(values) if not _is_decodable(value))
            raise UserError(f"{path}: row {row + 1}: column {name!r} is not UTF-8 (got {values[row][:40]!r})") from None
    return texts


def _decode_cell(value: object) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else "" if value is None else str(value)


def _is_decodable(value: object) -> bool:
    try:
        _decode_cell(value)
    except UnicodeDecodeError:
        return False
    return True


def has_images(path: Path) -> bool:
    """Whether a Parquet file contains images, as structs of bytes and path."""
    if path.suffix.lower() != ".parquet":
        return False
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return False
    return any(pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0 for field in schema)


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: expected a table that ends in {', '.join(SUFFIXES)}")
    return suffix


def _header(path: Path) -> tuple[list[str], str]:
    """Read column names and delimiter from the first line."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    # Named here, since the error of decoding would only say that byte 0 is wrong.
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} is UTF-16; expected UTF-8")
    line = head.removeprefix(b"\xef\xbb\xbf").splitlines()[0] if head.strip() else b""
    if not line.strip():
        raise UserError(f"{path} is empty; expected a first line with column names")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error.reason} at byte {error.start} of the first line") from error
    # The header of a one-column table has no delimiter; it gets the tab, so that commas do not split its cells.
    delimiter = max("\t,;", key=text.count)
    try:
        return next(csv.reader([text], delimiter=delimiter)), delimiter
    except csv.Error as error:
        raise UserError(f"{path}: cannot read column names from the first line ({error})") from error


def _read_text(path: Path, names: list[str]) -> tuple[pa.Table, list[Sample]]:
    header, delimiter = _header(path)
    findings: list[Sample] = []

    def note(row: pa_csv.InvalidRow) -> str:
        number = len(findings) + 1 if row.number is None else row.number - 1
        # Only `_blank_lines` leaves a line of nothing but spaces.
        if row.text.strip(" "):
            reason = "wrong number of cells"
            detail = f"the line has {row.actual_columns} cells, the header has {row.expected_columns}"
        else:
            reason, detail = "unclosed quote", "a quote opens a cell of this line and is not closed"
        findings.append(make_finding(f"row {number}", path.name, "row", reason, detail))
        return "skip"

    # Twice the size of the file: bytes above 127 take two each where they are read as Latin-1.
    block = min(max(2 * path.stat().st_size + 1, 2**16), _MAX_ROW_BYTES)
    try:
        clean = _is_utf8(path)
        lines = find_unclosed_quotes(path, delimiter)
        source: Path | pa.BufferReader = path
        if lines or not clean:
            content = _blank_lines(path.read_bytes(), lines)
            # pyarrow passes bad lines to the handler as text and fails on other encodings; as Latin-1 any bytes are
            # text.
            source = pa.BufferReader(content if clean else content.decode("latin-1").encode("utf-8"))
        table = pa_csv.read_csv(
            source,
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=block),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note),
            convert_options=pa_csv.ConvertOptions(
                include_columns=names,
                column_types=dict.fromkeys(header, pa.large_binary()),
                check_utf8=False,
            ),
        )
    except (pa.ArrowException, KeyError, OSError) as error:
        raise UserError(f"{path} cannot be read as a table: {str(error).splitlines()[0][:200]}") from error
    return table if clean else _restore_bytes(table), findings


def find_unclosed_quotes(path: Path, delimiter: str) -> list[tuple[int, int]]:
    """Find the lines of a text table in which a cell's opening quote has no closing one.

    A CSV reader would take everything up to some later quote, or to the end of the file, as one cell: whole rows would
    vanish in a text. A quote closes a cell only in front of a delimiter or a line's end; one that stands elsewhere on
    a later line belongs to another row.

    Returns:
        (start, end) of these lines in bytes, without the newline.
    """
    lines: list[tuple[int, int]] = []
    ends = {delimiter.encode(), b"\n", b"\r", b""}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = 3 if data[:3] == b"\xef\xbb\xbf" else 0
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
            # On its own line any quote closes. On a later one only a quote at the end of a cell does: others
            # belong to other rows.
            closed = close >= 0 and (close < line_end or data[close + 1 : close + 2] in ends)
            if not closed:
                lines.append((data.rfind(b"\n", 0, quote) + 1, line_end))
            quote = data.find(b'"', (close if closed else line_end) + 1)
    return lines


def _blank_lines(data: bytes, lines: list[tuple[int, int]]) -> bytes:
    """Replace lines by spaces, so that the rows after them keep their numbers."""
    content = bytearray(data)
    for start, end in lines:
        content[start:end] = b" " * (end - start)
    return bytes(content)


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        try:
            while chunk := file.read(_HEAD_BYTES):
                decoder.decode(chunk)
            # A character that is cut by the end of the file is an error only in the final call.
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _restore_bytes(table: pa.Table) -> pa.Table:
    """Return the cells with their original bytes, after the file was read as Latin-1."""
    columns = {
        name: pa.array([cell.decode("utf-8").encode("latin-1") for cell in table[name].to_pylist()], pa.large_binary())
        for name in table.column_names
    }
    return pa.table({name: pa.chunked_array([column]) for name, column in columns.items()})


def _parquet_schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as a Parquet table: {str(error)[:200]}") from error


def _read_parquet(path: Path, names: list[str]) -> tuple[pa.Table, list[Sample]]:
    schema = _parquet_schema(path)
    for name in names:
        kind = schema.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_null(kind)
        if not text and not lists:
            raise UserError(f"{path}: column {name!r} has type {kind}; expected text")
    try:
        # Without partitioning: pyarrow would make columns from folder names such as "a=b".
        table = pq.read_table(path, columns=names, partitioning=None)
        plain = [_without_dictionary(table[name]) for name in names]
        return pa.table(plain, names=names), []
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as a Parquet table: {str(error)[:200]}") from error


def _without_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Decode a dictionary-encoded column."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
