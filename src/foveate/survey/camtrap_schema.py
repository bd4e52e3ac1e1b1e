"""The published schema of Camtrap DP 1.0.2 as pydantic models: three tables of text cells, and the descriptor.

Field names are those of the standard. Errors that reading tolerates have the type "tolerated";
`foveate.survey.camtrap_checks` reports files, rows and fields.

Source: https://camtrap-dp.tdwg.org, table schemas and profile 1.0.2.
"""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from foveate.survey.types import Level, ObservationKind

VERSION = "1.0.2"
URL = f"https://raw.githubusercontent.com/tdwg/camtrap-dp/{VERSION}"
MISSING = ("", "NA", "NaN", "nan")
"""Cells without a value."""

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?P<fraction>\.\d+)?(?P<offset>Z|[+-]\d\d:?\d\d)?")
# This is the standard's pattern, stricter in one point: it refuses backslashes, which separate no path in a package.
_PATH = re.compile(r"(?!.*\.\.)[^./~\\][^\\]*")


def _tolerate(expected: str) -> PydanticCustomError:
    return PydanticCustomError("tolerated", "Input should be {expected}", {"expected": expected})


def _check_time(text: str) -> str:
    match = _TIME.fullmatch(text)
    try:
        datetime.fromisoformat(text)
    except ValueError:
        match = None
    if match is None:
        raise ValueError("a time such as 2023-05-03T05:44:19+02:00")
    if match["offset"] is None:
        raise _tolerate("a time with its offset from UTC, such as 2023-05-03T05:44:19+02:00")
    if match["fraction"] is not None:
        raise _tolerate("a time in whole seconds")
    return text


def is_valid_time(text: str) -> bool:
    """Whether a text is a time as the standard writes it, with its offset from UTC."""
    match = _TIME.fullmatch(text)
    return match is not None and match["offset"] is not None and match["fraction"] is None


def _check_path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise ValueError("a URL or a path below the package, without a leading '/', '~' or '.', and without '..'")
    return text


def _parse_integer(cell: object) -> object:
    if isinstance(cell, str) and not re.fullmatch(r"[+-]?\d{1,18}", cell):
        # As pandas writes a column of integers that has gaps.
        raise _tolerate("a whole number") if re.fullmatch(r"[+-]?\d{1,15}\.0+", cell) else ValueError("a whole number")
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


class Row(BaseModel):
    """A row of a table: columns in the order of the standard, an empty cell is None."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class DeploymentRow(Row):
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


class MediaRow(Row):
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


class ObservationRow(Row):
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


TABLES: dict[str, type[Row]] = {"deployments": DeploymentRow, "media": MediaRow, "observations": ObservationRow}
KEYS = {"deployments": "deploymentID", "media": "mediaID", "observations": "observationID"}
REFERENCES = {"media": ("deployments",), "observations": ("deployments", "media")}


def columns(name: str) -> list[str]:
    """Return the columns of a table in the order of the standard."""
    return list(TABLES[name].model_fields)


def required_columns(name: str) -> list[str]:
    """Return the columns of a table that need a value in every row."""
    return [column for column, info in TABLES[name].model_fields.items() if info.is_required()]


class Contributor(BaseModel):
    model_config = ConfigDict(extra="allow")
    title: str
    role: Literal["contact", "principalInvestigator", "rightsHolder", "publisher", "contributor"] | None = None


class License(BaseModel):
    model_config = ConfigDict(extra="allow")
    scope: Literal["data", "media"]
    name: str | None = None
    path: str | None = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.name is None and self.path is None:
            raise ValueError("a license with a name or a path")
        return self


class Project(BaseModel):
    model_config = ConfigDict(extra="allow")
    title: str
    samplingDesign: Literal[
        "simpleRandom", "systematicRandom", "clusteredRandom", "experimental", "targeted", "opportunistic"
    ]
    captureMethod: Annotated[list[Literal["activityDetection", "timeLapse"]], Field(min_length=1, max_length=2)]
    individualAnimals: bool
    observationLevel: list[Level]


def _check_date(text: str) -> str:
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        raise ValueError("a date such as 2023-05-01")
    date.fromisoformat(text)
    return text


class Temporal(BaseModel):
    start: Annotated[str, AfterValidator(_check_date)]
    end: Annotated[str, AfterValidator(_check_date)]


class Spatial(BaseModel):
    model_config = ConfigDict(extra="allow")
    type: Literal[
        "Point",
        "MultiPoint",
        "LineString",
        "MultiLineString",
        "Polygon",
        "MultiPolygon",
        "GeometryCollection",
        "Feature",
        "FeatureCollection",
    ]


Rank = Literal["kingdom", "phylum", "class", "order", "family", "genus", "species", "subspecies"]


class TaxonEntry(BaseModel):
    model_config = ConfigDict(extra="allow")
    scientificName: str
    taxonID: str | None = None
    taxonRank: Rank | None = None
    # The keys are ISO 639-3 codes, such as eng.
    vernacularNames: dict[Annotated[str, Field(pattern=r"^[a-z]{3}$")], str] = {}


class Resource(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str
    path: Any = None
    data: Any = None
    profile: str | None = None
    table_schema: Any = Field(None, alias="schema")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.path is None and self.data is None:
            raise ValueError("a resource with a path or with data")
        if self.name in TABLES:
            if not isinstance(self.path, str):
                raise ValueError("a path of one file")
            # Packages of other versions are read as far as they are understood.
            if self.profile != "tabular-data-resource" or VERSION not in str(self.table_schema):
                raise _tolerate(
                    f"'{self.name}' by the schema of Camtrap DP {VERSION}, not {str(self.table_schema):.90}"
                )
        return self


class Package(BaseModel):
    """The descriptor `datapackage.json`; further fields are allowed."""

    model_config = ConfigDict(extra="allow")
    resources: Annotated[list[Resource], Field(min_length=3)]
    profile: str
    created: str
    contributors: Annotated[list[Contributor], Field(min_length=1)]
    project: Project
    spatial: Spatial
    temporal: Temporal
    taxonomic: list[TaxonEntry]
    name: Annotated[str, Field(pattern=r"^[-a-z0-9._/]+$")] | None = None
    # If there are any, there is one for the data and one for the media.
    licenses: Annotated[list[License], Field(min_length=2)] | None = None
    coordinatePrecision: float | None = None
