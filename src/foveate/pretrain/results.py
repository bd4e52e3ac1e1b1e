"""The results of this wing, and the tables of metrics in them; no torch.

Results are built by the wing's functions, printed with --json, and read by their pages. Each becomes a result.json (of
an export and an index, which have no page, the output of --json). A table has a row for each question and data set, a
column for each way of answering, with intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from foveate.core.results import (
    BoxChoice,
    Evaluation,
    Example,
    LocatedPhrase,
    ResultModel,
    RunResult,
    Search,
)
from foveate.metrics.intervals import Interval, bootstrap_interval


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


class MetricsTable:
    """Rows (question, data) of one value per column; intervals are drawn with `seed`."""

    def __init__(self, *, seed: int) -> None:
        self.seed = seed
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}

    def add(
        self,
        question: str,
        data: str,
        column: str,
        values: NDArray[np.float64] | Interval,
        *,
        groups: Sequence[Any] | NDArray[np.int64] | None = None,
        chance: float | None = None,
    ) -> None:
        """Add the mean of per-sample values [n] with its bootstrap interval, or a ready interval.

        Args:
            groups: image of each value: the bootstrap draws whole images. chance: the value of a random guess.
        """
        if isinstance(values, Interval):
            interval = values
        else:
            interval = bootstrap_interval(values, seed=self.seed, groups_N=None if groups is None else list(groups))
        # Several columns fill one row; n and chance are those of the first.
        row = self.rows.setdefault(
            (question, data),
            {"question": question, "data": data, "chance": chance, "n": interval.n, "values": {}},
        )
        row["values"][column] = {"value": interval.value, "low": interval.low, "high": interval.high}

    def as_list(self) -> list[dict[str, Any]]:
        """Return the rows, JSON-ready, in the order of adding."""
        return list(self.rows.values())


def merge_tables(tables: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Join the tables of several models: rows of the same question and data share their columns."""
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for table in tables:
        for row in table:
            joined = merged.setdefault((row["question"], row["data"]), {**row, "values": {}})
            joined["values"] |= row["values"]
    return list(merged.values())


_WAYS = {
    "": ("", "boxes embedded as the model does it", "ours"),
    "_crop": (", crop", "each box encoded as an image of its own", "baseline"),
    "_shuffled": (", boxes shuffled", "control: boxes of other regions; it must be lower", "control"),
    "_head": (", grounding head", "the box that the head predicts for the phrase", "ours"),
    "_candidates": (", best of many boxes", "the candidate box whose embedding is nearest to the phrase", "ours"),
}
_GUESSES = {"center": "half of each side, in the middle", "random": "two random corners"}


def describe_columns(name: str, table: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Describe the columns of a model's table, in the order in which they first occur."""
    columns = []
    for key in dict.fromkeys(key for row in table for key in row["values"]):
        if key in _GUESSES:
            columns.append({"key": key, "title": f"{key} box", "what": _GUESSES[key], "role": "control"})
        else:
            title, what, role = _WAYS[key.removeprefix(name)]
            columns.append({"key": key, "title": name + title, "what": what, "role": role})
    return columns
