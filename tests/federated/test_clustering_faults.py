"""Broken, odd and poisoned clients: the round completes and says who was left out, or refuses clearly."""

from __future__ import annotations

import re
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from s_sets import clients, s_set

from foveate.federated.clustering import protocol
from foveate.federated.clustering.consensus import Merged
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.local import withheld
from foveate.federated.clustering.settings import methods, resolve
from foveate.federated.estimators import FederatedKMeans
from foveate.federated.messages import Message
from foveate.federated.rounds import InProcess, Log, TooFewSitesError
from foveate.federated.sites import Site
from foveate.metrics.clustering import centroid_index
from foveate.settings.errors import UserError

TRUTH = s_set("s1")[2]


def changed(**arrays):
    """A client that answers rightly but for some arrays of its first answer."""

    def handler(data, request: Message, site: int) -> Message:
        good = protocol.answer_centroids(data, request, site)
        made = {name: make(good.array(name)) for name, make in arrays.items()}
        return request.answer(arrays={**good.arrays, **made}, **good.values)

    return handler


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


def claiming(good: Message, points: float) -> Message:
    """The same answer with so many points at the first centroid."""
    counts = np.r_[points, good.array("counts")[1:]]
    return good.answer(arrays={**good.arrays, "counts": counts}, points=int(counts.sum()))


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


def test_fewer_points_than_min_count_send_nothing() -> None:
    parts = [np.zeros((5, 2)), *clients("s1", alpha=None, sites=3, seed=0)]
    found = FederatedKMeans(15, min_count=10, random_state=0).fit(parts)
    assert "fewer than min_count 10: nothing is sent" in found.excluded_[0]
    assert (found.labels_[0] >= 0).all()


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


@pytest.mark.parametrize("least", [1, 10])
@pytest.mark.parametrize("name", [name for name in methods() if name != "central"])
def test_no_data_row_leaves_a_site(name: str, least: int) -> None:
    parts = clients("s1", alpha=0.3, sites=5, seed=0)
    log = Log(record=True)
    sites = [Site(number, part, protocol.HANDLERS) for number, part in enumerate(parts)]
    plan = resolve(15, method_name=name, refine_rounds=1, on_few_groups="return", min_count=least)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster(InProcess(sites, log=log), plan, evaluate=True)
    up = [(site, message) for site, is_up, message in log.messages if is_up]
    assert {message.kind for _, message in up} == {protocol.CENTROIDS, protocol.LLOYD, protocol.ASSIGN}
    for site, message in up:
        rows = {row.tobytes() for row in parts[site]}
        for array in message.arrays.values():
            assert array.ndim <= 2
            assert len(array) <= 15
            same = [number for number, row in enumerate(array) if array.ndim == 2 and row.tobytes() in rows]
            counts = message.arrays.get("counts")
            assert not same if least > 1 else counts is None or all(counts[number] == 1 for number in same)
        if "counts" in message.arrays:
            assert not [one for one in message.array("counts") if 0 < one < least]
    if name in ("paper_reconstruction", "kfed", "naive"):
        assert not [1 for _, message in up if message.kind == protocol.CENTROIDS and "counts" in message.arrays]


def test_min_count_holds_in_the_refinement() -> None:
    """A point that is alone at a centre of the others is told neither by its cell nor by what the other cells lack."""
    rng = np.random.default_rng(0)
    middles = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    here = np.concatenate([rng.normal(one, 0.3, (60, 2)) for one in middles])
    alone = np.array([[9.8765, 0.4321]])
    there = np.concatenate([rng.normal(middles[0], 0.3, (60, 2)), rng.normal(middles[2], 0.3, (50, 2)), alone])
    log = Log(record=True)
    sites = [Site(number, part, protocol.HANDLERS) for number, part in enumerate([here, there])]
    found = cluster(InProcess(sites, log=log), resolve(3, min_count=10))
    assert not found.excluded
    first, second = (message for site, up, message in log.messages if up and site == 1)
    assert first.array("counts").sum() == 111
    assert sorted(second.array("counts")) == [0, 0, 60]
    missing = first.array("counts") @ first.array("centres") - second.array("sums").sum(0)
    assert np.abs(missing - alone).max() > 1
    np.testing.assert_array_equal(second.array("sums")[second.array("counts") == 0], 0)


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ([30, 9, 1, 40], [30, 0, 0, 40]),
        ([30, 3, 1, 40], [0, 0, 0, 40]),
        ([30, 0, 10, 40], [30, 0, 10, 40]),
        ([9, 0, 12, 0], [0, 0, 0, 0]),
        ([30, 9, 0, 12], [30, 0, 0, 0]),
    ],
)
def test_what_is_withheld_is_at_least_min_count(counts: list[int], told: list[int]) -> None:
    given = np.array(counts, dtype=float)
    assert np.where(withheld(given, 10), 0, given).tolist() == told
    assert not withheld(given, 1).any()


def test_small_cells_are_refused_by_the_server() -> None:
    parts = clients("s1", alpha=None, sites=4, seed=0)

    def telling(data, request: Message, site: int) -> Message:
        blunt = Message(request.kind, request.round, request.arrays, {**request.values, "min_count": 1})
        return protocol.answer_lloyd(np.concatenate([np.asarray(data), [[50.0, 50.0]] * 3]), blunt, site)

    wrong = {**protocol.HANDLERS, protocol.LLOYD: telling}
    sites = [
        Site(n, part[part[:, 0] < 5] if n == 2 else part, wrong if n == 2 else protocol.HANDLERS)
        for n, part in enumerate(parts)
    ]
    found = cluster(InProcess(sites), resolve(15, min_count=10))
    assert "has a cell of 3 points; min_count is 10" in found.excluded[2]


def test_pooling_methods_are_refused_over_an_exchange() -> None:
    with pytest.raises(UserError, match="pools raw points; no site sends them"):
        cluster(InProcess([Site(0, np.eye(2), protocol.HANDLERS)]), resolve(2, method_name="central"))


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
