"""What must hold of a clustering whatever the data: order, moves, scale, one client, K rows or an error."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s_sets import s_set, split_s_set

from foveate.core.errors import UserError
from foveate.federated.clustering.distances import FEW, distances, nearest, squared, sums, within
from foveate.federated.clustering.grouping import SEED_RULES, CentroidPool, TooFewGroupsError, group, radius_range
from foveate.federated.clustering.lloyd import lloyd, plus_plus, random_rows
from foveate.federated.clustering.local import Local, eliminate, local_kmeans, merge_small
from foveate.federated.clustering.options import method_names, resolve
from foveate.federated.estimators import FederatedKMeans
from foveate.metrics.clustering import center_error, centroid_index
from naming import raises_naming

SERVERS = [("consensus", {"restarts": 0}), ("paper_reconstruction", {})]


def fitted(parts: list[np.ndarray], clusters: int = 15, **options) -> np.ndarray:
    options = {"random_state": 3, "refine_rounds": 0} | options
    return FederatedKMeans(clusters, **options).fit(parts).cluster_centers_


def error(left: np.ndarray, right: np.ndarray) -> float:
    return center_error(left, right).max


@pytest.mark.parametrize(("name", "options"), SERVERS)
def test_moves_turns_and_scales(name: str, options: dict) -> None:
    parts = split_s_set("s1", alpha=0.3, clients=5, seed=0)
    base = fitted(parts, method=name, **options)
    angle = 0.7
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if name == "consensus":  # the other breaks ties by coordinates, which a turn changes
        assert error(fitted([part @ turn.T for part in parts], method=name, **options), base @ turn.T) < 1e-9
    assert error(fitted([part + [30.0, -7.0] for part in parts], method=name, **options), base + [30.0, -7.0]) < 1e-9
    assert error(fitted([part * 1e6 for part in parts], method=name, **options), base * 1e6) < 1e-3


@pytest.mark.parametrize("name", [name for name in method_names() if name not in ("kfed", "central")])
def test_the_order_of_answers_does_not_matter(name: str) -> None:
    """Which client answers first; a client's own random numbers belong to its number, so starts are fixed here."""
    from foveate.federated.clustering.fit import make_pool
    from foveate.federated.clustering.options import load_method
    from foveate.federated.clustering.protocol import answer_centroids, centroids_request
    from foveate.federated.rounds import stream

    plan = resolve(15, method=name)
    parts = split_s_set("s1", alpha=0.3, clients=6, seed=1)
    answers = {
        client: answer_centroids(part, centroids_request(plan, client), client) for client, part in enumerate(parts)
    }
    found = []
    for order in (range(6), (4, 1, 5, 0, 3, 2)):
        pool, radii = make_pool({client: answers[client] for client in order})
        rng = stream(0, round=0, client=-1, purpose="server")
        found.append(load_method(name).merge(pool, plan, rng, radii).centers)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12)


@pytest.mark.parametrize(("name", "options"), SERVERS)
def test_one_client_with_a_perfect_solution_gets_it_back(name: str, options: dict) -> None:
    truth = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0], [5.0, 20.0]])
    rng = np.random.default_rng(0)
    points = (truth[:, None] + rng.normal(size=(5, 40, 2)) * 0.1).reshape(-1, 2)
    means = points.reshape(5, 40, 2).mean(1)
    found = fitted([points], 5, method=name, client_init="kmeans++", n_init=5, **options)
    assert error(means, found) < 1e-12


@pytest.mark.parametrize(("name", "options"), SERVERS)
def test_doubling_every_client_changes_nothing(name: str, options: dict) -> None:
    from foveate.federated.clustering.fit import make_pool
    from foveate.federated.clustering.options import load_method
    from foveate.federated.clustering.protocol import answer_centroids, centroids_request

    plan = resolve(15, method=name, **options)
    parts = split_s_set("s1", alpha=None, clients=5, seed=2)
    once = {
        client: answer_centroids(part, centroids_request(plan, client), client) for client, part in enumerate(parts)
    }
    twice = once | {client + 5: answer for client, answer in once.items()}
    rng = np.random.default_rng(0)
    centers = [load_method(name).merge(*_args(make_pool(one), plan, rng)).centers for one in (once, twice)]
    assert error(centers[0], centers[1]) < 1e-14


def _args(merge_pooled, plan, rng):
    pool, radii = merge_pooled
    return pool, plan, rng, radii


def test_a_client_with_few_far_centroids_gets_them_back_from_a_radius_that_fits_k() -> None:
    points = np.repeat([[0.0, 0.0], [1.0, 0.0], [1e6, 0.0]], 3, axis=0)
    options = {"method": "paper_reconstruction", "radius": "k_aware", "client_init": "kmeans++", "eliminate": "none"}
    found = FederatedKMeans(3, random_state=0, **options).fit([points])
    assert sorted(found.cluster_centers_[:, 0]) == [0, 1, 1e6]
    assert found.server_report_["radius"] == 0
    assert found.server_report_["supports"] == [3, 3, 3]


def test_equal_centroids_are_one_group_of_radius_0_in_many_dimensions() -> None:
    centers = np.tile(np.random.default_rng(0).normal(size=(5, 2 * FEW)), (2, 1))
    for seeds in SEED_RULES:
        groups = group(centers, np.zeros(10), np.ones(10), seeds=seeds)
        assert groups.supports.tolist() == [2] * 5


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 20), st.integers(0, 10_000))
def test_pairs_at_exactly_a_radius_are_within_it(left: int, right: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lefts, rights = (rng.integers(-2, 3, size=(rows, width)) + 1e3 for rows in (left, right))
    radii = np.sqrt(rng.integers(0, 4 * width, size=left))
    expected = np.sqrt(squared(rights, lefts)) <= radii[:, None]
    np.testing.assert_array_equal(within(lefts, rights, radii), expected)


def test_one_cluster_is_the_mean() -> None:
    parts = [np.arange(12.0).reshape(6, 2), np.arange(4.0).reshape(2, 2) - 9]
    mean = np.concatenate(parts).mean(0)
    np.testing.assert_allclose(fitted(parts, 1, refine_rounds=1)[0], mean, rtol=1e-12)
    np.testing.assert_allclose(fitted(parts, 1, method="paper_reconstruction", radius=1e9)[0].shape, (2,))


def test_refinement_never_raises_the_sum_of_squares() -> None:
    parts = split_s_set("s3", alpha=0.1, clients=5, seed=3)
    sums_of = [
        FederatedKMeans(15, method="naive", refine_rounds=rounds, random_state=0).fit(parts).inertia_
        for rounds in range(5)
    ]
    assert all(after <= before + 1e-9 for before, after in zip(sums_of, sums_of[1:], strict=False))
    assert sums_of[-1] < sums_of[0]


@pytest.mark.parametrize("name", method_names())
def test_k_rows_or_an_error(name: str) -> None:
    parts = [np.zeros((5, 2)), np.ones((4, 2))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with raises_naming(TooFewGroupsError, "3") as caught:
            FederatedKMeans(3, method=name, random_state=0).fit(parts)
        # Without a second centroid at any client no radius parts the two: they are one group of the reconstruction.
        alone = name == "paper_reconstruction"
        assert caught.value.groups == (1 if alone else 2)
        found = FederatedKMeans(3, method=name, random_state=0, on_few_groups="return").fit(parts)
    assert sorted(found.cluster_centers_.tolist()) == ([[0.5, 0.5]] if alone else [[0, 0], [1, 1]])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 20), st.integers(0, 10_000))
def test_nearest_in_many_dimensions_is_that_of_differences(rows: int, clusters: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    centers = rng.integers(-2, 3, size=(clusters, width)).astype(float)  # many exact ties
    points = rng.integers(-2, 3, size=(rows, width)) + 1e6
    labels, best = nearest(points, centers + 1e6)
    table = squared(points, centers + 1e6)
    np.testing.assert_array_equal(labels, table.argmin(0))
    np.testing.assert_allclose(best, table.min(0), rtol=1e-9)
    np.testing.assert_allclose(
        distances(points, points + 0.5),
        0.5 * np.sqrt(width) if rows == 1 else np.sqrt(((points[:, None] - points[None] - 0.5) ** 2).sum(-1)),
        atol=1e-6,
    )
    total, weight = sums(points, labels, clusters, np.arange(1.0, rows + 1))
    for number in range(clusters):
        mine = labels == number
        np.testing.assert_allclose(total[number], (np.arange(1.0, rows + 1)[mine, None] * points[mine]).sum(0))
        assert weight[number] == np.arange(1.0, rows + 1)[mine].sum()


def test_both_ways_to_measure_agree_at_the_border_of_few_dimensions() -> None:
    rng = np.random.default_rng(0)
    for width in (FEW, FEW + 1):
        left, right = rng.normal(size=(40, width)), rng.normal(size=(30, width))
        plain = np.sqrt(((left[:, None] - right[None]) ** 2).sum(-1))
        np.testing.assert_allclose(distances(left, right), plain, rtol=1e-12)


def test_starts() -> None:
    rng = np.random.default_rng(0)
    points = np.repeat(np.arange(4.0)[:, None], 5, axis=0)
    assert len(plus_plus(points, 9, rng)) == 4
    assert len(random_rows(points, 9, rng)) == 4
    assert len(np.unique(random_rows(points, 4, rng))) == 4
    weights = np.repeat([0.0, 1.0, 1.0, 1.0], 5)
    for seed in range(20):
        assert 0.0 not in plus_plus(points, 3, np.random.default_rng(seed), weight_N=weights)


def test_spherical_lloyd_ignores_lengths() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200, 12)) + np.repeat(np.eye(12)[:4] * 6, 50, axis=0)
    lengths = rng.uniform(0.1, 10, (200, 1))
    options = {"spherical": True, "random_state": 0}
    plain = FederatedKMeans(4, **options).fit([points[::2], points[1::2]])
    scaled = FederatedKMeans(4, **options).fit([(points * lengths)[::2], (points * lengths)[1::2]])
    np.testing.assert_allclose(plain.cluster_centers_, scaled.cluster_centers_, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(plain.cluster_centers_, axis=1), 1)
    run = lloyd(points / np.linalg.norm(points, axis=1, keepdims=True), points[::50], spherical=True)
    np.testing.assert_allclose(np.linalg.norm(run.centers, axis=1), 1)


def test_small_clusters_are_merged_before_anything_is_sent() -> None:
    points = np.concatenate([np.zeros((20, 1)), np.full((3, 1), 5.0), np.full((2, 1), 6.0), np.full((15, 1), 50.0)])
    local = local_kmeans(points, 4, np.random.default_rng(0))
    assert sorted(local.counts.tolist()) == [2, 3, 15, 20]
    merged = merge_small(points, local, 4)
    assert sorted(merged.counts.tolist()) == [5, 15, 20]
    assert merge_small(points, local, 1000).counts.tolist() == [40]
    found = FederatedKMeans(3, min_count=4, random_state=0).fit([points, points + 0.1])
    assert all(report["counts"].min() >= 4 for report in found.client_reports_.values())


def test_radius_range_is_the_quantile_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(90, 3))
    pairs = distances(centers, centers)[np.triu_indices(90, k=1)]
    low, high = radius_range(centers)
    assert low == pytest.approx(max(np.quantile(pairs, 0.002), pairs.max() / 1000), rel=1e-12)
    assert high == pairs.max()
    assert radius_range(centers[:1]) == (0.0, 0.0)


def test_elimination_takes_the_center_between_two_clusters() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(50, 1)) * 0.5 + 100, rng.normal(size=(50, 1)) * 0.5 + 110
    alone = rng.normal(size=(50, 1)) * 0.5
    points = np.concatenate([alone, left, right])
    spurious = lloyd(points, np.array([[-0.3], [0.3], [105.0]]))
    assert eliminate(Local.of(points, spurious.centers, spurious.labels)).trusted.tolist() == [True, True, False]
    best = lloyd(points, np.array([[0.0], [100.0], [110.0]]))
    assert eliminate(Local.of(points, best.centers, best.labels)).trusted.all()


@pytest.mark.parametrize("clients", [1, 3])
def test_unequal_numbers_of_local_clusters_and_missing_ones(clients: int) -> None:
    points, labels, truth = s_set("s1")
    parts = [points[np.isin(labels, chosen)] for chosen in ([0, 1, 2, 3], range(3, 10), range(8, 15))]
    found = FederatedKMeans(15, local_clusters=[4, 7, 7], random_state=0).fit(parts)
    assert [len(report["centers"]) for report in found.client_reports_.values()] == [4, 7, 7]
    assert centroid_index(truth, found.cluster_centers_) == 0
    with raises_naming(UserError, "local_clusters", "2"):
        FederatedKMeans(15, local_clusters=[4, 7], random_state=0).fit(parts)


def test_pool_needs_different_centroids() -> None:
    pool = CentroidPool(np.zeros((4, 2)), np.ones(4), np.ones(4, bool), np.arange(4))
    with raises_naming(TooFewGroupsError, "1", "2"):
        pool.need(2)
