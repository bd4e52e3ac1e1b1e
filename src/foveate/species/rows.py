"""Rows on their way through the decision stages, and the trace that each stage leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
ABSTAINED, FAILED = -1, -2
"""Answers of a row that names nothing: no stage let a taxon through; the image could not be read."""
# Parts of 256 images: 16 MB in all for 500 classes.
_CACHED_PARTS = 32
DETECTED = ("animal", "human", "vehicle")
"""Kinds of a detection, as `BestDetections.kinds_N` counts them; -1 is none."""


@dataclass(frozen=True)
class BestDetections:
    """The best detection of each image.

    Args:
        kinds_N: index into `DETECTED`, -1 where nothing was detected.
        scores_N: confidence in [0, 1], 0 where nothing was detected.
        is_judged_N: True if a detector that separates animals, people and vehicles has processed the image; None if
            no image has results of one.
    """

    kinds_N: Integers
    scores_N: Floats
    is_judged_N: NDArray[np.bool_] | None = None

    def take(self, rows: Any) -> BestDetections:
        """Return the detections of some images."""
        is_judged_N = None if self.is_judged_N is None else self.is_judged_N[rows]
        return BestDetections(self.kinds_N[rows], self.scores_N[rows], is_judged_N)


@dataclass(frozen=True)
class Trace:
    """Effect of a stage on each row.

    Args:
        stage: name of the stage.
        notes: descriptions of its different effects.
        codes_R: index into `notes`.
        answers_R: the answer after the stage, as in `Rows.answers_R`.
        scores_R: probability of that answer.
    """

    stage: str
    notes: tuple[str, ...]
    codes_R: Integers
    answers_R: Integers
    scores_R: Floats

    def take(self, rows: Any) -> Trace:
        """Return the trace of some rows."""
        return replace(self, codes_R=self.codes_R[rows], answers_R=self.answers_R[rows], scores_R=self.scores_R[rows])


def concatenate_traces(parts: Sequence[Trace]) -> Trace:
    """Join the traces that one stage left on blocks of rows."""
    # Each block numbers only its own notes, such as "3 of 4 images"; codes are mapped to one common list.
    index: dict[str, int] = {}
    codes = [np.array([index.setdefault(n, len(index)) for n in part.notes], dtype=np.int64) for part in parts]
    return Trace(
        parts[0].stage,
        tuple(index),
        np.concatenate([table[part.codes_R] for table, part in zip(codes, parts, strict=True)]),
        np.concatenate([part.answers_R for part in parts]),
        np.concatenate([part.scores_R for part in parts]),
    )


@dataclass(frozen=True)
class Rows:
    """A block of images; after pooling a row is an event.

    Args:
        classes: a stage may add some after those that are there, so that answers keep their codes.
        probabilities_RK: each row sums to 1; one of NaN is an image that failed, or has nothing left to choose from.
        events_R: event of each row; the rows of an event follow one another.
        frames_R: image of each row, where images have several, such as one for each animal; None where none has.
        places_R2: degrees (latitude, longitude), NaN where unknown.
        hours_R: local hour in [0, 24), NaN where unknown.
        days_R: day of the year from 0, NaN where unknown.
        images_R: position of the image in the call, after pooling that of the image which shows the event best.
        answers_R: a taxon; or `len(taxa)` + a class that has none; or ABSTAINED, FAILED.
        scores_R: probability of the answer; of the best class where the row abstains.
        is_fixed_R: whether the detector gave the answer, which no later stage changes.
        is_pooled: whether a row is an event.
        traces: of the stages passed so far.
    """

    classes: Classes
    taxa: Taxa
    probabilities_RK: Floats
    events_R: Integers
    frames_R: Integers | None
    places_R2: Floats
    hours_R: Floats
    days_R: Floats
    detections: BestDetections
    images_R: Integers
    answers_R: Integers
    scores_R: Floats
    is_fixed_R: NDArray[np.bool_]
    is_pooled: bool = False
    traces: tuple[Trace, ...] = ()

    def passed(
        self, stage: str, probabilities_RK: Floats, notes: tuple[str, ...], codes_R: Integers | None = None
    ) -> Rows:
        """Return the rows after a stage that changed probabilities: the answer is the best class.

        Args:
            codes_R: index into `notes`; the first note by default.
        """
        answers_R, scores_R = best_answers(probabilities_RK, self.classes, self.taxa)
        # A row that failed or abstained stays so.
        answers_R = np.where((self.answers_R < 0) | self.is_fixed_R, self.answers_R, answers_R)
        scores_R = np.where(self.is_fixed_R, self.scores_R, scores_R)
        rows = replace(self, probabilities_RK=probabilities_RK, answers_R=answers_R, scores_R=scores_R)
        return rows.noted(stage, notes, codes_R)

    def noted(self, stage: str, notes: tuple[str, ...], codes_R: Integers | None = None) -> Rows:
        """Return the rows with one more trace, of their present answers."""
        # Codes instead of text: there are few notes, but there may be hundreds of thousands of rows.
        codes_R = np.zeros(len(self.answers_R), dtype=np.int64) if codes_R is None else codes_R
        trace = Trace(stage, notes, codes_R, self.answers_R, self.scores_R)
        return replace(self, traces=(*self.traces, trace))

    def take(self, order_R: Integers) -> Rows:
        """Return the rows in another order."""
        return replace(
            self,
            probabilities_RK=self.probabilities_RK[order_R],
            events_R=self.events_R[order_R],
            frames_R=None if self.frames_R is None else self.frames_R[order_R],
            places_R2=self.places_R2[order_R],
            hours_R=self.hours_R[order_R],
            days_R=self.days_R[order_R],
            detections=self.detections.take(order_R),
            images_R=self.images_R[order_R],
            answers_R=self.answers_R[order_R],
            scores_R=self.scores_R[order_R],
            is_fixed_R=self.is_fixed_R[order_R],
            traces=tuple(trace.take(order_R) for trace in self.traces),
        )


Stage = Callable[[Rows], Rows]


class StoredRows:
    """Probabilities [N, K] on disk, of which only some parts are in memory.

    Args:
        read: returns the probabilities of a part by its number.
        starts_P: first row of each part.
    """

    def __init__(self, read: Callable[[int], NDArray[Any]], shape: tuple[int, int], starts_P: Integers) -> None:
        # Events follow the order of the images, so that a block needs a few parts, and the next one the last of them.
        self._read = lru_cache(_CACHED_PARTS)(read)
        self.shape, self._starts_P = shape, starts_P

    def __getitem__(self, rows_R: Integers) -> NDArray[Any]:
        values_RK = np.empty((len(rows_R), self.shape[1]), dtype=np.float32)
        parts_R = np.searchsorted(self._starts_P, rows_R, side="right") - 1
        offsets_R = rows_R - self._starts_P[parts_R]
        for part in np.unique(parts_R).tolist():
            is_inside_R = parts_R == part
            values_RK[is_inside_R] = self._read(part)[offsets_R[is_inside_R]]
        return values_RK


def answer_codes(classes: Classes, taxa: Taxa) -> Integers:
    """Return the answer [K] of each class: its taxon, or a code of its own above the taxa."""
    return np.where(classes.taxa_K >= 0, classes.taxa_K, len(taxa) + np.arange(len(classes)))


def merge_columns(probabilities_RK: Floats, groups_K: Integers, num_groups: int) -> Floats:
    """Sum the columns of each group [R, G]; a group without columns is 0.

    Args:
        groups_K: group of each column, -1 for none.
    """
    # Sort the columns of a group side by side, so that one `reduceat` sums all groups without a loop over hundreds of
    # taxa.
    columns = np.argsort(groups_K, kind="stable")
    columns = columns[groups_K[columns] >= 0]
    sums_RG = np.zeros((len(probabilities_RK), num_groups))
    if len(columns):
        groups, starts = np.unique(groups_K[columns], return_index=True)
        sums_RG[:, groups] = np.add.reduceat(probabilities_RK[:, columns], starts, axis=1)
    return sums_RG


def best_answers(probabilities_RK: Floats, classes: Classes, taxa: Taxa) -> tuple[Integers, Floats]:
    """Return the answer of the best class of each row, and its probability; ABSTAINED for a row of NaN."""
    # NaN is the maximum of its row for argmax, so that its score is NaN, too.
    best_R = probabilities_RK.argmax(axis=1)
    scores_R = np.take_along_axis(probabilities_RK, best_R[:, None], axis=1)[:, 0]
    valid_R = ~np.isnan(scores_R)
    return np.where(valid_R, answer_codes(classes, taxa)[best_R], ABSTAINED), np.where(valid_R, scores_R, 0.0)
