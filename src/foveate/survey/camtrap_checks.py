"""Check Camtrap DP tables and descriptors: every violation names file, row and field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from foveate.core.errors import nearest
from foveate.records.tables import positions
from foveate.survey.camtrap_schema import KEYS, MISSING, REFERENCES, TABLES, VERSION, Package, columns, required_columns
from foveate.survey.hours import parse_times

MAX_LISTED = 20
"""Rows that are listed of one problem of one column."""

_BATCH_VALUES = 10_000  # bounds the memory of pydantic's errors


@dataclass(frozen=True, slots=True)
class Violation:
    """One value that the schema does not allow.

    Args:
        row: from 1, without the header; 0 for a column or the descriptor.
        id: of the row; "" where it has none.
        tolerated: whether reading goes on, with a warning.
        others: further rows with the same problem that are not listed.
    """

    file: str
    row: int
    field: str
    problem: str
    id: str = ""
    tolerated: bool = False
    others: int = 0

    def __str__(self) -> str:
        where = f", row {self.row}" if self.row else ""
        others = f" and {self.others:,} further rows" if self.others else ""
        return f"{self.file}{where}{f' ({self.id})' if self.id else ''}{others}: field '{self.field}' {self.problem}"


@cache
def _adapter(name: str, column: str) -> TypeAdapter[list[Any]]:
    return TypeAdapter(list[get_type_hints(TABLES[name], include_extras=True)[column]])  # type: ignore[misc]


def fill_missing(table: pa.Table) -> pa.Table:
    """Return a table of texts with null for every cell that counts as missing."""
    # All columns have the type of the first one, because tables are read as text.
    missing = pc.SetLookupOptions(value_set=pa.array(MISSING, table.schema.types[0] if table.num_columns else None))

    def fill(column: pa.ChunkedArray) -> pa.ChunkedArray:
        gone = pc.call_function("is_in", [column], missing)
        return pc.call_function("if_else", [gone, pa.scalar(None, column.type), column])

    return pa.table({column: fill(table[column]) for column in table.column_names})


def check_table(name: str, table: pa.Table, *, file: str) -> Iterator[Violation]:
    """Yield the violations of one table: columns, cells, ids that come twice.

    Args:
        name: "deployments", "media" or "observations".
        table: texts, null where missing; see `fill_missing`.
        file: for the violations.
    """
    known = columns(name)
    for column in table.column_names:
        if column not in known:
            hint = nearest(column, set(known) - set(table.column_names))
            yield Violation(file, 0, column, f"is no column of {name} in Camtrap DP {VERSION}{hint}", tolerated=True)
    lacking = [column for column in required_columns(name) if column not in table.column_names]
    for column in lacking:
        hint = nearest(column, set(table.column_names) - set(known))
        yield Violation(file, 0, column, f"is missing: no such column{hint}")
    if lacking:
        return
    yield from sorted(_check_cells(name, table, file), key=lambda violation: violation.row)
    yield from _check_unique(name, table, file)


def _check_cells(name: str, table: pa.Table, file: str) -> Iterator[Violation]:
    # Check by column and distinct value: 200,000 rows have a few hundred distinct cells in most columns.
    for column, info in TABLES[name].model_fields.items():
        if column not in table.column_names:
            continue
        cells, lister = table[column], _Lister(name, table, file, column)
        if info.is_required() and cells.null_count:
            yield from lister.list(_indices(cells.is_null()), "is missing")
        problems = _find_problems(name, column, cells.unique().drop_null())
        # Listed apart: the first rows of a mild problem must not hide those of one that stops the import.
        for tolerated in (False, True):
            bad = {value: problem for value, (problem, mild) in problems.items() if mild == tolerated}
            options = pc.SetLookupOptions(value_set=pa.array(list(bad), cells.type))
            rows = _indices(pc.call_function("is_in", [cells], options)) if bad else []
            yield from lister.list(rows, bad, tolerated=tolerated)


def _find_problems(name: str, column: str, values: pa.Array) -> dict[str, tuple[str, bool]]:
    """Return each value that the schema refuses: the problem, and whether it is tolerated."""
    problems: dict[str, tuple[str, bool]] = {}
    for start in range(0, len(values), _BATCH_VALUES):
        try:
            _adapter(name, column).validate_python(values[start : start + _BATCH_VALUES].to_pylist())
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                text = describe_problem(dict(problem), repeats_value=column not in ("latitude", "longitude"))
                problems[problem["input"]] = text, problem["type"] == "tolerated"
    return problems


def _indices(mask: pa.ChunkedArray | pa.Array) -> list[int]:
    return pc.call_function("indices_nonzero", [mask]).to_pylist()


@dataclass(frozen=True, slots=True)
class _Lister:
    """Lists the rows of one column that have a problem: the first ones, and how many follow."""

    name: str
    table: pa.Table
    file: str
    column: str

    def list(
        self, rows: Sequence[int], problem: str | Mapping[str, str], *, tolerated: bool = False
    ) -> Iterator[Violation]:
        """Yield violations; `problem` is that of all rows, or of each value of the column."""
        key = KEYS[self.name]
        for position, row in enumerate(rows[:MAX_LISTED], 1):
            text = problem if isinstance(problem, str) else problem[self.table[self.column][row].as_py()]
            others = len(rows) - MAX_LISTED if position == MAX_LISTED else 0
            identity = f"{key} {self.table[key][row].as_py()}"
            yield Violation(self.file, row + 1, self.column, text, identity, tolerated, others)


def describe_problem(problem: Mapping[str, Any], *, repeats_value: bool = True) -> str:
    """Return what is wrong with a value and what is expected, from an error of pydantic.

    Args:
        repeats_value: False for coordinates: problems end in logs, where these must not be.
    """
    value = problem["input"]
    if problem["type"] == "missing" or value is None:
        return "is missing"
    # Removes pydantic's own prefixes, because this message continues after "expected".
    text = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if problem["type"] == "literal_error":
        allowed = [part.strip("'") for part in re.split(", | or ", problem["ctx"]["expected"])]
        text = f"one of {', '.join(allowed)}{nearest(str(value), allowed)}"
    got = "" if not repeats_value or isinstance(value, Mapping | list) else f" (got {value!r:.60})"
    return f"is wrong{got}; expected {text[0].lower()}{text[1:]}"


def _check_unique(name: str, table: pa.Table, file: str) -> Iterator[Violation]:
    cells = table[KEYS[name]]
    first = positions(cells, among=cells)
    # Nulls match one another; they are missing already.
    repeated = np.flatnonzero((first != np.arange(len(cells))) & (first >= 0) & cells.is_valid().to_numpy())
    rows = {cells[row].as_py(): f"is not unique (as row {first[row] + 1})" for row in repeated[:MAX_LISTED].tolist()}
    yield from _Lister(name, table, file, KEYS[name]).list(repeated.tolist(), rows)


def check_package(descriptor: object, *, file: str) -> Iterator[Violation]:
    """Yield the violations of a descriptor (`datapackage.json`), among them tables that are missing."""
    try:
        Package.model_validate(descriptor)
    except ValidationError as error:
        for problem in error.errors():
            field = ".".join(map(str, problem["loc"])) or "datapackage"
            tolerated = problem["type"] == "tolerated"
            text = describe_problem(dict(problem), repeats_value=not field.startswith("spatial"))
            yield Violation(file, 0, field, text, tolerated=tolerated)
    resources = descriptor.get("resources") if isinstance(descriptor, Mapping) else None
    names = [entry.get("name") for entry in resources or () if isinstance(entry, Mapping)]
    for name in TABLES:
        if names.count(name) != 1:
            problem = f"needs one resource named '{name}' (got {names.count(name)})"
            yield Violation(file, 0, "resources", problem + nearest(name, map(str, names) if name not in names else ()))


def check_references(tables: Mapping[str, pa.Table], files: Mapping[str, str]) -> Iterator[Violation]:
    """Yield the rows that refer to a deployment or medium that does not exist."""
    for name, others in REFERENCES.items():
        for other in others:
            column, table, targets = KEYS[other], tables[name], tables[other][KEYS[other]].combine_chunks()
            if column not in table.column_names:
                continue
            cells = table[column]
            known = pc.call_function("is_in", [cells], pc.SetLookupOptions(value_set=targets))
            rows = _indices(pc.call_function("and_not", [cells.is_valid(), known]))
            # The ids are only for a hint, so take a few: comparing with all ids of a large survey would take minutes.
            near = targets[:1000].to_pylist()
            problems = {
                value: f"names no row of {files[other]} (got {value!r}){nearest(value, near)}"
                for value in cells.take(pa.array(rows[:MAX_LISTED], pa.int64())).unique().to_pylist()
            }
            yield from _Lister(name, table, files[name], column).list(rows, problems)


def find_doubts(tables: Mapping[str, pa.Table], files: Mapping[str, str]) -> Iterator[Violation]:
    """Yield what the schema allows but hardly can be meant; the tables have passed `check_table`.

    An event that ends before it starts, an event outside of its deployment, an animal without a name.
    """
    table, deployments = tables["observations"], tables["deployments"]
    starts, ends = (to_instants(table[column]) for column in ("eventStart", "eventEnd"))
    rows = positions(table["deploymentID"], among=deployments["deploymentID"])
    opened, closed = (to_instants(deployments[column])[rows] for column in ("deploymentStart", "deploymentEnd"))
    kind = table["observationType"]
    # A comparison with NaN is false: a time that is missing or has no offset raises no doubt.
    doubts = {
        ("eventEnd", "is before eventStart"): ends < starts,
        ("eventStart", "is outside of its deployment"): (starts < opened) | (ends > closed),
    }
    if "scientificName" in table.column_names:
        animals = pc.call_function("equal", [kind, pa.scalar("animal", kind.type)])
        unnamed = pc.call_function("and", [animals, table["scientificName"].is_null()])
        doubts["scientificName", "is empty, but the row is about an animal"] = unnamed.to_numpy()
    for (column, problem), mask in doubts.items():
        rows_of_doubt = np.flatnonzero(mask).tolist()
        yield from _Lister("observations", table, files["observations"], column).list(
            rows_of_doubt, problem, tolerated=True
        )


def to_instants(cells: pa.ChunkedArray) -> NDArray[np.float64]:
    """Return times as seconds of UTC; NaN where a time is missing, has no offset or cannot be read."""
    times = parse_times(cells)
    return times.wall_N - times.offset_N
