"""Results of studies and of the tour, as their pages read them."""

from __future__ import annotations

from typing import Any

from foveate.core.results import (
    BoxChoice,
    Column,
    Example,
    LocatedPhrase,
    Machine,
    ResultModel,
    Row,
    RunResult,
    Search,
    TextTable,
    Value,
)


class StudyCondition(ResultModel):
    key: str
    title: str
    what: str = ""


class StudyRow(ResultModel):
    key: str
    title: str
    what: str = ""
    role: str = "variant"


class StudyMeasure(ResultModel):
    key: str
    title: str
    control: bool = False


class StudyEntry(ResultModel):
    condition: str
    row: str
    values: dict[str, Value] = {}
    differences: dict[str, Value] = {}


class StudyClaim(ResultModel):
    text: str
    condition: str
    measure: str
    margin: float = 0.0
    asserted: bool = False
    source: str = ""
    difference: Value
    verdict: str


class StudyReal(ResultModel):
    name: str
    package: str
    used: bool


class StudyResult(RunResult):
    study: str = ""
    question: str = ""
    reference: str
    seeds: list[int] = []
    scale: dict[str, int | list[str]] = {}
    conditions: list[StudyCondition] = []
    rows: list[StudyRow] = []
    measures: list[StudyMeasure] = []
    table: list[StudyEntry] = []
    claims: list[StudyClaim] = []
    real: list[StudyReal] = []
    beside: list[TextTable] = []
    limits: list[str] = []
    trainings: int = 0
    planned: int = 0
    seconds: dict[str, float] = {}
    machine: Machine = Machine()
    version: str = ""


class Command(ResultModel):
    what: str
    command: str


class TourCollection(ResultModel):
    name: str
    images: dict[str, int] = {}
    splits: dict[str, int] = {}
    regions: int | None = None
    captions: int | None = None
    examples: list[Example] = []


class TourModel(ResultModel):
    title: str
    what: str = ""
    parameters_trained: int | None = None
    seconds: float | None = None


class TourResult(RunResult):
    title: str = "The Foveate tour"
    seed: int | None = None
    seeds: list[int] = []
    seconds: dict[str, float] = {}
    memory_gb: float | None = None
    machine: Machine = Machine()
    version: str = ""
    commit: str | None = None
    collection: TourCollection
    curves: dict[str, list[dict[str, Any]]] = {}
    models: dict[str, TourModel] = {}
    columns: list[Column] = []
    table: list[Row] = []
    searches: list[Search] = []
    locate: list[LocatedPhrase] = []
    choose: list[BoxChoice] = []
    captions: dict[str, Any] = {}
    calibration: dict[str, Any] = {}
    federated: dict[str, Any] = {}
    default: str = "head"
    commands: list[Command] = []
    limits: list[str] = []
    interval: str = "95% intervals, bootstrap over images"
