"""result.json of this wing's commands, as typed models: runs build them, pages read them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from foveate.core.results import Column, Distribution, Example, Histogram, ResultModel, Row, RunResult
from foveate.records.captions import CaptionVerdict


class RequestTally(ResultModel):
    """Outcomes of the requests of one format: in = ok + repaired + errors + skipped.

    Attributes:
        total: requests of the format ("in" in the file).
        errors, skipped, flags: reason -> count.
        requested: requests that were sent in this run.
        attempts: tries of them.
        answered_by: model -> its responses, where the server names it.
    """

    # "in" is a keyword of Python, and the word of the equation above.
    total: int = Field(alias="in")
    ok: int
    repaired: int
    errors: dict[str, int] = {}
    skipped: dict[str, int] = {}
    flags: dict[str, int] = {}
    answered_by: dict[str, int] = {}
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


class AuditAssertion(ResultModel):
    """One assertion of a caption; `verdict` is "" if there was no judge."""

    text: str
    verdict: str = ""


class AuditCaption(ResultModel):
    """A caption of one format with its assertions."""

    format: str
    title: str
    text: str
    assertions: list[AuditAssertion] = []


class AuditImage(ResultModel):
    """An image of the gallery with its captions; `data` is "scenes" or "images"."""

    image: str
    data: str = ""
    key: str = ""
    captions: list[AuditCaption] = []


class AuditJudge(ResultModel):
    """Meaning of a judge's verdicts, and a hash of that text to compare reports by."""

    definition: str
    hash: str = ""


class AuditSample(ResultModel):
    """The images that were audited.

    Attributes:
        images: their number; `of` has it for each kind of data.
        without_all_formats: images of the split that lack a format and were left out.
        ids: their keys.
    """

    images: int
    of: dict[str, int] = {}
    without_all_formats: int = 0
    split: str | None = None
    seed: int = 0
    ids: list[str] = []


class AuditResult(RunResult):
    """The result of an audit.

    Attributes:
        models: format -> captioner -> number of its captions in the sample.
        scene_oracle: whether captions of the scene oracle are among them.
        context: tokens that the text tower reads.
        splitter, tagger: names of what split assertions and found entities.
        judges: kind of data -> definition of its verdicts.
        metrics: kind of data -> metrics of each format, see `foveate.caption.audit_metrics.compute_metrics`.
        verdicts: on each captioner and format, as the verb stores them in the collection.
    """

    kind: Literal["audit"] = "audit"
    collection: str
    formats: list[str] = []
    models: dict[str, dict[str, int]] = {}
    scene_oracle: bool = False
    sample: AuditSample
    context: int
    splitter: str = ""
    tagger: str = ""
    judges: dict[str, AuditJudge] = {}
    metrics: dict[str, list[dict[str, Any]]] = {}
    columns: list[Column] = []
    table: list[Row] = []
    interval: str = "95 % intervals, bootstrap over images"
    verdicts: list[CaptionVerdict] = []
    gallery: list[AuditImage] = []


class RegionsResult(RunResult):
    """The result of labeling regions.

    Attributes:
        oracle: the detector returns boxes that the collection held before.
        source: of the rows, `vesl:DETECTOR`.
        images: of the split; `done_before` of them were labeled by an earlier run of the recipe.
        status: number of images by status.
        regions, thin: regions written, and boxes dropped as thinner than a pixel, by all runs of the recipe.
        regions_new: regions that this run wrote.
        unreadable: key -> reason, for sample images that could not be read.
    """

    kind: Literal["regions"] = "regions"
    collection: str = ""
    split: str | None = None
    detector: str = ""
    oracle: bool = False
    model: str = ""
    source: str = ""
    recipe: dict[str, Any] = {}
    recipe_hash: str = ""
    images: int = 0
    done_before: int = 0
    status: dict[str, int] = {}
    regions: int = 0
    thin: int = 0
    regions_new: int = 0
    seconds: float | None = None
    stopped: bool = False
    code: str = ""
    histograms: dict[str, Histogram] = {}
    samples: list[Example] = []
    unreadable: dict[str, str] = {}
