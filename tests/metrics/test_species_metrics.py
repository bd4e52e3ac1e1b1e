"""Metrics of species models: oracles, properties and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_recall_fscore_support

from foveate.core.errors import UserError
from foveate.metrics.classification import bhattacharyya_distance, count_classes
from foveate.metrics.confidence import (
    coverage_at,
    coverage_curve,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)
from foveate.metrics.intervals import wilson_interval
from foveate.metrics.retrieval import link_ranks
from foveate.metrics.taxonomy import ClassTree
from naming import raises_naming

LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30)


@settings(max_examples=20)
@given(LABELS)
def test_counts_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    predictions, truth = np.array(pairs).T
    counts = count_classes(predictions, truth, 5)
    values = precision_recall_fscore_support(truth, predictions, labels=range(5), zero_division=np.nan)
    for ours, theirs in zip((counts.precision_K, counts.recall_K, counts.f1_K), values, strict=False):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert counts.macro_f1("union") == pytest.approx(f1_score(truth, predictions, average="macro"))
    present = f1_score(truth, predictions, labels=np.unique(truth), average="macro")
    assert counts.macro_f1("present") == pytest.approx(present)


def test_the_tail_is_the_mean_over_its_classes() -> None:
    counts = count_classes([0, 0, 1, 2, 0], [0, 0, 1, 1, 2], 4)
    assert counts.mean_recall(np.array([False, True, True, True])) == pytest.approx(0.25)
    assert np.isnan(counts.mean_recall(np.array([False, False, False, True])))
    abstained = count_classes([-1, -1], [0, 1], 2)
    assert (abstained.predicted_K.sum(), abstained.macro_f1("present")) == (0, 0.0)


@pytest.mark.parametrize(("predictions", "truth"), [([2], [0]), ([0], [2]), ([0], [-1]), ([-2], [0])])
def test_class_numbers_out_of_range(predictions: list[int], truth: list[int]) -> None:
    with raises_naming(UserError, "0 to 1"):
        count_classes(predictions, truth, 2)


@given(LABELS, st.integers(0, 2**31))
def test_the_curve_has_every_threshold(pairs: list[tuple[int, int]], seed: int) -> None:
    predictions, truth = np.array(pairs).T
    confidences = np.random.default_rng(seed).integers(0, 4, len(truth)) / 4
    curve = coverage_curve(confidences, predictions == truth)
    assert (np.diff(curve.coverage_T) > 0).all()
    assert curve.coverage_T[-1] == 1
    for threshold, coverage, accuracy in zip(*curve, strict=True):
        point = coverage_at(confidences, predictions, truth, threshold=threshold, num_classes=5)
        assert (point.coverage, point.accuracy) == pytest.approx((coverage, accuracy))


def test_calibration_error_is_zero_where_confidence_is_accuracy() -> None:
    assert expected_calibration_error([0.5, 0.5, 1.0], [1, 0, 1], num_bins=4) == 0
    for confidences in ([1.5], [float("nan")], [], [0.5, 0.5]):
        with raises_naming(UserError, "confidences"):
            expected_calibration_error(confidences, [1])


def test_wilson_covers_as_often_as_it_says() -> None:
    for share in (0.02, 0.3, 0.9):
        hits = np.random.default_rng(5).binomial(20, share, 2000)
        intervals = {count: wilson_interval(count, 20) for count in set(hits.tolist())}
        covered = [intervals[count].low <= share <= intervals[count].high for count in hits.tolist()]
        assert 0.92 < np.mean(covered) < 0.995
    assert wilson_interval(0, 0) is None
    with raises_naming(UserError, "3 of 2"):
        wilson_interval(3, 2)


@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=6), st.integers(0, 2**31))
def test_ranks_do_not_depend_on_the_order_of_candidates(rows: list[list[int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = np.array(rows, dtype=np.float64)
    known, targets = rng.random(scores.shape) < 0.3, rng.integers(0, 5, len(scores))
    order = rng.permutation(5)
    moved = link_ranks(scores[:, order], np.argsort(order)[targets], known[:, order])
    for ours, theirs in zip(link_ranks(scores, targets, known), moved, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_filtering_leaves_out_other_true_candidates_alone() -> None:
    ranks = link_ranks([[3.0, 2.0, 2.0, 1.0]], [1], [[True, True, False, False]])
    assert (ranks.optimistic_N, ranks.pessimistic_N, ranks.num_candidates_N) == ([1], [2], [3])
    assert (ranks.mean_rank(), ranks.hits_at(1), ranks.hits_at(1, "optimistic")) == (1.5, 0.0, 1.0)
    with raises_naming(UserError, "row 0"):
        link_ranks([[np.nan, 1.0]], [1])
    with raises_naming(UserError, "[1, 2]", "[2]"):
        link_ranks([[0.0, 1.0]], [1, 0])
    for target in (-1, 2):
        with raises_naming(UserError, "row 1", f"got {target}", "0 to 1"):
            link_ranks([[0.0, 1.0]] * 2, [1, target])


def test_errors_without_a_common_ancestor_are_counted() -> None:
    # Two trees: 0 <- 1 <- {2, 3} and 4 <- 5; class 4 has no taxon.
    parents = np.array([-1, 0, 1, 1, -1, 4])
    tree = ClassTree([2, 3, 5, 1, -1], parents)
    heights = tree.lca_heights_of_errors([1, 0, 2, 4, 0, -1], [0, 3, 0, 0, 0, 0])
    assert (heights.num_errors, heights.num_excluded) == (4, 2)
    assert heights.mean == 1.0
    assert heights.official == 0.5
    assert heights.with_root == pytest.approx((1 + 1 + 2 + 2) / 4)
    assert np.isnan(tree.lca_heights_of_errors([0], [0]).mean)


def test_a_long_chain_of_taxa_needs_no_recursion() -> None:
    parents = np.arange(-1, 4999)
    assert ClassTree([4999], parents).heights_T[0] == 4999


@given(st.dictionaries(st.integers(0, 4), st.integers(0, 9)), st.dictionaries(st.integers(0, 4), st.integers(0, 9)))
def test_the_distance_of_histograms_is_symmetric_and_zero_for_equal_shares(
    first: dict[int, int], second: dict[int, int]
) -> None:
    if not sum(first.values()) or not sum(second.values()):
        with raises_naming(UserError, "histograms"):
            bhattacharyya_distance(first, second)
        return
    assert bhattacharyya_distance(first, second) == pytest.approx(bhattacharyya_distance(second, first))
    tripled = {name: 3 * count for name, count in first.items()}
    assert bhattacharyya_distance(first, tripled) == pytest.approx(0, abs=1e-7)


def test_a_fitted_temperature_undoes_the_one_that_was_drawn_with() -> None:
    rng = np.random.default_rng(0)
    logits_NK = rng.normal(scale=3, size=(4000, 5))
    shares_NK = scipy.special.softmax(logits_NK / 2, axis=1)
    truth_N = (shares_NK.cumsum(axis=1) < rng.random((4000, 1))).sum(axis=1)
    found = fit_temperature(logits_NK, truth_N)
    assert found == pytest.approx(2, rel=0.1)
    # No temperature beside it is likelier.
    losses = [
        negative_log_likelihood(scipy.special.softmax(logits_NK / T, axis=1), truth_N)
        for T in (found, 0.98 * found, 1.02 * found)
    ]
    assert min(losses) == losses[0]


@pytest.mark.parametrize("count", [5, 100])
def test_nothing_is_fitted_to_few_samples_or_without_a_mistake(count: int) -> None:
    truth_N = np.arange(count) % 3
    assert fit_temperature(4 * np.eye(3)[truth_N], truth_N) is None
    if count == 5:
        assert fit_temperature(4 * np.eye(3)[truth_N], truth_N[::-1]) is None
