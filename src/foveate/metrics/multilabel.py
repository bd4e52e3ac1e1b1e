"""Several labels per image: average precision, F1 over labels, and the threshold of each label."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError
from foveate.metrics.classification import ClassCounts


def _checked(scores_NK: ArrayLike, truth_NK: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    scores, truth = np.asarray(scores_NK, dtype=np.float64), np.asarray(truth_NK)
    if scores.ndim != 2 or scores.shape != truth.shape or not scores.size:
        raise UserError(
            f"scores and truth: wrong shapes (got {list(scores.shape)} and {list(truth.shape)}); expected [N, K] twice"
        )
    if not np.isin(truth, (0, 1)).all():
        raise UserError("truth: has values other than 0 and 1; expected whether each of N images has each of K labels")
    if not np.isfinite(scores).all():
        raise UserError("scores: some are NaN or infinite")
    return scores, truth.astype(bool)


def average_precision(scores_NK: ArrayLike, truth_NK: ArrayLike) -> NDArray[np.float64]:
    """Return the average precision of each label, [K] in [0, 1]; NaN where no image has the label.

    The sum over thresholds of the gain in recall times precision, without interpolation, as in scikit-learn. Images of
    equal scores pass a threshold together, so that their order does not count.

    Args:
        scores_NK: of N images and K labels; any monotonic scale.
        truth_NK: whether each image has each label.

    Raises:
        UserError: the shapes differ, a score is not finite, or the truth is not 0 or 1.

    Example:
        >>> average_precision([[0.9], [0.8], [0.1]], [[1], [0], [1]]).round(3).tolist()
        [0.833]
    """
    scores, truth = _checked(scores_NK, truth_NK)
    order_NK = np.argsort(-scores, axis=0, kind="stable")
    scores, truth = np.take_along_axis(scores, order_NK, axis=0), np.take_along_axis(truth, order_NK, axis=0)
    ranks_N1 = np.arange(1, len(scores) + 1)[:, None]
    is_last_NK = np.ones(scores.shape, dtype=bool)
    is_last_NK[:-1] = scores[:-1] != scores[1:]
    # The last rank of each run of equal scores, taken backwards: precision is that of the whole run.
    ends_NK = np.minimum.accumulate(np.where(is_last_NK, ranks_N1, len(scores))[::-1], axis=0)[::-1]
    hits_NK = np.take_along_axis(truth.cumsum(axis=0), ends_NK - 1, axis=0)
    support_K = truth.sum(axis=0)
    sums_K = (truth * hits_NK / ends_NK).sum(axis=0)
    return np.divide(sums_K, support_K, out=np.full(len(support_K), np.nan), where=support_K > 0)


def mean_average_precision(scores_NK: ArrayLike, truth_NK: ArrayLike) -> float:
    """Return mAP in [0, 1]: the mean over the labels that some image has; NaN where no image has any.

    Example:
        >>> round(mean_average_precision([[0.9, 0.1], [0.8, 0.7], [0.1, 0.6]], [[1, 0], [0, 1], [1, 0]]), 3)
        0.917
    """
    precision_K = average_precision(scores_NK, truth_NK)
    known_K = ~np.isnan(precision_K)
    return float(precision_K[known_K].mean()) if known_K.any() else float("nan")


def count_labels(predicted_NK: ArrayLike, truth_NK: ArrayLike) -> ClassCounts:
    """Count right, predicted and true images of each label.

    `f1_K` of the result has F1 by label, `macro_f1("all")` its mean over all labels as scikit-learn averages columns.

    Example:
        >>> count_labels([[1, 1], [0, 1]], [[1, 0], [1, 1]]).f1_K.round(3).tolist()
        [0.667, 0.667]
    """
    predicted, truth = _checked(predicted_NK, truth_NK)
    positive = predicted.astype(bool)
    return ClassCounts((positive & truth).sum(axis=0), positive.sum(axis=0), truth.sum(axis=0))


def micro_f1(counts: ClassCounts) -> float:
    """Return F1 of all decisions about an image and a label together; NaN where nothing is true or predicted.

    Example:
        >>> round(micro_f1(count_labels([[1, 1], [0, 1]], [[1, 0], [1, 1]])), 3)
        0.667
    """
    total = int(counts.predicted_K.sum() + counts.support_K.sum())
    return 2 * int(counts.correct_K.sum()) / total if total else float("nan")


def best_thresholds(probabilities_NK: ArrayLike, truth_NK: ArrayLike, *, default: float = 0.5) -> NDArray[np.float64]:
    """Return the threshold of each label with the highest F1, [K]; a probability from it on counts as the label.

    It lies midway between two neighboring probabilities, or half way to 0 below the lowest; of equal F1 the one next to
    `default` is taken. A label that no image has keeps the default.

    Args:
        probabilities_NK: of images that were not trained on.
        truth_NK: whether each image has each label.

    Example:
        >>> best_thresholds([[0.9], [0.4], [0.1]], [[1], [1], [0]]).tolist()
        [0.25]
    """
    probabilities, truth = _checked(probabilities_NK, truth_NK)
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise UserError("probabilities: out of range; expected numbers in [0, 1]")
    thresholds_K = np.full(probabilities.shape[1], default)
    for label in np.flatnonzero(truth.any(axis=0)).tolist():
        levels_L, level_of_N = np.unique(probabilities[:, label], return_inverse=True)
        hits_L = np.bincount(level_of_N, weights=truth[:, label], minlength=len(levels_L))
        counts_L = np.bincount(level_of_N, minlength=len(levels_L))
        # From the highest level down: what a threshold below that level lets pass.
        passed_L, right_L = counts_L[::-1].cumsum()[::-1], hits_L[::-1].cumsum()[::-1]
        f1_L = 2 * right_L / (passed_L + truth[:, label].sum())
        cuts_L = np.concatenate([levels_L[:1] / 2, (levels_L[:-1] + levels_L[1:]) / 2])
        best_L = np.flatnonzero(f1_L >= f1_L.max() - 1e-12)
        thresholds_K[label] = cuts_L[best_L[np.abs(cuts_L[best_L] - default).argmin()]]
    return thresholds_K
