"""What a run folder's result.json may hold, as typed models; unknown fields are ignored, wrong ones refused.

Boxes are (x1, y1, x2, y2) in [0, 1] of the original image; image paths are relative to the run folder;
values of tables lie in [0, 1] unless the row names another unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from foveate.core.errors import UserError


def _check_box(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    if not all(math.isfinite(value) for value in box) or x2 < x1 or y2 < y1:
        raise ValueError("a box is four finite numbers x1, y1, x2, y2 with x1 <= x2 and y1 <= y2")
    return box


BoxValues = Annotated[tuple[float, float, float, float], AfterValidator(_check_box)]
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]+$")]


class Part(BaseModel):
    """Base of all parts of result.json."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Region(Part):
    box: BoxValues
    phrase: str = ""
    slice: str = ""


class Example(Part):
    image: str
    caption: str = ""
    kind: str = ""
    source: str = ""
    regions: list[Region] = []
    note: str = ""


class Collection(Part):
    name: str
    images: dict[str, int] = {}
    splits: dict[str, int] = {}
    regions: int | None = None
    captions: int | None = None
    examples: list[Example] = []


class ModelInfo(Part):
    title: str
    what: str = ""
    parameters_trained: int | None = None
    seconds: float | None = None


class Column(Part):
    key: Key
    title: str
    what: str = ""
    role: Literal["ours", "baseline", "control", ""] = ""


class Value(Part):
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


class Row(Part):
    question: str
    data: str = ""
    chance: float | None = None
    n: int | None = None
    unit: str = "fraction"
    values: dict[str, Value | None]


class Query(Part):
    kind: str
    text: str | None = None
    image: str | None = None
    box: BoxValues | None = None
    minus: str | None = None
    weights: dict[str, float] = {}


class Hit(Part):
    image: str
    box: BoxValues | None = None
    caption: str = ""
    score: float | None = None
    right: bool | None = None
    key: str = ""
    phrase: str = ""
    problem: str = ""


class Search(Part):
    query: Query
    data: str = ""
    results: dict[Key, list[Hit]]
    note: str = ""


class Locate(Part):
    image: str
    phrase: str
    slice: str = ""
    data: str = ""
    truth: BoxValues | None = None
    boxes: dict[Key, BoxValues]
    iou: dict[str, float] = {}
    scores: dict[str, float | None] = {}
    default: str | None = None


class Choose(Part):
    image: str
    phrase: str
    slice: str = ""
    data: str = ""
    boxes: list[BoxValues] = Field(min_length=1)
    scores: list[float]
    right: int
    chosen: int


class Machine(Part):
    cores: int | None = None
    python: str = ""
    torch: str = ""


class Command(Part):
    what: str
    command: str


class TourResult(Part):
    kind: str
    title: str = "The Foveate tour"
    seed: int | None = None
    seeds: list[int] = []
    seconds: dict[str, float] = {}
    memory_gb: float | None = None
    machine: Machine = Machine()
    version: str = ""
    commit: str | None = None
    command: str | list[str] = ""
    collection: Collection
    curves: dict[str, list[dict[str, Any]]] = {}
    models: dict[str, ModelInfo] = {}
    columns: list[Column] = []
    table: list[Row] = []
    searches: list[Search] = []
    locate: list[Locate] = []
    choose: list[Choose] = []
    captions: dict[str, Any] = {}
    calibration: dict[str, Any] = {}
    federated: dict[str, Any] = {}
    default: str = "head"
    commands: list[Command] = []
    limits: list[str] = []
    interval: str = "95% intervals, bootstrap over images"


class Evaluation(Part):
    columns: list[Column] = []
    table: list[Row] = []
    interval: str = "95% intervals, bootstrap over images"


class PretrainResult(Part):
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


class EvaluateResult(Part):
    kind: str
    title: str = ""
    model: str = ""
    collection: str = ""
    split: str = ""
    command: str | list[str] = ""
    columns: list[Column] = []
    table: list[Row] = []
    examples: list[Search | Locate | Choose] = []
    default: str = "head"
    interval: str = "95% intervals, bootstrap over images"


class Histogram(Part):
    edges: list[float] = Field(min_length=2)
    counts: list[float]
    unit: str = ""


class Quarantined(Part):
    reason: str
    count: int
    example: str | None = ""


class InspectResult(Part):
    kind: str
    title: str = ""
    summary: dict[str, Any] = {}
    histograms: dict[str, Histogram] = {}
    samples: list[Example] = []
    quarantine: list[Quarantined] = []
    command: str | list[str] = ""


class RegionsResult(Part):
    kind: str
    title: str = ""
    collection: str = ""
    detector: str = ""
    oracle: bool = False
    model: str = ""
    source: str = ""
    recipe: dict[str, Any] = {}
    images: int = 0
    done_before: int = 0
    status: dict[str, int] = {}
    regions: int = 0
    thin: int = 0
    seconds: float | None = None
    histograms: dict[str, Histogram] = {}
    samples: list[Example] = []
    command: str | list[str] = ""


class LocateResult(Locate):
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


class Spread(Part):
    n: int
    mean: float
    p05: float
    median: float
    p95: float
    histogram: Histogram


class CaptionsMade(Part):
    captions: int
    clip_tokens: Spread | None = None
    seconds: Spread | None = None


class CaptionTally(Part):
    total: int = Field(alias="in")
    ok: int
    repaired: int
    errors: dict[str, int] = {}
    skipped: dict[str, int] = {}
    flags: dict[str, int] = {}
    asked: int = 0
    attempts: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


class CaptionText(Part):
    kind: str
    text: str
    flags: list[str] = []
    clip_tokens: int | None = None
    model: str = ""


class CaptionedImage(Part):
    key: str
    image: str
    texts: list[CaptionText] = []


class CaptionResult(Part):
    kind: str
    collection: str = ""
    backend: str = ""
    only_scenes: bool = False
    model: str = ""
    revision: str = ""
    images: int = 0
    seconds: float | None = None
    stopped: bool = False
    failure: str = ""
    cost: dict[str, float] = {}
    formats: dict[str, CaptionTally] = {}
    made: dict[str, CaptionsMade] = {}
    examples: list[CaptionedImage] = []
    command: str | list[str] = ""


M = TypeVar("M", bound=Part)


def read(model: type[M], value: Mapping[str, Any]) -> M:
    """Check the content of result.json against its model; a wrong field raises UserError naming it."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(f"result.json, field '{field}': {first['msg']}") from None
