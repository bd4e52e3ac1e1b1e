"""Effect of fine-tuning on some classes: accuracies by class group, logit gaps, the average logit gap (ALG).

Source: "Fine-Tuning is Fine, if Calibrated" (NeurIPS 2024, arXiv 2409.16223). A model knows classes Y; its fine-tuning
data covered S, the absent ones are U. One number gamma is added to the logits of U. Accuracies are percent; ties go to
the lowest class number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError
from foveate.metrics.class_groups import ABSENT, REST, SEEN, ClassGroups, as_labels, as_logits, chunks

Accuracies = dict[str, float | None]
_LETTERS = ((SEEN, "S"), (ABSENT, "U"), (REST, "R"))


@dataclass(frozen=True, slots=True)
class LabelRanks:
    """Rank of the true column for each sample, from 0: among all columns, and among those of its own group.

    Attributes:
        all_N, own_N: 0 = right at once. group_N: SEEN, ABSENT or REST of the label.
    """

    all_N: NDArray[np.int64]
    own_N: NDArray[np.int64]
    group_N: NDArray[np.int8]

    def accuracies(self, top: int = 1) -> Accuracies:
        """Return Acc_{A/B} in percent for Y/Y, S/Y, U/Y, R/Y, S/S, U/U, R/R: labels in A, among columns B.

        None where no sample has such a label. With fewer than `top` columns every answer is right.
        """
        if top < 1:
            raise UserError(f"top: out of range (got {top}); expected 1 or more")
        accuracies: Accuracies = {"Y/Y": _percent(self.all_N < top)}
        for group, letter in _LETTERS:
            accuracies[f"{letter}/Y"] = _percent(self.all_N[self.group_N == group] < top)
        for group, letter in _LETTERS:
            accuracies[f"{letter}/{letter}"] = _percent(self.own_N[self.group_N == group] < top)
        return accuracies


def _percent(hits_N: NDArray[np.bool_]) -> float | None:
    # One division of whole numbers: equal shares give equal floats, whatever the number of samples.
    return 100 * int(hits_N.sum()) / len(hits_N) if len(hits_N) else None


def label_ranks(
    logits_NC: ArrayLike, labels_N: ArrayLike, groups: ClassGroups, *, gamma: float = 0.0, what: str = "logits"
) -> LabelRanks:
    """Rank the true columns after adding gamma to the columns of the absent classes.

    Raises:
        UserError: shapes that disagree, labels out of range, logits or a gamma that are not finite, or a gamma
            without absent classes.
    """
    logits, labels = _checked(logits_NC, labels_N, groups, what=what)
    if not np.isfinite(gamma):
        raise UserError(f"gamma: not a finite number (got {gamma})")
    if gamma != 0:
        groups.need_absent("gamma")
    of_class_C = groups.of_class
    all_N, own_N = np.empty(len(labels), dtype=np.int64), np.empty(len(labels), dtype=np.int64)
    for rows, part in chunks(logits, what=what):
        label_n1 = labels[rows, None]
        before = _mark_before(part, label_n1)
        # Before gamma is added: one number on all columns of a group moves no rank in it, but a huge one rounds their
        # differences away.
        own_N[rows] = (before & (of_class_C == of_class_C[label_n1])).sum(1)
        if gamma != 0:
            part[:, groups.absent] += gamma
            before = _mark_before(part, label_n1)
        all_N[rows] = before.sum(1)
    return LabelRanks(all_N, own_N, of_class_C[labels])


def _mark_before(logits_nC: NDArray[np.float64], label_n1: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which columns rank in front of the true one, [n, C]."""
    true_n1 = np.take_along_axis(logits_nC, label_n1, axis=1)
    # Ties count as before only for lower columns, as argmax breaks them.
    return (logits_nC > true_n1) | ((logits_nC == true_n1) & (np.arange(logits_nC.shape[1]) < label_n1))


def group_accuracies(
    logits_NC: ArrayLike, labels_N: ArrayLike, groups: ClassGroups, *, gamma: float = 0.0, top: int = 1
) -> Accuracies:
    """Return accuracies in percent by class group; see `label_ranks` and `LabelRanks.accuracies`.

    >>> groups = ClassGroups.of([0, 1], classes=3)
    >>> group_accuracies([[2.0, 1.0, 0.0], [1.0, 0.0, 0.5]], [0, 2], groups)["U/Y"]
    0.0
    >>> group_accuracies([[2.0, 1.0, 0.0], [1.0, 0.0, 0.5]], [0, 2], groups, gamma=1.0)["Y/Y"]
    100.0
    """
    return label_ranks(logits_NC, labels_N, groups, gamma=gamma).accuracies(top)


@dataclass(frozen=True, slots=True)
class Gaps:
    """For each sample the best logit outside U minus the best in U: a gamma above it moves the prediction to U.

    Attributes:
        gap_N: float64.
        other_right_N: the best class outside U is the label. absent_right_N: the best class in U is the label.
        group_N: SEEN, ABSENT or REST of the label.
        resolution: two gaps that are no farther apart than this cannot be told apart by adding a gamma to the logits.
    """

    gap_N: NDArray[np.float64]
    other_right_N: NDArray[np.bool_]
    absent_right_N: NDArray[np.bool_]
    group_N: NDArray[np.int8]
    resolution: float = 0.0

    def statistics(self) -> dict[str, dict[str, float] | None]:
        """Return mean and quartiles of the gap over samples with label in S and in U; None without samples."""
        statistics: dict[str, dict[str, float] | None] = {}
        for group, letter in _LETTERS[:2]:
            gap_n = self.gap_N[self.group_N == group]
            quartiles = np.quantile(gap_n, (0.25, 0.5, 0.75)).tolist() if len(gap_n) else []
            names = ("lower_quartile", "median", "upper_quartile")
            statistics[letter] = (
                {"mean": float(gap_n.mean()), **dict(zip(names, quartiles, strict=True))} if quartiles else None
            )
        return statistics


def logit_gaps(logits_NC: ArrayLike, labels_N: ArrayLike, groups: ClassGroups, *, what: str = "logits") -> Gaps:
    """Compute the gaps in one pass over the logits: all that curves over gamma need.

    Raises:
        UserError: as `label_ranks`; no absent class.
    """
    logits, labels = _checked(logits_NC, labels_N, groups, what=what)
    groups.need_absent("the gap between groups")
    others, absent = groups.not_absent, groups.absent
    gap_N = np.empty(len(labels), dtype=np.float64)
    other_N, absent_N = np.empty(len(labels), dtype=np.int64), np.empty(len(labels), dtype=np.int64)
    largest = 0.0
    for rows, part in chunks(logits, what=what):
        of_others, of_absent = np.take(part, others, axis=1), np.take(part, absent, axis=1)
        best_other, best_absent = of_others.argmax(1), of_absent.argmax(1)
        row = np.arange(len(part))
        # Chunks are float64, so that gaps of float16 or float32 logits are exact.
        top_other, top_absent = of_others[row, best_other], of_absent[row, best_absent]
        gap_N[rows] = top_other - top_absent
        largest = max(largest, np.abs(top_other).max(), np.abs(top_absent).max(), np.abs(gap_N[rows]).max())
        other_N[rows], absent_N[rows] = others[best_other], absent[best_absent]
    # Half an ulp each is lost in the gap, in the midpoint of two gaps and in the sum of logit and gamma; the midpoint
    # lies half an interval from either gap, so that four ulps of the largest of these numbers are enough.
    resolution = 4 * float(np.spacing(largest))
    return Gaps(gap_N, other_N == labels, absent_N == labels, groups.of_class[labels], resolution)


def average_logit_gap(
    logits_NC: ArrayLike,
    labels_N: ArrayLike,
    groups: ClassGroups,
    *,
    variant: Literal["training", "official"] = "training",
) -> float:
    """Return ALG, the mean logit of the other seen classes minus that of the absent ones; an estimate of gamma.

    The true class is left out on the side of S only: it is high for a reason that the absent classes do not share.
    After gamma was added, the same formula gives 0.

    Args:
        logits_NC, labels_N: of the fine-tuning data, labels in S.
        variant: "official" takes any labels, as the public code does with the split that it evaluates; labels outside
            S have nothing to leave out.

    Raises:
        UserError: as `label_ranks`; no absent class; one seen class only, which leaves nothing beside the true one; a
            label outside S (variant "training").

    Example:
        >>> groups = ClassGroups.of([0, 1], classes=3)
        >>> average_logit_gap([[4.0, 1.0, -1.0], [2.0, 5.0, 0.0]], [0, 1], groups)
        2.0
    """
    logits, labels = _checked(logits_NC, labels_N, groups, what="logits")
    groups.need_absent("the average logit gap")
    if variant not in ("training", "official"):
        raise UserError(f"unknown variant '{variant}' of the average logit gap; expected training or official")
    of_label_N = groups.of_class[labels]
    outside = np.flatnonzero(of_label_N != SEEN)
    if variant == "training" and len(outside):
        raise UserError(
            f"labels: {len(outside)} are not seen classes, first {labels[outside[0]]} in row {outside[0]}; the average "
            "logit gap is taken over the fine-tuning data, which has seen classes only"
        )
    if len(groups.seen) == 1 and (of_label_N == SEEN).any():
        raise UserError(
            "the average logit gap is undefined with one seen class: its samples have no other seen class to compare "
            "with; use pseudo cross-validation with more classes, or set gamma yourself"
        )
    total = 0.0
    for rows, part in chunks(logits):
        is_seen_n = of_label_N[rows] == SEEN
        true_n = np.where(is_seen_n, np.take_along_axis(part, labels[rows, None], axis=1)[:, 0], 0.0)
        # The true class is left out of both sum and count of the seen classes; labels outside S have none to leave out.
        seen_n = (np.take(part, groups.seen, axis=1).sum(1) - true_n) / (len(groups.seen) - is_seen_n)
        total += float((seen_n - np.take(part, groups.absent, axis=1).mean(1)).sum())
    return total / len(labels)


def average_best_gap(logits_NC: ArrayLike, labels_N: ArrayLike, groups: ClassGroups) -> float:
    """Return the mean best logit of S without the true class, minus the mean best logit of U.

    Not in the paper: it takes the maximum where ALG takes the mean. Raises as `average_logit_gap`.
    """
    logits, labels = _checked(logits_NC, labels_N, groups, what="logits")
    groups.need_absent("the average gap of best logits")
    if len(groups.seen) == 1 or (groups.of_class[labels] != SEEN).any():
        average_logit_gap(logits, labels, groups)  # raises the right error
    total = 0.0
    for rows, part in chunks(logits):
        best_absent_n = np.take(part, groups.absent, axis=1).max(1)
        # In place: the chunk is a copy.
        np.put_along_axis(part, labels[rows, None], -np.inf, axis=1)
        total += float((np.take(part, groups.seen, axis=1).max(1) - best_absent_n).sum())
    return total / len(labels)


def _checked(
    logits_NC: ArrayLike, labels_N: ArrayLike, groups: ClassGroups, *, what: str
) -> tuple[NDArray, NDArray[np.int64]]:
    """Convert to arrays whose shapes agree; `chunks` checks that logits are finite, in the pass that reads them."""
    logits = as_logits(logits_NC, what=what, finite=False)
    if logits.shape[1] != groups.classes:
        raise UserError(f"{what}: {logits.shape[1]} columns, but the class groups are of {groups.classes} classes")
    return logits, as_labels(labels_N, rows=len(logits), classes=groups.classes)
