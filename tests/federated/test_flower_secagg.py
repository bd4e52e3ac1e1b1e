"""Sums under Flower's SecAgg+: in one process with the app's own clients, and as processes over TLS.

A sum equals that of the clients which are in it, whoever is lost, late or lying; the server holds no vector in the
clear, and a client answers no stage that would open one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed; make test-flower runs this")

from flower_network import ROOT, free_port
from flwr.app import ConfigRecord, Context, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.common import ndarray_to_bytes
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen as flowers_generator
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.primitives.asymmetric import generate_key_pairs
from flwr.supercore.task_identity import TaskIdentity
from s_sets import split_s_set
from safetensors.numpy import load_file
from test_flower_wrappers import Federation

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
from foveate.federated.flower.processes import family
from foveate.federated.flower.records import from_records, to_records
from foveate.federated.flower.transport import GridTransport
from foveate.federated.job import serve
from foveate.federated.messages import Message
from foveate.federated.node import HELLO, SUM_FORMATS
from foveate.federated.reasons import FAILURE, REQUEST_INVALID
from foveate.federated.rounds import Client, InProcess, Log
from foveate.federated.secure_sums import MAX_DIGIT
from naming import raises_naming

PARTS = split_s_set("s1", alpha=0.3, clients=6, seed=0)
PLAN = resolve(15, seed=5, scale="standard", refine_rounds=2)
COLLECT, UNMASK = Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK
Change = Callable[[RecordDict], RecordDict | None]


class AppGrid:
    """Has Flower's ClientApp answer every message in this process, each client with its own state.

    Args:
        own: limits of every client.

    Attributes:
        changes: by client and stage (of a sum, or the kind of another message) what becomes of its answer; None = none.
        received: stage or kind, and records, of all that reached the server.
    """

    def __init__(
        self,
        folder: Path,
        parts: Sequence[np.ndarray],
        changes: Mapping[tuple[int, str], Change] | None = None,
        **own: Any,
    ):
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
                **{name.replace("_", "-"): value for name, value in own.items()},
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


def test_a_clustering_equals_the_plain_one_and_shows_no_vector(tmp_path: Path) -> None:
    grid, log = AppGrid(tmp_path, PARTS[:3]), Log(record=True)
    found, plain = cluster(connect(grid, 3, log), PLAN), in_process(PARTS[:3], PLAN)
    np.testing.assert_allclose(found.centers, plain.centers, atol=1e-12)
    assert not found.excluded
    # Every message that arrived: centroids are sent once, as they are; moments and sums only under masks.
    kinds = {stage for _, stage, _ in grid.received}
    assert kinds == {HELLO, protocol.CENTROIDS, *Stage.all()}
    vectors = [own_vector(client, request) for client, request in summed_requests(log)]
    masked = [message.array("masked") for _, up, message in log.messages if up and "masked" in message.arrays]
    assert len(vectors) == len(masked) == 3 * 4
    for vector in masked:
        # Masked numbers are spread over the whole range; digits fill a half-millionth of it.
        assert np.median(vector) > MOD_RANGE / 16
        assert not any(
            len(own) == len(vector) and ((vector - own) % MOD_RANGE < 2 * MAX_DIGIT).mean() > 0.1 for own in vectors
        )
    for _, stage, content in grid.received:
        if stage == COLLECT:
            assert not [array for record in content.array_records.values() for array in record], (
                "arrays beside the masked one"
            )
    assert log.table()


def summed_requests(log: Log) -> list[tuple[int, Message]]:
    return [(client, message) for client, up, message in log.messages if not up and message.kind in SUM_FORMATS]


def own_vector(client: int, request: Message) -> np.ndarray:
    """What a client masks."""
    answer = Client(client, PARTS[client], protocol.HANDLERS).answer(request)
    return SUM_FORMATS[request.kind](request).encode(answer, len(PARTS[client]))


def shorten(values: dict[str, Any]) -> None:
    values[Key.MASKED_PARAMETERS] = [ndarray_to_bytes(np.zeros(size, np.int64)) for size in (1, 5)]


def test_lost_late_and_lying_clients_are_left_out(tmp_path: Path) -> None:
    """One never answers, one is lost between two stages, one sends a vector of its own: the others' sum stands."""
    changes = {(3, COLLECT): lose, (4, Stage.SETUP): lose, (5, COLLECT): change_configs(shorten)}
    grid = AppGrid(tmp_path, PARTS, changes)
    plan = resolve(15, seed=5, refine_rounds=1)
    found = cluster(connect(grid, 6), plan)
    assert sorted(found.excluded) == [3, 4, 5]
    assert "no answer" in found.excluded[3]
    assert "digits" in found.excluded[5]
    # Centroids of all six count; the refinement is that of the three which are left.
    np.testing.assert_allclose(found.centers, refined_by(range(3), plan).centers, atol=1e-12)


def test_a_client_lost_after_its_vector_stays_in_the_sum(tmp_path: Path) -> None:
    grid = AppGrid(tmp_path, PARTS[:4], {(1, UNMASK): lose})
    np.testing.assert_allclose(cluster(connect(grid, 4), PLAN).centers, in_process(PARTS[:4], PLAN).centers, atol=1e-12)


def spoil(values: dict[str, Any]) -> None:
    factor, vector = (np.load(io.BytesIO(data)) for data in values[Key.MASKED_PARAMETERS])
    noise = np.random.default_rng(0).integers(0, MOD_RANGE, vector.shape)
    values[Key.MASKED_PARAMETERS] = [ndarray_to_bytes(factor), ndarray_to_bytes(noise)]


def spoil_factor(values: dict[str, Any]) -> None:
    values[Key.MASKED_PARAMETERS] = [ndarray_to_bytes(np.zeros(1, np.int64)), values[Key.MASKED_PARAMETERS][1]]


def spoil_shares(values: dict[str, Any]) -> None:
    values[Key.SHARE_LIST] = [share[:4] + bytes(len(share) - 4) for share in values[Key.SHARE_LIST]]


@pytest.mark.parametrize(
    ("stage", "change", "words"),
    [
        (COLLECT, spoil, "out of range"),
        (COLLECT, spoil_factor, "masks do not cancel"),
        (UNMASK, spoil_shares, "secure aggregation"),
    ],
)
def test_garbage_under_the_masks_ends_the_run(tmp_path: Path, stage: str, change: Any, words: str) -> None:
    """Nothing shows who sent it, and asking without one client after another would show each."""
    grid = AppGrid(tmp_path, PARTS[:3], {(1, stage): change_configs(change)})
    with raises_naming(UserError, words):
        cluster(connect(grid, 3), PLAN)
    assert sum(sent == (0, stage) for sent in grid.sent) == 1, "asked once"


@pytest.mark.parametrize("stage", [*Stage.all()[1:], UNMASK])
def test_fewer_than_three_have_no_sum(tmp_path: Path, stage: str) -> None:
    lost = {(2, stage): lose, (1, stage): lose} if stage == UNMASK else {(2, stage): lose}
    with raises_naming(UserError, "needed"):
        cluster(connect(AppGrid(tmp_path, PARTS[:3], lost), 3), PLAN)


def test_a_client_refuses_its_share_with_a_code(tmp_path: Path) -> None:
    grid = AppGrid(tmp_path, PARTS[:4])
    grid.contexts[2**64 - 1].node_config["scale"] = "none"
    found = cluster(connect(grid, 4), PLAN)
    assert found.excluded[0].startswith("scale: "), found.excluded


def test_a_client_may_require_secure_aggregation(tmp_path: Path) -> None:
    grid = AppGrid(tmp_path, PARTS[:3])
    for context in grid.contexts.values():
        context.node_config["secure-aggregation"] = "required"
    assert not cluster(connect(grid, 3), PLAN).excluded
    with raises_naming(UserError, "secure-aggregation: it sends"):
        cluster(GridTransport(grid, clients=3), PLAN)


def test_maps_and_encoders_equal_the_plain_ones(tmp_path: Path) -> None:
    map_options = read_map_options({"rounds": 2, "hidden": (8,), "surrogate_start": 0.5, "min_r2": -10.0})
    deep_options = read_deep_options({"clusters": 4, "rounds": 1, "width": 4, "hidden": 8})
    small = [part[:60] for part in PARTS[:3]]
    for make in (lambda: MapJob(map_options), lambda: DeepJob(deep_options)):
        weights = []
        for is_secure in (True, False):
            job = make()
            folder = tmp_path / f"{job.name}-{is_secure}"
            folder.mkdir()
            link = GridTransport(AppGrid(folder, small), clients=3, is_secure=is_secure)
            serve(job, link, folder / "out", min_clients=3)
            weights.append(load_file(folder / "out" / "model" / "model.safetensors"))
        for name, array in weights[0].items():
            np.testing.assert_allclose(array, weights[1][name], atol=1e-6, err_msg=f"{job.name} {name}")


def test_a_killed_server_does_not_ask_for_a_sum_again(tmp_path: Path) -> None:
    answers = tmp_path / "answers"
    plan = resolve(15, seed=5, refine_rounds=1)
    first = AppGrid(tmp_path, PARTS[:4])
    before = cluster(connect(first, 4, answers_folder=answers), plan)
    # Without client 3 the sum would differ by its part.
    second = AppGrid(tmp_path, PARTS[:4], {(3, stage): lose for stage in Stage.all()})
    after = cluster(connect(second, 4, answers_folder=answers), plan)
    np.testing.assert_array_equal(after.centers, before.centers)
    assert not [stage for _, stage in second.sent if stage in Stage.all()]


def test_a_run_says_that_it_needs_three_clients_and_no_single_answers(tmp_path: Path) -> None:
    config = CONFIG | {"clusters": 15, "clients": 2, "out": str(tmp_path), "wait": 0.1, "secure-aggregation": True}
    with raises_naming(UserError, "secure-aggregation", "3 clients"):
        server_app.run(AppGrid(tmp_path, PARTS[:2]), config)
    config |= {"clients": 3}
    server_app.run(AppGrid(tmp_path, PARTS[:3]), config | {"options": "refine_rounds=1 min_count=1 winsorize=null"})
    assert json.loads((tmp_path / "result.json").read_text())["notes"][0].startswith(
        "secure aggregation: the server saw"
    )
    config |= {"options": "suspects=exclude"}
    with raises_naming(UserError, "suspects=exclude"):
        server_app.run(AppGrid(tmp_path, PARTS[:3]), config)


class Attack:
    """A server that sends stages of its own to one client of a sum."""

    def __init__(self, folder: Path, clients: int = 4) -> None:
        self.grid = AppGrid(folder, PARTS[:clients])
        self.nodes = list(self.grid.contexts)

    def send(
        self, stage: str, values: dict[str, Any], *, node: int, request: Message | None = None, kind: str = "train"
    ):
        content = RecordDict() if request is None else to_records(request)
        content[RECORD_KEY_CONFIGS] = ConfigRecord({Key.STAGE: stage, **values})
        message = FlowerMessage(content, dst_node_id=node, message_type=kind)
        (reply,) = self.grid.send_and_receive([message])
        return reply.content

    def setup(self, **changes: Any) -> dict[int, RecordDict]:
        numbers = {Key.SAMPLE_NUMBER: len(self.nodes), Key.SHARE_NUMBER: len(self.nodes)}
        values = {**numbers, Key.THRESHOLD: threshold(len(self.nodes)), **SETTINGS, **changes}
        return {node: self.send(Stage.SETUP, values, node=node) for node in self.nodes}

    def share(self, keys: Mapping[int, RecordDict]) -> dict[int, RecordDict]:
        pairs = {node: content.config_records[RECORD_KEY_CONFIGS] for node, content in keys.items()}
        values = {str(node): [pair[Key.PUBLIC_KEY_1], pair[Key.PUBLIC_KEY_2]] for node, pair in pairs.items()}
        return {node: self.send(Stage.SHARE_KEYS, values, node=node) for node in self.nodes}

    def collect(self, shares: Mapping[int, RecordDict], node: int, sources: Sequence[int], **more: Any) -> RecordDict:
        texts = []
        for source in sources:
            sent = shares[source].config_records[RECORD_KEY_CONFIGS]
            texts.append(dict(zip(sent[Key.DESTINATION_LIST], sent[Key.CIPHERTEXT_LIST], strict=True))[node])
        values = {Key.CIPHERTEXT_LIST: texts, Key.SOURCE_LIST: list(sources)}
        request = protocol.lloyd_request(PARTS[0][:3], resolve(3), 1)
        return self.send(COLLECT, values, node=node, request=request, **more)


def is_refused(content: RecordDict) -> bool:
    return from_records(content).values.get(FAILURE) == REQUEST_INVALID


@pytest.mark.parametrize(
    "changes",
    [
        {Key.SAMPLE_NUMBER: 2, Key.SHARE_NUMBER: 2, Key.THRESHOLD: 2},
        {Key.THRESHOLD: 2},
        {Key.MOD_RANGE: 1},
        {Key.CLIPPING_RANGE: 1.0},
        {Key.MAX_WEIGHT: 1e-6},
    ],
)
def test_a_client_takes_no_settings_of_a_server(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert all(is_refused(content) for content in Attack(tmp_path).setup(**changes).values())


def test_a_client_answers_no_stage_that_opens_its_vector(tmp_path: Path) -> None:
    attack = Attack(tmp_path)
    first, *others = attack.nodes
    keys = attack.setup()
    assert is_refused(attack.send(Stage.SHARE_KEYS, {str(first): [b"", b""]}, node=first)), "keys of one client"
    shares = attack.share(keys)
    assert is_refused(attack.collect(shares, first, others[:1])), "a sum of two"
    assert is_refused(attack.collect(shares, first, others, kind=protocol.LLOYD)), "a type that is not masked"
    assert not is_refused_stage(attack.collect(shares, first, others))
    for active, dead in (
        (attack.nodes, others[:1]),  # both secrets of one client
        (others, [first]),  # its own
        (attack.nodes[:2], others[1:]),
        ([first, first, first], []),
        ([*attack.nodes, 5], []),
    ):
        values = {Key.ACTIVE_NODE_ID_LIST: active, Key.DEAD_NODE_ID_LIST: dead}
        assert is_refused(attack.send(UNMASK, values, node=first)), (active, dead)
    assert not is_refused_stage(
        attack.send(UNMASK, {Key.ACTIVE_NODE_ID_LIST: attack.nodes, Key.DEAD_NODE_ID_LIST: []}, node=first)
    )


def is_refused_stage(content: RecordDict) -> bool:
    return RECORD_KEY_CONFIGS not in content.config_records


def test_what_is_not_added_up_is_not_asked_for_under_masks(tmp_path: Path) -> None:
    attack = Attack(tmp_path)
    shares = attack.share(attack.setup())
    first, *others = attack.nodes
    texts = [shares[node].config_records[RECORD_KEY_CONFIGS] for node in others]
    own = [dict(zip(sent[Key.DESTINATION_LIST], sent[Key.CIPHERTEXT_LIST], strict=True))[first] for sent in texts]
    values = {Key.CIPHERTEXT_LIST: own, Key.SOURCE_LIST: others}
    for request in (Message(HELLO), protocol.centroids_request(resolve(3), 0)):
        assert FAILURE in from_records(attack.send(COLLECT, values, node=first, request=request)).values


def test_masks_have_the_whole_key_and_flowers_generator_28_bits_of_it() -> None:
    """The reason why Flower's generator is not used; a release that mends it makes this fail."""
    union = 0
    for _ in range(20):
        private, public = generate_key_pairs()[0], generate_key_pairs()[1]
        seed, folded = generate_shared_key(private, public), 0
        for start in range(0, len(seed), 4):
            folded ^= int.from_bytes(seed[start : start + 4], "little")
        union |= folded
        whole, drawn = flowers_generator(seed, MOD_RANGE, [(4,)]), np.random.RandomState(folded)
        np.testing.assert_array_equal(whole[0], drawn.randint(0, MOD_RANGE - 1, (4,), dtype=np.int64))
    assert union & 0x80808080 == 0
    # Two keys that Flower's generator cannot tell apart.
    one, other = b"abcd" * 8, b"efgh" * 8
    np.testing.assert_array_equal(*(flowers_generator(seed, MOD_RANGE, [(4,)])[0] for seed in (one, other)))
    masks = [generate_masks(seed, MOD_RANGE, [(1,), (1000,)])[1] for seed in (one, other)]
    assert not (masks[0] == masks[1]).any()
    assert masks[0].min() >= 0
    assert abs(masks[0].mean() / MOD_RANGE - 0.5) < 0.05


MISBEHAVIOR = """
import sys

# Tasks of a node are processes of their own; only those that answer are changed.
if any("clientapp" in word for word in sys.orig_argv):
    import time
    from pathlib import Path

    import numpy as np
    from flwr.app import ConfigRecord
    from flwr.common import ndarray_to_bytes

    from foveate.federated.flower import secure_client

    honest = secure_client.answer_stage

    def answer_stage(message, context):
        stage = message.content.config_records["secaggplus_configs"]["stage"]
        if {kind!r} == "slow":
            time.sleep(900)
        if {kind!r} == "killed" and stage == "collect_masked_vectors":
            Path({marker!r}).touch()
            time.sleep(900)
        content = honest(message, context)
        if {kind!r} == "hostile" and stage == "collect_masked_vectors":
            garbage = [ndarray_to_bytes(np.zeros(size, np.int64)) for size in (1, 7)]
            content["secaggplus_configs"] = ConfigRecord({{"masked_params": garbage}})
        return content

    secure_client.answer_stage = answer_stage
"""
"""Code of the clients that misbehave, in place of an owner who changed the package."""
KILLED, SLOW, HOSTILE = 3, 4, 5


class Ward(Federation):
    """A federation whose last three clients misbehave."""

    def join(self, stack: contextlib.ExitStack, number: int) -> subprocess.Popen:
        log = f"client{number}"
        data = ["--data", f"points{number}.npz", "--port", str(free_port()), "--min-count", "1", "--winsorize", "0"]
        client = ["--folder", f"ward{number}", "--client", str(number), "--server", self.address]
        kind = {KILLED: "killed", SLOW: "slow", HOSTILE: "hostile"}.get(number, "")
        code = self.folder / f"code{number}"
        code.mkdir()
        (code / "sitecustomize.py").write_text(MISBEHAVIOR.format(kind=kind, marker=str(self.folder / "collecting")))
        env = {**self.env, "PYTHONPATH": f"{code}{os.pathsep}{ROOT / 'src'}"}
        with (self.folder / f"{log}.json").open("w") as out, (self.folder / f"{log}.log").open("w") as err:
            words = self.words("client", *client, *data, "--max-partitions", "2", "--json")
            process = subprocess.Popen(words, cwd=self.folder, env=env, stdout=out, stderr=err)
        stack.callback(stop, process)
        return process


def stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_over_tls_with_one_killed_one_slow_and_one_hostile(tmp_path: Path) -> None:
    """Six clients with registered keys: the refinement is that of the three honest ones."""
    wards = Ward(tmp_path, free_port())
    for number, part in enumerate(PARTS):
        np.savez(tmp_path / f"points{number}.npz", points=part)
    wards.done("server", "--folder", "server", "--address", wards.address, "--make-keys")
    for number in range(len(PARTS)):
        wards.done("client", "--folder", f"ward{number}", "--client", str(number), "--make-keys")
        shutil.copy(tmp_path / "server" / "ca.crt", tmp_path / f"ward{number}")
    keys = [f"ward{number}/client{number}.pub" for number in range(len(PARTS))]
    settings = ["--set", "refine_rounds=1", "--set", "min_count=1", "--set", "winsorize=null"]
    run = [
        "run",
        "--folder",
        "server",
        "--clients",
        "6",
        "--clusters",
        "15",
        "--seed",
        "5",
        *settings,
        "--timeout",
        "180",
    ]
    with contextlib.ExitStack() as stack:
        stack.enter_context(wards.start("server", "server", "--folder", "server", "--address", wards.address))
        wards.until(lambda: wards.is_ready("server"))
        wards.done("register", "--folder", "server", *keys)
        clients = [wards.join(stack, number) for number in range(len(PARTS))]
        wards.until(lambda: all(wards.is_ready(f"client{number}") for number in range(len(PARTS))))
        with wards.start("run", *run, "--secure-aggregation", "--out", "groups") as running:
            wards.until((tmp_path / "collecting").exists, 900)
            for process in family(clients[KILLED].pid):
                process.kill()
            wards.until(lambda: running.poll() is not None, 1200)
            assert running.returncode == 0, wards.logs()
    result = json.loads((tmp_path / "groups" / "result.json").read_text())
    excluded = {number: row["excluded"] for number, row in enumerate(result["clients"]) if row.get("excluded")}
    assert sorted(excluded) == [KILLED, SLOW, HOSTILE], excluded
    assert "digits" in excluded[HOSTILE]
    plan = resolve(15, seed=5, refine_rounds=1)
    centers = np.load(tmp_path / "groups" / "centers.npz")["centers"]
    np.testing.assert_allclose(centers, refined_by(range(3), plan).centers, atol=1e-10)
    sent = {(row["kind"], row["name"]) for row in result["exchanged"] if row["up"]}
    assert ("query.lloyd", "masked") in sent
    assert not {("query.lloyd", "sums"), ("query.lloyd", "counts")} & sent


def refined_by(clients: Sequence[int], plan: Any) -> Any:
    """Clustering in one process of all clients, of whom only these answer the refinement."""
    silent = {kind: handler for kind, handler in protocol.HANDLERS.items() if kind != protocol.LLOYD}
    handlers = [protocol.HANDLERS if number in clients else silent for number in range(len(PARTS))]
    members = [Client(number, part, handlers[number]) for number, part in enumerate(PARTS)]
    return cluster(InProcess(members), plan)
