"""The published profile of Camtrap DP 1.0.2, the descriptor of a package, as pydantic models, and its check.

Fields that reading uses follow the profile strictly; in others a wrong value is a doubt.

Source: https://camtrap-dp.tdwg.org, profile 1.0.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from foveate.core.errors import nearest
from foveate.survey.camtrap_schema import TABLES, TIME, VERSION, Violation, describe_problem, doubt, is_tolerated
from foveate.survey.types import Level


def _unused(check: Any) -> BeforeValidator:
    """Return the check of a field that reading does not use: a wrong value is only a doubt."""
    adapter = TypeAdapter(check)

    def validate(value: object) -> object:
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            text = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise doubt("unused-metadata", text.removeprefix("Input should be ")) from error
        return value

    return BeforeValidator(validate)


def _check_unique_items(values: list[str]) -> list[str]:
    if len(set(values)) < len(values):
        raise ValueError("a list without repeated values")
    return values


def _check_created(text: str) -> str:
    if not TIME.fullmatch(text):
        raise ValueError("a time such as 2023-05-03T05:44:19Z")
    return text


Strict = ConfigDict(extra="allow", strict=True)
UnusedText = Annotated[Any, _unused(str)]
UnusedTexts = Annotated[Any, _unused(list[str])]
UnusedWords = Annotated[Any, _unused(Annotated[list[str], Field(min_length=1)])]
UnusedTime = Annotated[Any, _unused(Annotated[str, AfterValidator(_check_created)])]
UnusedAddress = Annotated[Any, _unused(Annotated[str, Field(pattern="^[^@ ]+@[^@ ]+$")])]


class Relation(BaseModel):
    relationType: str
    relatedIdentifier: str
    relatedIdentifierType: str


UnusedRelations = Annotated[Any, _unused(list[Relation])]


class Contributor(BaseModel):
    model_config = Strict
    title: UnusedText = None
    email: UnusedAddress = None
    role: Literal["contact", "principalInvestigator", "rightsHolder", "publisher", "contributor"] | None = None


def _check_contributors(people: list[Contributor]) -> list[Contributor]:
    if not people:
        raise doubt("unused-metadata", "at least one person or organization")
    return people


class License(BaseModel):
    model_config = Strict
    scope: Literal["data", "media"]
    name: str | None = None
    path: str | None = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.name is None and self.path is None:
            raise ValueError("a license with a name or a path")
        return self


class Project(BaseModel):
    model_config = Strict
    title: str
    id: str | None = None
    acronym: str | None = None
    samplingDesign: Literal[
        "simpleRandom", "systematicRandom", "clusteredRandom", "experimental", "targeted", "opportunistic"
    ]
    captureMethod: Annotated[
        list[Literal["activityDetection", "timeLapse"]],
        Field(min_length=1, max_length=2),
        AfterValidator(_check_unique_items),
    ]
    individualAnimals: bool
    observationLevel: list[Level]


def _check_date(text: str) -> str:
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        raise ValueError("a date such as 2023-05-01")
    # The pattern also matches dates that do not exist, such as February 30.
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

    @model_validator(mode="after")
    def _placed(self) -> Self:
        parts = {"GeometryCollection": "geometries", "Feature": "geometry", "FeatureCollection": "features"}
        if (part := parts.get(self.type, "coordinates")) not in (self.model_extra or {}):
            raise doubt("unused-metadata", f"GeoJSON with '{part}'")
        return self


Rank = Literal["kingdom", "phylum", "class", "order", "family", "genus", "species", "subspecies"]


class TaxonEntry(BaseModel):
    model_config = Strict
    scientificName: str
    taxonID: str | None = None
    taxonRank: Rank | None = None
    kingdom: str | None = None
    phylum: str | None = None
    class_: str | None = Field(None, alias="class")
    order: str | None = None
    family: str | None = None
    genus: str | None = None
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
                expected = f"'{self.name}' by the schema of Camtrap DP {VERSION}, not {str(self.table_schema):.90}"
                raise doubt("other-schema", expected)
        return self


class Package(BaseModel):
    """The descriptor `datapackage.json`; further fields are allowed."""

    model_config = ConfigDict(extra="allow")
    resources: Annotated[list[Resource], Field(min_length=3)]
    profile: str
    created: UnusedTime
    contributors: Annotated[list[Contributor], AfterValidator(_check_contributors)]
    project: Project
    spatial: Spatial
    temporal: Temporal
    taxonomic: list[TaxonEntry]
    name: Annotated[str, Field(pattern=r"^[-a-z0-9._/]+$")] | None = None
    # If there are any, there is one for the data and one for the media.
    licenses: Annotated[list[License], Field(min_length=2)] | None = None
    coordinatePrecision: Annotated[float, Field(strict=True)] | None = None
    version: UnusedText = None
    keywords: UnusedWords = None
    references: UnusedTexts = None
    relatedIdentifiers: UnusedRelations = None
    bibliographicCitation: UnusedText = None


def check_package(descriptor: object, *, file: str) -> Iterator[Violation]:
    """Yield the violations of a descriptor (`datapackage.json`), among them tables that are missing."""
    try:
        Package.model_validate(descriptor)
    except ValidationError as error:
        for problem in error.errors():
            field = ".".join(map(str, problem["loc"])) or "datapackage"
            tolerated = is_tolerated(problem["type"])
            text = describe_problem(dict(problem), repeats_value=not field.startswith("spatial"))
            yield Violation(file, 0, field, text, tolerated=tolerated)
    resources = descriptor.get("resources") if isinstance(descriptor, Mapping) else None
    names = [entry.get("name") for entry in resources or () if isinstance(entry, Mapping)]
    for name in TABLES:
        if names.count(name) != 1:
            problem = f"needs one resource named '{name}' (got {names.count(name)})"
            yield Violation(file, 0, "resources", problem + nearest(name, map(str, names) if name not in names else ()))
