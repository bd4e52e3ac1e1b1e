"""Classification by the nearest class name; accuracy, precision and F1 by class and averaged over classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError, choose
from foveate.metrics.retrieval import normalize

MacroF1 = Literal["present", "union", "all"]
MACRO_F1: tuple[MacroF1, ...] = get_args(MacroF1)


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


class ClassCounts(NamedTuple):
    """Samples of each class 0..K-1: predicted right, predicted at all, and occurring in the truth."""

    correct_K: NDArray[np.int64]
    predicted_K: NDArray[np.int64]
    support_K: NDArray[np.int64]

    @property
    def precision_K(self) -> NDArray[np.float64]:
        """Share of a class's predictions that are right; NaN where it is never predicted."""
        return _divide(self.correct_K, self.predicted_K)

    @property
    def recall_K(self) -> NDArray[np.float64]:
        """Share of a class's samples that are predicted right; NaN where it does not occur."""
        return _divide(self.correct_K, self.support_K)

    @property
    def f1_K(self) -> NDArray[np.float64]:
        """Harmonic mean of precision and recall; NaN where a class neither occurs nor is predicted."""
        return _divide(2 * self.correct_K, self.predicted_K + self.support_K)

    def macro_f1(self, definition: MacroF1) -> float:
        """Return F1 averaged over classes; which classes changes the number a lot, so name the definition.

        Args:
            definition: "present" = those in the truth (WILDS); "union" = in truth or predictions (scikit-learn's
                default); "all" = every class of the model, 0 for those in neither.

        Source: p-lambda/wilds, wilds/common/metrics/all_metrics.py; scikit-learn's f1_score.
        """
        choose(definition, MACRO_F1, "definition of macro-F1")
        # Papers mean different ones by one name: absent classes count 0 here, and are left out below.
        if definition == "all":
            return float(np.nan_to_num(self.f1_K).mean())
        present_K = self.support_K > 0
        return float(self.f1_K[present_K if definition == "present" else present_K | (self.predicted_K > 0)].mean())

    def mean_recall(self, chosen_K: NDArray[np.bool_] | None = None) -> float:
        """Return the unweighted mean recall of classes that occur, of `chosen_K` alone if given; NaN for none.

        With `chosen_K` = classes of at most 100 training images this is the tail accuracy of iWildCam's reports.
        """
        present_K = self.support_K > 0
        recall_k = self.recall_K[present_K if chosen_K is None else present_K & chosen_K]
        return float(recall_k.mean()) if len(recall_k) else float("nan")


def count_classes(predictions_N: ArrayLike, truth_N: ArrayLike, num_classes: int) -> ClassCounts:
    """Count right, predicted and true samples of each class.

    Args:
        predictions_N: class numbers; -1 where nothing is predicted, which is wrong for every truth.
        truth_N: class numbers.

    Raises:
        UserError: the two differ in length or are empty, or a number is out of range.
    """
    predictions, truth = _aligned(predictions_N, truth_N)
    if truth.min() < 0 or predictions.min() < -1 or max(truth.max(), predictions.max()) >= num_classes:
        raise UserError(f"class numbers: out of range; expected 0 to {num_classes - 1}, or -1 for no prediction")
    counts = (truth[predictions == truth], predictions[predictions >= 0], truth)
    return ClassCounts(*(np.bincount(values, minlength=num_classes) for values in counts))


def bhattacharyya_distance(first: Mapping[Any, float], second: Mapping[Any, float]) -> float:
    """Return -ln sum sqrt(p q) of two histograms {class: count}, each normalized first; inf if they share no class.

    It tells how far the mixture of species at one hour or region is from that at another.

    Source: Bhattacharyya 1943; OSU-NLP-Group/COSMO, gen_utils/analyze_img_time.py.
    """
    totals = sum(first.values()), sum(second.values())
    if not all(totals) or min(*first.values(), *second.values()) < 0:
        raise UserError(f"histograms: expected counts of at least 0 with a sum above 0 (got sums {totals})")
    shared = [first[name] * second[name] for name in first if name in second]
    overlap = float(np.sqrt(np.array(shared, dtype=np.float64) / (totals[0] * totals[1])).sum())
    # Rounding may carry the overlap of equal histograms above 1; a distance is not negative.
    return float(max(0.0, -np.log(overlap))) if overlap else float("inf")


def _divide(numerator_K: NDArray[np.int64], denominator_K: NDArray[np.int64]) -> NDArray[np.float64]:
    quotient_K = np.full(len(numerator_K), np.nan)
    return np.divide(numerator_K, denominator_K, out=quotient_K, where=denominator_K > 0)
