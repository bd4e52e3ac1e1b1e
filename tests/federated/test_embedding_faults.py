"""Clients of a map that break, stay away or send what nobody can use: the rounds go on, and say who was left out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import numpy as np
import pytest
from small_clients import CLIENTS, options, train

from foveate.core.errors import UserError
from foveate.federated.embedding import client as at_client
from foveate.federated.embedding.client import ClientData, answer_remote, make_client
from foveate.federated.embedding.job import MapJob
from foveate.federated.embedding.options import REMOTE_KINDS
from foveate.federated.messages import Message
from foveate.federated.rounds import Client, InProcess, Log, TooFewClientsError
from naming import raises_naming


def broken(number: int, data: ClientData, kind: str, fault: Callable[[Message], Message]) -> Client:
    handlers = dict(at_client.HANDLERS)
    inner = handlers[kind]
    handlers[kind] = lambda data, request, client: fault(inner(data, request, client))
    return Client(number, data, handlers)


def nan_weights(answer: Message) -> Message:
    return answer.answer(arrays={"encoder": np.full_like(answer.array("encoder"), np.nan)}, **answer.values)


def wrong_length(answer: Message) -> Message:
    return answer.answer(arrays={"encoder": answer.array("encoder")[:-1]}, **answer.values)


def wrong_type(answer: Message) -> Message:
    return answer.answer(arrays={"encoder": answer.array("encoder").astype(np.float64)}, **answer.values)


def raises(answer: Message) -> Message:
    raise RuntimeError("out of disk")


def huge(answer: Message) -> Message:
    return answer.answer(arrays={"encoder": np.zeros(2_000_000, np.float32)}, **answer.values)


def leaking(answer: Message) -> Message:
    return answer.answer(arrays={**answer.arrays, "rows": np.zeros((3, 6))}, **answer.values)


def nothing(answer: Message) -> Message:
    return answer.answer()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (nan_weights, "NaN or infinite"),
        (wrong_length, r"must have shape \[\d+\]"),
        (wrong_type, "must be float32"),
        (raises, "RuntimeError: out of disk"),
        (huge, r"\[2000000\]"),
        (leaking, "holds 'rows'"),
        (nothing, "lacks"),
    ],
)
def test_a_broken_client_is_left_out_and_the_rest_goes_on(fault: Callable[[Message], Message], words: str) -> None:
    chosen = options(surrogate="grid", rounds=2)
    members = [make_client(number, ClientData(one.astype(np.float32))) for number, one in enumerate(CLIENTS)]
    members[1] = broken(1, members[1].data, at_client.TRAIN, fault)
    transport = InProcess(members)
    state = train(transport, chosen)
    assert [entry["clients"] for entry in state.history] == [[0, 2], [0, 2]]
    assert np.isfinite(state.encoder).all()
    reasons = [entry.reason for entry in transport.log.entries if entry.reason]
    assert len(reasons) == 2
    assert all(re.search(words, reason) for reason in reasons)


def test_a_slow_client_is_left_behind() -> None:
    chosen = options(rounds=1)
    members = [make_client(number, ClientData(one.astype(np.float32))) for number, one in enumerate(CLIENTS)]
    slow = {**at_client.HANDLERS, at_client.TRAIN: lambda data, request, client: time.sleep(60)}
    members[1] = Client(1, members[1].data, slow)
    transport = InProcess(members, timeout=5.0)
    state = train(transport, chosen)
    assert state.history[0]["clients"] == [0, 2]
    assert [entry.reason for entry in transport.log.entries if entry.reason] == ["no answer within 5 s"]


def test_a_client_that_drops_comes_back() -> None:
    """Out of one round, it trains in the next one."""
    chosen = options(rounds=3)
    members = [make_client(number, ClientData(one.astype(np.float32))) for number, one in enumerate(CLIENTS)]
    inner = at_client.HANDLERS[at_client.TRAIN]

    def away(data: ClientData, request: Message, client: int) -> Message:
        if request.round == 1:
            raise ConnectionError("the line is dead")
        return inner(data, request, client)

    members[0] = Client(0, members[0].data, {**at_client.HANDLERS, at_client.TRAIN: away})
    transport = InProcess(members)
    state = train(transport, chosen)
    assert [entry["clients"] for entry in state.history] == [[0, 1, 2], [1, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    ("surrogate", "kind", "felt"),
    [("network", at_client.SURROGATE, [0, 1, 2]), ("grid", at_client.FIELD, [1, 2])],
)
def test_a_missing_network_is_replaced_by_the_last_one_and_a_missing_field_is_not(
    surrogate: str, kind: str, felt: list[int]
) -> None:
    chosen = options(surrogate=surrogate, min_r2=-10.0)
    members = [make_client(number, ClientData(one.astype(np.float32))) for number, one in enumerate(CLIENTS)]
    inner = at_client.HANDLERS[kind]

    def away(data: ClientData, request: Message, client: int) -> Message:
        if request.round == 2:
            raise ConnectionError("the line is dead")
        return inner(data, request, client)

    members[0] = Client(0, members[0].data, {**at_client.HANDLERS, kind: away})
    transport = InProcess(members)
    state = train(transport, chosen)
    assert [entry["usable"] for entry in state.history] == [None, [0, 1, 2], felt, [0, 1, 2]]


@pytest.mark.parametrize(
    "data",
    [np.zeros((0, 6)), np.full((5, 6), np.nan), np.zeros((5, 0)), np.zeros(6), np.array([["a"] * 6])],
    ids=["empty", "nan", "no feature", "flat", "words"],
)
def test_a_client_whose_data_cannot_be_used_is_left_out_over_a_network(data: np.ndarray) -> None:
    """In one process such data are refused before anything; elsewhere the server never sees them."""
    good = CLIENTS[0], CLIENTS[1]
    members = [Client(number, one, dict.fromkeys(REMOTE_KINDS, answer_remote)) for number, one in enumerate(good)]
    members.append(Client(2, data, dict.fromkeys(REMOTE_KINDS, answer_remote)))
    transport = InProcess(members)
    chosen = options(rounds=1)
    state = train(transport, chosen)
    assert list(state.sizes) == [0, 1]
    assert {entry.client for entry in transport.log.entries if entry.reason} == {2}
    assert {entry.kind for entry in transport.log.entries if entry.client == 2} == {at_client.POINTS}, "asked once"


def test_a_client_of_another_width_is_left_out_where_most_have_one() -> None:
    def clients(*widths: int) -> InProcess:
        answers = dict.fromkeys(REMOTE_KINDS, answer_remote)
        return InProcess([Client(number, CLIENTS[0][:, :width], answers) for number, width in enumerate(widths)])

    chosen = options(rounds=1)
    transport = clients(6, 5, 6)
    state = train(transport, chosen)
    assert list(state.sizes) == [0, 2]
    assert state.notes["client 1 is left out: its data have 5 features; those of most clients have 6"] == 1
    with raises_naming(UserError, "0", "6", "1", "5"):
        MapJob(chosen).begin(clients(6, 5))


def test_the_start_needs_as_many_clients_as_rounds() -> None:
    def silent(answer: Message) -> Message:
        raise RuntimeError("out of order")

    members = [make_client(number, ClientData(one.astype(np.float32))) for number, one in enumerate(CLIENTS)]
    members[1] = broken(1, members[1].data, at_client.POINTS, silent)
    chosen = options(method="fedavg")
    state = MapJob(chosen).begin(InProcess(members), min_clients=2)
    assert state.notes == {"client 1 is left out: RuntimeError: out of order": 1}
    with raises_naming(TooFewClientsError, "2", "3"):
        MapJob(chosen).begin(InProcess(members), min_clients=3)
    other = [
        make_client(number, ClientData(one.astype(np.float32)))
        for number, one in enumerate([*CLIENTS, CLIENTS[0][:, :2]])
    ]
    with raises_naming(TooFewClientsError, "3", "6", "4"):
        MapJob(chosen).begin(InProcess(other), min_clients=4)


def test_a_client_without_a_surrogate_is_not_felt_and_shares_are_scaled() -> None:
    chosen = options(surrogate="network", rounds=4, min_r2=-10.0)
    members = [make_client(number, ClientData(one.astype(np.float32))) for number, one in enumerate(CLIENTS)]
    members[2] = broken(2, members[2].data, at_client.SURROGATE, raises)
    transport = InProcess(members, log=Log(record=True))
    state = train(transport, chosen)
    assert "client 2 has sent no surrogate: the others do not feel it" in state.notes
    asked = {
        client: m for client, up, m in transport.log.messages if m.kind == at_client.TRAIN and not up and m.round == 2
    }
    assert asked[0].number("share") == pytest.approx(40 / 65)
    assert asked[0].array("shares").tolist() == pytest.approx([25 / 65])
    assert asked[2].array("shares").tolist() == pytest.approx([40 / 125, 25 / 125])


def overstated(name: str, numbers: list[float]) -> Callable[[Message], Message]:
    """A client whose array holds these numbers, over and over, and which says that its surrogate fits."""

    def fault(answer: Message) -> Message:
        array = answer.array(name)
        made = np.resize(np.array(numbers), array.shape).astype(array.dtype)
        fits = {"r2": 1.0} if "r2" in answer.values else {}
        return answer.answer(arrays={**answer.arrays, name: made}, **{**answer.values, **fits})

    return fault


@pytest.mark.parametrize(
    ("kind", "name", "surrogate", "numbers", "words"),
    [
        (
            at_client.BOX,
            "box",
            "grid",
            [-1e308, -1e308, 1e308, 1e308],
            r"'box' must be at least -1e\+12 \(got -1e\+308\)",
        ),
        (at_client.BOX, "box", "network", [-1e308, -1e308, 1e308, 1e308], "at least -1e"),
        (at_client.BOX, "box", "grid", [-1e12, -1e12, 1e12, 1e12], ""),
        (at_client.BOX, "box", "network", [-1e12, -1e12, 1e12, 1e12], ""),
        (at_client.BOX, "box", "grid", [1.0, 1.0, -1.0, -1.0], "lowest corner above the highest"),
        (at_client.FIELD, "field", "grid", [1e30], "at most 10 "),
        (at_client.FIELD, "field", "grid", [10.0], ""),
        (at_client.SURROGATE, "surrogate", "network", [1e30], "at most 1000 "),
        (at_client.SURROGATE, "surrogate", "network", [1e3], ""),
        (at_client.SURROGATE, "surrogate", "network64", [-1e3], ""),
    ],
)
def test_numbers_of_one_client_do_not_end_the_run(
    kind: str, name: str, surrogate: str, numbers: list[float], words: str
) -> None:
    chosen = options(surrogate=surrogate, rounds=3, surrogate_start=0.0)
    members = [make_client(number, ClientData(one.astype(np.float32))) for number, one in enumerate(CLIENTS)]
    members[1] = broken(1, members[1].data, kind, overstated(name, numbers))
    transport = InProcess(members)
    state = train(transport, chosen)
    assert [entry["clients"] for entry in state.history] == [[0, 1, 2]] * 3
    assert np.isfinite(state.encoder).all()
    reasons = {entry.reason for entry in transport.log.entries if entry.reason}
    assert len(reasons) == bool(words)
    assert all(re.search(words, one) for one in reasons)
