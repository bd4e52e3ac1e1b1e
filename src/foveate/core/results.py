"""Typed parts of result.json, declared once: a wing builds its result from them, the report reads the same models.

A wing declares its own result in `<wing>/results.py` as a subclass of `RunResult`, writes `result.to_json()` and the
page of that kind calls `parse_result`. Boxes are (x1, y1, x2, y2) in [0, 1] of the original image; image paths are
relative to the run folder; values of tables lie in [0, 1] unless the row names another unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from foveate.core.errors import UserError


def _check_box(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    if not all(math.isfinite(value) for value in box) or x2 < x1 or y2 < y1:
        raise ValueError("expected a box of four finite numbers x1, y1, x2, y2 with x1 <= x2 and y1 <= y2")
    return box


BoxValues = Annotated[tuple[float, float, float, float], AfterValidator(_check_box)]
# Keys become CSS class names and anchors of the page.
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]+$")]


class ResultModel(BaseModel):
    """Base of every part of result.json: immutable; unknown fields are ignored, wrong values refused."""

    # Unknown fields are ignored so that a page still opens a result which a newer version wrote.
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON-ready values, under the names that result.json uses."""
        return self.model_dump(mode="json", by_alias=True)


class RunResult(ResultModel):
    """Base of a whole result.json; `kind` is the name of its page in `foveate.report.pages`."""

    kind: str
    title: str = ""
    command: str | list[str] = ""


class Region(ResultModel):
    """A box with its phrase; `slice` is the part of the data it is counted in ("seen", "unseen")."""

    box: BoxValues
    phrase: str = ""
    slice: str = ""


class Example(ResultModel):
    """An image of a collection with one caption and its regions."""

    image: str
    caption: str = ""
    kind: str = ""
    source: str = ""
    regions: list[Region] = []
    note: str = ""


class Value(ResultModel):
    """A number with its 95 % interval; `n` is the number of samples or seeds behind it."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


class Column(ResultModel):
    """A column of a results table: one way of answering."""

    key: Key
    title: str
    what: str = ""
    role: Literal["ours", "baseline", "control", ""] = ""


class Row(ResultModel):
    """A row of a results table: one question on one set of data, a value per column; `best` says which value is."""

    question: str
    data: str = ""
    chance: float | None = None
    n: int | None = None
    unit: str = "fraction"
    best: Literal["highest", "lowest"] = "highest"
    values: dict[str, Value | None]


class Evaluation(ResultModel):
    """A results table and what its intervals are over."""

    columns: list[Column] = []
    table: list[Row] = []
    interval: str = "95% intervals, bootstrap over images"


class TextTable(ResultModel):
    """A table of ready texts, shown as it is."""

    title: str
    note: str = ""
    columns: list[str]
    lines: list[list[str]]


class Histogram(ResultModel):
    """Counts between `edges`, which are one more than the counts."""

    edges: list[float] = Field(min_length=2)
    counts: list[float]
    unit: str = ""


class Distribution(ResultModel):
    """Mean, percentiles and histogram of `n` values."""

    n: int
    mean: float
    p05: float
    median: float
    p95: float
    histogram: Histogram


class Query(ResultModel):
    """Query of a search: a text, an image, a box in an image, or a weighted mixture."""

    kind: str
    text: str | None = None
    image: str | None = None
    box: BoxValues | None = None
    negative: str | None = None
    weights: dict[str, float] = {}


class Hit(ResultModel):
    """One search result.

    Attributes:
        kind: "images" or "regions". right: the very thing; None where the truth is unknown.
        related: not the very thing, but of its kind.
        path: of the image file; "" where the collection holds a copy.
        z: standard deviations above random queries. text: BM25 share of the query's words, 1 for all that are known.
    """

    image: str
    kind: str = ""
    box: BoxValues | None = None
    caption: str = ""
    score: float | None = None
    right: bool | None = None
    related: bool = False
    key: str = ""
    phrase: str = ""
    problem: str = ""
    path: str = ""
    z: float | None = None
    text: float | None = None


class Search(ResultModel):
    """A query with the hits of each model."""

    query: Query
    data: str = ""
    results: dict[Key, list[Hit]]
    note: str = ""


class LocatedPhrase(ResultModel):
    """The boxes that each rule found for a phrase in one image, and the true box where it is known."""

    image: str
    phrase: str
    slice: str = ""
    data: str = ""
    truth: BoxValues | None = None
    boxes: dict[Key, BoxValues]
    iou: dict[str, float] = {}
    scores: dict[str, float | None] = {}
    default: str | None = None


class BoxChoice(ResultModel):
    """Scores of all boxes of an image for one phrase; `right` and `predicted` are indices into `boxes`."""

    image: str
    phrase: str
    slice: str = ""
    data: str = ""
    boxes: list[BoxValues] = Field(min_length=1)
    scores: list[float]
    right: int
    predicted: int = Field(validation_alias=AliasChoices("predicted", "chosen"))  # older runs have "chosen"


class Machine(ResultModel):
    """Machine and versions of a run."""

    cores: int | None = None
    python: str = ""
    torch: str = ""


class ExportResult(RunResult):
    """`foveate export`.

    Attributes:
        to: the target. files: written, or to be written in a dry run.
        differences: largest absolute differences to Foveate's own outputs, measured with the foreign library.
        counts: of rows, images or regions. notes: sentences for the user.
        repository, address: of an upload to the hub, OWNER/NAME and the address of its commit.
    """

    kind: Literal["export"] = "export"
    source: str
    to: str
    dry_run: bool = False
    files: list[str] = []
    differences: dict[str, float] = {}
    counts: dict[str, int] = {}
    notes: list[str] = []
    repository: str = ""
    address: str = ""


M = TypeVar("M", bound=ResultModel)


def parse_result(model: type[M], value: Mapping[str, Any]) -> M:
    """Check the content of result.json against its model.

    Raises:
        UserError: a field is missing or wrong; the message names it.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(f"result.json, field '{field}': {first['msg']}") from None


GAMMA_TITLES = {"alg": "ALG", "best_gap": "best gap", "pcv": "PCV"}  # of the methods that estimate gamma


class CalibrateRow(ResultModel):
    """One line of the table: a model, or a model with gamma; accuracies in percent.

    Attributes:
        accuracies, top5: by measure, "U/Y" is samples of absent classes with all classes as answers.
        ausuc: area under the curve of U/Y against S/Y, 0 to 1.
        ncm: accuracies of the nearest class mean.
        peeks: gamma was chosen with the labels of these samples.
    """

    key: str
    title: str
    gamma: float | None = None
    accuracies: dict[str, float | None]
    top5: dict[str, float | None] = {}
    ausuc: float | None = None
    ncm: dict[str, float | None] = {}
    peeks: bool = False


class CalibrateGamma(ResultModel):
    """gamma by one method; of pseudo runs that of each, None where no gamma was feasible."""

    gamma: float
    each: list[float | None] = []
    spread: float | None = None
    feasible: list[bool] = []


class CalibrateHead(ResultModel):
    """How the head's rows of a group of classes changed."""

    norm_before: float
    norm_after: float
    update_norm: float
    update_cosine: float | None = None


class CalibrateClasses(ResultModel):
    """Names of seen and absent classes, and the number of the others."""

    seen: list[str] = []
    absent: list[str] = []
    rest: int = 0


class CalibrateResult(RunResult):
    """A calibration by `foveate calibrate`.

    Attributes:
        verdict: "damaged", "level", "nothing" or "unknown".
        reason: why this method was used.
        harm: why gamma should not be used, as measured on labeled test data; "" where it does no harm.
        curves: by model, points [gamma, S/Y, U/Y, Y/Y].
        gaps: statistics of the best other logit minus the best absent logit, by group of classes.
        checkpoint: the calibrated copy, "" where none was written.
    """

    kind: str = "calibrate"
    method: str
    gamma: float
    sentence: str
    reason: str = ""
    harm: str = ""
    verdict: str = "unknown"
    model: str = ""
    data: str = ""
    samples: int = 0
    gammas: dict[str, CalibrateGamma] = {}
    classes: CalibrateClasses = CalibrateClasses()
    rows: list[CalibrateRow] = []
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    gaps: dict[str, dict[str, float] | None] = {}
    head: dict[str, CalibrateHead | None] = {}
    notes: list[str] = []
    checkpoint: str = ""
