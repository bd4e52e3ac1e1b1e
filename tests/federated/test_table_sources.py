"""Tables of hospitals: which columns are points, decimal commas, missing values, what is doubtful."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.federated.partition import MAX_DRAWS
from foveate.federated.points import Feature, ReadOptions
from foveate.federated.sources import read_points
from naming import raises_naming


def csv(tmp_path: Path, text: str, name: str = "x.csv") -> Path:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("bmi,crp,ward\n21.5,3.25,a\n22.5,4,b\n", [[21.5, 3.25], [22.5, 4]]),
        ("bmi;crp;ward\n21,5;3,25;a\n22,5;4;b\n", [[21.5, 3.25], [22.5, 4]]),
        ("bmi\tcrp\tward\n21.5\t3.25\ta\n22.5\t4\tb\n", [[21.5, 3.25], [22.5, 4]]),
        ("bmi;crp;ward\n21,5;950;a\n22,5;1,234;b\n", [[21.5, 950], [22.5, 1.234]]),
        ("bmi;crp;ward\n0,125;12500;a\n1;1,234;b\n", [[0.125, 12500], [1, 1.234]]),
        ("\ufeffbmi|crp|ward\n21.5|3.25|a\n", [[21.5, 3.25]]),
        ('"bmi","crp","ward"\n"21,5","3,25","a, b"\n', [[21.5, 3.25]]),
    ],
)
def test_delimiters_and_decimal_commas(tmp_path: Path, text: str, points: list[list[float]]) -> None:
    read = read_points(csv(tmp_path, text))
    assert read.points_ND.tolist() == points
    assert read.features == (Feature("bmi"), Feature("crp"))
    assert read.aside == {"ward": "text"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("bmi;ward\n1,234;a\n2,345;b\n", ("bmi", "1,234")),
        ("cost;ward\n950;a\n1,234;b\n12,500;c\n", ("cost", "1,234")),
        ("bmi;crp\n21,5;3.25\n22,5;4.5\n", ("bmi", "crp")),
        ("bmi,ward\n21.5,a\n22.5,b,Jane Doe HIV+\n", ("line 3", "3", "2")),
        ('bmi,ward\n21.5,"a\n22.5,b\n', ("line 2", "quotes")),
        ("bmi,bmi\n21.5,1\n", ("bmi", "occurs twice")),
        ("bmi,age\n", ("no rows",)),
        ("", ("empty",)),
        ("ward\na\n", ("decimal numbers", "ward")),
    ],
)
def test_texts_that_cannot_be_read_in_one_way(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    path = csv(tmp_path, text)
    with raises_naming(UserError, path, *names) as caught:
        read_points(path)
    assert "Jane Doe" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "doubtful"),
    [
        ({"age": [40, 50, 40]}, "age"),
        ({"smoker": [True, False, True]}, "smoker"),
        ({"diagnosis": [0.0, 1.0, 0.0] * 4}, "diagnosis"),
        ({"diagnosis": [0.0, None, 1.0] * 4}, "diagnosis"),
    ],
)
def test_doubtful_columns_are_named_until_the_user_decides(
    tmp_path: Path, columns: dict[str, list[float]], doubtful: str
) -> None:
    path = tmp_path / "x.parquet"
    rows = len(columns[doubtful])
    pq.write_table(pa.table({"bmi": np.arange(rows) + 0.5, **columns, "ward": ["a"] * rows}), path)
    with raises_naming(UserError, path, doubtful, "--columns", "bmi"):
        read_points(path)
    assert read_points(path, others=[doubtful]).names() == ["bmi"]
    assert read_points(path, ReadOptions(columns=("bmi",))).names() == ["bmi"]
    complete = ReadOptions(columns=("*",), drop_missing=True)
    assert read_points(path, complete).names() == ["bmi", doubtful]
    assert read_points(path, ReadOptions(columns=(f"!{doubtful}",))).names() == ["bmi"]


def test_text_with_numbers_in_it_is_doubtful(tmp_path: Path) -> None:
    path = csv(tmp_path, "bmi,crp\n21.5,<5\n22.5,6\n23.5,7.5\n")
    with raises_naming(UserError, path, "crp", "--columns bmi"):
        read_points(path)
    with raises_naming(UserError, path, "crp", "text"):
        read_points(path, ReadOptions(columns=("bmi", "crp")))


def test_a_column_that_counts_the_rows_is_set_aside(tmp_path: Path) -> None:
    read = read_points(csv(tmp_path, "number,bmi\n1,21.5\n2,22.5\n3,20.5\n"))
    assert read.names() == ["bmi"]
    assert read.aside == {"number": "counts the rows"}


@pytest.mark.parametrize(
    ("columns", "names"), [(("agee",), ("agee", "age")), (("!agee",), ("agee", "age")), (("ward",), ("ward", "text"))]
)
def test_columns_that_are_not_there(tmp_path: Path, columns: tuple[str, ...], names: tuple[str, ...]) -> None:
    path = csv(tmp_path, "age,ward\n40.5,a\n")
    with raises_naming(UserError, path, *names):
        read_points(path, ReadOptions(columns=columns))


def test_columns_are_for_tables(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    with raises_naming(UserError, "x.npy", "--columns"):
        read_points(tmp_path / "x.npy", ReadOptions(columns=("a",)))


def call(*arguments: object) -> dict:
    done = CliRunner().invoke(cli, ["federated", "cluster", *map(str, arguments), "--json", "--quiet"])
    assert done.exit_code == 0, repr(done.exception)
    return json.loads(done.stdout)


def test_missing_rows_are_counted_and_the_groups_name_the_rows_of_the_source(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(30, 2)).round(3)
    lines = [f"{a},{b},{'north' if n % 2 else ''}" if n < 20 else f"{a},,north" for n, (a, b) in enumerate(rows)]
    path = csv(tmp_path, "bmi,crp,ward\n" + "\n".join(lines) + "\n")
    arguments = [path, "--client", "ward", "--clusters", "2", "--out", tmp_path / "r"]
    with raises_naming(UserError, path, "row 20", "crp", "10", "30"):
        raise CliRunner().invoke(cli, ["federated", "cluster", *map(str, arguments)]).exception  # type: ignore[misc]
    result = call(*arguments, "--drop-missing")
    assert result["points"] == 10
    assert "20 rows with missing values" in result["split"]
    groups = pq.read_table(tmp_path / "r" / "groups.parquet")
    assert groups["source_row"].to_pylist() == list(range(1, 20, 2))


def test_dry_run_names_points_and_other_columns(tmp_path: Path) -> None:
    path = csv(tmp_path, "bmi,age,ward\n" + "".join(f"{n}.5,{n % 3},{'ab'[n % 2]}\n" for n in range(12)))
    plan = call(path, "--client", "ward", "--clusters", "2", "--columns", "bmi", "--dry-run")
    assert plan["columns"] == ["points: bmi", "not points: age (whole numbers), ward (text)"]
    arguments = [path, "--client", "ward", "--clusters", "2", "--columns", "bmi", "--out", tmp_path / "r"]
    done = CliRunner().invoke(cli, ["federated", "cluster", *map(str, arguments)])
    assert "not points: age (whole numbers), ward (text)" in done.output


def test_draws_and_least_sizes_are_options(tmp_path: Path) -> None:
    arguments = ["digits", "--split", "dirichlet:0.1", "--clients", "50", "--dry-run"]
    done = CliRunner().invoke(cli, ["federated", "cluster", *arguments, "--max-draws", "3"])
    with raises_naming(UserError, "--max-draws 3", "--min-points", "10", "50"):
        raise done.exception  # type: ignore[misc]
    # The default reaches the published setting, which took 35,287 draws.
    assert MAX_DRAWS > 35_287
    plan = call(*arguments, "--max-draws", "3", "--min-points", "0")
    assert min(plan["clients"].values()) < 10
