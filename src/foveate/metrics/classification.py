"""Classification by the nearest class name, and accuracy averaged over classes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError
from foveate.metrics.retrieval import normalize


class ClassAccuracies(NamedTuple):
    """For each class that occurs in the truth, rising: its value, the share predicted right, the count."""

    classes_C: NDArray[Any]
    accuracy_C: NDArray[np.float64]
    count_C: NDArray[np.int64]


def nearest_class(embeddings_NE: ArrayLike, class_embeddings_CE: ArrayLike) -> NDArray[np.int64]:
    """Return the class of largest cosine similarity for each embedding, shape [N], in 0..C-1.

    Raises:
        UserError: widths differ, there is no class, or an embedding is zero or not finite (its row is named).
    """
    embeddings, classes = normalize(embeddings_NE), normalize(class_embeddings_CE, what="class")
    if embeddings.shape[1] != classes.shape[1] or len(classes) == 0:
        raise UserError(
            f"embeddings and classes: wrong shapes (got {list(embeddings.shape)} and {list(classes.shape)}); expected "
            "[N, E] and [C, E] with the same E and at least one class"
        )
    return (embeddings @ classes.T).argmax(1).astype(np.int64)


def _aligned(predictions_N: ArrayLike, truth_N: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    predictions, truth = np.asarray(predictions_N), np.asarray(truth_N)
    if predictions.ndim != 1 or predictions.shape != truth.shape or len(truth) == 0:
        raise UserError(
            f"predictions and truth: wrong shapes (got {list(predictions.shape)} and {list(truth.shape)}); expected "
            "two lists of the same length with at least one entry"
        )
    return predictions, truth


def accuracy(predictions_N: ArrayLike, truth_N: ArrayLike) -> float:
    """Return the share of samples predicted right, in [0, 1]."""
    predictions, truth = _aligned(predictions_N, truth_N)
    return float((predictions == truth).mean())


def class_accuracies(predictions_N: ArrayLike, truth_N: ArrayLike) -> ClassAccuracies:
    """Return the accuracy of each class that occurs in the truth.

    Args:
        predictions_N, truth_N: class numbers or names.

    Raises:
        UserError: the two differ in length or are empty.
    """
    predictions, truth = _aligned(predictions_N, truth_N)
    classes_C, class_of_N, count_C = np.unique(truth, return_inverse=True, return_counts=True)
    # One pass for all classes.
    right_C = np.bincount(class_of_N, weights=predictions == truth, minlength=len(classes_C))
    return ClassAccuracies(classes_C, right_C / count_C, count_C.astype(np.int64))


def mean_class_accuracy(predictions_N: ArrayLike, truth_N: ArrayLike) -> float:
    """Return mAcc in [0, 1]: the mean of the accuracies of the classes that occur in the truth.

    >>> round(mean_class_accuracy([0, 0, 1, 2], [0, 0, 0, 2]), 4)
    0.8333
    """
    return float(class_accuracies(predictions_N, truth_N).accuracy_C.mean())
