"""The results of this wing: built by its functions, printed with --json, and read by their pages. No torch.

Each becomes a result.json (of an export and an index, which have no page, the output of --json).
"""

from __future__ import annotations

from typing import Any, Literal

from foveate.core.results import (
    BoxChoice,
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
