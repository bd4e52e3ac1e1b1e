"""The results of this wing: built by its functions, printed with --json, and read by their pages. No torch.

Each becomes a result.json (of an export and an index, which have no page, the output of --json).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, Field

from foveate.core.results import (
    BoxChoice,
    BoxValues,
    Evaluation,
    Example,
    LocatedPhrase,
    ResultModel,
    RunResult,
    Search,
)


class SplitEvaluation(Evaluation):
    """Metrics of a model on one split of a collection.

    Attributes:
        images, regions: evaluated. unreadable: images left out because they could not be read.
        regions_out_of_view: left out because the model's view of the image shows nothing of them.
    """

    collection: str = ""
    split: str = ""
    images: int = 0
    regions: int = 0
    unreadable: int = 0
    regions_out_of_view: int = 0


class EvaluateResult(SplitEvaluation, RunResult):
    """`foveate evaluate`; `examples` are shown on the page, `default` is the locate rule it opens with."""

    kind: Literal["evaluate"] = "evaluate"
    model: str = ""
    examples: list[Search | LocatedPhrase | BoxChoice] = []
    default: str = "head"


class DrawnTexts(ResultModel):
    """Texts drawn in the first epoch: `images` counted, times and shares by caption kind, images without a text."""

    images: int = 0
    drawn: dict[str, int] = {}
    shares: dict[str, float] = {}
    without_text: int = 0


class PretrainResult(RunResult):
    """`foveate pretrain`.

    Attributes:
        images: with a text of a usable kind, all trained on. images_without_text: the other images of the split.
        regions: that training drew from. localizes: whether the model learned places, from them or before.
        curves: the log of the run, or its rows. bad_samples: key -> reason of images that could not be used.
        evaluation: on the split given to `pretrain`, of a finished run. metrics: of the best validation, where the
            recipe has `training.evaluate_every`.
    """

    kind: Literal["pretrain"] = "pretrain"
    status: Literal["finished", "stopped"] = "finished"
    recipe: dict[str, Any] = {}
    collection: str = ""
    images: int = 0
    images_without_text: int = 0
    regions: int | None = None
    localizes: bool | None = None
    texts: DrawnTexts = DrawnTexts()
    steps: int | None = None
    seconds: float | dict[str, float] | None = None
    curves: str | list[dict[str, Any]] = "metrics.jsonl"
    parameters: dict[str, Any] = {}
    frozen: str = ""
    bad_samples: dict[str, str] = {}
    evaluation: SplitEvaluation | None = None
    locate_rule: str | None = None
    model: str = ""
    samples: list[Example] = []


class LocateResult(LocatedPhrase, RunResult):
    """`foveate locate`; `file` is the user's image, `width` and `height` its pixels after EXIF rotation.

    Attributes:
        localizes: whether the model learned places; False means that boxes were compared by pooled tokens.
        has_match: False where no candidate box matches the phrase better than most random names match one; reason: why.
        floor: the cosine that random names reach. unknown_words: of the phrase.
    """

    kind: Literal["locate"] = "locate"
    model: str = ""
    file: str = ""
    width: int | None = None
    height: int | None = None
    localizes: bool = True
    has_match: bool = Field(True, validation_alias=AliasChoices("has_match", "found"))
    reason: str = ""
    floor: float | None = None
    unknown_words: list[str] = []


class LocatedFrame(ResultModel):
    """A frame of a clip with its best box.

    Attributes:
        index, time: number of the frame in the clip, and seconds.
        image: its file in the run folder, for the best frames.
        box: in pixels. fractions: in [0, 1].
        score, center_score: cosine of the box, and of the center of the frame, with the phrase.
    """

    index: int
    time: float
    image: str = ""
    box: BoxValues
    fractions: BoxValues
    score: float | None
    center_score: float | None


class VideoFindResult(RunResult):
    """`foveate video find`; `best` are positions in `frames`, best first."""

    kind: Literal["video_find"] = "video_find"
    model: str
    clip: str
    phrase: str
    best: list[int]
    frames: list[LocatedFrame]
    warnings: list[str] = []


class SearchResult(Search, RunResult):
    """`foveate search`; `searched` counts the images and regions of the index, `file` is the query's image.

    Attributes:
        has_match: False where the hits are no better than those of texts without a meaning; reason: why.
        floor: the score that a hit must exceed, and what was measured of it. unknown_words: of the query.
    """

    kind: Literal["search"] = "search"
    model: str = ""
    index: str = ""
    collection: str = ""
    searched: dict[str, int] = {}
    backend: str = ""
    file: str | None = None
    has_match: bool = Field(True, validation_alias=AliasChoices("has_match", "found"))
    reason: str = ""
    floor: dict[str, float] = {}
    unknown_words: list[str] = []


class IndexResult(RunResult):
    """`foveate index`.

    Attributes:
        embedded: images embedded by this run (to embed, in a dry run). dropped: images that the collection removed.
        crops: boxes among them that took a pass of the encoder each. folder: files of a plain folder of images.
        megabytes_new: size of the new vectors. counts: of images, regions and unreadable images in the index.
        floor: below which a search finds nothing, see `foveate.pretrain.searching.index_folder.Floor`.
    """

    kind: Literal["index"] = "index"
    model: str
    collection: str
    regions: str
    region_sources: list[str]
    precision: str
    dry_run: bool = False
    embedded: int
    crops: int = 0
    dropped: int
    megabytes_new: float
    counts: dict[str, int]
    folder: dict[str, Any] | None = None
    floor: dict[str, Any] | None = None


class ExportResult(RunResult):
    """`foveate export`.

    Attributes:
        to: the target. files: written, or to be written in a dry run.
        differences: largest absolute differences to Foveate's own outputs, measured with the foreign library.
        counts: of rows, images or regions. notes: sentences for the user.
    """

    kind: Literal["export"] = "export"
    source: str
    to: str
    dry_run: bool = False
    files: list[str] = []
    differences: dict[str, float] = {}
    counts: dict[str, int] = {}
    notes: list[str] = []
