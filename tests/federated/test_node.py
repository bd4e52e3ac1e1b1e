"""A remote client, attacked as a curious server would: what its failures and answers say, how often it answers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_wine

from foveate.core.errors import UserError
from foveate.federated import attacks, scaling
from foveate.federated import node as at_client
from foveate.federated.clustering import protocol
from foveate.federated.clustering.methods import resolve
from foveate.federated.deep import options as features_kinds
from foveate.federated.deep.options import DeepOptions
from foveate.federated.embedding import options as map_kinds
from foveate.federated.embedding.client import ClientData, answer_box, build_encoder
from foveate.federated.embedding.networks import flatten_weights
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.flower.app import read_job
from foveate.federated.limits import JOBS, ClientLimits
from foveate.federated.messages import Message
from foveate.federated.node import HELLO, KINDS, answer_request
from foveate.federated.reasons import COUNT, FAILURE, SENTENCES, failure_values, read_failure

SECRETS = (b"Jane Doe", b"HIV", b"hospital-north-patients", b"41.99")
WINE = (load_wine().data - load_wine().data.mean(0)) / load_wine().data.std(0)
DIGITS = load_digits().data[:600]


def configure(folder: Path, rows: Any, **limits: Any) -> dict[str, Any]:
    """Write a client's data; return its node's configuration."""
    path = folder / "hospital-north-patients-2026.npz"
    np.savez(path, points=rows)
    config = {"partition-id": 0, "data": str(path), "state": str(folder / "state"), "min-count": 10}
    # Every kind is answered here, as one process would; `test_hostile_server.py` has what an owner must name.
    config |= {"jobs": ",".join(JOBS), "winsorize": 0, "scale": "standard"}
    return config | {name.replace("_", "-"): value for name, value in limits.items()}


def ask_with(config: dict[str, Any]) -> attacks.Ask:
    """Requests to a client of this configuration; None where it refuses."""

    def ask(request: Message) -> Message | None:
        answer = answer_request(config, lambda: request)
        return None if FAILURE in answer.values else answer

    return ask


def request_of(kind: str) -> Message:
    """An ordinary request of each kind that a client answers."""
    options = resolve(3, min_count=10)
    centers = np.eye(3, WINE.shape[1])
    made = {
        scaling.MOMENTS: scaling.moments_request(options.min_count),
        protocol.CENTROIDS: protocol.centroids_request(options, 0),
        protocol.LLOYD: protocol.lloyd_request(centers, options, 1),
        protocol.ASSIGN: protocol.assign_request(centers, options, 2),
    }
    encoder = flatten_weights(build_encoder(EmbeddingOptions(), WINE.shape[1]))
    is_map = kind in map_kinds.REMOTE_KINDS
    values = {"options": (EmbeddingOptions() if is_map else DeepOptions(clusters=3, min_count=10)).model_dump_json()}
    return made.get(kind) or Message(kind, 0, {"encoder": encoder} if is_map else {}, values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["cells that are words", "no such file", "no data", "a bug", "a misspelled limit"])
def test_a_failure_says_a_code_and_nothing_else(
    kind: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: `.../hospital-north-patients-2026.npz: ... could not convert string to float: 'Jane Doe HIV+'`."""
    config = configure(tmp_path, np.full((30, WINE.shape[1]), "Jane Doe HIV+") if fault.startswith("cells") else WINE)
    if fault == "no such file":
        config["data"] += ".gone"
    elif fault == "no data":
        del config["data"]
    elif fault == "a misspelled limit":
        config["min_count"] = "Jane Doe 41.99"
    elif fault == "a bug":

        def fail(self: Any) -> None:
            raise KeyError("Jane Doe HIV+, 41.99 in hospital-north-patients")

        monkeypatch.setattr(at_client.Node, "read", fail)
    answer = answer_request(config, lambda: request_of(kind))
    if kind == HELLO and fault not in ("a misspelled limit", "a bug"):
        assert FAILURE not in answer.values
    else:
        assert set(answer.values) <= {FAILURE, COUNT}
        assert answer.values[FAILURE] in SENTENCES
        assert not answer.arrays
        assert read_failure(answer)
    assert not [secret for secret in SECRETS if secret in answer.to_bytes()]
    log = tmp_path / "state" / "client.log"
    if fault in ("cells that are words", "no such file", "a bug") and kind != HELLO:
        assert "hospital-north-patients" in log.read_text(), "the client's owner reads the whole sentence"
        assert log.stat().st_mode & 0o077 == 0


def test_what_is_no_request_is_answered_with_a_code(tmp_path: Path) -> None:
    def fail() -> Message:
        raise RuntimeError("Jane Doe")

    answer = answer_request(configure(tmp_path, WINE), fail)
    assert dict(answer.values) == {FAILURE: "internal-error"}


@pytest.mark.parametrize("broken", ["answer_request", "to_records"])
def test_no_exception_reaches_flower(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower sends the type and the text of an exception to the server."""
    pytest.importorskip("flwr", reason="Flower is not installed: pip install 'foveate[flower]'")
    from foveate.federated.flower import client_app
    from foveate.federated.flower.transport import from_records, to_records

    calls = []

    def fail(*arguments: Any) -> Any:
        calls.append(1)
        if broken == "to_records" and len(calls) > 1:
            return to_records(*arguments)
        raise ValueError("Jane Doe HIV+")

    monkeypatch.setattr(client_app, "FlowerMessage", lambda records, reply_to: from_records(records))
    monkeypatch.setattr(client_app, broken, fail)
    message = SimpleNamespace(content=to_records(Message(HELLO)))
    answer = client_app.answer(message, SimpleNamespace(node_config={"partition-id": 0, "min-count": 1}))
    assert dict(answer.values) == {FAILURE: "internal-error"}
    assert b"Jane" not in answer.to_bytes()


@pytest.mark.parametrize("code", ["Jane Doe HIV+", "max-clusters\nserver: all fine", 7, ""])
def test_a_server_prints_no_text_of_a_client(code: Any) -> None:
    assert "reason that is not on the list" in read_failure(Message("query.lloyd", values={FAILURE: code}))
    listed = Message("query.lloyd", values=failure_values("min-count", 10))
    assert "min-count 10" in read_failure(listed)
    assert "41.99" not in read_failure(Message("query.lloyd", values={FAILURE: "min-count", COUNT: 41.99}))


@pytest.mark.slow
def test_how_well_centers_fit_reads_no_row(tmp_path: Path) -> None:
    """Before: 19 of 178 rows, to 1e-6, from 1,443 questions with min_count 10."""
    ask = ask_with(configure(tmp_path, WINE, max_questions=100_000, max_partitions=100_000))
    candidates = attacks.read_from_inertia(ask, WINE.mean(0), 6.0, min_count=10, steps=12)
    assert attacks.count_rows_read(candidates, WINE) == 0
    # The attack itself works: with groups of one point allowed it reads rows.
    bare = attacks.read_from_inertia(
        lambda request: protocol.HANDLERS[request.kind](WINE, request, 0), WINE.mean(0), 6.0, min_count=1, steps=12
    )
    assert attacks.count_rows_read(bare, WINE) > 5


@pytest.mark.parametrize("kind", protocol.HANDLERS)
def test_no_answer_is_about_a_few_points(kind: str, tmp_path: Path) -> None:
    """A point that is alone changes no answer, whichever message asks for it."""
    rng = np.random.default_rng(0)
    crowd, alone = rng.normal(size=(60, 2)), np.array([[50.0, 50.0]])
    centers = np.array([[0.0, 0.0], [50.0, 50.0]])
    options = resolve(2, min_count=10)
    request = {
        scaling.MOMENTS: scaling.moments_request(options.min_count),
        protocol.CENTROIDS: protocol.centroids_request(options, 0),
        protocol.LLOYD: protocol.lloyd_request(centers, options, 1),
        protocol.ASSIGN: protocol.assign_request(centers, options, 1),
    }[kind]
    answer = protocol.HANDLERS[kind](np.concatenate([crowd, alone]), request, 0)
    counts = answer.arrays.get("counts", np.array([answer.values.get("points", 0)]))
    assert not [count for count in counts if 0 < count < 10]
    if kind == protocol.ASSIGN:
        # With the lone point withheld, the others are, too: their number would say that one is missing.
        assert (answer.values["points"], answer.values["inertia"]) == (0, 0.0)


def test_a_box_is_no_position_of_a_point() -> None:
    points = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    options = EmbeddingOptions()
    encoder = flatten_weights(build_encoder(options, 5))
    request = Message(map_kinds.BOX, 0, {"encoder": encoder}, {"options": options.model_dump_json()})
    exact = answer_box(ClientData(points), request, 0).array("box")
    sent = answer_box(ClientData(points, min_count=10), request, 0).array("box")
    assert (sent[0] > exact[0]).all()
    assert (sent[1] < exact[1]).all()


def test_ordinary_runs_read_no_row(tmp_path: Path) -> None:
    """Before: differences of 20 runs, each with min_count 10, are single rows."""
    bare = attacks.ask_ordinary_runs(
        lambda request: protocol.HANDLERS[request.kind](DIGITS, request, 0), 12, clusters=8, min_count=10
    )
    assert attacks.count_rows_read(attacks.subtract_cells(bare), DIGITS) > 3
    ask = ask_with(configure(tmp_path, DIGITS))
    answers = attacks.ask_ordinary_runs(ask, 12, clusters=8, min_count=10, refine_rounds=2)
    assert len(answers) == 1
    assert attacks.count_rows_read(attacks.subtract_cells(answers), DIGITS) == 0


def test_the_same_question_is_answered_again_and_another_is_not(tmp_path: Path) -> None:
    config = configure(tmp_path, WINE)
    first, other = (protocol.centroids_request(resolve(3, seed=seed, min_count=10), 0) for seed in (0, 1))
    answers = [answer_request(config, lambda request=request: request) for request in (first, first, other)]
    assert answers[0].digest() == answers[1].digest()
    assert dict(answers[2].values) == {FAILURE: "max-partitions", COUNT: 1}
    # The log is about the data, not about the node: a second node with the same rows has the same one.
    (tmp_path / "copy").mkdir()
    copied = configure(tmp_path / "copy", WINE, state=str(tmp_path / "state"), partition_id=1)
    assert dict(answer_request(copied, lambda: other).values) == {FAILURE: "max-partitions", COUNT: 1}
    changed = configure(tmp_path / "copy", WINE + 1, state=str(tmp_path / "state"))
    assert FAILURE not in answer_request(changed, lambda: other).values
    assert FAILURE not in answer_request(config | {"max-partitions": 2}, lambda: other).values


def test_questions_are_limited(tmp_path: Path) -> None:
    config = configure(tmp_path, WINE, max_questions=5, max_partitions=100)
    options = resolve(2, min_count=10)
    codes = []
    for number in range(7):
        request = protocol.assign_request(np.eye(2, WINE.shape[1]) + number, options, 1)
        codes.append(answer_request(config, lambda request=request: request).values.get(FAILURE))
    assert codes == [None] * 5 + ["max-questions"] * 2
    (ledger,) = (tmp_path / "state").glob("*.jsonl")
    assert [json.loads(line)["outcome"] for line in ledger.read_text().splitlines()] == ["answered"] * 5
    assert ledger.stat().st_mode & 0o077 == 0


def test_nothing_is_answered_that_cannot_be_logged(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = configure(tmp_path, WINE, state=str(tmp_path / "file" / "state"))
    answer = answer_request(config, lambda: request_of(protocol.CENTROIDS))
    assert dict(answer.values) == {FAILURE: "ledger-unwritable"}


def test_a_map_counts_its_questions(tmp_path: Path) -> None:
    config = configure(tmp_path, WINE, max_questions=1)
    sizes = [answer_request(config, lambda: request_of(map_kinds.POINTS)).values for _ in range(2)]
    assert sizes[0]["points"] == 178
    assert sizes[1][FAILURE] == "max-questions"


def test_every_kind_is_known() -> None:
    """A new kind of message needs a place in these tests: what it says of few points, and what it costs."""
    assert set(KINDS) == {
        HELLO,
        *(scaling.MOMENTS, protocol.CENTROIDS, protocol.LLOYD, protocol.ASSIGN),
        *(map_kinds.POINTS, map_kinds.BOX, map_kinds.SURROGATE, map_kinds.FIELD, map_kinds.TRAIN),
        *(features_kinds.SIZE, features_kinds.EMBEDDED, features_kinds.TRAIN),
    }


def test_a_network_protects_by_default() -> None:
    config = {"job": "cluster", "clusters": 3, "clients": 2, "out": "x"}
    options = read_job(config)[1]
    assert (options.min_count, options.refine_rounds, options.winsorize) == (10, 0, 3.0)
    assert resolve(3).min_count == 1
    assert read_job(config | {"job": "features"})[1].min_count == 10


@pytest.mark.parametrize("value", [None, 0, 2.5, "10"])
def test_min_count_must_be_chosen(value: Any) -> None:
    with pytest.raises(UserError, match="min.count"):
        ClientLimits.of_node({"partition-id": 0} | ({} if value is None else {"min-count": value}))
