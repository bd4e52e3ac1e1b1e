"""result.json of `foveate captioner train` and `evaluate`, as typed models: runs build them, their page reads them."""

from __future__ import annotations

from typing import Any, Literal

from foveate.core.results import Column, ResultModel, Row, RunResult


class EvaluatedCaption(ResultModel):
    """A caption; `obeys` if it parses and passes its length filter. `assertions` are pairs of text and verdict."""

    text: str
    obeys: bool
    tokens: int
    assertions: list[tuple[str, str]] = []


class EvaluatedImage(ResultModel):
    """A held-out image with its captions by kind; `data` is "scenes" or "images"."""

    image: str
    key: str = ""
    data: str
    alt: str = ""
    captions: dict[str, EvaluatedCaption] = {}


class CaptionerEvaluation(ResultModel):
    """Captions of held-out images, evaluated.

    Attributes:
        captions: their number.
        shuffled: images were captioned from the features of others (control).
        obedience: kind -> share of captions that obey their format.
        obeys: whether every format is obeyed by at least 95 %.
        lengths_rise: whether the mean length rises from SSC over DSC to DSC+.
        length_filters: kind -> minimum and maximum tokens.
    """

    collection: str = ""
    split: str = ""
    images: int = 0
    captions: int = 0
    seed: int = 0
    shuffled: bool = False
    columns: list[Column] = []
    table: list[Row] = []
    obedience: dict[str, float] = {}
    obeys: bool | None = None
    lengths_rise: bool | None = None
    length_filters: dict[str, tuple[int, int]] = {}
    samples: list[EvaluatedImage] = []


class TrainingStage(ResultModel):
    """One stage of training; `curves` is its metrics file in the run folder."""

    status: str = ""
    steps: int
    seconds: float
    images: int
    bad_samples: dict[str, str] = {}
    curves: str = ""


class CaptionerResult(RunResult):
    """The result of a training, or of an evaluation alone.

    Attributes:
        status: "finished" or "stopped".
        data: what the training targets were made from.
        stages: name -> stage.
    """

    kind: Literal["captioner"] = "captioner"
    status: str = ""
    collection: str = ""
    model: str = ""
    revision: str = ""
    recipe: dict[str, Any] = {}
    data: dict[str, Any] = {}
    stages: dict[str, TrainingStage] = {}
    seconds: float | None = None
    evaluation: CaptionerEvaluation | None = None
