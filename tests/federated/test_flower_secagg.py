"""Sums under Flower's SecAgg+: in one process with the app's own clients, and as processes over TLS.

A sum equals that of the clients which are in it, whoever is lost, late or lying; the server holds no vector in the
clear, and a client answers no stage that would open one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed; make test-flower runs this")

from flwr.app import ConfigRecord, Context, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.primitives.asymmetric import generate_key_pairs
from flwr.supercore.task_identity import TaskIdentity
from naming import raises_naming
from s_sets import split_s_set

from foveate.core.errors import UserError
from foveate.federated.clustering import protocol
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.methods import resolve
from foveate.federated.deep.job import DeepJob
from foveate.federated.deep.options import read_options as read_deep_options
from foveate.federated.embedding.job import MapJob
from foveate.federated.embedding.options import read_options as read_map_options
from foveate.federated.flower import server_app
from foveate.federated.flower.app import CONFIG
from foveate.federated.flower.client_app import app as client_app
from foveate.federated.flower.masks import (
    MOD_RANGE,
    RECORD_KEY_CONFIGS,
    SETTINGS,
    Key,
    Stage,
    generate_masks,
    threshold,
)
from foveate.federated.flower.records import from_records, to_records
from foveate.federated.flower.transport import GridTransport
from foveate.federated.job import serve
from foveate.federated.messages import Message, MessageError
from foveate.federated.node import HELLO, SUM_FORMATS
from foveate.federated.reasons import FAILURE, REQUEST_INVALID
from foveate.federated.rounds import Client, InProcess, Log, TooFewClientsError
from foveate.federated.secure_sums import MAX_DIGIT

PARTS = split_s_set("s1", alpha=0.3, clients=6, seed=0)
PLAN = resolve(15, seed=5, scale="standard", refine_rounds=2)
NODE = 'partition-id={} min-count=1 max-partitions=100 winsorize=0 jobs="cluster,embed,features"'
COLLECT, UNMASK = Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK
Change = Callable[[RecordDict], RecordDict | None]


class AppGrid:
    """Has Flower's ClientApp answer every message in this process, each client with its own state.

    Attributes:
        changes: by client and stage (of a sum, or the kind of another message) what becomes of its answer; None = none.
        received: stage or kind, and records, of all that reached the server.
    """

    def __init__(self, folder: Path, parts: Sequence[np.ndarray], changes: Mapping[tuple[int, str], Change] | None = None):
        self.changes = changes or {}
        self.received: list[tuple[int, str, RecordDict]] = []
        self.sent: list[tuple[int, str]] = []
        self.contexts: dict[int, Context] = {}
        self.numbers: dict[int, int] = {}
        for number, part in enumerate(parts):
            # Flower's numbers are random and unsigned, of 64 bits.
            node = 2**64 - 1 - 7 * number
            np.savez(folder / f"points{number}.npz", points=part)
            config = {
                "partition-id": number,
                "min-count": 1,
                "max-partitions": 100,
                "winsorize": 0.0,
                "scale": "standard",
                "noise-multiplier": 0.0,
                "jobs": "cluster,embed,features",
                "data": str(folder / f"points{number}.npz"),
                "state": str(folder / "state"),
            }
            self.contexts[node] = Context(1, node, config, RecordDict(), {})
            self.numbers[node] = number

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def send_and_receive(self, messages: Sequence[FlowerMessage], *, timeout: float | None = None) -> list[Any]:
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            number = self.numbers[node]
            message.metadata.__dict__["_message_id"] = f"{node}"
            # As over a network: both sides have their own copy.
            message.content = recorddict_from_proto(recorddict_to_proto(message.content))
            records = message.content.config_records.get(RECORD_KEY_CONFIGS)
            stage = from_records(message.content).kind if records is None else str(records[Key.STAGE])
            self.sent.append((number, stage))
            content = recorddict_from_proto(recorddict_to_proto(self._answer(message, node)))
            change = self.changes.get((number, stage))
            if change is not None:
                content = change(content)
            if content is not None:
                self.received.append((number, stage, content))
                metadata = SimpleNamespace(src_node_id=node)
                replies.append(SimpleNamespace(has_error=lambda: False, content=content, metadata=metadata))
        return replies[::-1]

    def _answer(self, message: FlowerMessage, node: int) -> RecordDict:
        server = TaskIdentity.node_id
        TaskIdentity.node_id = node
        try:
            return client_app(message, self.contexts[node]).content
        finally:
            TaskIdentity.node_id = server


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages exist inside a run only."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def lose(content: RecordDict) -> None:
    return None


def change_configs(change: Callable[[dict[str, Any]], Any]) -> Change:
    def changed(content: RecordDict) -> RecordDict:
        values = dict(content.config_records[RECORD_KEY_CONFIGS])
        change(values)
        content[RECORD_KEY_CONFIGS] = ConfigRecord(values)
        return content

    return changed


def in_process(parts: Sequence[np.ndarray], plan: Any) -> Any:
    return cluster(InProcess([Client(number, part, protocol.HANDLERS) for number, part in enumerate(parts)]), plan)


def connect(grid: Any, clients: int, log: Log | None = None, **more: Any) -> GridTransport:
    return GridTransport(grid, clients=clients, log=log, is_secure=True, **more)


def test_a_clustering_equals_the_plain_one(tmp_path: Path) -> None:
    grid = AppGrid(tmp_path, PARTS[:3])
    found, plain = cluster(connect(grid, 3), PLAN), in_process(PARTS[:3], PLAN)
    np.testing.assert_allclose(found.centers, plain.centers, atol=1e-12)
    assert not found.excluded
