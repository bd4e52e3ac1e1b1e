"""Read tables row by row: CSV, TSV, JSON Lines, Parquet and Arrow files, find columns by usual names, write CSV.

Columns as arrays are in `foveate.core.arrow_tables`, which loads pyarrow.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from foveate.core.errors import UserError, nearest
from foveate.core.files import atomic_file
from foveate.core.text_tables import ARROW_SUFFIXES, LINES_SUFFIXES, NO_LIMITS, Limits, TextTable, open_text


@dataclass(frozen=True, slots=True)
class RowTable:
    """A table as rows of text.

    Attributes:
        names: of the columns, as written.
        rows: (number of the line, cells) of each row; each has a cell per column.
        delimiter: of a text table; "" for other files. Where it is no comma, numbers may have a decimal comma.
    """

    path: Path
    names: list[str]
    rows: list[tuple[int, list[str]]]
    delimiter: str = ""

    def to_dicts(self) -> list[dict[str, str]]:
        """Return the cells of each row by column."""
        return [dict(zip(self.names, cells, strict=True)) for _, cells in self.rows]


def read_rows(path: Path, *, pad: bool = False, limits: Limits = NO_LIMITS) -> RowTable:
    """Read all rows of a table as text; the ending decides between Parquet, Arrow, JSON Lines and text.

    Args:
        pad: whether a row with too few cells gets empty ones, and a row of empty cells stays; else the first is refused
            and the second skipped.

    Raises:
        UserError: the file is no table, or a row has another number of cells; the error names its line, never cells.
    """
    suffix = path.suffix.lower()
    if suffix in (".parquet", *ARROW_SUFFIXES, *LINES_SUFFIXES):
        from foveate.core.arrow_tables import read_table

        table = read_table(path, limits=limits)
        columns = [[format_cell(value) for value in column.to_pylist()] for column in table.columns]
        rows = [(number, list(cells)) for number, cells in enumerate(zip(*columns, strict=True), start=1)]
        return RowTable(path, table.column_names, [row for row in rows if pad or any(map(str.strip, row[1]))])
    table = open_text(path, limits)
    table.refuse_damage()
    rows = list(_read_text_rows(table, pad=pad, limits=limits))
    return RowTable(path, table.names, rows, table.delimiter)


def iterate_rows(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Return the columns of a text table and its rows one by one, for tables that no memory should hold.

    Quotes in a table with tabs are plain characters, unless its header has some: publishers of large tables write none.

    Raises:
        UserError: see `read_rows`; while the rows are read.
    """
    table = open_text(path)
    table.refuse_damage()
    with table.open() as file:
        is_quoted = table.delimiter != "\t" or b'"' in file.readline()
    quoting = csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
    return table.names, _read_text_rows(table, pad=False, limits=NO_LIMITS, quoting=quoting)


def _read_text_rows(
    table: TextTable, *, pad: bool, limits: Limits, quoting: Literal[0, 1, 2, 3] = csv.QUOTE_MINIMAL
) -> Iterator[tuple[int, list[str]]]:
    path, width, num_rows = table.path, len(table.names), 0
    # "utf-8-sig" drops the byte-order mark that Excel writes before the first name; newline="" leaves line breaks
    # inside quotes to csv.
    with io.TextIOWrapper(table.open(), encoding="utf-8-sig", newline="") as file:
        # Strict: a quote that is never closed would otherwise take all rows behind it into one cell without an error.
        reader = csv.reader(_refuse_nul(file, path), delimiter=table.delimiter, strict=True, quoting=quoting)
        try:
            next(cells for cells in reader if cells)
            for cells in reader:
                if not cells or not pad and not any(map(str.strip, cells)):
                    continue
                if len(cells) > width or len(cells) < width and not pad:
                    expected = f"expected {width} as in the header, separated by {table.delimiter!r}"
                    raise UserError(f"{path}, line {reader.line_num}: has {len(cells)} cells; {expected}")
                if max(map(len, cells)) > limits.max_cell:
                    raise UserError(
                        f"{path}, line {reader.line_num}: a cell is longer than {limits.max_cell:,} characters"
                    )
                num_rows += 1
                if limits.max_rows is not None and num_rows > limits.max_rows:
                    raise UserError(f"{path} has more than {limits.max_rows:,} rows")
                yield reader.line_num, [restore_text(cell) for cell in cells] + [""] * (width - len(cells))
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: cannot be read as CSV ({error})") from error


def _refuse_nul(lines: IO[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise UserError(f"{path}, line {number}: has a NUL character; expected text")
        yield line


def format_cell(value: object) -> str:
    """Return a typed cell as a text table has it; "" for none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else str(value)


def find_column(
    columns: Sequence[str], usual: Sequence[str], *, requested: str | None, option: str, where: object
) -> str | None:
    """Find a column: the `requested` one, else the first of the `usual` names, else None.

    Raises:
        UserError: the requested column does not exist; the error names the nearest.
    """
    if requested is not None:
        if requested in columns:
            return requested
        listed = ", ".join(columns[:30])
        raise UserError(
            f"{where} has no column {requested!r} ({option}); expected one of {listed}{nearest(requested, columns)}"
        )
    # Reversed, so that of names that differ only in case the first wins.
    folded = {name.casefold().strip(): name for name in reversed(columns)}
    return next((folded[name] for name in usual if name in folded), None)


def need_column(
    columns: Sequence[str], usual: Sequence[str], *, requested: str | None, option: str, where: object
) -> str:
    """Find a column like `find_column`, but raise UserError with the nearest if there is none."""
    column = find_column(columns, usual, requested=requested, option=option, where=where)
    if column is not None:
        return column
    near = next((hint for name in usual if (hint := nearest(name, columns))), "")
    listed = ", ".join(columns[:30])
    raise UserError(f"{where} has no column {' or '.join(usual[:4])}; choose one of {listed} with {option}{near}")


_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def escape_formula(cell: object) -> object:
    """Return a cell that no spreadsheet runs: text that begins like a formula gets a leading apostrophe.

    A file may be named `=HYPERLINK(...)`. Numbers such as -1.5 stay. `restore_text` is the inverse.

    Source: OWASP, "CSV Injection".

    Example:
        >>> [escape_formula(cell) for cell in ("=1+1", "-1.5", "oak", "'=1", 3)]
        ["'=1+1", '-1.5', 'oak', "''=1", 3]
    """
    # Text that looks escaped gets another apostrophe, so that reading gives back what was written.
    if not isinstance(cell, str) or not cell.lstrip("'").startswith(_FORMULA_STARTS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def restore_text(cell: str) -> str:
    """Return the text of a cell that `escape_formula` wrote."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA_STARTS) else cell


class SafeWriter:
    """Writes rows by column to an open text file, each cell through `escape_formula`."""

    def __init__(self, file: IO[str], columns: Sequence[str]) -> None:
        # "\n" on every system: a file that is written again must not differ.
        self._writer = csv.DictWriter(file, columns, lineterminator="\n")
        self._writer.writeheader()

    def writerow(self, row: Mapping[str, object]) -> None:
        """Write a row; missing cells are empty."""
        self._writer.writerow({name: escape_formula(value) for name, value in row.items()})

    def writerows(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Write rows."""
        for row in rows:
            self.writerow(row)


@contextmanager
def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[SafeWriter]:
    """Open a CSV file that appears whole at a clean exit; its header is written, and no cell is run as a formula."""
    with atomic_file(path) as file:
        # File names on Linux are bytes; what is not UTF-8 in them comes out as it went in.
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        yield SafeWriter(text, columns)
        text.flush()
        # Closing the wrapper would close the file before it is renamed.
        text.detach()
