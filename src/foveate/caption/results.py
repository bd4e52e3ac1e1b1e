"""Typed result.json of `foveate caption` and `foveate mix`, read by the report."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from foveate.core.results import Distribution, ResultModel, RunResult


class RequestTally(ResultModel):
    """Outcomes of the requests of one format: in = ok + repaired + errors + skipped.

    Attributes:
        total: requests of the format ("in" in the file).
        errors, skipped, flags: reason -> count.
        requested: requests that were sent in this run.
        attempts: tries of them.
    """

    # "in" is a keyword of Python, and the word of the equation above.
    total: int = Field(alias="in")
    ok: int
    repaired: int
    errors: dict[str, int] = {}
    skipped: dict[str, int] = {}
    flags: dict[str, int] = {}
    requested: int = 0
    attempts: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    @property
    def balanced(self) -> bool:
        """Whether every request is accounted for."""
        return self.total == self.ok + self.repaired + sum(self.errors.values()) + sum(self.skipped.values())


class Cost(ResultModel):
    """Cost of the tokens at the given prices."""

    tokens_in: float = Field(0.0, alias="in")
    tokens_out: float = Field(0.0, alias="out")
    total: float = 0.0


class WrittenCaptions(ResultModel):
    """Captions of one format that the model has written into the collection, in all runs."""

    count: int
    clip_tokens: Distribution | None = None
    seconds: Distribution | None = None


class ExampleText(ResultModel):
    """One text about an example image; `clip_tokens` without the two special tokens."""

    kind: str
    text: str
    flags: list[str] = []
    clip_tokens: int | None = None
    model: str = ""


class ExampleImage(ResultModel):
    """An image with its texts, for the page."""

    key: str
    image: str
    texts: list[ExampleText] = []


class CaptionRunResult(RunResult):
    """The result.json of `foveate caption`."""

    kind: Literal["caption"] = "caption"
    collection: str = ""
    backend: str = ""
    only_scenes: bool = False
    model: str = ""
    revision: str = ""
    settings: dict[str, Any] = {}
    backend_settings: dict[str, Any] = {}
    executor: str = ""
    run_id: str = ""
    images: int = 0
    formats: dict[str, RequestTally] = {}
    cost: Cost = Cost()
    captions: dict[str, WrittenCaptions] = {}
    examples: list[ExampleImage] = []
    seconds: float | None = None
    stopped: bool = False
    failure: str = ""


class FormatShare(ResultModel):
    """Share of one caption format in a training mixture.

    Attributes:
        weight: share of the weights, in [0, 1].
        images: images of the split that have it.
        expected_share, first_epoch_share: of the texts that are drawn.
        first_epoch: texts drawn in the first epoch of the seed.
        clip_tokens: mean length without the two special tokens.
    """

    format: str
    weight: float
    images: int
    expected_share: float
    first_epoch: int
    first_epoch_share: float
    clip_tokens: float | None = None


class MixResult(RunResult):
    """The shares of a training mixture on one split.

    Attributes:
        missing: where the weight of formats goes that an image lacks.
        context: tokens that the text tower reads, None where unknown.
        left_out_in_first_epoch: images whose draw fell on a format that they lack.
        wrong_captioners: verdicts of an audit by which captions of the mixture are no better than shuffled ones.
        override: the mixture as an override of `foveate pretrain`.
    """

    kind: Literal["mix"] = "mix"
    collection: str
    split: str
    images: int
    with_text: int
    without_text: int
    missing: str
    seed: int
    context: int | None = None
    left_out_in_first_epoch: int = 0
    formats: list[FormatShare] = []
    wrong_captioners: list[str] = []
    override: str = ""
