"""DeepFeCA between a server and remote clients, without Flower: the numbers of one process; what a client refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from foveate.core.errors import UserError
from foveate.federated.deep.encoder import build_network, flatten_weights
from foveate.federated.deep.job import DeepClusteringFit, DeepJob, DeepState, fit_clients, load_model, save_model
from foveate.federated.deep.options import EMBEDDED, REMOTE_KINDS, SIZE, TRAIN, DeepOptions
from foveate.federated.deep.protocol import embedded_request, train_request
from foveate.federated.deep.remote import answer_remote
from foveate.federated.job import save_snapshot, serve
from foveate.federated.limits import ClientLimits
from foveate.federated.messages import Message, MessageError
from foveate.federated.rounds import Client, InProcess, Log, TooFewClientsError
from foveate.report import render
from naming import raises_naming

RANDOM = np.random.default_rng(0)
PARTS = [RANDOM.normal(size=(size, 16)) + 3 * RANDOM.normal(size=16) for size in (30, 40, 50)]
QUICK: dict[str, Any] = {"clusters": 3, "rounds": 2, "width": 8, "hidden": 12, "batch_size": 16, "seed": 3}
Asked = list[tuple[int, str, int]]


def elsewhere(
    parts: list[np.ndarray],
    *,
    answers_folder: Path | None = None,
    asked: Asked | None = None,
    stop_after: int = 10**9,
    **own: Any,
) -> InProcess:
    """Clients that answer as over a network. `asked` gets (client, kind, round) of each question that reaches one."""
    told: Asked = [] if asked is None else asked

    def answer(data: np.ndarray, request: Message, client: int) -> Message:
        if len(told) >= stop_after:
            raise KeyboardInterrupt
        told.append((client, request.kind, request.round))
        return answer_remote(data, request, client, **own)

    clients = [Client(number, part, dict.fromkeys(REMOTE_KINDS, answer)) for number, part in enumerate(parts)]
    return InProcess(clients, answers_folder=answers_folder, log=Log(record=True))


def serve_deep(transport: InProcess, options: DeepOptions, out: Path, **more: Any) -> dict[str, Any]:
    return serve(DeepJob(options), transport, out, **more)


@pytest.mark.parametrize(
    "chosen",
    [
        {"augment": "noise"},
        {"encoder": "small_resnet", "augment": "shift", "shape": (1, 4, 4)},
        {"encoder": "small_vit"},
        {"method": "local"},
        {"method": "untrained"},
        {"clustering": "kfed", "min_count": 2},
    ],
    ids=lambda chosen: "-".join(map(str, chosen.values())),
)
def test_equal_to_in_process(chosen: dict[str, Any], tmp_path: Path) -> None:
    options = DeepOptions(**QUICK | chosen)
    transport = elsewhere(PARTS)
    found = serve_deep(transport, options, tmp_path / "out")
    inside = fit_clients(PARTS, options)
    save_model(inside, tmp_path / "inside", clients=3)
    model = tmp_path / "out" / "model"
    assert {one.name for one in model.iterdir()} == {one.name for one in (tmp_path / "inside").iterdir()}
    tensors, same = load_file(model / "model.safetensors"), load_file(tmp_path / "inside" / "model.safetensors")
    assert tensors.keys() == same.keys()
    for name in (one for one in tensors if "num_batches" not in one):  # counters that nothing depends on do not travel
        np.testing.assert_allclose(tensors[name], same[name], atol=1e-6, err_msg=name)
    assert json.loads((model / "config.json").read_text()) == json.loads((tmp_path / "inside/config.json").read_text())
    loaded = load_model(model)
    np.testing.assert_allclose(loaded.transform(PARTS[0]), inside.transform(PARTS[0]), atol=1e-6)
    sizes_asked = 3 * 16
    assert found["methods"][0]["bytes_up"] == sizes_asked + sum(
        row["bytes"] for row in inside.state.exchanged if row["up"]
    )
    assert [entry["loss"] for entry in found["history"]] == [entry["loss"] for entry in inside.state.history]


def test_the_result_and_its_page(tmp_path: Path) -> None:
    found = serve_deep(elsewhere(PARTS), DeepOptions(**QUICK), tmp_path)
    assert found == json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert [(row["name"], row["points"], row["rounds"]) for row in found["clients"]] == [
        ("client 0", 30, 2),
        ("client 1", 40, 2),
        ("client 2", 50, 2),
    ]
    assert sorted(one.name for one in tmp_path.iterdir() if one.is_file() and one.suffix == ".json") == ["result.json"]
    page = render(tmp_path).read_text(encoding="utf-8")
    for words in ("size of the data", "centroids of embeddings", "What it cost", "Loss of the clients"):
        assert words in page
    assert 'id="map"' not in page
    assert "Distance" not in page


def test_no_row_leaves_a_client(tmp_path: Path) -> None:
    transport = elsewhere(PARTS)
    serve_deep(transport, DeepOptions(**QUICK), tmp_path)
    numbers = len(flatten_weights(build_network(DeepOptions(**QUICK), 16)))
    up = [(message.kind, message) for _, is_up, message in transport.log.messages if is_up]
    assert {kind for kind, _ in up} == set(REMOTE_KINDS)
    for kind, message in up:
        if kind == SIZE:
            assert (dict(message.arrays), set(message.values)) == ({}, {"points", "features"})
        elif kind == TRAIN:
            assert {name: array.shape for name, array in message.arrays.items()} == {"weights": (numbers,)}
        else:
            assert set(message.arrays) <= {"centers", "counts", "trusted"}
            assert message.array("centers").shape[0] <= 3
            assert message.array("centers").shape[1] == 8, "means of embeddings, not of rows"


@pytest.mark.parametrize("stop_after", [2, 5, 8, 13, 17])
def test_a_killed_server_goes_on(stop_after: int, tmp_path: Path) -> None:
    """Killed after any question: what is finished is not asked again, and the end is the same."""
    options = DeepOptions(**QUICK)
    before: Asked = []
    with pytest.raises(KeyboardInterrupt):
        serve_deep(
            elsewhere(PARTS, answers_folder=tmp_path / "answers", asked=before, stop_after=stop_after),
            options,
            tmp_path,
        )
    assert not (tmp_path / "result.json").exists()
    after: Asked = []
    serve_deep(elsewhere(PARTS, answers_folder=tmp_path / "answers", asked=after), options, tmp_path)
    again = {one for one in before if one in after}
    assert all(kind == SIZE for _, kind, _ in again), "answers of finished rounds, sizes among them, are forgotten"
    assert len(before) + len(after) - len(again) == 3 * (1 + 2 * 2 + 1)
    inside = fit_clients(PARTS, options)
    loaded = load_model(tmp_path / "model")
    np.testing.assert_allclose(flatten_weights(loaded.network), flatten_weights(inside.network), atol=1e-6)
    np.testing.assert_allclose(loaded.centers, inside.centers, atol=1e-6)
    assert not list((tmp_path / "states").iterdir()), "data elsewhere may change"
    assert not (tmp_path / "answers").exists()


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    options = DeepOptions(**QUICK)
    kept = tmp_path / "states" / "deepfeca.safetensors"
    state = DeepState(flatten_weights(build_network(options, 5)), options.width, round=1)
    save_snapshot(kept, DeepJob(options), state)
    with raises_naming(UserError, "16"):
        serve_deep(elsewhere(PARTS), options, tmp_path)
    with raises_naming(UserError, "3", "4"):
        serve_deep(elsewhere(PARTS), options.model_copy(update={"seed": 4}), tmp_path)
    save_snapshot(kept, DeepJob(options), replace(state, data="a digest"))
    with pytest.raises(UserError, match="was made of other data"):
        serve_deep(elsewhere(PARTS), options, tmp_path)


def test_methods_without_an_exchange_are_refused(tmp_path: Path) -> None:
    options = DeepOptions(**QUICK | {"method": "central"})
    with raises_naming(UserError, "central"):
        serve_deep(elsewhere(PARTS), options, tmp_path)
    with pytest.raises(MessageError, match="pools raw points; no client sends them"):
        answer_remote(PARTS[0], question(EMBEDDED, options), 0)


def test_clients_of_other_data(tmp_path: Path) -> None:
    """A client of another width, or of no usable one, is left out and named; without a majority nothing runs."""
    parts = [*PARTS, RANDOM.normal(size=(20, 9)), np.full((20, 16), np.nan)]
    found = serve_deep(elsewhere(parts), DeepOptions(**QUICK), tmp_path / "a")
    assert found["history"][-1]["clients"] == [0, 1, 2]
    assert len(found["notes"]) == 2
    assert found["notes"][0].startswith("client 4 was left out: ")
    assert found["notes"][1] == ("client 3 was left out: its data have 9 features; those of most clients have 16")
    with pytest.raises(UserError, match="different numbers of features"):
        serve_deep(elsewhere([PARTS[0], parts[3]]), DeepOptions(**QUICK), tmp_path / "b")
    with raises_naming(TooFewClientsError, "3", "16", "4"):
        serve_deep(elsewhere(parts[:4]), DeepOptions(**QUICK), tmp_path / "c", min_clients=4)


@pytest.mark.parametrize(("name", "value"), [("features", 0), ("features", 1 << 30), ("points", 0), ("rows", 3)])
def test_a_false_size_is_left_out(name: str, value: int, tmp_path: Path) -> None:
    def lying(data: np.ndarray, request: Message, client: int) -> Message:
        answer = answer_remote(data, request, client)
        return replace(answer, values={**answer.values, name: value})

    def answer(data: np.ndarray, request: Message, client: int) -> Message:
        return (lying if client == 0 and request.kind == SIZE else answer_remote)(data, request, client)

    clients = [Client(number, part, dict.fromkeys(REMOTE_KINDS, answer)) for number, part in enumerate(PARTS)]
    found = serve_deep(InProcess(clients), DeepOptions(**QUICK), tmp_path)
    assert [row["name"] for row in found["clients"]] == ["client 1", "client 2"]
    assert found["notes"][0].startswith("client 0 was left out: ")


def question(kind: str, options: DeepOptions, *, words: str | None = None) -> Message:
    """What a server asks."""
    weights = flatten_weights(build_network(options, 16))
    if kind == EMBEDDED:
        made = embedded_request(weights, options.clustering_options(), 0, 0)
    else:
        centers = np.eye(options.width)[: options.clusters]
        made = train_request(weights, centers, DeepJob(options).rounds.training, options.seed, 0)
    return replace(made, values={**made.values, "options": options.model_dump_json() if words is None else words})


def other_options(**changed: Any) -> str:
    return json.dumps(json.loads(DeepOptions(**QUICK).model_dump_json()) | changed)


REFUSED: dict[str, tuple[str, Callable[[Message], Message], str]] = {
    "epochs": (TRAIN, lambda m: replace(m, values={**m.values, "epochs": 10**9}), "asks with epochs 1000000000; its"),
    "clusters": (EMBEDDED, lambda m: replace(m, values={**m.values, "clusters": 40}), "asks with clusters 40; its opt"),
    "min_count": (EMBEDDED, lambda m: replace(m, values={**m.values, "min_count": 0}), "asks with min_count 0; its"),
    "word": (EMBEDDED, lambda m: replace(m, values={**m.values, "send": "rows"}), "holds 'send'"),
    "array": (TRAIN, lambda m: replace(m, arrays={**m.arrays, "x": np.zeros(2)}), "holds 'x'"),
    "type": (TRAIN, lambda m: replace(m, arrays={**m.arrays, "weights": m.array("weights") * 1.0e0 + np.zeros(1)}),
             "'weights' must be float32"),
    "nan": (TRAIN, lambda m: replace(m, arrays={**m.arrays, "weights": m.array("weights") * np.float32("nan")}), "NaN"),
    "few": (TRAIN, lambda m: replace(m, arrays={**m.arrays, "weights": m.array("weights")[:-1]}), "at least 308"),
    "many": (TRAIN, lambda m: replace(m, arrays={**m.arrays, "weights": np.zeros(400, np.float32)}), "(got 400)"),
    "centers": (TRAIN, lambda m: replace(m, arrays={**m.arrays, "centers": np.eye(8)}), "8 centers; its options allow"),
    "width": (TRAIN, lambda m: replace(m, arrays={**m.arrays, "centers": np.ones((3, 5))}), "must have shape"),
    "none": (EMBEDDED, lambda m: replace(m, values={n: v for n, v in m.values.items() if n != "options"}), "no 'opti"),
    "no words": (EMBEDDED, lambda m: replace(m, values={**m.values, "options": 3}), "no 'options'"),
    "no json": (EMBEDDED, lambda m: replace(m, values={**m.values, "options": "{"}), "is not JSON"),
    "deep": (EMBEDDED, lambda m: replace(m, values={**m.values, "options": "[" * 9_999}), "is not JSON"),
    "list": (EMBEDDED, lambda m: replace(m, values={**m.values, "options": "[]"}), "must be a mapping"),
    "long": (EMBEDDED, lambda m: replace(m, values={**m.values, "options": " " * 10_001}), "at most 10,000 characters"),
    "unknown": (EMBEDDED, lambda m: replace(m, values={**m.values, "options": other_options(module="os")}), "unknown"),
    "encoder": (EMBEDDED, lambda m: replace(m, values={**m.values, "options": other_options(encoder="resnet")}),
                "'small_resnet'"),
    "bounds": (TRAIN, lambda m: replace(m, values={**m.values, "options": other_options(local_epochs=101)}), "less"),
    "large": (EMBEDDED, lambda m: replace(m, values={**m.values, "options": other_options(hidden=65_536, width=4096)}),
              "of its options has at least 269,5"),
    "images": (TRAIN, lambda m: replace(m, values={**m.values, "options": other_options(
        encoder="small_resnet", hidden=65_536)}), "of its options has at least 589,8"),
    "shape": (EMBEDDED, lambda m: replace(m, values={**m.values, "options": other_options(
        encoder="small_resnet", shape=[1, 5, 5])}), "must be the 16 values"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_client_refuses(name: str) -> None:
    """A server's question is what its options make it, and these keep their bounds; nothing large is built before."""
    kind, change, words = REFUSED[name]
    good = question(kind, DeepOptions(**QUICK))
    assert answer_remote(PARTS[0], good, 0).arrays
    with pytest.raises(UserError, match=words):
        answer_remote(PARTS[0], change(good), 0)


def test_other_kinds_are_refused() -> None:
    with raises_naming(MessageError, "query.centroids"):
        answer_remote(PARTS[0], Message("query.centroids"), 0)


@pytest.mark.parametrize("kind", [EMBEDDED, TRAIN])
@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, ""),
        ({"min_count": 5, "max_clusters": 3}, ""),
        ({"min_count": 6}, "asks with min_count 5; this client's own min-count is 6"),
        ({"max_clusters": 2}, "asks for 3 clusters; this client's own max-clusters is 2"),
        ({"min_count": 31}, "30 points are fewer than this client's own min-count 31: nothing is sent"),
    ],
)
def test_a_client_has_limits_of_its_own(kind: str, limits: dict[str, int], words: str) -> None:
    asked = question(kind, DeepOptions(**QUICK | {"min_count": 5}))
    answering = partial(answer_remote, limits=ClientLimits(**limits))
    if not words:
        assert answering(PARTS[0], asked, 0).arrays
        return
    with pytest.raises(UserError, match=words):
        answering(PARTS[0], asked, 0)


def test_a_small_client_does_not_even_say_its_size(tmp_path: Path) -> None:
    transport = elsewhere(PARTS, limits=ClientLimits(min_count=35))
    found = serve_deep(transport, DeepOptions(**QUICK | {"min_count": 35, "clusters": 2}), tmp_path)
    assert [row["name"] for row in found["clients"]] == ["client 1", "client 2"]
    assert found["notes"][0] == (
        "client 0 was left out: 30 points are fewer than this client's own min-count 35: nothing is sent"
    )


def test_kinds_load_no_torch() -> None:
    code = "import sys, foveate.federated.deep.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_what_is_fitted_here_is_what_clients_load(tmp_path: Path) -> None:
    serve_deep(elsewhere(PARTS), DeepOptions(**QUICK), tmp_path)
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded, DeepClusteringFit)
    assert (loaded.state.round, loaded.features) == (2, 16)
    assert loaded.predict(PARTS[2]).shape == (50,)
