"""Metrics of groups against scikit-learn on random partitions, and what they say of odd ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from foveate.core.errors import UserError
from foveate.metrics.clustering import (
    adjusted_rand_index,
    center_error,
    centroid_index,
    class_means,
    contingency,
    matched_accuracy,
    normalized_mutual_information,
    purity,
)

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(-2, 3)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_as_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    truth, found = (list(side) for side in zip(*pairs, strict=True))
    expected = oracle.normalized_mutual_info_score(truth, found)
    assert normalized_mutual_information(truth, found) == pytest.approx(expected, abs=1e-9)
    assert adjusted_rand_index(truth, found) == pytest.approx(oracle.adjusted_rand_score(truth, found), abs=1e-12)
    np.testing.assert_array_equal(contingency(truth, found), oracle.cluster.contingency_matrix(truth, found))


@settings(max_examples=30, deadline=None)
@given(PAIRS)
def test_names_of_groups_do_not_matter(pairs: list[tuple[int, int]]) -> None:
    truth, found = (np.array(side) for side in zip(*pairs, strict=True))
    renamed = np.array(["zyxwvu"[value + 2] for value in found])
    for metric in (normalized_mutual_information, adjusted_rand_index, purity, matched_accuracy):
        assert metric(truth, renamed) == pytest.approx(metric(truth, found), abs=1e-12)
        assert metric(truth, truth) == pytest.approx(1.0)


def test_centers_in_any_order() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(6, 3)) * 10
    order = rng.permutation(6)
    error = center_error(truth, truth[order])
    assert error.mean == 0
    np.testing.assert_array_equal(order[error.match], np.arange(6))
    assert centroid_index(truth, truth[order]) == 0
    assert centroid_index(truth, np.concatenate([truth[:5], truth[:1] + 0.01])) == 1


def test_class_means() -> None:
    means = class_means([[0.0, 0.0], [2.0, 2.0], [5.0, 1.0]], ["b", "b", "a"])
    assert means.tolist() == [[5.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: contingency([1, 2], [1]), "one length"),
        (lambda: contingency([], []), "empty"),
        (lambda: center_error([[0.0]], [[0.0], [1.0]]), "2 centers for 1 true ones"),
        (lambda: centroid_index([[np.nan]], [[0.0]]), "NaN"),
        (lambda: center_error([[0.0, 1.0]], [[0.0]]), "one D"),
    ],
)
def test_refusals(call, words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()
