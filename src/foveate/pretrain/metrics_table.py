"""Tables of metrics: a row for each question and data set, a column for each way of answering, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.metrics.intervals import Interval, bootstrap_interval


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
