"""Wordings of questions like people's, by form: half of them for training, half for tests alone.

`data/wordings.csv` has them, one a row. Their fields are those of the forms of generated questions: {x} is a name,
{a_x} the same with its article, {stated} what is asked about, {first} and {second} are two answers.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping

from foveate.core.paths import DATA

WORDINGS = "wordings.csv"
SEEN, UNSEEN = "seen", "unseen"


@functools.cache
def load_wordings() -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Load the wordings of each form, of the "seen" and of the "unseen" half."""
    wordings: dict[str, dict[str, list[str]]] = {}
    with (DATA / WORDINGS).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            wordings.setdefault(row["form"], {SEEN: [], UNSEEN: []})[row["half"]].append(row["wording"])
    return {form: {half: tuple(texts) for half, texts in halves.items()} for form, halves in wordings.items()}
