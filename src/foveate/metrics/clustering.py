"""Match of clusters and centers with the truth: NMI, AMI, ARI, purity, matched accuracy, center error, centroid index.

Labels are integers or anything that NumPy can sort; which number a group has never matters. Conventions are those of
scikit-learn: normalized by the arithmetic mean, natural logarithms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from foveate.core.errors import UserError


def contingency(truth_N: ArrayLike, found_N: ArrayLike) -> NDArray[np.int64]:
    """Count the samples of each (true class, group), shape [classes, groups].

    Raises:
        UserError: lists of different lengths, or empty ones.
    """
    truth, predicted = _checked(truth_N, found_N)
    classes, row_N = np.unique(truth, return_inverse=True)
    groups, column_N = np.unique(predicted, return_inverse=True)
    # Both numbers in one, so that a single pass counts all pairs.
    cells = np.bincount(row_N * len(groups) + column_N, minlength=len(classes) * len(groups))
    return cells.reshape(len(classes), len(groups))


def normalized_mutual_information(truth_N: ArrayLike, found_N: ArrayLike) -> float:
    """Return NMI: mutual information over the arithmetic mean of both entropies, in [0, 1] (scikit-learn's).

    Two partitions of a single group each agree fully (1); one single group against several says nothing (0).

    Example:
        >>> normalized_mutual_information(["a", "a", "b", "b"], [1, 1, 0, 0])
        1.0
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(*_checked(truth_N, found_N)))


def adjusted_mutual_information(truth_N: ArrayLike, found_N: ArrayLike) -> float:
    """Return AMI: NMI corrected for chance, 0 on average for random groups (scikit-learn's)."""
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(*_checked(truth_N, found_N)))


def adjusted_rand_index(truth_N: ArrayLike, found_N: ArrayLike) -> float:
    """Return ARI: agreement on pairs, corrected for chance; 1 = equal, 0 = chance (scikit-learn's).

    Example:
        >>> adjusted_rand_index(["a", "a", "b", "b"], [1, 1, 0, 0])
        1.0
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(*_checked(truth_N, found_N)))


def _checked(truth_N: ArrayLike, found_N: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Convert labels to arrays of one length.

    Raises:
        UserError: lists of different lengths, or empty ones.
    """
    truth, predicted = np.asarray(truth_N), np.asarray(found_N)
    if truth.ndim != 1 or truth.shape != predicted.shape:
        raise UserError(
            f"labels: expected two lists of one length (got shapes {list(truth.shape)} and {list(predicted.shape)})"
        )
    if len(truth) == 0:
        raise UserError("labels are empty")
    return truth, predicted


def purity(truth_N: ArrayLike, found_N: ArrayLike) -> float:
    """Return the share of samples that belong to the most frequent class of their group."""
    cells = contingency(truth_N, found_N)
    return float(cells.max(0).sum() / cells.sum())


def matched_accuracy(truth_N: ArrayLike, found_N: ArrayLike) -> float:
    """Return the accuracy under the best one-to-one assignment of groups to classes (Hungarian algorithm)."""
    cells = contingency(truth_N, found_N)
    # With unequal numbers some classes or groups stay without a partner, and their samples count as wrong.
    rows, columns = linear_sum_assignment(cells, maximize=True)
    return float(cells[rows, columns].sum() / cells.sum())


def _centers(truth_KD: ArrayLike, found_KD: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    truth, predicted = np.asarray(truth_KD, dtype=np.float64), np.asarray(found_KD, dtype=np.float64)
    if (
        truth.ndim != 2
        or predicted.ndim != 2
        or truth.shape[1] != predicted.shape[1]
        or not (len(truth) and len(predicted))
    ):
        raise UserError(
            f"centers: wrong shapes (got {list(truth.shape)} and {list(predicted.shape)}); expected [K, D] with one D"
        )
    if not (np.isfinite(truth).all() and np.isfinite(predicted).all()):
        raise UserError("centers: some values are NaN or infinite")
    return truth, predicted


def _distances(left_KD: NDArray[np.float64], right_LD: NDArray[np.float64]) -> NDArray[np.float64]:
    # Not |a|^2 - 2ab + |b|^2, which loses the digits of close centers to cancellation.
    return np.sqrt(((left_KD[:, None] - right_LD[None]) ** 2).sum(-1))


@dataclass(frozen=True)
class CenterError:
    """Distances between true centers and the predicted ones that they are matched with.

    Attributes:
        mean, max: Euclidean, under the one-to-one matching whose distances sum to the least. Not the sum.
        match: index of the predicted center of each true one.
    """

    mean: float
    max: float
    match: NDArray[np.int64]


def center_error(truth_KD: ArrayLike, found_KD: ArrayLike) -> CenterError:
    """Return the `CenterError` of as many predicted centers as true ones.

    Raises:
        UserError: another number or width, NaN.
    """
    truth, predicted = _centers(truth_KD, found_KD)
    if len(truth) != len(predicted):
        raise UserError(f"{len(predicted)} centers for {len(truth)} true ones; expected as many")
    distance_KK = _distances(truth, predicted)
    rows, columns = linear_sum_assignment(distance_KK)
    matched = distance_KK[rows, columns]
    return CenterError(float(matched.mean()), float(matched.max()), columns.astype(np.int64))


def unmatched(truth_KD: ArrayLike, found_LD: ArrayLike) -> int:
    """Count the true centers that are the nearest one of no predicted center."""
    truth, predicted = _centers(truth_KD, found_LD)
    # An orphan, in the terms of the paper.
    return len(truth) - len(np.unique(_distances(predicted, truth).argmin(1)))


def centroid_index(truth_KD: ArrayLike, found_LD: ArrayLike) -> int:
    """Return CI, the larger of the numbers of unmatched centers in both directions; 0 = the right structure.

    Source: Franti, Rezaei, Zhao, "Centroid index: cluster level similarity measure", Pattern Recognition 47 (2014).
    """
    return max(unmatched(truth_KD, found_LD), unmatched(found_LD, truth_KD))


def class_means(points_ND: ArrayLike, labels_N: ArrayLike) -> NDArray[np.float64]:
    """Return the mean of each class in the data, in the order of the labels: the true centers of these data."""
    points = np.asarray(points_ND, dtype=np.float64)
    classes, numbers_N = np.unique(np.asarray(labels_N), return_inverse=True)
    # bincount by column: no [N, K] matrix of memberships.
    sums = np.stack([np.bincount(numbers_N, weights=column, minlength=len(classes)) for column in points.T], axis=1)
    return sums / np.bincount(numbers_N)[:, None]
