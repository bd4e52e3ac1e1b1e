"""Metrics of maps: against scikit-learn and SciPy, invariants, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from sklearn.manifold import trustworthiness as sklearn_trustworthiness
from sklearn.neighbors import KNeighborsClassifier

from foveate.core.errors import UserError
from foveate.metrics import embedding, neighbors
from foveate.metrics.embedding import reliability, shared_neighbors
from foveate.metrics.neighbors import nearest

RANDOM = np.random.default_rng(0)
POINTS = RANDOM.normal(size=(90, 6))
MAP = POINTS[:, :2] + 0.3 * RANDOM.normal(size=(90, 2))
LABELS = np.array(["ash", "birch", "cedar"])[(POINTS[:, 0] > 0).astype(int) + (POINTS[:, 1] > 0)]


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(5, 40), k=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_trustworthiness_is_that_of_scikit_learn(rows: int, k: int, seed: int) -> None:
    k = min(k, (rows - 1) // 2)
    random = np.random.default_rng(seed)
    points, drawn = random.normal(size=(rows, 5)), random.normal(size=(rows, 2))
    expected = sklearn_trustworthiness(points, drawn, n_neighbors=k)
    assert embedding.trustworthiness(points, drawn, k=k) == pytest.approx(expected, abs=1e-10)
    assert embedding.continuity(drawn, points, k=k) == pytest.approx(expected, abs=1e-10)


def test_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (
        embedding.trustworthiness(POINTS, MAP, k=5),
        embedding.distance_correlation(POINTS, MAP),
        nearest(POINTS, 4).tolist(),
    )
    monkeypatch.setattr(neighbors, "_DISTANCES_PER_BLOCK", 700)
    assert whole == (
        embedding.trustworthiness(POINTS, MAP, k=5),
        pytest.approx(embedding.distance_correlation(POINTS, MAP), abs=1e-12),
        nearest(POINTS, 4).tolist(),
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(3, 30), k=st.integers(1, 5))
def test_nearest_is_brute_force_with_ties_to_the_lower_index(seed: int, rows: int, k: int) -> None:
    k = min(k, rows - 1)
    points = np.random.default_rng(seed).integers(0, 3, size=(rows, 2)).astype(float)
    squared = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    expected = [sorted((d, j) for j, d in enumerate(row) if j != i)[:k] for i, row in enumerate(squared)]
    # Centering these points is not exact: only sets of equal distances may differ in order by rounding.
    found = nearest(points, k)
    for i, row in enumerate(expected):
        assert [squared[i, j] for j in found[i]] == [d for d, _ in row]
        assert i not in found[i]


def test_exact_ties_go_to_the_lower_index() -> None:
    square = np.array([[1.0, 1], [-1, 1], [1, -1], [-1, -1]])
    assert nearest(square, 2).tolist() == [[1, 2], [0, 3], [0, 3], [1, 2]]
    assert nearest(np.zeros((4, 2)), 2).tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]


def test_a_perfect_map() -> None:
    assert embedding.trustworthiness(POINTS, POINTS @ np.diag([2.0] * 6), k=5) == 1
    assert embedding.distance_correlation(POINTS, 3 * POINTS + 1) == pytest.approx(1, abs=1e-12)
    found = reliability(POINTS, 3 * POINTS, np.random.default_rng(0), iterations=5)
    assert (found.steadiness, found.cohesiveness) == (1, 1)


def test_distance_correlation_is_that_of_scipy() -> None:
    expected = np.corrcoef(pdist(POINTS), pdist(MAP))[0, 1]
    assert embedding.distance_correlation(POINTS, MAP) == pytest.approx(expected, abs=1e-12)
    assert embedding.distance_correlation(POINTS, np.ones((90, 2))) == 0


def test_knn_accuracy_of_test_points_is_that_of_scikit_learn() -> None:
    oracle = KNeighborsClassifier(7).fit(MAP[:60], LABELS[:60])
    found = embedding.knn_accuracy(MAP[:60], LABELS[:60], k=7, test_map_Md=MAP[60:], test_labels_M=LABELS[60:])
    assert found == oracle.score(MAP[60:], LABELS[60:])


def test_leave_one_out_is_that_of_scikit_learn() -> None:
    right = [
        KNeighborsClassifier(5).fit(np.delete(MAP, i, 0), np.delete(LABELS, i)).predict(MAP[i : i + 1])[0] == LABELS[i]
        for i in range(len(MAP))
    ]
    assert embedding.knn_accuracy(MAP, LABELS, k=5) == pytest.approx(np.mean(right))


def test_foreign_share_counts_other_owners() -> None:
    line = np.arange(8.0)[:, None]
    assert embedding.foreign_share(line, [0, 0, 0, 0, 1, 1, 1, 1], k=1) == pytest.approx(1 / 8)
    assert embedding.foreign_share(line, ["a", "b"] * 4, k=2) == pytest.approx((6 * 1.0 + 2 * 0.5) / 8)


def test_shared_neighbors_by_hand() -> None:
    line = np.array([[0.0], [1.0], [2.1], [10.0]])
    found, similarity = shared_neighbors(line, 2)
    assert found.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    # Weights 3 and 2: points 0 and 1 share only point 2, second for both; 2 * 2 of 3 * 3 + 2 * 2.
    assert similarity[0, 1] == pytest.approx(4 / 13)
    assert np.diag(similarity) == pytest.approx(1)


def test_a_torn_map_is_less_cohesive_and_a_merged_one_less_steady() -> None:
    random = np.random.default_rng(1)
    centers = 20 * random.normal(size=(4, 8))
    points = np.concatenate([center + random.normal(size=(40, 8)) for center in centers])
    apart = np.concatenate([10.0 * np.array([i % 2, i // 2]) + random.normal(size=(40, 2)) for i in range(4)])
    merged = random.normal(size=(160, 2))
    good, bad = (reliability(points, one, np.random.default_rng(0), iterations=40) for one in (apart, merged))
    assert good.steadiness > bad.steadiness + 0.1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: embedding.trustworthiness(POINTS, MAP, k=45), "expected 1 to 44 with 90 points"),
        (lambda: embedding.trustworthiness(POINTS, MAP[:5], k=2), "map points: 5 for 90 points"),
        (lambda: embedding.knn_accuracy(MAP, LABELS[:3], k=2), "labels: wrong shape"),
        (lambda: embedding.knn_accuracy(MAP, LABELS, k=2, test_map_Md=MAP), "go together"),
        (lambda: embedding.neighborhood_hit(np.full((5, 2), np.nan), [0] * 5, k=2), "row 0 has NaN"),
        (lambda: embedding.distance_correlation(POINTS[:2], MAP[:2]), "at least 3 points"),
        (lambda: nearest(POINTS, 90), "expected 1 to 89"),
        (lambda: nearest(POINTS, 2, queries_MD=MAP), "queries: 2 features"),
        (lambda: nearest(["a"], 2), "not a matrix of numbers"),
        (lambda: reliability(POINTS[:5], MAP[:5], RANDOM), "expected 10 to 4,000"),
    ],
)
def test_what_cannot_be_is_refused(call: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()  # type: ignore[operator]
