"""Results that have no wing of their own or whose wing has not declared them yet (see `foveate.core.results`)."""

from __future__ import annotations

from typing import Any

from foveate.core.results import (
    BoxChoice,
    Column,
    Evaluation,
    Example,
    Histogram,
    LocatedPhrase,
    ResultModel,
    Row,
    Search,
)


class PretrainResult(ResultModel):
    kind: str
    title: str = ""
    recipe: dict[str, Any] = {}
    command: str | list[str] = ""
    seconds: float | dict[str, float] | None = None
    steps: int | None = None
    curves: str | list[dict[str, Any]] = "metrics.jsonl"
    model: str = ""
    parameters: dict[str, Any] = {}
    frozen: str = ""
    evaluation: Evaluation | None = None
    samples: list[Example] = []


class EvaluateResult(ResultModel):
    kind: str
    title: str = ""
    model: str = ""
    collection: str = ""
    split: str = ""
    command: str | list[str] = ""
    columns: list[Column] = []
    table: list[Row] = []
    examples: list[Search | LocatedPhrase | BoxChoice] = []
    default: str = "head"
    interval: str = "95% intervals, bootstrap over images"


class Quarantined(ResultModel):
    reason: str
    count: int
    example: str | None = ""


class InspectResult(ResultModel):
    kind: str
    title: str = ""
    summary: dict[str, Any] = {}
    histograms: dict[str, Histogram] = {}
    samples: list[Example] = []
    quarantine: list[Quarantined] = []
    command: str | list[str] = ""


class LocateResult(LocatedPhrase):
    kind: str
    command: str | list[str] = ""
    model: str = ""


class SearchResult(Search):
    kind: str
    command: str | list[str] = ""
    model: str = ""
    collection: str = ""
    searched: dict[str, int] = {}
    backend: str = ""
