"""The published schema of Camtrap DP 1.0.2 as pydantic models, and checks of tables against it.

There are models of three tables of text cells; `camtrap_profile` has that of the descriptor. Field names are those of
the standard. An error with the name of a rule of `foveate.survey.verdicts` gets its verdict, any other is refused;
every violation names file, row and field.

Source: https://camtrap-dp.tdwg.org, table schemas and profile 1.0.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from foveate.core.errors import nearest
from foveate.records.tables import positions
from foveate.survey.hours import parse_times
from foveate.survey.types import Level, ObservationKind
from foveate.survey.verdicts import RULES

BOX_COLUMNS = ("bboxX", "bboxY", "bboxWidth", "bboxHeight")
# Written boxes are rounded: x + width may be a little above 1.
BOX_TOLERANCE = 1e-3
VERSION = "1.0.2"
URL = f"https://raw.githubusercontent.com/tdwg/camtrap-dp/{VERSION}"
MISSING = ("", "NA", "NaN", "nan")
"""Cells without a value."""

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?P<fraction>\.\d+)?(?P<offset>Z|[+-]\d\d:?\d\d)?")
_PATH = re.compile(r"(?!.*\.\.)[^./~\\].*")


def doubt(rule: str, expected: str) -> PydanticCustomError:
    """Return the error of a value that a rule of `foveate.survey.verdicts` is about."""
    assert rule in RULES, rule
    # pydantic's types of errors are identifiers.
    error: Any = PydanticCustomError  # its types want literal texts, which keys of a table are not
    return error(rule.replace("-", "_"), "Input should be {expected}", {"expected": expected})


def is_tolerated(error: str) -> bool:
    rule = RULES.get(error.replace("_", "-"))
    return rule is not None and rule.verdict != "refuse"


def _check_time(text: str) -> str:
    match = TIME.fullmatch(text)
    try:
        # The pattern also matches times that do not exist, such as 25:00.
        datetime.fromisoformat(text)
    except ValueError:
        match = None
    if match is None:
        raise ValueError("a time such as 2023-05-03T05:44:19+02:00")
    if match["offset"] is None:
        raise doubt("no-offset", "a time with its offset from UTC, such as 2023-05-03T05:44:19+02:00")
    if match["fraction"] is not None:
        raise doubt("fraction-of-second", "a time in whole seconds")
    return text


def is_valid_time(text: str) -> bool:
    """Whether a text is a time as the standard writes it, with its offset from UTC."""
    match = TIME.fullmatch(text)
    return match is not None and match["offset"] is not None and match["fraction"] is None


def _check_path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise ValueError("a URL or a path below the package, without a leading '/', '~' or '.', and without '..'")
    if "\\" in text:
        # The published pattern lets it pass, but it separates no folders in a package.
        raise doubt("backslashes", "a path with slashes")
    return text


def _parse_integer(cell: object) -> object:
    # Eighteen digits always fit a 64-bit integer, nineteen may not.
    if isinstance(cell, str) and not re.fullmatch(r"[+-]?\d{1,18}", cell):
        # As pandas writes a column of integers that has gaps.
        is_fraction = re.fullmatch(r"[+-]?\d{1,15}\.0+", cell)
        raise doubt("integer-as-fraction", "a whole number") if is_fraction else ValueError("a whole number")
    return cell


def _parse_number(cell: object) -> object:
    # pydantic would also take "1_000" and " 1".
    if isinstance(cell, str) and not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", cell):
        raise ValueError("a number")
    return cell


def _parse_boolean(cell: object) -> object:
    # The spellings that Table Schema, on which the standard builds, takes by default.
    if isinstance(cell, str) and cell not in ("true", "True", "TRUE", "1", "false", "False", "FALSE", "0"):
        raise ValueError("true or false")
    return cell


Text = Annotated[str, Field(min_length=1)]
Time = Annotated[str, AfterValidator(_check_time)]
Integer = Annotated[int, BeforeValidator(_parse_integer)]
Number = Annotated[float, BeforeValidator(_parse_number)]
Boolean = Annotated[bool, BeforeValidator(_parse_boolean)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
# The standard's own lower bound: a width of 0 is no box.
Size = Annotated[Number, Field(ge=1e-15, le=1)]
Positive = Annotated[Number, Field(ge=0)]


class TableRow(BaseModel):
    """A row of a table: columns in the order of the standard, an empty cell is None."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class DeploymentRow(TableRow):
    deploymentID: Text
    locationID: Text | None = None
    locationName: Text | None = None
    latitude: Annotated[Number, Field(ge=-90, le=90)]
    longitude: Annotated[Number, Field(ge=-180, le=180)]
    coordinateUncertainty: Annotated[Integer, Field(ge=1)] | None = None
    deploymentStart: Time
    deploymentEnd: Time
    setupBy: Text | None = None
    cameraID: Text | None = None
    cameraModel: Text | None = None
    cameraDelay: Annotated[Integer, Field(ge=0)] | None = None
    cameraHeight: Positive | None = None
    cameraDepth: Positive | None = None
    cameraTilt: Annotated[Integer, Field(ge=-90, le=90)] | None = None
    cameraHeading: Annotated[Integer, Field(ge=0, le=360)] | None = None
    detectionDistance: Positive | None = None
    timestampIssues: Boolean | None = None
    baitUse: Boolean | None = None
    featureType: (
        Literal[
            "roadPaved",
            "roadDirt",
            "trailHiking",
            "trailGame",
            "roadUnderpass",
            "roadOverpass",
            "roadBridge",
            "culvert",
            "burrow",
            "nestSite",
            "carcass",
            "waterSource",
            "fruitingTree",
        ]
        | None
    ) = None
    habitat: Text | None = None
    deploymentGroups: Text | None = None
    deploymentTags: Text | None = None
    deploymentComments: Text | None = None


class MediaRow(TableRow):
    mediaID: Text
    deploymentID: Text
    captureMethod: Literal["activityDetection", "timeLapse"] | None = None
    timestamp: Time
    filePath: Annotated[Text, AfterValidator(_check_path)]
    filePublic: Boolean
    fileName: Text | None = None
    fileMediatype: Annotated[str, Field(pattern=r"^(image|video|audio)/.*$")]
    exifData: Text | None = None
    favorite: Boolean | None = None
    mediaComments: Text | None = None


class ObservationRow(TableRow):
    observationID: Text
    deploymentID: Text
    mediaID: Text | None = None
    eventID: Text | None = None
    eventStart: Time
    eventEnd: Time
    observationLevel: Level
    observationType: ObservationKind
    cameraSetupType: Literal["setup", "calibration"] | None = None
    scientificName: Text | None = None
    count: Annotated[Integer, Field(ge=1)] | None = None
    lifeStage: Literal["adult", "subadult", "juvenile"] | None = None
    sex: Literal["female", "male"] | None = None
    behavior: Text | None = None
    individualID: Text | None = None
    individualPositionRadius: Positive | None = None
    individualPositionAngle: Annotated[Number, Field(ge=-90, le=90)] | None = None
    individualSpeed: Positive | None = None
    bboxX: Fraction | None = None
    bboxY: Fraction | None = None
    bboxWidth: Size | None = None
    bboxHeight: Size | None = None
    classificationMethod: Literal["human", "machine"] | None = None
    classifiedBy: Text | None = None
    classificationTimestamp: Time | None = None
    classificationProbability: Fraction | None = None
    observationTags: Text | None = None
    observationComments: Text | None = None


TABLES: dict[str, type[TableRow]] = {"deployments": DeploymentRow, "media": MediaRow, "observations": ObservationRow}
KEYS = {"deployments": "deploymentID", "media": "mediaID", "observations": "observationID"}
REFERENCES = {"media": ("deployments",), "observations": ("deployments", "media")}


def columns(name: str) -> list[str]:
    """Return the columns of a table in the order of the standard."""
    return list(TABLES[name].model_fields)


def required_columns(name: str) -> list[str]:
    """Return the columns of a table that need a value in every row."""
    return [column for column, info in TABLES[name].model_fields.items() if info.is_required()]


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
    # Annotations are strings under the future import; `include_extras` keeps the bounds that pydantic checks.
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
            yield Violation(
                file,
                0,
                column,
                f"is no column of {name} in Camtrap DP {VERSION}{hint}",
                tolerated=is_tolerated("unknown-column"),
            )
    present = [column for column in table.column_names if column in known]
    if (order := [column for column in known if column in present]) != present:
        column = next(column for column, other in zip(present, order, strict=True) if column != other)
        problem = "is in another place than in the standard"
        yield Violation(file, 0, column, problem, tolerated=is_tolerated("column-order"))
    optional = [column for column in known if column not in present and column not in required_columns(name)]
    if optional:
        problem = f"is missing{f', as are {len(optional) - 1} other optional columns' if len(optional) > 1 else ''}"
        yield Violation(file, 0, optional[0], problem, tolerated=is_tolerated("column-order"))
    lacking = [column for column in required_columns(name) if column not in table.column_names]
    for column in lacking:
        hint = nearest(column, set(table.column_names) - set(known))
        yield Violation(file, 0, column, f"is missing: no such column{hint}")
    # Problems of cells name the id of their row, and the column of ids may be among those that are missing.
    if lacking:
        return
    # Cells are checked by column, but a person who repairs the file goes through it by row.
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
                problems[problem["input"]] = text, is_tolerated(problem["type"])
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
            # A row without an id is a violation of its own.
            near = targets[:1000].drop_null().to_pylist()
            problems = {
                value: f"names no row of {files[other]} (got {value!r}){nearest(value, near)}"
                for value in cells.take(pa.array(rows[:MAX_LISTED], pa.int64())).unique().to_pylist()
            }
            yield from _Lister(name, table, files[name], column).list(rows, problems)


def find_doubts(tables: Mapping[str, pa.Table], files: Mapping[str, str]) -> Iterator[Violation]:
    """Yield what the schema allows but hardly can be meant; the tables have passed `check_table`.

    An event that ends before it starts, an event outside of its deployment, an animal without a name, a box that leaves
    the image.
    """
    table, deployments = tables["observations"], tables["deployments"]
    starts, ends = (to_instants(table[column]) for column in ("eventStart", "eventEnd"))
    rows = positions(table["deploymentID"], among=deployments["deploymentID"])
    opened, closed = (to_instants(deployments[column])[rows] for column in ("deploymentStart", "deploymentEnd"))
    kind = table["observationType"]
    # A comparison with NaN is false: a time that is missing or has no offset raises no doubt.
    doubts = {
        ("event-times", "eventEnd", "is before eventStart"): ends < starts,
        ("event-times", "eventStart", "is outside of its deployment"): (starts < opened) | (ends > closed),
    }
    if "scientificName" in table.column_names:
        animals = pc.call_function("equal", [kind, pa.scalar("animal", kind.type)])
        unnamed = pc.call_function("and", [animals, table["scientificName"].is_null()])
        doubts["unnamed-animal", "scientificName", "is empty, but the row is about an animal"] = unnamed.to_numpy()
    if {*BOX_COLUMNS} <= {*table.column_names}:
        x, y, width, height = (np.array(table[name].to_pylist(), dtype=np.float64) for name in BOX_COLUMNS)
        is_outside = np.maximum(x + width, y + height) > 1 + BOX_TOLERANCE
        doubts["box-beyond-image", "bboxWidth", "ends outside of the image"] = is_outside
    for (rule, column, problem), mask in doubts.items():
        rows_of_doubt = np.flatnonzero(mask).tolist()
        yield from _Lister("observations", table, files["observations"], column).list(
            rows_of_doubt, problem, tolerated=is_tolerated(rule)
        )


def to_instants(cells: pa.ChunkedArray) -> NDArray[np.float64]:
    """Return times as seconds of UTC; NaN where a time is missing, has no offset or cannot be read."""
    times = parse_times(cells)
    return times.wall_N - times.offset_N
