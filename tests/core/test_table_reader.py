"""Tables of all kinds and encodings are read alike; what is no table is refused, and its cells are not repeated."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import environment

from foveate.core.arrow_tables import (
    read_csv_columns,
    read_parquet,
    read_table,
    read_text_columns,
    read_typed_csv,
)
from foveate.core.errors import UserError
from foveate.core.tables import csv_rows, find_column, need_column, read_rows
from foveate.core.text_tables import Limits, iterate_json_lines, open_text
from naming import raises_naming

NAMES = ["Ort", "Größe", "Zahl"]
ROWS = [["Köln", "21,5", "1"], ["Lärchenau", "3,25", "400"]]


def write(path: Path, rows: list[list[str]], delimiter: str, encoding: str, ending: str = "\r\n") -> Path:
    path.write_bytes("".join(delimiter.join(row) + ending for row in rows).encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_one_export_in_all_encodings(tmp_path: Path, encoding: str, delimiter: str, ending: str) -> None:
    path = write(tmp_path / "x.csv", [NAMES, *ROWS], delimiter, encoding, ending)
    table = read_rows(path)
    assert (table.names, table.delimiter) == (NAMES, delimiter)
    assert [cells for _, cells in table.rows] == ROWS
    if ending != "\r":
        assert [number for number, _ in table.rows] == [2, 3]
    assert read_text_columns(path).to_pylist() == [dict(zip(NAMES, row, strict=True)) for row in ROWS]
    columns, bad = read_csv_columns(open_text(path), ["Ort"])
    assert (columns["Ort"].to_pylist(), bad) == ([row[0].encode() for row in ROWS], [])
    typed, about = read_typed_csv(path)
    assert typed.to_pydict() == {"Ort": ["Köln", "Lärchenau"], "Größe": [21.5, 3.25], "Zahl": [1, 400]}
    assert "decimal comma" in about


def test_other_kinds_of_files_are_the_same_rows(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2], "name": ["Köln", None], "flag": [True, False], "list": [[1], []]})
    pq.write_table(table, tmp_path / "x.parquet")
    feather.write_feather(table, str(tmp_path / "x.feather"), compression="zstd")
    with pa.ipc.new_stream(str(tmp_path / "x.arrow"), table.schema) as writer:
        writer.write_table(table)
    lines = [json.dumps(row, ensure_ascii=False) for row in table.to_pylist()]
    (tmp_path / "x.jsonl").write_text("\ufeff" + "\n\n".join(lines), encoding="utf-8")
    for suffix in ("parquet", "feather", "arrow", "jsonl"):
        rows = read_rows(tmp_path / f"x.{suffix}")
        assert rows.names == ["id", "name", "flag", "list"]
        assert rows.rows == [(1, ["1", "Köln", "true", "[1]"]), (2, ["2", "", "false", "[]"])]
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with raises_naming(UserError, path):
            read_table(path)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"", ["empty"]),
        (b"\n \n\n", ["empty"]),
        (b"a,b\n1\n", ["line 2", "1 cells", "2"]),
        (b"a,b\n1,2,secret\n", ["line 2", "3 cells", "2"]),
        (b'a,b\n1,"secret\n2,3\n', ["line 3"]),
        (b"a,b\n1,2\n3,\0secret\n", ["line 3", "NUL"]),
        (b"a\0,b\n1,2\n", ["first line", "NUL"]),
        (b"a,b\n1," + b"secret" * 500_000 + b"\n", ["line 2"]),
        ("ä,b\n1,".encode() + b"\xff\n", ["UTF-8", "byte 7"]),
        ("кошка,b\n1,2\n".encode("cp1251"), ["UTF-8", "byte 0"]),
        (b"\xff\xfea", ["UTF-8"]),
        (",".join(map(str, range(100_001))).encode(), ["100,001", "100,000"]),
        (b'"' + b"\n" * 3_000_000, ["x.csv"]),
    ],
)
def test_what_is_no_table_is_refused_without_its_cells(tmp_path: Path, content: bytes, names: list[str]) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with raises_naming(UserError, path, *names) as caught:
        read_rows(path)
    assert "secret" not in str(caught.value)


def test_bounds_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", [NAMES, *ROWS], ";", "utf-8")
    for limits, names in ((Limits(max_bytes=10), ["10"]), (Limits(max_rows=1), ["1"]), (Limits(max_columns=2), ["3"])):
        with raises_naming(UserError, path, *names):
            read_rows(path, limits=limits)
    # A small file may unpack to much: a column of one value takes no place in Parquet.
    pq.write_table(pa.table({"a": pa.array([0] * 1_000_000)}), tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 20_000
    with raises_naming(UserError, "bomb.parquet", "1,000,000"):
        read_parquet(tmp_path / "bomb.parquet", limits=Limits(max_bytes=1_000_000))
    with raises_naming(UserError, "xx.csv", "no such file", "Did you mean 'x.csv'"):
        read_rows(tmp_path / "xx.csv")


def test_padding_and_blank_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n\n1\n , \n2,3\n")
    assert read_rows(path, pad=True).rows == [(3, ["1", ""]), (4, [" ", " "]), (5, ["2", "3"])]
    path.write_text('\n"a\nb";c\n\n , \n2;3\n')
    with raises_naming(UserError, path, "line 5", "1 cells"):
        read_rows(path)
    path.write_text('\n"a\nb";c\n\n ; \n2;3\n')
    table = read_rows(path)
    assert (table.names, table.rows) == (["a\nb", "c"], [(6, ["2", "3"])])


def test_a_damaged_cell_of_a_utf8_file_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes("name,text\nKöln,x\n".encode() + b"y,caf\xe9\nonly one\n")
    text = open_text(path)
    assert (text.encoding, bool(text.damage)) == ("utf-8", True)
    columns, bad = read_csv_columns(text, ["name", "text"])
    assert columns.to_pylist() == [{"name": "Köln".encode(), "text": b"x"}, {"name": b"y", "text": b"caf\xe9"}]
    assert [(row.number, row.reason) for row in bad] == [(3, "wrong number of cells")]


def test_numbers_that_may_be_read_in_two_ways(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    for text, name in (("a;b\n1,234;x\n2,345;y\n", "'a'"), ("a;b\n1,5;2.5\n", "'b'"), ("a;a\n1;2\n", "'a'")):
        path.write_text(text)
        with raises_naming(UserError, path, name):
            read_typed_csv(path)
    path.write_text("a;b;label\n0,125;12500;1,234\n")
    assert read_typed_csv(path)[0].to_pydict() == {"a": [0.125], "b": [12500], "label": [1.234]}


def test_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": "\xe2\x80\xa8"}\n\n{]\n' + b"[" * 100_000 + b"\n7\n")
    lines = list(iterate_json_lines(path))
    assert [number for number, _ in lines] == [1, 3, 4, 5]
    assert [isinstance(value, ValueError) for _, value in lines] == [False, True, True, False]
    with raises_naming(UserError, path, "line 3"):
        read_table(path)
    path.write_text('{"a": "ü"}\n', encoding="utf-16")
    assert read_table(path).to_pylist() == [{"a": "ü"}]
    path.write_bytes(path.read_bytes()[:-1])
    assert [isinstance(value, ValueError) for _, value in iterate_json_lines(path)] == [True]


def test_a_missing_column_has_its_nearest() -> None:
    assert find_column(["Path ", "text"], ("path",), requested=None, option="--path", where="x") == "Path "
    with raises_naming(UserError, "--path", "paht", "Did you mean 'path'"):
        find_column(["path"], ("path",), requested="paht", option="--path", where="x")
    with raises_naming(UserError, "--path", "Did you mean 'paht'"):
        need_column(["paht"], ("path",), requested=None, option="--path", where="x")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_are_a_table_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "x.csv"
    path.write_bytes(data)
    for read in (read_rows, read_typed_csv, read_text_columns):
        with suppress(UserError):
            read(path)


def test_rows_are_read_without_pyarrow(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", [NAMES, *ROWS], ";", "utf-16")
    code = (
        "import sys; from pathlib import Path; from foveate.core.tables import read_rows; "
        f"read_rows(Path({str(path)!r})); assert not {{'pyarrow', 'torch', 'numpy'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, timeout=60)


@pytest.mark.parametrize(
    "text",
    ["=HYPERLINK(A1)", "+1+1", "-a", "@SUM(A1)", "\t=1", "'=1", "''-x", "oak", "-1.5", "+2", "1e-3", "'oak", "-", ""],
)
def test_no_cell_is_run_by_a_spreadsheet_and_all_come_back(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cells.csv"
    with csv_rows(path, ["name", "cell"]) as writer:
        writer.writerow({"name": "a", "cell": text})
        writer.writerows([{"name": "b", "cell": text}])
    with path.open(encoding="utf-8", newline="") as file:
        written = {row["cell"] for row in csv.DictReader(file)}
    (cell,) = written
    is_number = text in ("-1.5", "+2")
    assert is_number or not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert not is_number or cell == text
    assert [row["cell"] for row in read_rows(path).to_dicts()] == [text, text]
