"""The same clustering over Flower and in process: translation, a fake Grid with faults. Real processes are slow:
`test_flower_processes.py`.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed; make test-flower runs this")

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from s_sets import split_s_set

from foveate.core.errors import UserError
from foveate.federated.clustering import protocol
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.methods import resolve
from foveate.federated.flower import client_app as at_client
from foveate.federated.flower import server_app
from foveate.federated.flower import transport as over_flower
from foveate.federated.flower.app import CONFIG, write_app
from foveate.federated.flower.client_app import app as client_app
from foveate.federated.flower.transport import GridTransport, from_records, to_records
from foveate.federated.messages import DTYPES, SCHEMA, Message, MessageError
from foveate.federated.node import HELLO, answer_request
from foveate.federated.reasons import (
    COUNT,
    DATA_UNUSABLE,
    FAILURE,
    MAX_CLUSTERS,
    MIN_COUNT,
    SETTINGS_INVALID,
    failure_values,
)
from foveate.federated.rounds import Client, InProcess, TooFewClientsError, attempt
from foveate.federated.run_failure import RunFailedError
from naming import raises_naming

PARTS = split_s_set("s1", alpha=0.3, clients=3, seed=0)
AS_IN_PROCESS = "min_count=1 refine_rounds=1 winsorize=null"
"""Options of a network that protect nobody, for comparison with one process."""


@pytest.mark.parametrize("dtype", DTYPES)
def test_records_and_back(dtype: str) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3).astype(dtype), "none": np.zeros((0, 2), dtype)}
    message = Message("query.x", 3, arrays, {"n": 3, "f": 0.25, "yes": True, "word": "é"})
    assert from_records(to_records(message)).digest() == message.digest()
    bare = Message("query.y")
    assert from_records(to_records(bare)).digest() == bare.digest()


@pytest.mark.parametrize(
    "records", [RecordDict(), RecordDict({"foveate": ConfigRecord({"schema": 9, "kind": "x", "round": 0})})]
)
def test_foreign_records_are_refused(records: RecordDict) -> None:
    with raises_naming(MessageError, str(SCHEMA)):
        from_records(records)


class FakeGrid:
    """Answers at once, with nodes of odd numbers, in any order; `broken` says what a client does instead."""

    def __init__(self, parts, *, broken=None, numbers=None) -> None:
        self.numbers = numbers or list(range(len(parts)))
        self.nodes = {9_000_000_000 - 7 * place: place for place in range(len(parts))}
        self.parts, self.broken = parts, broken or {}
        self.sent: list[str] = []

    def get_node_ids(self):
        return list(self.nodes)

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in messages:
            place = self.nodes[message["dst_node_id"]]
            client, request = self.numbers[place], from_records(message["content"])
            self.sent.append(request.kind)
            doing = self.broken.get((client, request.kind))
            if doing == "silent":
                continue
            if doing == "error":
                error = SimpleNamespace(code=2, reason="the app ended")
                reply = SimpleNamespace(has_error=lambda: True, error=error)
            else:
                if request.kind == HELLO:
                    answer = request.answer(client=client, name="", columns="")
                    answer = Message(HELLO, 0, values={**answer.values, "columns.unordered": ""})
                else:
                    answer, reason = attempt(Client(client, self.parts[place], protocol.HANDLERS), request)
                    answer = answer or request.answer(**failure_values(DATA_UNUSABLE))
                content = ArrayRecord() if doing == "garbage" else to_records(answer)
                content = RecordDict() if doing == "garbage" else content
                content = doing if isinstance(doing, RecordDict) else content
                reply = SimpleNamespace(has_error=lambda: False, content=content)
            reply.metadata = SimpleNamespace(src_node_id=message["dst_node_id"])
            replies.append(reply)
        return replies[::-1]


@pytest.fixture(autouse=True)
def _plain_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages exist inside a run only."""
    monkeypatch.setattr(over_flower, "FlowerMessage", lambda **fields: fields)


def in_process(parts, plan):
    return cluster(InProcess([Client(number, part, protocol.HANDLERS) for number, part in enumerate(parts)]), plan)


@pytest.mark.parametrize("name", ["consensus", "paper_reconstruction", "kfed", "weighted_kmeans"])
def test_equal_to_in_process(name: str) -> None:
    plan = resolve(15, method=name, seed=5, refine_rounds=1, on_few_groups="return")
    found = cluster(GridTransport(FakeGrid(PARTS), clients=3), plan, evaluate=True)
    np.testing.assert_allclose(found.centers, in_process(PARTS, plan).centers, atol=1e-10)
    assert list(found.inertia) == [0, 1, 2]


def test_a_common_scale_over_flower_is_that_in_process(tmp_path: Path) -> None:
    # Columns of other units, and the node's answers: the scale comes back with every later request.
    parts = [part * [1.0, 1000.0] + [0.0, 1e6] for part in PARTS]
    plan = resolve(15, seed=5, scale="standard")
    found = cluster(GridTransport(FakeGrid(parts), clients=3), plan, evaluate=True)
    alone = in_process(parts, plan)
    np.testing.assert_allclose(found.original_centers, alone.original_centers, rtol=1e-10)
    config = CONFIG | {"clusters": 15, "clients": 3, "out": str(tmp_path), "wait": 0.1, "options": "scale=standard"}
    server_app.run(FakeGrid(parts), config)
    centers = np.load(tmp_path / "centers.npz")
    np.testing.assert_allclose(centers["offset"], np.concatenate(parts).mean(0), rtol=0.05)
    assert centers["centers"][:, 1].min() > 1e5


@pytest.mark.parametrize(
    ("doing", "words"), [("silent", "no answer"), ("error", "error 2: the app ended"), ("garbage", "schema")]
)
@pytest.mark.parametrize("kind", [protocol.CENTROIDS, protocol.LLOYD])
def test_a_broken_node_is_left_out(doing: str, words: str, kind: str) -> None:
    grid = FakeGrid(PARTS, broken={(1, kind): doing})
    found = cluster(GridTransport(grid, clients=3, timeout=9.0), resolve(15))
    assert list(found.excluded) == [1]
    assert words in found.excluded[1]


def test_a_client_whose_data_are_bad_says_why() -> None:
    found = cluster(GridTransport(FakeGrid([*PARTS, np.full((2, 2), np.nan)]), clients=4), resolve(15))
    assert DATA_UNUSABLE in found.excluded[3]


def test_nodes_are_told_by_their_partition() -> None:
    exchange = GridTransport(FakeGrid(PARTS, numbers=[1, 2, 0]), clients=3)
    assert list(exchange.clients) == [0, 1, 2]
    sizes = {client: len(PARTS[place]) for client, place in ((1, 0), (2, 1), (0, 2))}
    found = cluster(exchange, resolve(15), evaluate=True)
    assert {client: points for client, (points, _) in found.inertia.items()} == sizes
    with raises_naming(UserError, "2"):
        GridTransport(FakeGrid(PARTS, numbers=[2, 2, 4]), clients=5, wait=0.1)
    with raises_naming(TooFewClientsError, "0"):
        GridTransport(FakeGrid([]), clients=3, wait=0)
    silent = FakeGrid(PARTS, broken={(client, HELLO): "silent" for client in range(3)})
    with raises_naming(TooFewClientsError, "3"):
        GridTransport(silent, clients=3)


@pytest.mark.parametrize("number", [3, -1, 7])
def test_a_number_that_no_client_has_is_left_out(number: int, tmp_path: Path) -> None:
    config = CONFIG | {"clusters": 15, "clients": 3, "out": str(tmp_path), "wait": 0.1, "evaluate": True}
    server_app.run(FakeGrid(PARTS, numbers=[0, number, 2]), config)
    second = json.loads((tmp_path / "result.json").read_text())["clients"][1]
    assert second["excluded"].endswith(f"(its partition-id is {number}; allowed are 0 to 2)")
    assert (second["points"], second["sent"]) == (0, 0)


def test_a_client_that_never_comes_is_named(tmp_path: Path) -> None:
    config = CONFIG | {"clusters": 15, "clients": 4, "out": str(tmp_path), "wait": 0.1}
    server_app.run(FakeGrid(PARTS), config)
    result = json.loads((tmp_path / "result.json").read_text())
    assert [client["points"] for client in result["clients"]] == [*map(len, PARTS), 0]
    assert result["notes"] == ["client 3 was left out: query.centroids, round 0: did not connect within 0.1 s"]
    with raises_naming(TooFewClientsError, "3", "4"):
        server_app.run(FakeGrid(PARTS), config | {"min-clients": 4})
    mute = cluster(GridTransport(FakeGrid(PARTS, broken={(1, HELLO): "silent"}), clients=3), resolve(15))
    assert "1 of 3 nodes did not say which client they are (no answer)" in mute.excluded[1]


def about(**fields: Any) -> RecordDict:
    return RecordDict({"foveate": ConfigRecord({"schema": SCHEMA, "kind": protocol.CENTROIDS, "round": 0} | fields)})


def packed(shape: tuple[int, ...], content: bytes, *, dtype: str = "<f8", stype: str = "numpy.ndarray") -> RecordDict:
    """A reply whose array says that it has this shape, and has these bytes behind its header."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    return with_array(Array("float64", (3, 2), stype, header.getvalue() + content))


def with_array(array: Array) -> RecordDict:
    records = about()
    records["arrays"] = ArrayRecord({"centers": array})
    return records


def with_value(value: Any) -> RecordDict:
    records = about()
    records["values"] = ConfigRecord({"x": value})
    return records


MALFORMED = {
    "no kind": (RecordDict({"foveate": ConfigRecord({"schema": SCHEMA})}), "(got None and None)"),
    "a list of rounds": (about(round=[1, 2]), "and [1, 2])"),
    "a kind that is a number": (about(kind=7), "(got 7 and"),
    "junk": (with_array(Array("float64", (3, 2), "numpy.ndarray", b"junk")), "no readable header"),
    "cut off": (packed((3, 2), b"12"), "[3, 2] of float64, but has 2 bytes"),
    "too long": (packed((3, 2), b"1" * 100), "has 100 bytes"),
    "seven PiB": (packed((10**9, 10**6), b"12"), "[1000000000, 1000000] of float64, but has 2 bytes"),
    "objects": (packed((1,), b"12345678", dtype="|O"), "(got object)"),
    "tensors": (packed((3, 2), b"", stype="torch"), "(got 'torch')"),
    "bytes as a value": (with_value(b"12"), "(got bytes)"),
    "a list as a value": (with_value([1]), "(got list)"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_reply_leaves_out_its_client_alone(name: str) -> None:
    reply, words = MALFORMED[name]
    found = cluster(GridTransport(FakeGrid(PARTS, broken={(1, protocol.CENTROIDS): reply}), clients=3), resolve(15))
    assert list(found.excluded) == [1]
    assert words in found.excluded[1]
    greeted = cluster(GridTransport(FakeGrid(PARTS, broken={(1, HELLO): reply}), clients=3), resolve(15))
    assert words in greeted.excluded[1]


def test_arrays_by_column_and_replies_of_nobody() -> None:
    header = io.BytesIO()
    by_column = np.asfortranarray(np.arange(6.0).reshape(3, 2))
    np.save(header, by_column)
    records = with_array(Array("float64", (3, 2), "numpy.ndarray", header.getvalue()))
    np.testing.assert_array_equal(from_records(records).array("centers"), by_column)

    class Crowd(FakeGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            stranger = SimpleNamespace(has_error=lambda: False, content=replies[0].content)
            stranger.metadata = SimpleNamespace(src_node_id=1)
            return [*replies, stranger]

    found = cluster(GridTransport(Crowd(PARTS), clients=3), resolve(15))
    np.testing.assert_array_equal(
        found.centers, cluster(GridTransport(FakeGrid(PARTS), clients=3), resolve(15)).centers
    )


def test_flower_answers_for_a_node_that_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The SuperLink's error has its own node id; it is told apart from a stranger by the request that it answers."""

    class Sent(dict[str, object]):
        @property
        def metadata(self) -> SimpleNamespace:
            return SimpleNamespace(message_id=f"id {self['dst_node_id']}", dst_node_id=self["dst_node_id"])

    class WithSuperlink(FakeGrid):
        def send_and_receive(self, messages, *, timeout=None):
            (dead, _), *_ = self.nodes.items()
            replies = super().send_and_receive(messages, timeout=timeout)
            return [self._answer_for(reply, dead) for reply in replies]

        def _answer_for(self, reply, dead):
            if reply.metadata.src_node_id != dead or HELLO in self.sent[-len(self.nodes) :]:
                return reply
            error = SimpleNamespace(code=5, reason="Node Unavailable")
            metadata = SimpleNamespace(src_node_id=1, reply_to_message_id=f"id {dead}")
            return SimpleNamespace(has_error=lambda: True, error=error, metadata=metadata)

    monkeypatch.setattr(over_flower, "FlowerMessage", lambda **fields: Sent(fields))
    clustered = cluster(GridTransport(WithSuperlink(PARTS), clients=3), resolve(15))
    assert "Node Unavailable" in clustered.excluded[0]
    assert "node 1" not in "".join(capsys.readouterr())


def test_a_killed_server_goes_on(tmp_path: Path) -> None:
    grid = FakeGrid(PARTS)
    plan = resolve(15, refine_rounds=2)
    first = cluster(GridTransport(grid, clients=3, answers_folder=tmp_path), plan)
    before = len(grid.sent)
    again = cluster(GridTransport(grid, clients=3, answers_folder=tmp_path), plan)
    assert grid.sent[before:] == [HELLO] * 3
    np.testing.assert_array_equal(first.centers, again.centers)


def test_a_finished_run_keeps_no_answers(tmp_path: Path) -> None:
    config = CONFIG | {"clusters": 15, "clients": 3, "out": str(tmp_path), "options": AS_IN_PROCESS}
    for parts in (PARTS, [2 * one + 1 for one in PARTS]):
        server_app.run(FakeGrid(parts), config)
        assert not (tmp_path / "answers").exists()
        with np.load(tmp_path / "centers.npz") as found:
            np.testing.assert_allclose(found["centers"], in_process(parts, resolve(15)).centers, atol=1e-6)


@pytest.mark.parametrize(
    ("limits", "failure"),
    [
        ({"min-count": 10, "max-clusters": 15}, None),
        ({"min-count": 11}, {FAILURE: MIN_COUNT, COUNT: 11}),
        ({"min-count": 1, "max-clusters": 14}, {FAILURE: MAX_CLUSTERS, COUNT: 14}),
        ({"min_count": 10}, {FAILURE: SETTINGS_INVALID}),
        ({}, {FAILURE: SETTINGS_INVALID}),
    ],
)
def test_a_node_has_limits_of_its_own(tmp_path: Path, monkeypatch, limits: dict, failure: dict | None) -> None:
    monkeypatch.setattr(at_client, "FlowerMessage", lambda records, reply_to: from_records(records))
    np.savez(tmp_path / "points.npz", points=PARTS[0])
    context = SimpleNamespace(node_config={"partition-id": 0, "data": str(tmp_path / "points.npz"), **limits})
    context.node_config |= {"state": str(tmp_path / "state"), "max-partitions": 2}
    plan = resolve(15, min_count=10, winsorize=3.0)
    centers = np.zeros((15, 2)) + np.arange(15)[:, None]
    for request in (protocol.centroids_request(plan, 0), protocol.lloyd_request(centers, plan, 1)):
        answer = at_client.answer(SimpleNamespace(content=to_records(request)), context)
        assert dict(answer.values) == failure if failure else FAILURE not in answer.values
        assert bool(answer.arrays) is (failure is None)


class NodeGrid:
    """Nodes of these configurations, which answer as their apps do."""

    def __init__(self, configs: list[dict[str, Any]]) -> None:
        self.configs, self.sent = configs, []

    def get_node_ids(self):
        return list(range(7, 7 + len(self.configs)))

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in messages:
            request = from_records(message["content"])
            self.sent.append(request.kind)
            answer = answer_request(self.configs[message["dst_node_id"] - 7], lambda request=request: request)
            metadata = SimpleNamespace(src_node_id=message["dst_node_id"])
            reply = SimpleNamespace(has_error=lambda: False, content=to_records(answer), metadata=metadata)
            replies.append(reply)
        return replies


def nodes(folder: Path, *, number: int = 2, **own: Any) -> list[dict[str, Any]]:
    """Configurations of two clients with the default limits and what their owners chose."""
    configs = []
    for client in range(number):
        np.savez(folder / f"client{client}.npz", points=PARTS[client])
        config = {"partition-id": client, "data": str(folder / f"client{client}.npz"), "state": str(folder / "state")}
        configs.append(config | {"min-count": 10} | {name.replace("_", "-"): value for name, value in own.items()})
    return configs


def describe_run(folder: Path, **fields: Any) -> dict[str, Any]:
    return CONFIG | {"clusters": 5, "clients": 2, "out": str(folder / "out"), "wait": 0.1} | fields


def test_a_second_run_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, out = NodeGrid(nodes(tmp_path)), tmp_path / "out"
    server_app.run(grid, describe_run(tmp_path))
    assert not (out / "failure.json").exists()
    server_app.run(grid, describe_run(tmp_path))  # the same questions, the same answers
    with raises_naming(TooFewClientsError, "0", "2", "max-partitions"):
        server_app.run(grid, describe_run(tmp_path, seed=1))
    failure = json.loads((out / "failure.json").read_text())
    assert failure["clients"] == 2
    assert [(row["code"], row["clients"]) for row in failure["failures"]] == [
        ("max-partitions", ["client 0", "client 1"])
    ]
    line = str(RunFailedError.read(out)).splitlines()[1]
    assert line.startswith("2 of 2 clients: max-partitions: its own max-partitions 1 of these data are used up")
    assert line in capsys.readouterr().err, "whoever starts `flwr run` by hand reads it, too"
    server_app.run(grid, describe_run(tmp_path))
    assert not (out / "failure.json").exists(), "a run removes the failure of the one before"


def test_an_evaluation_is_answered_or_refused_before_the_run(tmp_path: Path) -> None:
    grid, config = NodeGrid(nodes(tmp_path)), describe_run(tmp_path, evaluate=True)
    with raises_naming(TooFewClientsError, "0 of 2", "2 partitions", "1 of --evaluate"):
        server_app.run(grid, config)
    assert set(grid.sent) == {HELLO}
    assert not list((tmp_path / "state").glob("*.jsonl")), "nothing was used up"
    (line,) = str(RunFailedError.read(tmp_path / "out")).splitlines()[1:]
    assert line.startswith("2 of 2 clients: max-partitions: its own max-partitions 1 is less than the 2 partitions")
    assert "`max_partitions`" in line
    # Allowed, it is answered: after a run's own clustering, which costs nothing again, and in one run.
    grid.configs = nodes(tmp_path, max_partitions=2)
    server_app.run(grid, describe_run(tmp_path))
    server_app.run(grid, config)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [client["points"] for client in result["clients"]] == [len(part) for part in PARTS[:2]]
    assert all(client["distance"] for client in result["clients"])
    # Used up by other runs, an evaluation has no answer, and the centers are there all the same.
    grid.configs = nodes(tmp_path, max_partitions=2, state=str(tmp_path / "other"))
    server_app.run(grid, describe_run(tmp_path, seed=1))
    server_app.run(grid, describe_run(tmp_path, seed=2, evaluate=False))
    server_app.run(grid, describe_run(tmp_path, seed=2, evaluate=True))
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [client["excluded"].split(":")[1].strip() for client in result["clients"]] == ["max-partitions"] * 2
    assert (tmp_path / "out" / "centers.npz").is_file()


def test_a_client_that_allows_too_few_partitions_is_left_out(tmp_path: Path) -> None:
    grid = NodeGrid([*nodes(tmp_path, max_partitions=2)[:1], *nodes(tmp_path)[1:]])
    config = describe_run(tmp_path, options="refine_rounds=1")
    server_app.run(grid, config)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [client["points"] for client in result["clients"]] == [len(PARTS[0]), 0]
    assert "its own max-partitions 1 is less than the 2 partitions" in result["clients"][1]["excluded"]
    with raises_naming(TooFewClientsError, "1 of 2", "2 are needed"):
        server_app.run(grid, config | {"min-clients": 2})
    # With noise the budget counts instead.
    grid = NodeGrid(nodes(tmp_path, max_epsilon=1e6))
    noisy = describe_run(tmp_path, evaluate=True, options="noise=0.5 clip=5 refine_rounds=1")
    server_app.run(grid, noisy)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [client["excluded"] for client in result["clients"]] == ["", ""]


def test_a_run_whose_nodes_are_set_wrongly_says_so(tmp_path: Path) -> None:
    grid = NodeGrid(nodes(tmp_path, min_cuont=3))
    with raises_naming(TooFewClientsError, "2 of 2", "settings-invalid"):
        server_app.run(grid, describe_run(tmp_path))
    assert "settings-invalid: its node has an invalid setting" in str(RunFailedError.read(tmp_path / "out"))


def test_the_app_folder(tmp_path: Path) -> None:
    project = tomllib.loads((write_app(tmp_path) / "pyproject.toml").read_text(encoding="utf-8"))
    app = project["tool"]["flwr"]["app"]
    assert app["config"] == CONFIG
    for side, reference in app["components"].items():
        module, _, name = reference.partition(":")
        text = (tmp_path / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        assert f"import {name}" in text, side
    assert client_app is not None


def test_clustering_at_a_client_loads_no_torch() -> None:
    code = "import sys, foveate.federated.flower.client_app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
