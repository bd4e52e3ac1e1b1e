"""What leaves a client in a clustering: no row of its data, and with `min_count` nothing of fewer points."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from s_sets import split_s_set

from foveate.core.errors import UserError
from foveate.federated.clustering import protocol
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.local import withheld
from foveate.federated.clustering.methods import method_names, resolve
from foveate.federated.estimators import FederatedKMeans
from foveate.federated.messages import Message
from foveate.federated.rounds import Client, InProcess, Log
from foveate.report.pages.federated import describe_privacy


def test_fewer_points_than_min_count_send_nothing() -> None:
    parts = [np.zeros((5, 2)), *split_s_set("s1", alpha=None, clients=3, seed=0)]
    found = FederatedKMeans(15, min_count=10, random_state=0).fit(parts)
    assert "fewer than min_count 10: nothing is sent" in found.excluded_[0]
    assert (found.labels_[0] >= 0).all()


@pytest.mark.parametrize("least", [1, 10])
@pytest.mark.parametrize("name", [name for name in method_names() if name != "central"])
def test_no_data_row_leaves_a_client(name: str, least: int) -> None:
    parts = split_s_set("s1", alpha=0.3, clients=5, seed=0)
    log = Log(record=True)
    clients = [Client(number, part, protocol.HANDLERS) for number, part in enumerate(parts)]
    plan = resolve(15, method=name, refine_rounds=1, on_few_groups="return", min_count=least)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster(InProcess(clients, log=log), plan, evaluate=True)
    up = [(client, message) for client, is_up, message in log.messages if is_up]
    assert {message.kind for _, message in up} == {protocol.CENTROIDS, protocol.LLOYD, protocol.ASSIGN}
    for client, message in up:
        rows = {row.tobytes() for row in parts[client]}
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
    """A point that is alone at a center of the others is told neither by its cell nor by what the other cells lack."""
    rng = np.random.default_rng(0)
    middles = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    here = np.concatenate([rng.normal(one, 0.3, (60, 2)) for one in middles])
    alone = np.array([[9.8765, 0.4321]])
    there = np.concatenate([rng.normal(middles[0], 0.3, (60, 2)), rng.normal(middles[2], 0.3, (50, 2)), alone])
    log = Log(record=True)
    clients = [Client(number, part, protocol.HANDLERS) for number, part in enumerate([here, there])]
    found = cluster(InProcess(clients, log=log), resolve(3, min_count=10))
    assert not found.excluded
    first, second = (message for client, up, message in log.messages if up and client == 1)
    assert first.array("counts").sum() == 111
    assert sorted(second.array("counts")) == [0, 0, 60]
    missing = first.array("counts") @ first.array("centers") - second.array("sums").sum(0)
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
    parts = split_s_set("s1", alpha=None, clients=4, seed=0)

    def telling(data, request: Message, client: int) -> Message:
        blunt = Message(request.kind, request.round, request.arrays, {**request.values, "min_count": 1})
        return protocol.answer_lloyd(np.concatenate([np.asarray(data), [[50.0, 50.0]] * 3]), blunt, client)

    wrong = {**protocol.HANDLERS, protocol.LLOYD: telling}
    clients = [
        Client(n, part[part[:, 0] < 5] if n == 2 else part, wrong if n == 2 else protocol.HANDLERS)
        for n, part in enumerate(parts)
    ]
    found = cluster(InProcess(clients), resolve(15, min_count=10))
    assert "has a cell of 3 points; min_count is 10" in found.excluded[2]


def test_pooling_methods_are_refused_over_an_exchange() -> None:
    with pytest.raises(UserError, match="pools raw points; no client sends them"):
        cluster(InProcess([Client(0, np.eye(2), protocol.HANDLERS)]), resolve(2, method="central"))


@pytest.mark.parametrize(
    ("options", "federated", "names"),
    [
        ({}, True, ("single point", "min_count 1")),
        ({"min_count": 10}, True, ("fewer than 10 points",)),
        ({"noise": 2.0, "min_count": 10}, True, ("with noise",)),
        ({"min_count": 10}, False, ("one place",)),
    ],
)
def test_a_page_says_what_left_and_no_more(options: dict, federated: bool, names: tuple[str, ...]) -> None:
    sentence = describe_privacy(options, federated=federated)
    assert not [name for name in names if name not in sentence]
    assert ("single point" in sentence) == ("single point" in names)
