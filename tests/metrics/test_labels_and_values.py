"""Metrics of several labels and of values, against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn import metrics as oracle

from foveate.core.errors import UserError
from foveate.metrics import (
    average_precision,
    best_thresholds,
    count_labels,
    mean_absolute_error,
    mean_average_precision,
    micro_f1,
    quadratic_kappa,
    r2,
    root_mean_squared_error,
)


def draw(seed: int, images: int = 60, labels: int = 5, levels: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Scores in [0, 1] of `levels` different values, and labels that follow them with noise."""
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, levels, (images, labels)) / levels
    truth = generator.random((images, labels)) < 0.1 + 0.7 * scores
    truth[0] = True  # each label occurs
    return scores, truth


@pytest.mark.parametrize("levels", [1000, 4, 1])
def test_average_precision_is_scikit_learns(levels: int) -> None:
    for seed in range(5):
        scores, truth = draw(seed, levels=levels)
        ours = average_precision(scores, truth)
        theirs = [oracle.average_precision_score(truth[:, k], scores[:, k]) for k in range(truth.shape[1])]
        assert_allclose(ours, theirs, atol=1e-12)
        assert_allclose(mean_average_precision(scores, truth), np.mean(theirs), atol=1e-12)


def test_a_label_that_no_image_has_is_left_out_of_the_mean() -> None:
    scores, truth = draw(0)
    truth[:, 2] = False
    precision = average_precision(scores, truth)
    assert np.isnan(precision[2])
    assert_allclose(mean_average_precision(scores, truth), precision[[0, 1, 3, 4]].mean())
    assert np.isnan(mean_average_precision(scores, np.zeros_like(truth)))


def test_f1_is_scikit_learns() -> None:
    for seed in range(5):
        scores, truth = draw(seed)
        truth[:, 1] = False
        predicted = scores > 0.6
        predicted[:, 1] = False
        counts = count_labels(predicted, truth)
        assert_allclose(micro_f1(counts), oracle.f1_score(truth, predicted, average="micro", zero_division=0))
        assert_allclose(counts.macro_f1("all"), oracle.f1_score(truth, predicted, average="macro", zero_division=0))
        each = oracle.f1_score(truth, predicted, average=None, zero_division=0)
        assert_allclose(np.nan_to_num(counts.f1_K), each)
    assert np.isnan(micro_f1(count_labels(np.zeros((3, 2)), np.zeros((3, 2)))))


def test_no_other_threshold_has_a_higher_f1() -> None:
    for seed in range(5):
        probabilities, truth = draw(seed, levels=30)
        chosen = best_thresholds(probabilities, truth)
        for label in range(truth.shape[1]):
            reached = oracle.f1_score(truth[:, label], probabilities[:, label] >= chosen[label])
            others = [
                oracle.f1_score(truth[:, label], probabilities[:, label] >= cut, zero_division=0)
                for cut in np.linspace(0, 1, 400)
            ]
            assert reached >= max(others) - 1e-12


def test_thresholds_of_unknown_and_separable_labels() -> None:
    probabilities = np.array([[0.9, 0.3], [0.8, 0.2], [0.2, 0.1], [0.1, 0.9]])
    truth = np.array([[1, 0], [1, 0], [0, 0], [0, 0]])
    assert_allclose(best_thresholds(probabilities, truth), [0.5, 0.5])
    assert_allclose(best_thresholds(probabilities, np.ones_like(truth)), [0.05, 0.05])
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        best_thresholds(probabilities * 3, truth)


def test_errors_of_values_are_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(50, 20, 80)
    predicted = truth + generator.normal(0, 5, 80)
    assert_allclose(mean_absolute_error(predicted, truth), oracle.mean_absolute_error(truth, predicted))
    assert_allclose(root_mean_squared_error(predicted, truth), oracle.root_mean_squared_error(truth, predicted))
    assert_allclose(r2(predicted, truth), oracle.r2_score(truth, predicted))
    assert np.isnan(r2(predicted, np.ones(80)))


def test_kappa_of_ordered_classes_is_scikit_learns() -> None:
    for seed in range(5):
        generator = np.random.default_rng(seed)
        truth = generator.integers(0, 5, 70)
        predicted = np.clip(truth + generator.integers(-1, 2, 70), 0, 4)
        theirs = oracle.cohen_kappa_score(truth, predicted, weights="quadratic", labels=range(5))
        assert_allclose(quadratic_kappa(predicted, truth), theirs, atol=1e-12)
    assert np.isnan(quadratic_kappa([2, 2], [2, 2]))


@pytest.mark.parametrize(
    ("scores", "truth", "named"),
    [
        (np.zeros((3, 2)), np.zeros((3, 3)), "shapes"),
        (np.full((2, 2), np.nan), np.zeros((2, 2)), "NaN"),
        (np.zeros((2, 2)), np.full((2, 2), 2), "0 and 1"),
        (np.zeros(3), np.zeros(3), "shapes"),
    ],
)
def test_labels_of_other_shapes_and_values_are_refused(scores: np.ndarray, truth: np.ndarray, named: str) -> None:
    with pytest.raises(UserError, match=named):
        average_precision(scores, truth)


def test_values_that_are_not_finite_or_differ_in_number_are_refused() -> None:
    with pytest.raises(UserError, match="NaN"):
        mean_absolute_error([np.nan], [1.0])
    with pytest.raises(UserError, match="shapes"):
        r2([1.0], [1.0, 2.0])
