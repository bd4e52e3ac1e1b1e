"""DeepFeCA over Flower's messages and in process: the same encoder; what a node refuses; a killed server."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed; make test-flower runs this")

from foveate.core.errors import UserError
from foveate.federated.deep.encoder import flatten_weights
from foveate.federated.deep.job import fit_clients, load_model
from foveate.federated.deep.options import REMOTE_KINDS, SIZE, read_options
from foveate.federated.flower import client_app, server_app
from foveate.federated.flower import transport as over_flower
from foveate.federated.flower.app import CONFIG
from foveate.federated.flower.transport import from_records, to_records
from foveate.federated.messages import Message
from foveate.federated.reasons import DATA_MISSING, FAILURE, INTERNAL_ERROR
from foveate.report import render

RANDOM = np.random.default_rng(0)
PARTS = [RANDOM.normal(size=(30, 16)) + 3 * number for number in range(3)]
SMALL = "rounds=2 encoder=small_vit width=8 hidden=12 augment=shift min_count=1"


class Nodes:
    """Calls the app's own handlers with Flower's records, in the wrong order; the data are files of the clients."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, stop_after: int = 10**9, **own: Any) -> None:
        self.stop_after = stop_after
        self.asked: list[str] = []
        self.config: dict[int, dict[str, Any]] = {}
        for number, part in enumerate(PARTS):
            np.savez(folder / f"client{number}.npz", points=part)
            self.config[107 - 2 * number] = {
                "partition-id": number,
                "data": str(folder / f"client{number}.npz"),
                "name": f"ward {number}",
                "state": str(folder / "state"),
                "min-count": 1,
                "max-partitions": 10,
                "jobs": "features",
                # What is sent is compared with what is computed in process.
                "noise-multiplier": 0.0,
                "update-clip": 100.0,
            } | (own if number == 1 else {})
        monkeypatch.setattr(client_app, "FlowerMessage", lambda content, reply_to: content)
        monkeypatch.setattr(over_flower, "FlowerMessage", lambda **fields: SimpleNamespace(**fields))

    def get_node_ids(self) -> list[int]:
        return list(self.config)

    def send_and_receive(self, messages: list[Any], *, timeout: float | None = None) -> list[Any]:
        replies = []
        for message in messages:
            if len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(message.message_type)
            content = client_app.answer(message, SimpleNamespace(node_config=self.config[message.dst_node_id]))
            metadata = SimpleNamespace(src_node_id=message.dst_node_id)
            replies.append(SimpleNamespace(has_error=lambda: False, content=content, metadata=metadata))
        return replies[::-1]


def run_config(out: Path, options: str = SMALL, **changed: Any) -> dict[str, Any]:
    return (
        CONFIG
        | {"job": "features", "clusters": 3, "seed": 4, "clients": 3, "out": str(out), "options": options}
        | changed
    )


def check_equal_to_in_process(out: Path) -> None:
    given = {"rounds": 2, "encoder": "small_vit", "width": 8, "hidden": 12, "augment": "shift"}
    inside = fit_clients(PARTS, read_options({**given, "clusters": 3, "seed": 4}))
    loaded = load_model(out / "model")
    np.testing.assert_allclose(flatten_weights(loaded.network), flatten_weights(inside.network), atol=1e-6)
    np.testing.assert_allclose(loaded.centers, inside.centers, atol=1e-6)
    for part in PARTS:
        np.testing.assert_allclose(loaded.transform(part), inside.transform(part), atol=1e-6)


def test_equal_to_in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert server_app.run(Nodes(tmp_path, monkeypatch), run_config(out)) == out
    check_equal_to_in_process(out)
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert [client["name"] for client in result["clients"]] == ["ward 0", "ward 1", "ward 2"]
    assert {row["kind"] for row in result["exchanged"]} == set(REMOTE_KINDS)
    assert "What was exchanged" in render(out).read_text(encoding="utf-8")


@pytest.mark.parametrize("stop_after", [7, 11])
def test_a_killed_server_goes_on(stop_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two sends (a send is one call, whose answers are kept when all are there)."""
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        server_app.run(Nodes(tmp_path, monkeypatch, stop_after=stop_after), run_config(out))
    assert not (out / "result.json").exists()
    again = Nodes(tmp_path, monkeypatch)
    server_app.run(again, run_config(out))
    check_equal_to_in_process(out)
    whole = 3 * (2 + 5)  # hello, sizes, two rounds of two, and a last look
    finished = 3 * ((stop_after - 3) // 3) - 3 * (stop_after > 12)
    assert len(again.asked) == whole - finished
    assert not list((out / "states").iterdir())
    assert not (out / "answers").exists()


def test_what_the_configuration_may_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for changed, words in [
        ({"job": "feature"}, "Did you mean 'features'"),
        ({"method": "central"}, "'central' cannot run over a network"),
        ({"options": "encodr=small_vit"}, "Did you mean 'encoder'"),
    ]:
        with pytest.raises(UserError, match=words):
            server_app.run(Nodes(tmp_path, monkeypatch), run_config(tmp_path / "out", **changed))


def test_a_node_has_limits_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server_app.run(Nodes(tmp_path, monkeypatch, **{"max-clusters": 2}), run_config(tmp_path / "out"))
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    (note,) = result["notes"]
    assert note.startswith("ward 1 was left out: max-clusters: its own max-clusters 2 ")
    assert [client["rounds"] for client in result["clients"]] == [2, 0, 2]


def test_a_client_without_data_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_app, "FlowerMessage", lambda content, reply_to: content)
    message = SimpleNamespace(content=to_records(Message(SIZE)))
    content = client_app.answer(
        message, SimpleNamespace(node_config={"partition-id": 0, "min-count": 1, "jobs": "features"})
    )
    assert dict(from_records(content).values) == {FAILURE: DATA_MISSING}


def test_a_fault_outside_the_protocol_stays_in_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("row 7: 36.6")

    monkeypatch.setattr(client_app, "FlowerMessage", lambda content, reply_to: content)
    monkeypatch.setattr(client_app, "answer_request", fail)
    content = client_app.answer(SimpleNamespace(content=to_records(Message(SIZE))), SimpleNamespace(node_config={}))
    assert dict(from_records(content).values) == {FAILURE: INTERNAL_ERROR}
    assert "RuntimeError: row 7: 36.6" in capsys.readouterr().err


def test_flower_knows_each_kind() -> None:
    """A kind that no handler is registered for would be an error at the node."""
    assert set(REMOTE_KINDS) <= set(client_app.app._registered_funcs)
