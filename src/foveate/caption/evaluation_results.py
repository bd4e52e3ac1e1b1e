"""result.json of `foveate captioner evaluate` as typed models: the run builds them, its page reads them."""

from __future__ import annotations

from typing import Literal

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
        captions: their number. errors: captions that the model failed on, by code.
        shuffled: another image was captioned in the place of each (control).
        obedience: kind -> share of captions that obey their format.
        obeys: whether every format is obeyed by at least 95 %.
        lengths_rise: whether the mean length rises from SSC over DSC to DSC+.
        length_filters: kind -> minimum and maximum tokens.
    """

    collection: str = ""
    split: str = ""
    images: int = 0
    captions: int = 0
    errors: dict[str, int] = {}
    seed: int = 0
    shuffled: bool = False
    columns: list[Column] = []
    table: list[Row] = []
    obedience: dict[str, float] = {}
    obeys: bool | None = None
    lengths_rise: bool | None = None
    length_filters: dict[str, tuple[int, int]] = {}
    samples: list[EvaluatedImage] = []


class CaptionerResult(RunResult):
    """The result of an evaluation.

    Attributes:
        reads_requests: the model was trained on caption requests; else it got the long prompts.
    """

    kind: Literal["captioner"] = "captioner"
    collection: str = ""
    model: str = ""
    revision: str = ""
    reads_requests: bool | None = None
    evaluation: CaptionerEvaluation | None = None
