"""Sites that lie: false points, sums and sizes are reported or refused, and honest sites are not."""

from __future__ import annotations

import re

import numpy as np
import pytest
from lying_clients import TRUTH, changed, claiming
from s_sets import clients

from foveate.federated.clustering import protocol
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.settings import resolve
from foveate.federated.estimators import FederatedKMeans
from foveate.federated.messages import Message
from foveate.federated.rounds import InProcess
from foveate.federated.sites import Site
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
        parts = clients("s1", alpha=None, sites=10, seed=seed)
        bad = sorted(rng.choice(10, 3, replace=False).tolist())
        for site in bad:
            parts[site] = POISON[name](parts[site], rng)
        found = FederatedKMeans(15, random_state=seed).fit(parts)
        found_all += set(bad) <= set(found.suspects_)
        wrong += len(set(found.suspects_) - set(bad))
    assert found_all == 3
    assert wrong <= 1


def test_poison_can_be_left_out() -> None:
    rng = np.random.default_rng(0)
    parts = clients("s1", alpha=None, sites=10, seed=0)
    for site in (1, 4, 7):
        parts[site] = rng.uniform(-500, 500, parts[site].shape)
    assert centroid_index(TRUTH, FederatedKMeans(15, random_state=0).fit(parts).cluster_centers_) > 0
    found = FederatedKMeans(15, suspects="exclude", random_state=0).fit(parts)
    assert set(found.excluded_) == {1, 4, 7}
    assert centroid_index(TRUTH, found.cluster_centers_) == 0


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_honest_clients_are_rarely_suspected(alpha: float | None) -> None:
    """Negative control of the reports above."""
    suspected = [
        len(FederatedKMeans(15, random_state=seed).fit(clients("s1", alpha=alpha, sites=10, seed=seed)).suspects_)
        for seed in range(5)
    ]
    assert sum(suspected) <= 2  # of 50


def test_a_client_that_claims_most_points_is_reported() -> None:
    parts = clients("s1", alpha=None, sites=6, seed=0)
    liar = changed(counts=lambda a: a * 1e6)

    def handler(data, request: Message, site: int) -> Message:
        answer = liar(data, request, site)
        return request.answer(arrays=answer.arrays, points=int(answer.array("counts").sum()))

    handlers = protocol.HANDLERS | {protocol.CENTROIDS: handler}
    sites = [Site(number, part, handlers if number == 3 else protocol.HANDLERS) for number, part in enumerate(parts)]
    found = cluster(InProcess(sites), resolve(15))
    assert list(found.suspects) == [3]
    assert "100% of all points" in found.suspects[3]


def false_sums(make) -> dict:
    """Handlers of a site that refines with other sums and counts."""

    def handler(data, request: Message, site: int) -> Message:
        good = protocol.answer_lloyd(data, request, site)
        sums, counts = make(good.array("sums"), good.array("counts"), request.array("centres"))
        return request.answer(arrays={"sums": sums, "counts": counts})

    return protocol.HANDLERS | {protocol.LLOYD: handler}


def outwards(sums, counts, centres):
    """Every mean moved away from the middle of all centres, as far as it stays in its own cell."""
    far = centres + 50 * (centres - centres.mean(0))
    inside = ((far[:, None] - centres) ** 2).sum(2).argmin(1) == np.arange(len(centres))
    return np.where(inside[:, None], far * counts[:, None], sums), counts


BAD = (1, 4, 7)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda sums, counts, centres: (sums * 0 + 1e12, counts * 0 + 1e6),
            "counts add up to 1.5e\\+07 where the site",
        ),
        (lambda sums, counts, centres: (sums, counts + 1), "counts add up to 515 where the site said 500 before"),
        (lambda sums, counts, centres: (sums * 0 + 1e12, counts), "a mean that is nearer to centre"),
        (lambda sums, counts, centres: (sums[::-1], counts), "a mean that is nearer to centre"),
    ],
    ids=["points", "one point", "far", "mixed up"],
)
def test_false_sums_of_three_of_ten_are_refused(make, words: str) -> None:
    parts = clients("s1", alpha=None, sites=10, seed=0)
    sites = [Site(one, part, false_sums(make) if one in BAD else protocol.HANDLERS) for one, part in enumerate(parts)]
    found = cluster(InProcess(sites), resolve(15))
    assert tuple(found.excluded) == BAD
    assert all(re.search(words, reason) for reason in found.excluded.values()), found.excluded
    assert centroid_index(TRUTH, found.centres) == 0


@pytest.mark.parametrize("eliminate", ["flags", "drop"])
def test_false_sums_within_their_cells_are_reported_or_left_out(eliminate: str) -> None:
    parts = clients("s1", alpha=None, sites=10, seed=0)
    good = [Site(one, part, protocol.HANDLERS) for one, part in enumerate(parts)]
    sites = [Site(one.number, one.data, false_sums(outwards)) if one.number in BAD else one for one in good]
    found = cluster(InProcess(sites), resolve(15, eliminate=eliminate))
    assert tuple(found.suspects) == BAD
    assert all("its sums are" in reason for reason in found.suspects.values())
    left_out = cluster(InProcess(sites), resolve(15, eliminate=eliminate, suspects="exclude"))
    assert tuple(left_out.excluded) == BAD
    honest = cluster(InProcess(good), resolve(15, eliminate=eliminate))
    assert np.abs(left_out.centres - honest.centres).max() < 1 < np.abs(found.centres - honest.centres).max()


def test_sums_of_unit_vectors_are_no_longer_than_their_counts() -> None:
    parts = [one - 50 for one in clients("s1", alpha=None, sites=5, seed=0)]
    sites = [Site(one, part, protocol.HANDLERS) for one, part in enumerate(parts)]
    sites[2] = Site(2, parts[2], false_sums(lambda sums, counts, centres: (1.5 * centres * counts[:, None], counts)))
    found = cluster(InProcess(sites), resolve(5, spherical=True))
    assert list(found.excluded) == [2]
    assert "longer than their counts" in found.excluded[2]


def test_three_of_ten_that_claim_many_points_are_reported() -> None:
    """None of them has more than half of all points."""
    parts = clients("s1", alpha=None, sites=10, seed=0)
    liar = protocol.HANDLERS | {
        protocol.CENTROIDS: lambda d, r, s: claiming(protocol.answer_centroids(d, r, s), 1e6),
    }
    sites = [Site(one, part, liar if one in BAD else protocol.HANDLERS) for one, part in enumerate(parts)]
    found = cluster(InProcess(sites), resolve(15))
    assert tuple(found.suspects) == BAD
    assert all("times as many points as usual" in reason for reason in found.suspects.values())


def test_rounding_is_no_false_sum() -> None:
    """Honest sites far from zero, where means are rounded by more than their distances differ."""
    rng = np.random.default_rng(0)
    points = 1e9 + np.repeat(np.eye(12)[:4], 100, axis=0) * 1e-3 + 1e-4 * rng.normal(size=(400, 12))
    found = FederatedKMeans(4, refine_rounds=3, random_state=0).fit([points[one::5] for one in range(5)])
    assert found.excluded_ == found.suspects_ == {}
