"""Retrieval recall: ties, several right candidates, chunks, and agreement with torchmetrics."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.metrics.retrieval import (
    normalize,
    positives_by_label,
    rank_positives,
    rank_positives_from_embeddings,
    recall_at_k,
    recall_from_embeddings,
    within_group_accuracy,
)
from naming import raises_naming


@st.composite
def tied_problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Some rows of at most six candidates with few distinct scores and at least one right candidate each."""
    rows, candidates = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    scores = draw(st.lists(st.integers(0, 2), min_size=rows * candidates, max_size=rows * candidates))
    mask = draw(st.lists(st.booleans(), min_size=rows * candidates, max_size=rows * candidates))
    right = np.array(mask).reshape(rows, candidates)
    right[np.arange(rows), draw(st.integers(0, candidates - 1))] = True
    return np.array(scores, dtype=float).reshape(rows, candidates), right, draw(st.integers(1, 7))


def recall_over_all_orders(scores: np.ndarray, right: np.ndarray, k: int) -> float:
    """The share of all orders of the candidates in which a stable sort puts a right one among the first k."""
    hits = [
        bool(right[np.array(order)[np.argsort(-scores[list(order)], kind="stable")][:k]].any())
        for order in itertools.permutations(range(len(scores)))
    ]
    return float(np.mean(hits))


@given(tied_problems())
def test_average_is_the_mean_over_all_tie_orders(problem: tuple[np.ndarray, np.ndarray, int]) -> None:
    scores, right, k = problem
    expected = [recall_over_all_orders(row, good, k) for row, good in zip(scores, right, strict=True)]
    value, per_sample = recall_at_k(scores, right, k=k)
    np.testing.assert_allclose(per_sample, expected, atol=1e-12)
    assert value == pytest.approx(np.mean(expected))
    optimistic = recall_at_k(scores, right, k=k, ties="optimistic")[1]
    assert (optimistic >= per_sample - 1e-12).all()
    assert set(optimistic.tolist()) <= {0.0, 1.0}


@given(tied_problems())
def test_all_ways_to_name_the_right_candidates_agree(problem: tuple[np.ndarray, np.ndarray, int]) -> None:
    scores, right, k = problem
    lists = [np.flatnonzero(row) for row in right]
    twice = [[*row.tolist(), int(row[0])] for row in lists]
    expected = recall_at_k(scores, right, k=k)[1]
    np.testing.assert_array_equal(recall_at_k(scores, lists, k=k)[1], expected)
    np.testing.assert_array_equal(recall_at_k(scores, twice, k=k)[1], expected)
    np.testing.assert_array_equal(recall_at_k(scores, right.tolist(), k=k)[1], expected)


def test_nested_lists_of_truth_values_are_a_mask_and_integers_are_not() -> None:
    sim = [[0.1, 0.9], [0.9, 0.1]]
    assert recall_at_k(sim, [[True, False], [False, True]], k=1)[0] == 0
    assert recall_at_k(sim, [[1, 0], [0, 1]], k=1)[0] == 1  # both columns of each row


def test_the_rule_for_one_right_candidate() -> None:
    sim = np.array([[0.5, 0.5, 0.5, 0.9]])
    for k, expected in ((1, 0), (2, 1 / 3), (3, 2 / 3), (4, 1)):
        assert recall_at_k(sim, [0], k=k)[0] == pytest.approx(expected)
    assert recall_at_k(sim, [0], k=2, ties="optimistic")[0] == 1


@pytest.mark.parametrize("k", [1, 3, 10])
def test_agrees_with_torchmetrics_without_ties(k: int) -> None:
    from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_recall

    rng = np.random.default_rng(k)
    sim = 0.01 + rng.random((30, 25))  # torchmetrics never counts a score that is not positive as retrieved
    one = rng.integers(0, 25, 30)
    several = rng.random((30, 25)) < 0.15
    several[np.arange(30), one] = True
    single, hit = recall_at_k(sim, one, k=k)[1], recall_at_k(sim, several, k=k)[1]
    for row in range(30):
        scores = torch.tensor(sim[row])
        only = torch.zeros(25, dtype=torch.bool)
        only[one[row]] = True
        assert single[row] == retrieval_recall(scores, only, top_k=k).item()
        assert hit[row] == retrieval_hit_rate(scores, torch.tensor(several[row]), top_k=k).item()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows_per_chunk", [1, 7, 1000])
def test_chunks_change_nothing_and_equal_texts_tie(dtype: type, rows_per_chunk: int) -> None:
    rng = np.random.default_rng(3)
    phrases = rng.integers(0, 40, 120)
    texts = rng.normal(size=(40, 24)).astype(dtype)[phrases] * 3
    regions = (texts + rng.normal(size=texts.shape) * 4).astype(dtype)
    labels = phrases.tolist()
    for right in (None, positives_by_label(labels, labels)):
        ranks = rank_positives_from_embeddings(regions, texts, right, rows_per_chunk=rows_per_chunk)
        same = phrases[:, None] == phrases[None, :]
        np.testing.assert_array_equal(ranks.tied_N, same.sum(1))
        sim = normalize(regions) @ normalize(texts).T
        first = np.unique(phrases, return_index=True)[1]
        exact = sim[:, first][:, np.searchsorted(np.unique(phrases), phrases)]
        whole = rank_positives(exact, right)
        for mine, theirs in zip(ranks, whole, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    value = recall_from_embeddings(regions, texts, k=5, rows_per_chunk=rows_per_chunk)[0]
    assert value == pytest.approx(recall_at_k(exact, k=5)[0])


@pytest.mark.parametrize("width", [8, 24, 37, 192, 384, 511])
def test_equal_candidates_tie_whatever_the_matrix_product_rounds(width: int) -> None:
    """A plain product of these shapes often gives equal columns last bits that differ."""
    rng = np.random.default_rng(width)
    for copies in (5, 9, 17, 33, 63, 121):
        candidates = np.repeat(rng.normal(size=(1, width)), copies, axis=0)
        for rows in (1, 2, 3, 7):
            queries = rng.normal(size=(rows, width))
            ranks = rank_positives_from_embeddings(queries, candidates, [copies - 1] * rows)
            assert ranks.tied_N.tolist() == [copies] * rows
            assert ranks.better_N.tolist() == [0] * rows


def test_order_of_candidates_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    sim = rng.integers(0, 4, (20, 20)).astype(float)
    order = rng.permutation(20)
    moved = np.argsort(order)
    for k in (1, 5):
        np.testing.assert_array_equal(recall_at_k(sim, k=k)[1], recall_at_k(sim[:, order], moved, k=k)[1])


def test_a_constant_model_gets_chance_and_not_more() -> None:
    assert recall_from_embeddings(np.ones((50, 4)), np.ones((50, 4)), k=10)[0] == pytest.approx(0.2)


def test_picking_within_an_image() -> None:
    eye = np.eye(4)
    regions = eye[[0, 1, 2, 0, 3]]
    texts = eye[[0, 1, 1, 0, 0]]
    value, per_sample, chance = within_group_accuracy(texts, regions, ["a", "a", "a", "b", "b"])
    assert per_sample.tolist() == [1, 1, 0, 1, 0]
    assert value == pytest.approx(0.6)
    assert chance == pytest.approx((1 / 3 * 3 + 1 / 2 * 2) / 5)
    labels = ["cat", "dog", "dog", "cat", "cow"]
    value, per_sample, chance = within_group_accuracy(texts, regions, ["a", "a", "a", "b", "b"], labels_N=labels)
    assert per_sample.tolist() == [1, 1, 1, 1, 0]
    assert chance == pytest.approx((1 / 3 + 2 / 3 + 2 / 3 + 1 / 2 + 1 / 2) / 5)


def test_mistakes_are_named() -> None:
    sim = np.eye(3)
    with raises_naming(UserError, "1", "NaN"):
        recall_at_k(np.where(np.eye(3)[[1, 0, 2]] * [[0], [1], [0]], np.nan, sim), k=1)
    with raises_naming(UserError, "2"):
        recall_at_k(sim, [[0], [1], []], k=1)
    with raises_naming(UserError, "1", "3", "0", "2"):
        recall_at_k(sim, [0, 3, 1], k=1)
    with pytest.raises(UserError, match="say which candidates are right"):
        recall_at_k(sim[:2], k=1)
    with raises_naming(UserError, "2"):
        recall_at_k(sim, [0, 1], k=1)
    with pytest.raises(UserError, match="mask: wrong shape"):
        recall_at_k(sim, np.ones((3, 2), dtype=bool), k=1)
    for positives in ([True, False, True], [[True, False, True], [0], [1]], [[True, False]] * 3):
        with pytest.raises(UserError, match="mask: wrong shape"):
            recall_at_k(sim, positives, k=1)
    with raises_naming(UserError, "average"):
        recall_at_k(sim, k=1, ties="avrage")
    with raises_naming(UserError, "1"):
        recall_at_k(sim, k=0)
    with raises_naming(UserError, "0", "3"):
        recall_at_k(np.zeros((0, 3)), [], k=1)
    with raises_naming(UserError, "1"):
        recall_from_embeddings(np.array([[1.0, 0], [0, 0]]), np.eye(2), k=1)
    with raises_naming(UserError, "0"):
        recall_from_embeddings(np.eye(2), np.array([[np.nan, 0], [0, 1]]), k=1)
    with pytest.raises(UserError, match="same E"):
        recall_from_embeddings(np.eye(2), np.eye(3), k=1)
