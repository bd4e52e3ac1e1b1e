"""Broken, odd and poisoned clients: the round completes and says who was left out, or refuses clearly."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from lying_clients import TRUTH, changed, claiming
from s_sets import clients

from foveate.federated.clustering import protocol
from foveate.federated.clustering.consensus import Merged
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.settings import methods, resolve
from foveate.federated.estimators import FederatedKMeans
from foveate.federated.messages import Message
from foveate.federated.rounds import InProcess, TooFewSitesError
from foveate.federated.sites import Site
from foveate.metrics.clustering import centroid_index
from foveate.settings.errors import UserError


def raising(data, request, site):
    raise ConnectionError("the line is dead")


def slow(data, request, site):
    time.sleep(20)


def leaking(data, request: Message, site: int) -> Message:
    good = protocol.answer_centroids(data, request, site)
    return request.answer(arrays={**good.arrays, "rows": np.asarray(data)}, **good.values)


def more(data, request: Message, site: int) -> Message:
    rows = np.asarray(data)[:40]
    return request.answer(arrays={"centres": rows, "counts": np.ones(40), "kept": np.ones(40, bool)}, points=40)


BAD_ANSWERS = {
    "drops": (raising, "ConnectionError: the line is dead"),
    "slow": (slow, "no answer within"),
    "nan": (changed(centres=lambda a: a * np.nan), "NaN"),
    "infinite": (changed(centres=lambda a: a + np.inf), "infinite"),
    "huge numbers": (changed(centres=lambda a: a + 1e200), "too large to square"),
    "numbers without a finite sum": (changed(centres=lambda a: a + 1e140), "too large to square"),
    "more points than can be counted": (
        lambda d, r, s: claiming(protocol.answer_centroids(d, r, s), 1e300),
        "value 'points' lies beyond 9.01e+15",
    ),
    "more points than can be counted exactly": (
        lambda d, r, s: claiming(protocol.answer_centroids(d, r, s), 2.0**53),
        "value 'points' lies beyond 9.01e+15",
    ),
    "one width too many": (changed(centres=lambda a: np.c_[a, a[:, 0]]), "its data have 3 features; those of most"),
    "flat": (changed(centres=lambda a: a.ravel()), "shape"),
    "float32": (changed(centres=lambda a: a.astype(np.float32)), "type float32"),
    "words": (changed(centres=lambda a: a.astype(str)), "type <U"),
    "too many centroids": (more, "1 to 15 centroids"),
    "rows of its data": (leaking, "holds 'rows'"),
    "counts of nothing": (changed(counts=lambda a: a * 0), "'counts' has the value 0.0"),
    "counts that do not add up": (changed(counts=lambda a: a + 1), "counts add up to"),
    "parts of points": (changed(counts=lambda a: a + 0.5), "counts add up to"),
    "no trust": (changed(kept=lambda a: a & False), "trusts none"),
    "nothing": (lambda d, r, s: r.answer(), "lacks centres"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_a_broken_client_is_left_out_and_named(name: str) -> None:
    handler, words = BAD_ANSWERS[name]
    parts = clients("s1", alpha=0.3, sites=6, seed=0)
    handlers = protocol.HANDLERS | {protocol.CENTROIDS: handler}
    sites = [Site(number, part, handlers if number == 2 else protocol.HANDLERS) for number, part in enumerate(parts)]
    found = cluster(InProcess(sites, timeout=5.0 if name == "slow" else None), resolve(15))
    assert list(found.excluded) == [2]
    assert words in found.excluded[2]
    assert list(found.clients) == [0, 1, 3, 4, 5]
    assert centroid_index(TRUTH, found.centres) <= 2  # a client's points are missing


BAD_DATA = {
    "nan": (np.array([[0.0, np.nan]]), "NaN, infinite or huge values, the first in row 0"),
    "infinite": (np.array([[0.0, 1.0], [np.inf, 0.0]]), "the first in row 1"),
    "huge": (np.array([[1e300, 0.0]]), "huge values"),
    "empty": (np.zeros((0, 2)), "are empty"),
    "no feature": (np.zeros((3, 0)), "are empty"),
    "three features": (np.zeros((30, 3)) + np.arange(30)[:, None], "3 features; those of most sites have 2"),
    "flat": (np.zeros(7), "shape"),
    "words": (np.array([["a", "b"]]), "type <U1"),
    "objects": (np.array([[None, 1]], dtype=object), "type object"),
    "complex": (np.zeros((3, 2), dtype=complex), "type complex128"),
    "nothing": (None, "type object"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_a_client_whose_data_cannot_be_used(name: str) -> None:
    data, words = BAD_DATA[name]
    sites = [
        Site(number, part, protocol.HANDLERS)
        for number, part in enumerate([*clients("s1", alpha=None, sites=4, seed=0), data])
    ]
    found = cluster(InProcess(sites), resolve(15))
    assert list(found.excluded) == [4]
    assert words in found.excluded[4]
    assert centroid_index(TRUTH, found.centres) == 0


@pytest.mark.parametrize(
    "data",
    [
        np.array([[3.0, 4.0]]),
        np.full((50, 2), 7.0),
        np.array([[1.0, 1.0], [2.0, 2.0], [1.0, 1.0]]),
        np.arange(20).reshape(10, 2),
        np.full((20, 2), True),
        np.float32(np.random.default_rng(0).normal(size=(200, 2))),
    ],
    ids=["one point", "all equal", "fewer than K", "integers", "booleans", "float32"],
)
@pytest.mark.parametrize("name", [name for name in methods() if name != "central"])
def test_odd_data_take_part(data: np.ndarray, name: str) -> None:
    parts = [data, *clients("s1", alpha=None, sites=5, seed=0)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = FederatedKMeans(15, method=name, random_state=0, on_few_groups="return").fit(parts)
    assert found.excluded_ == {}
    assert len(found.client_reports_[0]["centres"]) <= min(15, len(np.unique(data, axis=0)))
    assert np.isfinite(found.cluster_centers_).all()


def test_a_client_that_drops_in_the_second_round() -> None:
    handlers = protocol.HANDLERS | {protocol.LLOYD: raising}
    parts = clients("s1", alpha=None, sites=5, seed=0)
    sites = [Site(number, part, handlers if number == 1 else protocol.HANDLERS) for number, part in enumerate(parts)]
    found = cluster(InProcess(sites), resolve(15, refine_rounds=2), evaluate=True)
    assert found.excluded == {1: "query.lloyd, round 1: ConnectionError: the line is dead"}
    assert list(found.inertia) == [0, 2, 3, 4]
    assert centroid_index(TRUTH, found.centres) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda sums, counts: (sums + np.nan, counts),
        lambda sums, counts: (sums[:-1], counts),
        lambda sums, counts: (sums, counts - 1e6),
        lambda sums, counts: (sums, counts * 0),
        lambda sums, counts: (sums, counts + 0.5),
        lambda sums, counts: (sums.astype(np.float32), counts),
        lambda sums, counts: (sums + 1e140, counts),
        lambda sums, counts: (sums, counts * 0 + 1e300),
    ],
)
def test_wrong_sums_are_refused(make) -> None:
    def handler(data, request: Message, site: int) -> Message:
        good = protocol.answer_lloyd(data, request, site)
        sums, counts = make(good.array("sums"), good.array("counts"))
        return request.answer(arrays={"sums": sums, "counts": counts})

    handlers = protocol.HANDLERS | {protocol.LLOYD: handler}
    parts = clients("s1", alpha=None, sites=4, seed=0)
    sites = [Site(number, part, handlers if number == 0 else protocol.HANDLERS) for number, part in enumerate(parts)]
    assert list(cluster(InProcess(sites), resolve(15)).excluded) == [0]


def test_the_largest_numbers_allowed_are_merged_to_finite_centres() -> None:
    def handler(data, request: Message, site: int) -> Message:
        good = claiming(protocol.answer_centroids(data, request, site), 2.0**52)
        return good.answer(
            arrays={**good.arrays, "centres": np.sign(good.array("centres") - 50) * 1e100}, **good.values
        )

    parts = clients("s1", alpha=None, sites=4, seed=0)
    handlers = protocol.HANDLERS | {protocol.CENTROIDS: handler}
    for name in [name for name in methods() if name != "central"]:
        sites = [
            Site(number, part, handlers if number == 0 else protocol.HANDLERS) for number, part in enumerate(parts)
        ]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(option|only)", UserWarning)
            plan = resolve(4, method_name=name, on_few_groups="return", refine_rounds=0)
            assert np.isfinite(cluster(InProcess(sites), plan).centres).all()
    with pytest.raises(UserError, match="no finite means"):
        Merged(np.array([[np.inf, 0.0]]))


def test_too_few_sites_are_refused_with_their_reasons() -> None:
    with pytest.raises(TooFewSitesError, match="1 of 3 sites answered; 2 are needed .site 1: .*NaN.*; site 2: .*empty"):
        FederatedKMeans(2, min_sites=2).fit([np.eye(3), np.full((2, 3), np.nan), np.zeros((0, 3))])
    with pytest.raises(TooFewSitesError, match="2 sites have 2 features; 3 are needed"):
        FederatedKMeans(2, min_sites=3).fit([np.eye(2), np.eye(2) + 1, np.eye(3)])


def test_a_killed_server_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    parts = clients("s1", alpha=0.3, sites=6, seed=0)
    asked: list[tuple[str, int]] = []
    alive = [9]

    def counted(kind: str):
        def handler(data, request: Message, site: int) -> Message:
            asked.append((kind, site))
            if len(asked) == alive[0]:
                raise KeyboardInterrupt
            return protocol.HANDLERS[kind](data, request, site)

        return handler

    sites = [
        Site(number, part, {kind: counted(kind) for kind in protocol.HANDLERS}) for number, part in enumerate(parts)
    ]
    plan = resolve(15, refine_rounds=2)
    with pytest.raises(KeyboardInterrupt):
        cluster(InProcess(sites, keep=tmp_path), plan)
    assert len(asked) == 9
    alive[0] = 10**6
    resumed = cluster(InProcess(sites, keep=tmp_path), plan)
    assert len(asked) == 9 + 6 * 3 - 8  # eight answers were kept
    plain = cluster(InProcess([Site(number, part, protocol.HANDLERS) for number, part in enumerate(parts)]), plan)
    np.testing.assert_array_equal(resumed.centres, plain.centres)
