"""Trust in scores: calibration error, likelihood and Brier score, and thresholds that separate two groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from foveate.core.errors import UserError
from foveate.metrics.classification import ClassCounts, count_classes

MIN_FITTED = 20  # samples from which a temperature is fitted
_TEMPERATURES = (0.25, 8.0)


class CoveragePoint(NamedTuple):
    """What remains at one threshold: samples with a confidence of at least `threshold`.

    Attributes:
        coverage: share of samples that remain.
        accuracy: of these; NaN if none remains.
        counts: by class; `support_K` counts all samples, so that recall sinks with coverage.
    """

    threshold: float
    coverage: float
    accuracy: float
    counts: ClassCounts


class CoverageCurve(NamedTuple):
    """Accuracy against coverage at every threshold that changes them, coverage rising."""

    thresholds_T: NDArray[np.float64]
    coverage_T: NDArray[np.float64]
    accuracy_T: NDArray[np.float64]


def _checked(confidences_N: ArrayLike, *others: ArrayLike) -> NDArray[np.float64]:
    confidences = np.asarray(confidences_N, dtype=np.float64)
    if confidences.ndim != 1 or not len(confidences) or any(len(np.asarray(o)) != len(confidences) for o in others):
        raise UserError("confidences: expected one for each prediction and truth, and at least one")
    # NaN fails both comparisons and is refused as well.
    if not ((confidences >= 0) & (confidences <= 1)).all():
        raise UserError("confidences: out of range; expected numbers in [0, 1]")
    return confidences


def expected_calibration_error(confidences_N: ArrayLike, correct_N: ArrayLike, *, num_bins: int = 15) -> float:
    """Return ECE in [0, 1]: the mean distance of confidence and accuracy over bins, weighted by their samples.

    Args:
        confidences_N: probability of the predicted class.
        correct_N: whether it is right.
        num_bins: of equal width; the first is closed, the others are (low, high].

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.

    Example:
        >>> round(expected_calibration_error([0.9, 0.9, 0.6], [True, True, False]), 3)
        0.267
    """
    confidences = _checked(confidences_N, correct_N)
    if num_bins < 1:
        raise UserError(f"num_bins: out of range (got {num_bins}); expected 1 or more")
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    # side="left" closes bins above; the clip puts a confidence of 0 into the first.
    bin_N = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, num_bins - 1)
    gap_N = confidences - np.asarray(correct_N, dtype=np.float64)
    # n_b |conf - acc| is the absolute sum of the gaps in a bin: no bin is divided by its size, empty ones count 0.
    return float(np.abs(np.bincount(bin_N, weights=gap_N, minlength=num_bins)).sum() / len(confidences))


def negative_log_likelihood(probabilities_NK: ArrayLike, truth_N: ArrayLike) -> float:
    """Return the mean of -log p(true class); inf where it has probability 0."""
    probabilities, truth = np.asarray(probabilities_NK, dtype=np.float64), np.asarray(truth_N)
    with np.errstate(divide="ignore"):
        return float(-np.log(probabilities[np.arange(len(truth)), truth]).mean())


def fit_temperature(logits_NK: ArrayLike, truth_N: ArrayLike) -> float | None:
    """Return the temperature in [0.25, 8] by which divided logits have the highest likelihood, of four digits.

    None where every sample is right or there are fewer than `MIN_FITTED`: nothing then bounds how sure a model may be.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2.

    Example:
        >>> logits, truth = np.tile([[4.0, 0.0], [0.0, 4.0]], (25, 1)), np.tile([0, 1], 25)
        >>> truth[:10] = 1 - truth[:10]
        >>> fit_temperature(logits, truth)
        2.8854
    """
    logits, truth = np.asarray(logits_NK, dtype=np.float64), np.asarray(truth_N)
    if len(truth) < MIN_FITTED or (logits.argmax(axis=1) == truth).all():
        return None

    def loss(log_temperature: float) -> float:
        scaled_NK = logits / np.exp(log_temperature)
        return float((logsumexp(scaled_NK, axis=1) - scaled_NK[np.arange(len(truth)), truth]).mean())

    # The loss has one minimum: it is convex in 1 / T.
    found = minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded", options={"xatol": 1e-7})
    return round(float(np.exp(found.x)), 4)


def brier_score(probabilities_NK: ArrayLike, truth_N: ArrayLike) -> float:
    """Return the mean squared distance of the probabilities to the one-hot truth, in [0, 2]."""
    probabilities, truth = np.asarray(probabilities_NK, dtype=np.float64), np.asarray(truth_N)
    # |p - e|^2 = |p|^2 - 2 p_true + 1 needs no one-hot table.
    true_N = probabilities[np.arange(len(truth)), truth]
    return float((np.square(probabilities).sum(1) - 2 * true_N + 1).mean())


def coverage_at(
    confidences_N: ArrayLike, predictions_N: ArrayLike, truth_N: ArrayLike, *, threshold: float, num_classes: int
) -> CoveragePoint:
    """Return coverage, accuracy and counts by class of the samples whose confidence is at least `threshold`."""
    confidences = _checked(confidences_N, predictions_N, truth_N)
    remains_N = confidences >= threshold
    predictions, truth = np.where(remains_N, predictions_N, -1), np.asarray(truth_N)
    correct = int(((predictions == truth) & remains_N).sum())
    accuracy = correct / int(remains_N.sum()) if remains_N.any() else float("nan")
    return CoveragePoint(threshold, float(remains_N.mean()), accuracy, count_classes(predictions, truth, num_classes))


def coverage_curve(confidences_N: ArrayLike, correct_N: ArrayLike) -> CoverageCurve:
    """Return accuracy against coverage at all distinct confidences, the highest threshold first."""
    confidences = _checked(confidences_N, correct_N)
    order = np.argsort(-confidences, kind="stable")
    correct_N = np.cumsum(np.asarray(correct_N, dtype=np.float64)[order])
    # Equal confidences pass a threshold together, so that only the last of them is a point of the curve.
    ends = np.flatnonzero(np.append(np.diff(confidences[order]) != 0, True))
    return CoverageCurve(confidences[order][ends], (ends + 1) / len(confidences), correct_N[ends] / (ends + 1))


# How well a score separates what is there from what is not, and the threshold between the two.


@dataclass(frozen=True, slots=True)
class Separation:
    """A threshold on scores and how well it separates.

    Attributes:
        threshold: a score from it on counts as present.
        auc: probability that a present item scores above an absent one, ties counted half.
        hit_rate: share of present items from the threshold on. false_alarm_rate: of absent ones.
    """

    threshold: float
    auc: float
    hit_rate: float
    false_alarm_rate: float


def separate(present_P: ArrayLike, absent_A: ArrayLike) -> Separation:
    """Find the threshold at which as large a share of present items is missed as of absent ones is let through.

    This equal error rate varies less between samples than the best sum of both rates (Youden's J), which is the peak of
    a flat curve. The threshold lies midway between two neighboring scores; of several the lowest, which rejects least.

    Args:
        present_P, absent_A: scores of present and of absent items, at least one of each, finite.

    Raises:
        UserError: there are no scores of a kind, or one is not finite.

    Source: the AUC is the statistic of Mann & Whitney 1947 divided by the number of pairs.

    Example:
        >>> separate([3.0, 4.0], [1.0, 2.0])
        Separation(threshold=2.5, auc=1.0, hit_rate=1.0, false_alarm_rate=0.0)
    """
    present, absent = (np.sort(np.asarray(scores, dtype=np.float64).ravel()) for scores in (present_P, absent_A))
    for name, scores in (("present", present), ("absent", absent)):
        if not len(scores) or not np.isfinite(scores).all():
            raise UserError(f"{name}: not a list of scores (got {len(scores)}); expected finite numbers, at least one")
    levels = np.unique(np.concatenate([present, absent]))
    # Below all scores, where nothing is rejected, and midway between neighbors.
    thresholds = np.concatenate([levels[:1], (levels[:-1] + levels[1:]) / 2])
    hits = (len(present) - np.searchsorted(present, thresholds)) / len(present)
    alarms = (len(absent) - np.searchsorted(absent, thresholds)) / len(absent)
    best = int(np.argmin(np.abs(1 - hits - alarms)))
    # The sum of both counts a tied absent score once and every lower one twice, hence the division by 2 below.
    below = np.searchsorted(absent, present, side="left") + np.searchsorted(absent, present, side="right")
    auc = float(below.mean() / 2 / len(absent))
    return Separation(float(thresholds[best]), auc, float(hits[best]), float(alarms[best]))
