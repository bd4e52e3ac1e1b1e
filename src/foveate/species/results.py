"""Results of `foveate species`, declared once; loads no torch.

The wing writes these models as result.json; the pages of `foveate.report.pages` read the same ones. Places are rounded
before they get here, and left out unless asked for.
"""

from __future__ import annotations

from typing import Any

from foveate.core.results import BoxValues, Evaluation, Histogram, ResultModel, RunResult, Value
from foveate.species.hints import ClockHint, PlaceHint, RepeatedBox


class PassResult(ResultModel):
    """One relation of the training.

    Attributes:
        links: that were learned. candidates: that competed. steps: of an epoch.
        loss: mean over the last rows of the log. chance: of a guess, where it has one number (places and hours).
    """

    relation: str
    links: int
    candidates: int
    steps: int
    loss: float | None = None
    chance: float | None = None


class ClassResult(ResultModel):
    """A class with its training images."""

    label: str
    taxon: str = ""
    images: int = 0


class SpeciesTrainResult(RunResult):
    """One model trained by `species train`; no coordinates and no names of cameras.

    Attributes:
        status: "finished", or "stopped" by a signal.
        method: "cosmo", or the name of a baseline.
        contexts: links beside the species that took part.
        left_out: reason -> number of images without a label or context.
        strips: treatment of info strips, and the number of cameras that have them.
        cropped: images that showed a box instead of the whole frame.
        selection: metrics of the validation images at the epoch that was taken.
        model: folder, relative to the run folder; "" where training was stopped.
    """

    kind: str = "species_train"
    status: str = "finished"
    method: str = "cosmo"
    recipe: dict[str, Any] = {}
    data: str = ""
    contexts: list[str] = []
    classes: list[ClassResult] = []
    images: int = 0
    validation_images: int = 0
    cameras: int = 0
    left_out: dict[str, int] = {}
    passes: list[PassResult] = []
    cropped: int = 0
    strips: str = "keep"
    epoch: int | None = None
    steps: int | None = None
    seconds: float | None = None
    curves: str = "metrics.jsonl"
    selection: dict[str, float | None] = {}
    bad_samples: dict[str, str] = {}
    revision: str = ""
    model: str = ""


class TaxonRow(ResultModel):
    """Frequency of a taxon among decisions, in total and by hour.

    Attributes:
        decisions: events or images. hours: decisions at each hour of the clock, 24 counts.
    """

    name: str
    rank: str = ""
    kind: str = "animal"
    decisions: int = 0
    score: float = 0.0
    hours: list[int] = []


class ClassRow(ResultModel):
    """Precision and recall of a class on labeled images, by the model's best class without any stage.

    Attributes:
        support: labeled images of it. predicted: images that were given it. precision: with Wilson's interval.
        train_images: number of its training images, if the model folder has it.
    """

    label: str
    name: str = ""
    support: int
    predicted: int
    precision: Value | None = None
    recall: float | None = None
    train_images: int | None = None


class CameraRow(ResultModel):
    """One camera: images, decisions, accuracy where it has labels, and its rounded place."""

    camera: str
    images: int
    events: int
    failed: int = 0
    labeled: int = 0
    accuracy: float | None = None
    latitude: float | None = None
    longitude: float | None = None
    top: str = ""


class HourRow(ResultModel):
    """Labeled images of four hours of the clock."""

    hours: str
    labeled: int
    accuracy: float | None = None


class StageRow(ResultModel):
    """Decisions after a stage, against the truth.

    Attributes:
        named: decisions that name something. right: whose name is the truth or an ancestor of it.
        exact: whose name is the truth itself. total: decisions with one truth.
    """

    stage: str
    total: int
    named: int
    right: int
    exact: int


class Confusion(ResultModel):
    """Images of a class that got another one, and the taxon that both belong to."""

    truth: str
    answer: str
    images: int
    common: str = ""
    rank: str = ""


class Coverage(ResultModel):
    """Precision against coverage as the threshold rises; coverage and precision in [0, 1]."""

    thresholds: list[float] = []
    coverage: list[float] = []
    precision: list[float] = []


class SampleImage(ResultModel):
    """An image of the page with its box and what was decided about its event."""

    image: str
    file: str
    camera: str = ""
    box: BoxValues | None = None
    answer: str
    rank: str = ""
    score: float | None = None
    truth: str = ""
    right: bool | None = None
    alternatives: list[tuple[str, float]] = []
    steps: list[str] = []


class SurveyFinding(ResultModel):
    """A doubtful part of the survey, found by a check."""

    subject: str
    text: str
    count: int = 0


class SpeciesResult(RunResult):
    """One results folder as a page.

    Attributes:
        events: whether decisions are about events; else about images.
        counts: kind of decision -> number. ranks: rank of the decided taxon -> number.
        labels: labeled images in the evaluation; unknown_labels: label -> images of classes that the model lacks.
        settings: of the stages. lead: first sentences of the page; by default those of a prediction of species.
    """

    kind: str = "species"
    lead: str = ""
    model: str = ""
    collection: str = ""
    view: str = ""
    split: str | None = None
    images: int = 0
    failed: int = 0
    cropped: int = 0
    cameras: int = 0
    events: bool = False
    decisions: int = 0
    counts: dict[str, int] = {}
    ranks: dict[str, int] = {}
    taxa: list[TaxonRow] = []
    score_histogram: Histogram | None = None
    per_camera: list[CameraRow] = []
    coordinate_digits: int | None = None
    samples: list[SampleImage] = []
    failures: dict[str, int] = {}
    findings: list[SurveyFinding] = []
    clocks: list[ClockHint] = []
    places: list[PlaceHint] = []
    repeated: list[RepeatedBox] = []
    settings: dict[str, Any] = {}
    # Only where images are labeled.
    labels: int = 0
    unknown_labels: dict[str, int] = {}
    left_out: dict[str, int] = {}
    evaluation: Evaluation | None = None
    classes: list[ClassRow] = []
    per_hour: list[HourRow] = []
    coverage: Coverage | None = None
    confusions: list[Confusion] = []
    stages: list[StageRow] = []
    notes: list[str] = []


class CheckDay(ResultModel):
    """What shows a finding on one day: the number of images, keys of a few, and key -> thumbnail of those."""

    day: str
    count: int
    examples: list[str] = []
    images: dict[str, str] = {}


class CheckFinding(ResultModel):
    """A finding of `foveate species check`, see `foveate.survey.checks.Finding`."""

    code: str
    subject: str
    count: int
    detail: str = ""
    examples: list[str] = []
    days: list[CheckDay] = []
    meaning: str = ""
    repair: str = ""


class SpeciesCheckResult(RunResult):
    """What is doubtful in a survey."""

    kind: str = "species_check"
    collection: str = ""
    counts: dict[str, int] = {}
    findings: list[CheckFinding] = []


class ReviewImage(ResultModel):
    """A thumbnail of an event, and the box that the model saw."""

    image: str
    box: BoxValues | None = None


class ReviewEntry(ResultModel):
    """One event to review: its decision, the reasons to look at it, and its first images.

    Attributes:
        count: most boxes of the answer in one image; 0 where nothing was counted.
    """

    event: str
    file: str
    deployment: str = ""
    time: str = ""
    answer: str
    rank: str = ""
    score: float
    alternatives: list[tuple[str, float]] = []
    reasons: list[str] = []
    num_images: int = 1
    count: int = 0
    images: list[ReviewImage] = []


class SpeciesReviewResult(RunResult):
    """A contact sheet: events in the order of their priority.

    Attributes:
        decisions: number of those that can be reviewed. sheet: the PNG, "" without a readable image.
        table: the CSV to fill in. table_sha256: of its bytes as written: one that was changed is not overwritten.
    """

    kind: str = "species_review"
    decisions: int = 0
    events: list[ReviewEntry] = []
    table: str = ""
    table_sha256: str = ""
    sheet: str = ""


class NearTaxon(ResultModel):
    """A near taxon in the graph; `relation` is what both belong to."""

    name: str
    cosine: float
    relation: str = ""


class NearImage(ResultModel):
    """A training image near an explained one."""

    image: str
    key: str
    camera: str = ""
    label: str = ""
    cosine: float


class SpeciesExplanation(RunResult):
    """Explanation of the answer for one image.

    Attributes:
        also: further answers about the image, of other species, people and vehicles.
        classes: best classes of this image with their probabilities, before any stage.
        best_image: file of the image that represents the event, if it is a different one.
        taxa: classes whose vectors are nearest to that of the best class.
        images: nearest training images.
    """

    kind: str = "species_explain"
    image: str
    file: str
    camera: str = ""
    time: str = ""
    event: str = ""
    num_images: int = 1
    box: BoxValues | None = None
    answer: str
    rank: str = ""
    score: float
    also: list[str] = []
    classes: list[tuple[str, float]] = []
    steps: list[str] = []
    best_image: str = ""
    taxa: list[NearTaxon] = []
    images: list[NearImage] = []
