"""Tables of answers: questions by data in rows, ways of answering in columns, every number with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.metrics.intervals import Interval, bootstrap_interval


class Table:
    """Rows of questions by data; each row holds one value per column (a way of answering)."""

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
        """Adds per-sample values (their mean is the number), or an interval that is there already."""
        if isinstance(values, Interval):
            found = values
        else:
            found = bootstrap_interval(values, seed=self.seed, groups_N=None if groups is None else list(groups))
        row = self.rows.setdefault(
            (question, data),
            {"question": question, "data": data, "chance": chance, "n": found.n, "values": {}},
        )
        row["values"][column] = {"value": found.value, "low": found.low, "high": found.high}

    def as_list(self) -> list[dict[str, Any]]:
        """The rows, JSON-ready, in the order of adding."""
        return list(self.rows.values())


def merge_tables(tables: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One table of several models' tables: rows of the same question and data share their columns."""
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for table in tables:
        for row in table:
            kept = merged.setdefault((row["question"], row["data"]), {**row, "values": {}})
            kept["values"] |= row["values"]
    return list(merged.values())


_WAYS = {
    "": ("", "boxes embedded as the model does it", "ours"),
    "_crop": (", crop", "each box encoded as an image of its own", "baseline"),
    "_shuffled": (", boxes shuffled", "control: boxes of other regions; it must fall", "control"),
    "_head": (", grounding head", "the box that the head names for the phrase", "ours"),
    "_candidates": (", best of many boxes", "the candidate box whose embedding is nearest to the phrase", "ours"),
}
_GUESSES = {"center": "half of each side, in the middle", "random": "two random corners"}


def columns_of(name: str, table: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """What the columns of a model's table mean, in the order in which they first occur."""
    columns = []
    for key in dict.fromkeys(key for row in table for key in row["values"]):
        if key in _GUESSES:
            columns.append({"key": key, "title": f"{key} box", "what": _GUESSES[key], "role": "control"})
        else:
            title, what, role = _WAYS[key.removeprefix(name)]
            columns.append({"key": key, "title": name + title, "what": what, "role": role})
    return columns
