"""Read tables of text: recognize encoding and delimiter, bound what is read, and read JSON Lines.

A text table has a first line of column names. Its delimiter (comma, semicolon, tab, `|`) is recognized from that line,
and its encoding from the bytes: UTF-8 with or without a byte order mark, UTF-16, UTF-32, or Windows-1252, which Excel
writes. Rows are in `foveate.core.tables`, columns as arrays in `foveate.core.arrow_tables`.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from foveate.core.encodings import decode_text
from foveate.core.errors import UserError, nearest

TEXT_SUFFIXES = (".csv", ".tsv", ".tab", ".txt")
LINES_SUFFIXES = (".jsonl", ".ndjson")
ARROW_SUFFIXES = (".arrow", ".feather")
# The first of equally frequent delimiters counts. A header with none is one column, which the tab leaves whole: commas
# in its cells are text then.
_DELIMITERS = "\t,;|"
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
# A header of 100,000 names fits.
_HEAD_BYTES = 2**24
_CHUNK_BYTES = 2**20
_MULTIBYTE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_ENCODINGS = "UTF-8, UTF-16 or Windows-1252"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what is read.

    Args:
        max_bytes: size of the file; None for any.
        max_rows: number of rows; None for any.
        max_columns: number of columns.
        max_cell: characters of a cell of a table that is read by rows; the default is that of Python's csv module.
    """

    max_bytes: int | None = None
    max_rows: int | None = None
    max_columns: int = 100_000
    max_cell: int = 131_072


NO_LIMITS = Limits()
"""The bounds of files that belong to the user: whatever fits into memory."""


@dataclass(frozen=True, slots=True)
class TextTable:
    """A text table whose encoding, delimiter and column names are known, and whose rows are not yet read.

    Attributes:
        names: cells of the first line, as written.
        encoding: "utf-8", "utf-16", "utf-32" or "windows-1252".
        content: the file as UTF-8 if it has another encoding; None if the file itself can be read as UTF-8.
        damage: why the file is no text; "" where it is one. Some bytes of it are not UTF-8 then.
    """

    path: Path
    names: list[str]
    delimiter: str
    encoding: str
    content: bytes | None = None
    damage: str = ""

    def open(self) -> IO[bytes]:
        """Open the file, as UTF-8 if it is text."""
        return self.path.open("rb") if self.content is None else io.BytesIO(self.content)

    def refuse_damage(self) -> None:
        """Raise UserError if the file is no text."""
        if self.damage:
            raise UserError(f"{self.path} is not {_ENCODINGS} text: {self.damage}; save it as CSV UTF-8")

    def describe(self) -> str:
        """Name delimiter and encoding where they are not those of plain CSV; "" for plain CSV."""
        parts = []
        if self.encoding != "utf-8":
            parts.append(f"the text is {self.encoding.replace('utf', 'UTF').replace('windows', 'Windows')}")
        if self.delimiter != "," and len(self.names) > 1:
            parts.append(f"columns are separated by {'a tab' if self.delimiter == chr(9) else repr(self.delimiter)}")
        return ", ".join(parts)


# Text.


def open_text(path: Path, limits: Limits = NO_LIMITS) -> TextTable:
    """Recognize encoding, delimiter and column names of a text table.

    Raises:
        UserError: the file is missing, empty, larger than allowed, or its first line is no text.
    """
    try:
        check_bytes(path, limits)
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        content, encoding, damage = _decode(path, head)
    except FileNotFoundError as error:
        siblings = [entry.name for entry in path.parent.glob("*")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file{nearest(path.name, siblings)}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    head = (head if content is None else content[:_HEAD_BYTES]).removeprefix(codecs.BOM_UTF8)
    line = _first_line(head.lstrip(b"\r\n"))
    if not line.strip():
        raise UserError(f"{path} is empty; expected a first line with column names")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not {_ENCODINGS} text: {error.reason} at byte {error.start} of the first line"
        ) from error
    if "\0" in text:
        raise UserError(f"{path}: the first line has a NUL character; expected text with column names")
    delimiter = _find_delimiter(path, text)
    try:
        names = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise UserError(f"{path}: cannot read column names from the first line ({error})") from error
    check_width(path, names, limits)
    return TextTable(path, names, delimiter, encoding, content, damage)


def _decode(path: Path, head: bytes) -> tuple[bytes | None, str, str]:
    """Return the content as UTF-8 where the file has another encoding, the encoding, and what is wrong with it."""
    # Zeros are every second byte of UTF-16 without a mark, which is valid UTF-8 where it holds only ASCII letters.
    is_wide = head.startswith(_MARKS) or b"\0" in head[:_CHUNK_BYTES]
    problem = _find_invalid(path)
    if not is_wide and not problem:
        return None, "utf-8", ""
    data = path.read_bytes()
    # One damaged cell must not turn all letters of a UTF-8 file into those of Windows-1252.
    if not is_wide and _MULTIBYTE.search(data):
        return None, "utf-8", problem
    try:
        text, encoding = decode_text(data)
        return (None if encoding == "utf-8" else text.removeprefix("\ufeff").encode()), encoding, ""
    except UnicodeError:
        return None, "utf-8", problem


def _find_invalid(path: Path) -> str:
    """Describe the first byte of a file that is not UTF-8; "" where all are."""
    decoder, num_bytes, chunk = codecs.getincrementaldecoder("utf-8")(), 0, b""
    with path.open("rb") as file:
        try:
            while chunk := file.read(_CHUNK_BYTES):
                decoder.decode(chunk)
                num_bytes += len(chunk)
            # A character that is cut by the end of the file is an error only in the final call.
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            # The decoder may hold up to three bytes of the chunk before.
            held = len(error.object) - len(chunk)
            return f"{error.reason} at byte {num_bytes - held + error.start}"
    return ""


def _first_line(head: bytes) -> bytes:
    """Return the first line, with its line breaks inside of quotes."""
    first = re.match(rb"[^\r\n]*", head)
    assert first is not None
    num_quotes, start = 0, 0
    for match in re.finditer(rb"[\r\n]", head):
        num_quotes += head.count(b'"', start, match.start())
        start = match.start()
        # After an odd number of quotes, the line break is inside a cell.
        if num_quotes % 2 == 0:
            return head[:start]
        # A quote that stays open this long does not enclose a cell: the first line break counts.
        if start > first.end() + _CHUNK_BYTES:
            break
    return first.group()


def _find_delimiter(path: Path, header: str) -> str:
    bare = re.sub(r'"[^"]*"', "", header)
    if path.suffix.lower() in (".tsv", ".tab") and "\t" in bare:
        return "\t"
    return max(_DELIMITERS, key=bare.count)


def check_bytes(path: Path, limits: Limits) -> None:
    """Raise UserError if a file is larger than allowed."""
    if limits.max_bytes is not None and (size := path.stat().st_size) > limits.max_bytes:
        raise UserError(f"{path} has {size:,} bytes; expected at most {limits.max_bytes:,}")


def check_width(path: Path, names: Sequence[str], limits: Limits) -> None:
    """Raise UserError if a table has more columns than allowed."""
    if len(names) > limits.max_columns:
        raise UserError(f"{path} has {len(names):,} columns; expected at most {limits.max_columns:,}")


def check_names(path: Path, names: Sequence[str]) -> None:
    """Raise UserError if two columns have one name."""
    if len(set(names)) < len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise UserError(f"{path}: column '{repeated[0]}' occurs twice")


def read_text(path: Path) -> str:
    """Read a whole text file in any encoding that tables have.

    Raises:
        UserError: the file is missing, or its encoding cannot be recognized.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        content, _, damage = _decode(path, head)
        data = path.read_bytes() if content is None else content
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if damage:
        raise UserError(f"{path} is not {_ENCODINGS} text: {damage}")
    return data.decode("utf-8-sig")


# JSON Lines.


def iterate_json_lines(path: Path) -> Iterator[tuple[int, object]]:
    """Yield (number of the line, value) of a file of JSON Lines; blank lines are skipped.

    A line that is no JSON yields its ValueError, so that the reader decides whether it spoils the file.
    """
    lines: IO[bytes] = path.open("rb")
    # A file of another encoding is decoded at once; UTF-8 is read line by line, however long the file is.
    if lines.read(4).startswith(_MARKS):
        # A damaged one stays as it is: then no line of it is JSON, and each says so.
        with contextlib.suppress(UnicodeError):
            data = decode_text(path.read_bytes())[0].encode()
            lines.close()
            lines = io.BytesIO(data)
    lines.seek(0)
    with lines:
        for number, line in enumerate(lines, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            try:
                # Decoded here, because `json.loads` takes bytes with zeros for UTF-16.
                value = json.loads(line.decode("utf-8"))
            except RecursionError as error:
                # Brackets that are nested thousands deep spoil only their own line.
                value = ValueError(str(error))
            except ValueError as error:
                value = error
            yield number, value
