"""Features apart from the head: nearest class mean (NCM) accuracy; and how fine-tuning changed the head's rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError
from foveate.metrics.calibration import LabelRanks, label_ranks
from foveate.metrics.class_groups import ClassGroups, as_labels
from foveate.metrics.retrieval import normalize

# Not -inf, because `label_ranks` refuses scores that are not finite.
_BELOW_EVERY_COSINE = -2.0


def nearest_mean_scores(
    features_ND: ArrayLike, oracle_features_MD: ArrayLike, oracle_labels_M: ArrayLike, *, classes: int
) -> NDArray[np.float64]:
    """Return cosines to the class means, shape [N, C]; a class without oracle sample gets -2, below every cosine.

    Features are scaled to unit length, averaged by class, and the means scaled to unit length. The oracle features
    are those of training data of *all* classes, the absent ones included: analysis only.

    Raises:
        UserError: widths differ, a feature is zero or not finite, a label is out of range.
    """
    features, oracle = normalize(features_ND, what="feature"), normalize(oracle_features_MD, what="oracle feature")
    if features.shape[1] != oracle.shape[1]:
        raise UserError(f"features: {features.shape[1]} wide, but the oracle features are {oracle.shape[1]} wide")
    labels = as_labels(oracle_labels_M, rows=len(oracle), classes=classes, what="oracle labels")
    present = np.unique(labels)
    sums_CD = np.zeros((classes, oracle.shape[1]))
    np.add.at(sums_CD, labels, oracle)
    scores = np.full((len(features), classes), _BELOW_EVERY_COSINE)
    # Sums stand for means: scaled to unit length, both are the same.
    scores[:, present] = features @ normalize(sums_CD[present], what="class mean").T
    return scores


def nearest_mean_ranks(
    features_ND: ArrayLike,
    labels_N: ArrayLike,
    oracle_features_MD: ArrayLike,
    oracle_labels_M: ArrayLike,
    groups: ClassGroups,
) -> LabelRanks:
    """Rank the true class by `nearest_mean_scores`; its `accuracies()` are the paper's NCM accuracies."""
    scores = nearest_mean_scores(features_ND, oracle_features_MD, oracle_labels_M, classes=groups.classes)
    return label_ranks(scores, labels_N, groups)


@dataclass(frozen=True, slots=True)
class HeadChange:
    """Change of the rows of a linear head, averaged over a group of classes.

    Attributes:
        norm_before, norm_after: mean length of the rows. update_norm: mean length of their changes.
        update_cosine: mean cosine of two different changes; None with fewer than two rows, or one that did not change.
    """

    norm_before: float
    norm_after: float
    update_norm: float
    update_cosine: float | None


def head_changes(before_CD: ArrayLike, after_CD: ArrayLike, groups: ClassGroups) -> dict[str, HeadChange | None]:
    """Return the `HeadChange` of S and of U; None for an empty group.

    Raises:
        UserError: heads of different shapes or of another number of classes.
    """
    before, after = np.asarray(before_CD, dtype=np.float64), np.asarray(after_CD, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 2 or len(before) != groups.classes:
        raise UserError(
            f"heads: expected two of [{groups.classes}, width] (got {list(before.shape)} and {list(after.shape)})"
        )
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise UserError("heads: some weights are NaN or infinite")
    changes: dict[str, HeadChange | None] = {}
    for letter, rows in (("S", groups.seen), ("U", groups.absent)):
        update_RD = after[rows] - before[rows]
        norm_R = np.linalg.norm(update_RD, axis=1)
        changes[letter] = (
            HeadChange(
                norm_before=float(np.linalg.norm(before[rows], axis=1).mean()),
                norm_after=float(np.linalg.norm(after[rows], axis=1).mean()),
                update_norm=float(norm_R.mean()),
                update_cosine=_mean_cosine(update_RD, norm_R),
            )
            if len(rows)
            else None
        )
    return changes


def _mean_cosine(update_RD: NDArray[np.float64], norm_R: NDArray[np.float64]) -> float | None:
    rows = len(norm_R)
    # A zero update has no direction.
    if rows < 2 or (norm_R == 0).any():
        return None
    unit = update_RD / norm_R[:, None]
    # The sum over all pairs is the squared length of the sum; the diagonal is 1 each.
    return float(((unit.sum(0) ** 2).sum() - rows) / (rows * (rows - 1)))
