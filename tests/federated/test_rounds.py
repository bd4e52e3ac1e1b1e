"""Rounds in process: answers in order, broken clients left out with reasons, the log, and going on after a kill."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.federated.messages import ArrayRule, Message, MessageRule
from foveate.federated.rounds import Client, InProcess, Log, TooFewClientsError, stream
from naming import raises_naming

RULE = MessageRule("query.mean", {"mean": ArrayRule("float64", (2,))}, {"points": int})


def mean(data, request: Message, number: int) -> Message:
    return request.answer(arrays={"mean": data.mean(0)}, points=len(data))


def client(number: int, handler=mean, name: str = "") -> Client:
    return Client(number, np.full((number + 1, 2), float(number)), {"query.mean": handler}, name)


def raising(error: BaseException):
    def handler(data, request, number):
        raise error

    return handler


def slow(data, request, number):
    time.sleep(5)
    return mean(data, request, number)


BROKEN = {
    "raises": (raising(RuntimeError("out of order")), "RuntimeError: out of order"),
    "refuses": (raising(UserError("too few points")), "too few points"),
    "memory": (raising(MemoryError()), "MemoryError"),
    "of no family": (raising(struct.error("unpack requires 4 bytes")), "error: unpack requires"),
    "nothing": (lambda data, request, number: None, "answered with a NoneType"),
    "nan": (lambda d, r, n: r.answer(arrays={"mean": np.full(2, np.nan)}, points=1), "NaN"),
    "shape": (lambda d, r, n: r.answer(arrays={"mean": np.zeros(3)}, points=1), r"mean.*\[3\]"),
    "dtype": (lambda d, r, n: r.answer(arrays={"mean": np.zeros(2, np.int64)}, points=1), "mean.*int64"),
    "object": (lambda d, r, n: r.answer(arrays={"mean": np.array([None, 1])}, points=1), "mean.*object"),
    "huge": (lambda d, r, n: r.answer(arrays={"mean": np.zeros(2), "rows": np.zeros((999, 9))}, points=1), "'rows'"),
    "old": (lambda d, r, n: Message(r.kind, 0, {"mean": np.zeros(2)}, {"points": 1}), "answer to round 0, not 1"),
    "kind": (lambda d, r, n: Message("train", 1), "train"),
}


def test_answers_come_in_the_order_of_numbers() -> None:
    found = InProcess([client(2), client(0), client(1)]).ask(Message("query.mean"), RULE)
    assert found.clients == [0, 1, 2]
    assert [one.array("mean")[0] for one in found.answers.values()] == [0, 1, 2]
    assert found.excluded == {}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_client_is_left_out_with_its_reason(name: str) -> None:
    handler, words = BROKEN[name]
    transport = InProcess([client(0), client(1, handler, "Ward B"), client(2)])
    found = transport.ask(Message("query.mean", 1), RULE)
    assert found.clients == [0, 2]
    assert list(found.excluded) == [1]
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(found.excluded[1])
    with raises_naming(TooFewClientsError, "2", "3"):
        transport.ask(Message("query.mean", 1), RULE, min_clients=3)


def test_a_slow_client_is_left_behind() -> None:
    started = time.monotonic()
    found = InProcess([client(0, slow), client(1)], timeout=0.2).ask(Message("query.mean"), RULE)
    assert time.monotonic() - started < 4
    assert found.excluded == {0: "no answer within 0.2 s"}


def test_what_ends_the_process_is_no_fault_of_a_client() -> None:
    with pytest.raises(KeyboardInterrupt):
        InProcess([client(0, raising(KeyboardInterrupt()))]).ask(Message("query.mean"), RULE)


def test_each_client_may_get_its_own_request_or_none() -> None:
    transport = InProcess([client(0), client(1), client(2)])
    found = transport.ask({2: Message("query.mean"), 0: Message("query.mean")}, RULE)
    assert found.clients == [0, 2]


def test_a_further_check_may_refuse() -> None:
    def at_least_two(number: int, answer: Message) -> None:
        if answer.number("points") < 2:
            raise UserError("has fewer than 2 points")

    found = InProcess([client(0), client(1)]).ask(Message("query.mean"), RULE, check=at_least_two)
    assert found.excluded == {0: "has fewer than 2 points"}


def test_two_clients_of_one_number_are_refused() -> None:
    with raises_naming(UserError, "1"):
        InProcess([client(1), client(1)])


def test_an_unknown_question_names_the_known_ones() -> None:
    found = InProcess([client(0), client(1)])
    with raises_naming(TooFewClientsError, "query.other", "query.mean"):
        found.ask(Message("query.other"), RULE)


def test_the_log_says_what_was_exchanged() -> None:
    log = Log(record=True)
    transport = InProcess([client(0), client(1, BROKEN["raises"][0]), client(2)], log=log)
    transport.ask(Message("query.mean", arrays={"weights": np.zeros(4)}, values={"seed": 1}), RULE)
    rows = {(row["up"], row["name"]): row for row in log.table()}
    assert rows[False, "weights"]["bytes"] == 3 * 32
    assert rows[True, "mean"]["messages"] == 2
    assert rows[True, "mean"]["largest"] == [2]
    assert log.bytes(up=False) == 3 * (32 + 8)
    assert log.bytes(up=True) == 2 * (16 + 8)
    assert [entry.reason for entry in log.entries if entry.reason] == ["RuntimeError: out of order"]
    assert [(number, up) for number, up, _ in log.messages] == [
        (0, False),
        (0, True),
        (1, False),
        (2, False),
        (2, True),
    ]


def test_a_killed_server_asks_only_whom_it_has_no_answer_of(tmp_path: Path) -> None:
    asked: list[int] = []

    def counted(data, request: Message, number: int) -> Message:
        asked.append(number)
        if number == 2 and len(asked) == 3:
            raise KeyboardInterrupt
        return mean(data, request, number)

    clients = [client(number, counted) for number in range(4)]
    request = Message("query.mean", 5, values={"seed": 1})
    with pytest.raises(KeyboardInterrupt):
        InProcess(clients, answers_folder=tmp_path).ask(request, RULE)
    assert asked == [0, 1, 2]
    found = InProcess(clients, answers_folder=tmp_path).ask(request, RULE)
    assert asked == [0, 1, 2, 2, 3]
    assert [one.array("mean")[0] for one in found.answers.values()] == [0, 1, 2, 3]
    InProcess(clients, answers_folder=tmp_path).ask(Message("query.mean", 5, values={"seed": 2}), RULE)
    assert asked[5:] == [0, 1, 2, 3]


def test_a_broken_kept_answer_is_asked_again_and_old_rounds_are_forgotten(tmp_path: Path) -> None:
    transport = InProcess([client(0)], answers_folder=tmp_path)
    transport.ask(Message("query.mean", 1), RULE)
    (kept,) = tmp_path.rglob("*.safetensors")
    kept.write_bytes(b"cut")
    assert transport.ask(Message("query.mean", 1), RULE).clients == [0]
    transport.ask(Message("query.mean", 3), RULE)
    transport.forget(before=3)
    assert [path.name for path in tmp_path.iterdir()] == ["000003-query.mean"]


def test_no_empty_folder_of_answers_is_left(tmp_path: Path) -> None:
    transport = InProcess([client(0)], answers_folder=tmp_path / "answers")
    transport.ask(Message("query.mean", 0), RULE)
    transport.forget(before=1)
    transport.ask(Message("query.mean", 1), RULE)
    transport.forget()
    assert not (tmp_path / "answers").exists()
    transport.forget()
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "mine.txt").write_text("of the user")
    transport.forget()
    assert (tmp_path / "answers" / "mine.txt").exists()


def test_random_numbers_depend_on_seed_round_client_and_purpose() -> None:
    def draw(seed: int, round: int, client: int, purpose: str) -> float:
        return float(stream(seed, round=round, client=client, purpose=purpose).random())

    base = draw(0, 0, 0, "start")
    assert base == draw(0, 0, 0, "start")
    assert len({base, draw(1, 0, 0, "start"), draw(0, 1, 0, "start"), draw(0, 0, 1, "start"), draw(0, 0, 0, "b")}) == 5
