"""Clients that lie: false points, sums and sizes are reported or refused, and honest clients are not."""

from __future__ import annotations

import re

import numpy as np
import pytest
from lying_clients import TRUTH, changed, claiming
from s_sets import split_s_set

from foveate.federated.clustering import protocol
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.methods import resolve
from foveate.federated.estimators import FederatedKMeans
from foveate.federated.messages import Message
from foveate.federated.rounds import Client, InProcess
from foveate.metrics.clustering import centroid_index

POISON = {
    "noise": lambda part, rng: rng.uniform(0, 10, part.shape),
    "far away": lambda part, rng: part + 500,
    "scaled": lambda part, rng: part * 50,
    "reversed": lambda part, rng: -part,
    "copies of one point": lambda part, rng: np.tile(rng.uniform(-90, 90, 2), (len(part), 1)),
}


@pytest.mark.parametrize("name", POISON)
def test_three_poisoned_clients_of_ten_are_reported(name: str) -> None:
    found_all, wrong = 0, 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        parts = split_s_set("s1", alpha=None, clients=10, seed=seed)
        bad = sorted(rng.choice(10, 3, replace=False).tolist())
        for client in bad:
            parts[client] = POISON[name](parts[client], rng)
        found = FederatedKMeans(15, random_state=seed).fit(parts)
        found_all += set(bad) <= set(found.suspects_)
        wrong += len(set(found.suspects_) - set(bad))
    assert found_all == 3
    assert wrong <= 1


def test_poison_can_be_left_out() -> None:
    rng = np.random.default_rng(0)
    parts = split_s_set("s1", alpha=None, clients=10, seed=0)
    for client in (1, 4, 7):
        parts[client] = rng.uniform(-500, 500, parts[client].shape)
    assert centroid_index(TRUTH, FederatedKMeans(15, random_state=0).fit(parts).cluster_centers_) > 0
    found = FederatedKMeans(15, suspects="exclude", random_state=0).fit(parts)
    assert set(found.excluded_) == {1, 4, 7}
    assert centroid_index(TRUTH, found.cluster_centers_) == 0


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_honest_clients_are_rarely_suspected(alpha: float | None) -> None:
    """Negative control of the reports above."""
    suspected = [
        len(FederatedKMeans(15, random_state=seed).fit(split_s_set("s1", alpha=alpha, clients=10, seed=seed)).suspects_)
        for seed in range(5)
    ]
    assert sum(suspected) <= 2  # of 50


def test_a_client_that_claims_most_points_is_reported() -> None:
    parts = split_s_set("s1", alpha=None, clients=6, seed=0)
    liar = changed(counts=lambda a: a * 1e6)

    def handler(data, request: Message, client: int) -> Message:
        answer = liar(data, request, client)
        return request.answer(arrays=answer.arrays, points=int(answer.array("counts").sum()))

    handlers = protocol.HANDLERS | {protocol.CENTROIDS: handler}
    clients = [
        Client(number, part, handlers if number == 3 else protocol.HANDLERS) for number, part in enumerate(parts)
    ]
    found = cluster(InProcess(clients), resolve(15))
    assert list(found.suspects) == [3]
    assert "100% of all points" in found.suspects[3]


def false_sums(make) -> dict:
    """Handlers of a client that refines with other sums and counts."""

    def handler(data, request: Message, client: int) -> Message:
        good = protocol.answer_lloyd(data, request, client)
        sums, counts = make(good.array("sums"), good.array("counts"), request.array("centers"))
        return request.answer(arrays={"sums": sums, "counts": counts})

    return protocol.HANDLERS | {protocol.LLOYD: handler}


def outwards(sums, counts, centers):
    """Every mean moved away from the middle of all centers, as far as it stays in its own cell."""
    far = centers + 50 * (centers - centers.mean(0))
    inside = ((far[:, None] - centers) ** 2).sum(2).argmin(1) == np.arange(len(centers))
    return np.where(inside[:, None], far * counts[:, None], sums), counts


BAD = (1, 4, 7)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda sums, counts, centers: (sums * 0 + 1e12, counts * 0 + 1e6),
            "counts add up to 1.5e\\+07; .* 500 points",
        ),
        (lambda sums, counts, centers: (sums, counts + 1), "counts add up to 515; .* 500 points"),
        (lambda sums, counts, centers: (sums * 0 + 1e12, counts), "is nearer to center"),
        (lambda sums, counts, centers: (sums[::-1], counts), "is nearer to center"),
    ],
    ids=["points", "one point", "far", "mixed up"],
)
def test_false_sums_of_three_of_ten_are_refused(make, words: str) -> None:
    parts = split_s_set("s1", alpha=None, clients=10, seed=0)
    clients = [
        Client(one, part, false_sums(make) if one in BAD else protocol.HANDLERS) for one, part in enumerate(parts)
    ]
    found = cluster(InProcess(clients), resolve(15))
    assert tuple(found.excluded) == BAD
    assert all(re.search(words, reason) for reason in found.excluded.values()), found.excluded
    assert centroid_index(TRUTH, found.centers) == 0


@pytest.mark.parametrize("eliminate", ["flags", "drop"])
def test_false_sums_within_their_cells_are_reported_or_left_out(eliminate: str) -> None:
    parts = split_s_set("s1", alpha=None, clients=10, seed=0)
    good = [Client(one, part, protocol.HANDLERS) for one, part in enumerate(parts)]
    clients = [Client(one.number, one.data, false_sums(outwards)) if one.number in BAD else one for one in good]
    found = cluster(InProcess(clients), resolve(15, eliminate=eliminate))
    assert tuple(found.suspects) == BAD
    assert all("its sums are" in reason for reason in found.suspects.values())
    left_out = cluster(InProcess(clients), resolve(15, eliminate=eliminate, suspects="exclude"))
    assert tuple(left_out.excluded) == BAD
    honest = cluster(InProcess(good), resolve(15, eliminate=eliminate))
    assert np.abs(left_out.centers - honest.centers).max() < 1 < np.abs(found.centers - honest.centers).max()


def test_sums_of_unit_vectors_are_no_longer_than_their_counts() -> None:
    parts = [one - 50 for one in split_s_set("s1", alpha=None, clients=5, seed=0)]
    clients = [Client(one, part, protocol.HANDLERS) for one, part in enumerate(parts)]
    clients[2] = Client(
        2, parts[2], false_sums(lambda sums, counts, centers: (1.5 * centers * counts[:, None], counts))
    )
    found = cluster(InProcess(clients), resolve(5, spherical=True))
    assert list(found.excluded) == [2]
    assert "longer than their counts" in found.excluded[2]


def test_three_of_ten_that_claim_many_points_are_reported() -> None:
    """None of them has more than half of all points."""
    parts = split_s_set("s1", alpha=None, clients=10, seed=0)
    liar = protocol.HANDLERS | {
        protocol.CENTROIDS: lambda d, r, s: claiming(protocol.answer_centroids(d, r, s), 1e6),
    }
    clients = [Client(one, part, liar if one in BAD else protocol.HANDLERS) for one, part in enumerate(parts)]
    found = cluster(InProcess(clients), resolve(15))
    assert tuple(found.suspects) == BAD
    assert all("x the median number of points" in reason for reason in found.suspects.values())


def test_rounding_is_no_false_sum() -> None:
    """Honest clients far from zero, where means are rounded by more than their distances differ."""
    rng = np.random.default_rng(0)
    points = 1e9 + np.repeat(np.eye(12)[:4], 100, axis=0) * 1e-3 + 1e-4 * rng.normal(size=(400, 12))
    found = FederatedKMeans(4, refine_rounds=3, random_state=0).fit([points[one::5] for one in range(5)])
    assert found.excluded_ == found.suspects_ == {}
