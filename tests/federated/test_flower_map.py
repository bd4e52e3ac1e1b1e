"""FedNE over Flower's messages and in process: the same weights; what is refused; a killed server."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed; make test-flower runs this")

from small_clients import fit_remote

from foveate import FederatedNeighborEmbedding
from foveate.core.errors import UserError
from foveate.federated.embedding import options as kinds
from foveate.federated.embedding.client import answer_remote
from foveate.federated.embedding.job import MapJob, fit_clients
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.flower import client_app, server_app
from foveate.federated.flower import transport as over_flower
from foveate.federated.flower.app import CONFIG
from foveate.federated.flower.transport import GridTransport, from_records, to_records
from foveate.federated.job import serve
from foveate.federated.messages import Message, MessageError
from foveate.federated.reasons import DATA_MISSING, FAILURE
from foveate.federated.rounds import Log, TooFewClientsError
from foveate.report import render
from naming import raises_naming

RANDOM = np.random.default_rng(0)
PARTS = [RANDOM.normal(size=(30, 5)) + 3 * number for number in range(3)]
SMALL: dict[str, Any] = {"rounds": 3, "hidden": (8,), "surrogate_start": 0.4, "min_r2": -10.0}


class FakeGrid:
    """Calls the app's own handlers with Flower's records, in the wrong order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, stop_after: int = 10**9, noise: float = 0.0) -> None:
        self.stop_after, self.asked = stop_after, 0
        folder = Path(tempfile.mkdtemp())
        self.config: dict[int, dict[str, Any]] = {}
        for number, part in enumerate(PARTS):
            np.savez(folder / f"client{number}.npz", points=part)
            node = {"partition-id": number, "data": str(folder / f"client{number}.npz"), "min-count": 1}
            own = {"state": str(folder / "state"), "jobs": "embed", "noise-multiplier": noise}
            self.config[107 - 2 * number] = node | own
        monkeypatch.setattr(client_app, "FlowerMessage", lambda content, reply_to: content)
        monkeypatch.setattr(over_flower, "FlowerMessage", lambda **fields: SimpleNamespace(**fields))

    def get_node_ids(self) -> list[int]:
        return [107, 105, 103]

    def send_and_receive(self, messages: list[Any], *, timeout: float | None = None) -> list[Any]:
        replies = []
        for message in messages:
            self.asked += 1
            if self.asked > self.stop_after:
                raise KeyboardInterrupt
            content = client_app.answer(message, SimpleNamespace(node_config=self.config[message.dst_node_id]))
            metadata = SimpleNamespace(src_node_id=message.dst_node_id)
            replies.append(SimpleNamespace(has_error=lambda: False, content=content, metadata=metadata))
        return replies[::-1]


def serve_map(transport: GridTransport, options: EmbeddingOptions, out: Path, **more: Any) -> dict[str, Any]:
    return serve(MapJob(options), transport, out, **more)


@pytest.mark.parametrize("surrogate", ["grid", "network"])
def test_equal_to_in_process(surrogate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = EmbeddingOptions(**SMALL, surrogate=surrogate)
    log = Log()
    serve_map(GridTransport(FakeGrid(monkeypatch), clients=3, log=log), chosen, tmp_path / "out")
    inside = fit_remote(PARTS, chosen)
    loaded = FederatedNeighborEmbedding.load(tmp_path / "out" / "model")
    np.testing.assert_allclose(loaded.transform(PARTS[0]), inside.transform(PARTS[0]), atol=1e-6)
    assert log.bytes(up=True) == inside.log.bytes(up=True)
    page = render(tmp_path / "out").read_text(encoding="utf-8")
    assert "What was exchanged" in page
    assert 'id="maps"' not in page


@pytest.mark.parametrize("method", ["fedavg", "fedprox"])
def test_averaging_is_that_of_one_process(method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = EmbeddingOptions(**SMALL, method=method)
    serve_map(GridTransport(FakeGrid(monkeypatch), clients=3), chosen, tmp_path)
    inside = fit_clients(PARTS, chosen)
    loaded = FederatedNeighborEmbedding.load(tmp_path / "model")
    np.testing.assert_allclose(loaded.transform(PARTS[0]), inside.transform(PARTS[0]), atol=1e-6)


def test_a_field_is_nearly_that_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a network a field is cut and rounded; where all points are near all others, that is all."""
    chosen = EmbeddingOptions(**SMALL)
    inside, remote = fit_clients(PARTS, chosen), fit_remote(PARTS, chosen)
    np.testing.assert_allclose(remote.transform(PARTS[0]), inside.transform(PARTS[0]), atol=0.02)


@pytest.mark.parametrize("method", ["fedne", "fedavg", "fedprox"])
def test_a_map_of_clients_with_noise_runs_through(method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = EmbeddingOptions(**SMALL, method=method)
    found = serve_map(GridTransport(FakeGrid(monkeypatch, noise=15.0), clients=3), chosen, tmp_path)
    history = found["maps"][0]["history"]
    assert [entry["round"] for entry in history] == [0, 1, 2]
    assert {entry["attraction"] for entry in history} == {None}
    assert {entry["outside"] for entry in history} == {None}
    page = render(tmp_path).read_text(encoding="utf-8")
    assert "hidden by the clients’ noise" in page
    assert "counted by each client" in page
    assert np.isfinite(FederatedNeighborEmbedding.load(tmp_path / "model").transform(PARTS[0])).all()


def test_a_killed_server_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = EmbeddingOptions(**SMALL, surrogate="grid")
    with pytest.raises(KeyboardInterrupt):
        serve_map(GridTransport(FakeGrid(monkeypatch, stop_after=14), clients=3), chosen, tmp_path)
    assert (tmp_path / "states" / "fedne.safetensors").is_file()
    again = serve_map(GridTransport(FakeGrid(monkeypatch), clients=3), chosen, tmp_path)
    assert [entry["round"] for entry in again["maps"][0]["history"]] == [0, 1, 2]
    assert not (tmp_path / "states" / "fedne.safetensors").exists(), (
        "a finished run keeps no state: data elsewhere may change"
    )
    inside = fit_remote(PARTS, chosen)
    loaded = FederatedNeighborEmbedding.load(tmp_path / "model")
    np.testing.assert_allclose(loaded.transform(PARTS[1]), inside.transform(PARTS[1]), atol=1e-6)


def test_a_killed_server_goes_on_without_a_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = EmbeddingOptions(**SMALL, surrogate="grid")
    with pytest.raises(KeyboardInterrupt):
        serve_map(GridTransport(FakeGrid(monkeypatch, stop_after=14), clients=3), chosen, tmp_path)
    grid = FakeGrid(monkeypatch)
    monkeypatch.setattr(grid, "get_node_ids", lambda: [107, 105])
    exchange = GridTransport(grid, clients=3, wait=0.1)
    with raises_naming(TooFewClientsError, "2", "3", "0.1"):
        serve_map(exchange, chosen, tmp_path, min_clients=3)
    again = serve_map(exchange, chosen, tmp_path, min_clients=2)
    assert [entry["round"] for entry in again["maps"][0]["history"]] == [0, 1, 2]
    assert again["clients"] == {"client 0": 30, "client 1": 30, "client 2": 30}, "it took part before"
    absent = {(one.client, one.reason) for one in exchange.log.entries if one.reason}
    assert absent == {(2, "did not connect within 0.1 s")}


def test_a_map_without_a_client_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = FakeGrid(monkeypatch)
    monkeypatch.setattr(grid, "get_node_ids", lambda: [107, 103])
    chosen = EmbeddingOptions(**SMALL, method="fedavg")
    found = serve_map(GridTransport(grid, clients=3, wait=0.1), chosen, tmp_path / "a")
    assert found["clients"] == {"client 0": 30, "client 2": 30}
    assert found["maps"][0]["notes"] == {"client 1 is left out: did not connect within 0.1 s": 1}
    with raises_naming(TooFewClientsError, "2", "3", "1"):
        serve_map(GridTransport(grid, clients=3, wait=0.1), chosen, tmp_path / "b", min_clients=3)


def test_the_server_app_runs_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG | {
        "job": "embed", "clients": 3, "out": str(tmp_path), "options": "rounds=2 hidden=[8] surrogate=grid", "seed": 4
    }  # fmt: skip
    assert server_app.run(FakeGrid(monkeypatch), config) == tmp_path
    assert FederatedNeighborEmbedding.load(tmp_path / "model").random_state_ == 4
    with raises_naming(UserError, "embed"):
        server_app.run(FakeGrid(monkeypatch), config | {"job": "embeds"})


def test_positions_never_leave_over_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Message(kinds.POSITIONS, 0, {}, {"options": EmbeddingOptions().model_dump_json()})
    with pytest.raises(MessageError, match="not answered over a network"):
        answer_remote(PARTS[0], request, 0)
    assert kinds.POSITIONS not in kinds.REMOTE_KINDS
    for method in ("fedne_exact", "local", "global"):
        with raises_naming(UserError, method):
            serve_map(GridTransport(FakeGrid(monkeypatch), clients=3), EmbeddingOptions(method=method), tmp_path)


def test_a_client_without_data_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_app, "FlowerMessage", lambda content, reply_to: content)
    message = SimpleNamespace(content=to_records(Message(kinds.POINTS)))
    content = client_app.answer(
        message, SimpleNamespace(node_config={"partition-id": 0, "min-count": 1, "jobs": "embed"})
    )
    assert dict(from_records(content).values) == {FAILURE: DATA_MISSING}
