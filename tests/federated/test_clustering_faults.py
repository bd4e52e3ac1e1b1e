"""Broken, odd and poisoned clients: the round completes and says who was left out, or refuses clearly."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from lying_clients import TRUTH, changed, claiming
from s_sets import split_s_set

from foveate.core.errors import UserError
from foveate.federated.clustering import protocol
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.methods import Merged, method_names, resolve
from foveate.federated.estimators import FederatedKMeans
from foveate.federated.messages import Message
from foveate.federated.rounds import Client, InProcess, TooFewClientsError
from foveate.metrics.clustering import centroid_index
from naming import raises_naming


def raising(data, request, client):
    raise ConnectionError("the line is dead")


def slow(data, request, client):
    time.sleep(20)


def leaking(data, request: Message, client: int) -> Message:
    good = protocol.answer_centroids(data, request, client)
    return request.answer(arrays={**good.arrays, "rows": np.asarray(data)}, **good.values)


def more(data, request: Message, client: int) -> Message:
    rows = np.asarray(data)[:40]
    return request.answer(
        arrays={
            "centers": rows,
            "counts": np.ones(40),
            "spreads": np.zeros(40),
            "trusted": np.ones(40, bool),
        },
        points=40,
    )


BAD_ANSWERS = {
    "drops": (raising, "ConnectionError: the line is dead"),
    "slow": (slow, "no answer within"),
    "nan": (changed(centers=lambda a: a * np.nan), "NaN"),
    "infinite": (changed(centers=lambda a: a + np.inf), "infinite"),
    "huge numbers": (changed(centers=lambda a: a + 1e200), "too large to square"),
    "numbers without a finite sum": (changed(centers=lambda a: a + 1e140), "too large to square"),
    "more points than can be counted": (
        lambda d, r, s: claiming(protocol.answer_centroids(d, r, s), 1e300),
        "9.01e+15",
    ),
    "more points than can be counted exactly": (
        lambda d, r, s: claiming(protocol.answer_centroids(d, r, s), 2.0**53),
        "9.01e+15",
    ),
    "one width too many": (changed(centers=lambda a: np.c_[a, a[:, 0]]), "its data have 3 features; those of most"),
    "flat": (changed(centers=lambda a: a.ravel()), "shape"),
    "float32": (changed(centers=lambda a: a.astype(np.float32)), "float32"),
    "words": (changed(centers=lambda a: a.astype(str)), "<U"),
    "too many centroids": (more, "1 to 15 centroids"),
    "rows of its data": (leaking, "holds 'rows'"),
    "counts of nothing": (changed(counts=lambda a: a * 0), "(got 0.0)"),
    "counts that do not add up": (changed(counts=lambda a: a + 1), "counts add up to"),
    "parts of points": (changed(counts=lambda a: a + 0.5), "counts add up to"),
    "no trust": (changed(trusted=lambda a: a & False), "trusts none"),
    "nothing": (lambda d, r, s: r.answer(), "lacks centers"),
}


@pytest.mark.parametrize("name", [pytest.param(one, marks=[pytest.mark.slow] * (one == "slow")) for one in BAD_ANSWERS])
def test_a_broken_client_is_left_out_and_named(name: str) -> None:
    handler, words = BAD_ANSWERS[name]
    parts = split_s_set("s1", alpha=0.3, clients=6, seed=0)
    handlers = protocol.HANDLERS | {protocol.CENTROIDS: handler}
    clients = [
        Client(number, part, handlers if number == 2 else protocol.HANDLERS) for number, part in enumerate(parts)
    ]
    found = cluster(InProcess(clients, timeout=5.0 if name == "slow" else None), resolve(15))
    assert list(found.excluded) == [2]
    assert words in found.excluded[2]
    assert list(found.client_reports) == [0, 1, 3, 4, 5]
    assert centroid_index(TRUTH, found.centers) <= 2  # a client's points are missing


BAD_DATA = {
    "nan": (np.array([[0.0, np.nan]]), "NaN, infinite or huge values, the first in row 0"),
    "infinite": (np.array([[0.0, 1.0], [np.inf, 0.0]]), "the first in row 1"),
    "huge": (np.array([[1e300, 0.0]]), "huge values"),
    "empty": (np.zeros((0, 2)), "are empty"),
    "no feature": (np.zeros((3, 0)), "are empty"),
    "three features": (np.zeros((30, 3)) + np.arange(30)[:, None], "3 features; those of most clients have 2"),
    "flat": (np.zeros(7), "shape"),
    "words": (np.array([["a", "b"]]), "<U1"),
    "objects": (np.array([[None, 1]], dtype=object), "object"),
    "complex": (np.zeros((3, 2), dtype=complex), "complex128"),
    "nothing": (None, "object"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_a_client_whose_data_cannot_be_used(name: str) -> None:
    data, words = BAD_DATA[name]
    clients = [
        Client(number, part, protocol.HANDLERS)
        for number, part in enumerate([*split_s_set("s1", alpha=None, clients=4, seed=0), data])
    ]
    found = cluster(InProcess(clients), resolve(15))
    assert list(found.excluded) == [4]
    assert words in found.excluded[4]
    assert centroid_index(TRUTH, found.centers) == 0


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
@pytest.mark.parametrize("name", [name for name in method_names() if name != "central"])
def test_odd_data_take_part(data: np.ndarray, name: str) -> None:
    parts = [data, *split_s_set("s1", alpha=None, clients=5, seed=0)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = FederatedKMeans(15, method=name, random_state=0, on_few_groups="return").fit(parts)
    assert found.excluded_ == {}
    assert len(found.client_reports_[0]["centers"]) <= min(15, len(np.unique(data, axis=0)))
    assert np.isfinite(found.cluster_centers_).all()


def test_a_client_that_drops_in_the_second_round() -> None:
    handlers = protocol.HANDLERS | {protocol.LLOYD: raising}
    parts = split_s_set("s1", alpha=None, clients=5, seed=0)
    clients = [
        Client(number, part, handlers if number == 1 else protocol.HANDLERS) for number, part in enumerate(parts)
    ]
    found = cluster(InProcess(clients), resolve(15, refine_rounds=2), evaluate=True)
    assert found.excluded == {1: "query.lloyd, round 1: ConnectionError: the line is dead"}
    assert list(found.inertia) == [0, 2, 3, 4]
    assert centroid_index(TRUTH, found.centers) == 0


def test_a_fit_that_nobody_reports_takes_no_centers_back() -> None:
    parts = split_s_set("s1", alpha=None, clients=2, seed=0)
    clients = [
        Client(number, part, protocol.HANDLERS | {protocol.ASSIGN: raising}) for number, part in enumerate(parts)
    ]
    found = cluster(InProcess(clients), resolve(15), min_clients=2, evaluate=True)
    assert found.excluded == dict.fromkeys((0, 1), "query.assign, round 2: ConnectionError: the line is dead")
    assert found.inertia == {}
    assert len(found.centers) == 15


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
    def handler(data, request: Message, client: int) -> Message:
        good = protocol.answer_lloyd(data, request, client)
        sums, counts = make(good.array("sums"), good.array("counts"))
        return request.answer(arrays={"sums": sums, "counts": counts})

    handlers = protocol.HANDLERS | {protocol.LLOYD: handler}
    parts = split_s_set("s1", alpha=None, clients=4, seed=0)
    clients = [
        Client(number, part, handlers if number == 0 else protocol.HANDLERS) for number, part in enumerate(parts)
    ]
    assert list(cluster(InProcess(clients), resolve(15)).excluded) == [0]


def test_the_largest_numbers_allowed_are_merged_to_finite_centers() -> None:
    def handler(data, request: Message, client: int) -> Message:
        good = claiming(protocol.answer_centroids(data, request, client), 2.0**52)
        return good.answer(
            arrays={**good.arrays, "centers": np.sign(good.array("centers") - 50) * 1e100}, **good.values
        )

    parts = split_s_set("s1", alpha=None, clients=4, seed=0)
    handlers = protocol.HANDLERS | {protocol.CENTROIDS: handler}
    for name in [name for name in method_names() if name != "central"]:
        clients = [
            Client(number, part, handlers if number == 0 else protocol.HANDLERS) for number, part in enumerate(parts)
        ]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(option|only)", UserWarning)
            plan = resolve(4, method=name, on_few_groups="return", refine_rounds=0)
            assert np.isfinite(cluster(InProcess(clients), plan).centers).all()
    with pytest.raises(UserError, match="no finite means"):
        Merged(np.array([[np.inf, 0.0]]))


def test_too_few_clients_are_refused_with_their_reasons() -> None:
    with raises_naming(TooFewClientsError, "1", "3", "2", "NaN"):
        FederatedKMeans(2, min_clients=2).fit([np.eye(3), np.full((2, 3), np.nan), np.zeros((0, 3))])
    with raises_naming(TooFewClientsError, "2", "3"):
        FederatedKMeans(2, min_clients=3).fit([np.eye(2), np.eye(2) + 1, np.eye(3)])


def test_a_killed_server_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    parts = split_s_set("s1", alpha=0.3, clients=6, seed=0)
    asked: list[tuple[str, int]] = []
    alive = [9]

    def counted(kind: str):
        def handler(data, request: Message, client: int) -> Message:
            asked.append((kind, client))
            if len(asked) == alive[0]:
                raise KeyboardInterrupt
            return protocol.HANDLERS[kind](data, request, client)

        return handler

    clients = [
        Client(number, part, {kind: counted(kind) for kind in protocol.HANDLERS}) for number, part in enumerate(parts)
    ]
    plan = resolve(15, refine_rounds=2)
    with pytest.raises(KeyboardInterrupt):
        cluster(InProcess(clients, answers_folder=tmp_path), plan)
    assert len(asked) == 9
    alive[0] = 10**6
    resumed = cluster(InProcess(clients, answers_folder=tmp_path), plan)
    assert len(asked) == 9 + 6 * 3 - 8  # eight answers were kept
    plain = cluster(InProcess([Client(number, part, protocol.HANDLERS) for number, part in enumerate(parts)]), plan)
    np.testing.assert_array_equal(resumed.centers, plain.centers)
