"""FedNE's rounds: equalities, faults, resuming, and what leaves a client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_clients import CLIENTS, options, train

from foveate.core.errors import UserError
from foveate.federated.embedding import client as at_client
from foveate.federated.embedding.estimator import FederatedNeighborEmbedding
from foveate.federated.embedding.job import EmbeddingFit, MapJob, fit_clients
from foveate.federated.embedding.networks import encoder_config, frozen_rows, load_encoder, save_encoder
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.embedding.state import MapState
from foveate.federated.job import load_snapshot, save_snapshot
from foveate.federated.rounds import InProcess, Log
from naming import raises_naming


def fit(**changes: Any) -> EmbeddingFit:
    return fit_clients(CLIENTS, options(**changes))


@pytest.mark.parametrize(
    ("method", "surrogate"),
    [
        *(("fedne", surrogate) for surrogate in ("network", "network64", "grid")),
        *((method, "network") for method in ("fedavg", "fedprox", "local", "global", "fedne_exact")),
    ],
)
def test_every_method_runs_and_repeats(method: str, surrogate: str) -> None:
    one, two = (fit(method=method, surrogate=surrogate, min_r2=-10.0) for _ in range(2))
    assert (one.state.encoder == two.state.encoder).all()
    assert len(one.state.history) == 4
    felt = [entry["foreign"] is not None for entry in one.state.history]
    assert felt == [method in ("fedne", "fedne_exact") and number >= 1 for number in range(4)]
    assert np.isfinite(one.transform(CLIENTS[0])).all()
    if method == "local":
        assert not (one.state.local_weights[0] == one.state.local_weights[1]).all()
        assert one.log.entries == []


def test_one_client_is_the_pooled_method_step_for_step() -> None:
    pooled = np.concatenate(CLIENTS)
    one = fit_clients([pooled], options(method="fedne"))
    two = fit_clients(CLIENTS, options(method="global"))
    assert (one.state.encoder == two.state.encoder).all()
    assert [e["attraction"] for e in one.state.history] == [e["attraction"] for e in two.state.history]


def test_points_that_leave_the_grid_of_a_field_are_counted() -> None:
    log = Log(record=True)
    chosen = options(method="fedne", surrogate="grid", learning_rate=0.1, min_r2=-10.0)
    members = [at_client.ClientData(points.astype(np.float32)) for points in CLIENTS]
    state = train(InProcess([at_client.make_client(n, data) for n, data in enumerate(members)], log=log), chosen)
    boxes: dict[int, Any] = {}
    expected: Counter[int] = Counter()
    for client, up, message in log.messages:
        if message.kind == at_client.TRAIN and not up:
            boxes[client] = message.arrays.get("box")
        elif message.kind == at_client.TRAIN and boxes[client] is not None:
            network = members[client].encoder(chosen, message.array("encoder"))
            z_Nd = frozen_rows(network, members[client].tensor).numpy()
            low, high = boxes[client].astype(np.float32)
            expected[message.round] += int(((z_Nd < low) | (z_Nd > high)).any(axis=1).sum())
    assert [entry["outside"] for entry in state.history] == [expected[entry["round"]] for entry in state.history]
    assert expected.total() > 0
    assert any("a field keeps the value at its edge" in note for note in state.notes)


def test_fedne_is_fedavg_until_clients_feel_one_another() -> None:
    one, two = fit(method="fedne", surrogate="grid"), fit(method="fedavg")
    assert one.state.history[0]["attraction"] == two.state.history[0]["attraction"]
    assert not (one.state.encoder == two.state.encoder).all()
    never = fit(method="fedne", surrogate_start=1.0)
    assert (never.state.encoder == two.state.encoder).all()


def test_weights_are_averaged_by_original_sizes() -> None:
    log = Log(record=True)
    fitted = fit_clients(CLIENTS, options(surrogate="grid", mixing=True), log=log)
    requests = [m for _, up, m in log.messages if m.kind == at_client.TRAIN and not up and m.round == 2]
    assert [m.number("share") for m in requests] == pytest.approx([40 / 125, 25 / 125, 60 / 125])
    answers = [m for _, up, m in log.messages if m.kind == at_client.TRAIN and up and m.round == 3]
    by_hand = sum(w * m.array("encoder").astype(float) for w, m in zip((40, 25, 60), answers, strict=True)) / 125
    np.testing.assert_allclose(fitted.state.encoder, by_hand, atol=1e-7)


@pytest.mark.parametrize("surrogate", ["network", "grid"])
def test_no_rows_of_data_leave_a_client(surrogate: str) -> None:
    log = Log(record=True)
    fit_clients(CLIENTS, options(surrogate=surrogate, min_r2=-10.0), log=log)
    numbers = fitted_size = len(fit(rounds=1).state.encoder)
    allowed = {
        at_client.POINTS: {},
        at_client.BOX: {"box": (2, 2)},
        at_client.SURROGATE: {"surrogate": (12_101,), "box": (2, 2)},
        at_client.TRAIN: {"encoder": (fitted_size,)},
    }
    assert numbers > 0
    kinds = set()
    for _, up, message in log.messages:
        if up and message.kind != at_client.FIELD:
            assert {name: one.shape for name, one in message.arrays.items()} == allowed[message.kind]
        elif up:
            assert list(message.arrays) == ["field"]
            assert 144 <= message.array("field").size <= 784
        kinds.add(message.kind)
    wanted = {at_client.POINTS, at_client.BOX, at_client.TRAIN}
    assert kinds == wanted | {at_client.SURROGATE if surrogate == "network" else at_client.FIELD}
    assert log.bytes(up=True) > 0


def test_a_surrogate_that_does_not_fit_is_left_out_and_said() -> None:
    fitted = fit(min_r2=1.1, surrogate="grid")
    assert all(entry["usable"] in (None, []) for entry in fitted.state.history)
    assert any("is left out" in note for note in fitted.state.notes)
    assert (fitted.state.encoder == fit(method="fedavg").state.encoder).all()


def test_a_surrogate_whose_gradient_leads_elsewhere_is_left_out_and_said() -> None:
    fitted = fit(min_r2=-10.0, min_gradient_cosine=1.0, surrogate="network")
    assert all(entry["usable"] in (None, []) for entry in fitted.state.history)
    note = "client 0: the cosine of its surrogate's gradient is below 1, and it is left out"
    assert fitted.state.notes[note] == 3
    assert (fitted.state.encoder == fit(method="fedavg").state.encoder).all()


@pytest.mark.parametrize("surrogate", ["grid", "network"])
def test_the_quality_of_gradients_is_in_the_history(surrogate: str) -> None:
    fitted = fit(min_r2=-10.0, min_gradient_cosine=-1.0, surrogate=surrogate)
    for entry in fitted.state.history:
        names = [] if entry["usable"] is None else ["0", "1", "2"]
        assert [sorted(entry[name]) for name in ("r2", "gradient_cosine", "gradient_ratio")] == [names] * 3
        assert all(-1 <= value <= 1 for value in entry["gradient_cosine"].values())
        assert all(value > 0 for value in entry["gradient_ratio"].values())
    assert not any("gradients" in note for note in fitted.state.notes)


def test_under_noise_no_gradient_is_measured_and_a_note_says_so() -> None:
    for held_out in (0.1, 0.0):
        noise = {"target_noise": 0.01, "surrogate": "network", "held_out": held_out}
        fitted = fit(min_r2=-10.0, **noise)
        assert fitted.state.history[-1]["usable"] == [0, 1, 2]
        assert fitted.state.history[-1]["gradient_cosine"] == {}
        assert any("gradients of surrogates are not measured" in note for note in fitted.state.notes)
        # An estimate of a few noisy values may be 1 (their error was below the noise's variance), on some processors of
        # one client, but not of all clients in all rounds.
        assert all(value <= 1 for value in fitted.state.history[-1]["r2"].values())
        assert any(value < 1 for entry in fitted.state.history[1:] for value in entry["r2"].values())


@pytest.mark.parametrize("refresh", [1, 2])
def test_surrogates_are_made_anew_as_asked(refresh: int) -> None:
    fitted = fit(refresh=refresh, rounds=5, surrogate_start=0.2, min_r2=-10.0, surrogate="network")
    asked = {entry.round for entry in fitted.log.entries if entry.kind == at_client.SURROGATE}
    assert asked == ({1, 2, 3, 4} if refresh == 1 else {1, 3})


def test_few_take_part() -> None:
    fitted = fit(participation=0.34, rounds=8, surrogate="grid")
    assert {len(entry["clients"]) for entry in fitted.state.history} == {1}
    assert len({entry["clients"][0] for entry in fitted.state.history}) > 1


def test_tiny_and_degenerate_clients_take_part() -> None:
    clients = [CLIENTS[0], CLIENTS[1][:1], np.ones((12, 6)), CLIENTS[2][:3]]
    fitted = fit_clients(clients, options(surrogate="network", mixing=True))
    assert np.isfinite(fitted.state.encoder).all()
    assert fitted.state.notes["client 1 has 1 points: no neighbor"] == 1
    assert fitted.state.notes["client 3 has 3 points: 2 neighbors instead of 7"] == 1


@pytest.mark.parametrize("surrogate", ["grid", pytest.param("network", marks=pytest.mark.slow)])
def test_a_map_of_three_dimensions(surrogate: str) -> None:
    fitted = fit(dimensions=3, surrogate=surrogate, min_r2=-10.0, min_gradient_cosine=-1.0)
    assert fitted.transform(CLIENTS[0]).shape == (40, 3)
    assert fitted.state.history[-1]["foreign"] is not None
    if surrogate == "grid":
        assert fitted.state.grid is not None
        assert fitted.state.grid.shape == (12, 12, 12)


@pytest.mark.parametrize("grid", ["own", "official"])
def test_own_grids(grid: str) -> None:
    log = Log(record=True)
    fitted = fit_clients(CLIENTS, options(grid=grid, min_r2=-10.0, min_gradient_cosine=-1.0), log=log)
    assert fitted.state.history[-1]["foreign"] is not None
    assert at_client.BOX not in {entry.kind for entry in log.entries}


def test_an_encoder_of_ones_own() -> None:
    torch.manual_seed(0)
    mine = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.LayerNorm(9), torch.nn.GELU(), torch.nn.Linear(9, 2))
    before = [one.detach().clone() for one in mine.parameters()]
    model = FederatedNeighborEmbedding(encoder=mine, n_rounds=3, random_state=0).fit(CLIENTS)
    assert all((a == b).all() for a, b in zip(before, mine.parameters(), strict=True))
    assert isinstance(model.encoder_[1], torch.nn.LayerNorm)
    with pytest.raises(UserError, match="another architecture cannot be saved"):
        model.save("nowhere")


@pytest.mark.parametrize("method", ["fedne", "local", "fedne_exact"])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, stop: int, method: str) -> None:
    chosen = options(method=method, refresh=2, mixing=True, participation=0.67, rounds=5)
    whole = fit_clients(CLIENTS, chosen)

    class Stopped(Exception):
        pass

    def killed(state: MapState) -> None:
        save_snapshot(tmp_path / "state", MapJob(chosen), state)
        if state.round == stop:
            raise Stopped

    with pytest.raises(Stopped):
        fit_clients(CLIENTS, chosen, after=killed)
    resumed = fit_clients(CLIENTS, chosen, state=load_snapshot(tmp_path / "state", MapJob(chosen)))
    assert (resumed.state.encoder == whole.state.encoder).all()
    for client, weights in whole.state.local_weights.items():
        assert (resumed.state.local_weights[client] == weights).all()
    assert [e["attraction"] for e in resumed.state.history] == [e["attraction"] for e in whole.state.history]
    assert (resumed.transform(CLIENTS[1]) == whole.transform(CLIENTS[1])).all()


def test_a_state_of_another_run_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    FederatedNeighborEmbedding(n_rounds=2, random_state=0, checkpoint=path).fit(CLIENTS)
    with raises_naming(UserError, "7", "5"):
        FederatedNeighborEmbedding(n_rounds=2, n_neighbors=5, random_state=0, checkpoint=path).fit(CLIENTS)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="damaged"):
        FederatedNeighborEmbedding(n_rounds=2, random_state=0, checkpoint=path).fit(CLIENTS)


def test_exact_positions_are_refused_over_a_network() -> None:
    class Elsewhere:
        log = Log()
        clients = (0,)

    with pytest.raises(UserError, match="one process only"):
        MapJob(options(method="fedne_exact")).begin(Elsewhere())  # type: ignore[arg-type]


def test_the_estimator_keeps_the_conventions(tmp_path: Path) -> None:
    model = FederatedNeighborEmbedding(n_rounds=3, hidden_layer_sizes=(12,), random_state=5)
    parameters = model.get_params()
    copy = clone(model)
    assert model.fit(CLIENTS) is model
    assert model.get_params() == parameters
    assert [one.shape for one in model.embedding_] == [(40, 2), (25, 2), (60, 2)]
    assert (model.transform(CLIENTS[1]) == model.embedding_[1]).all()
    assert (copy.fit_transform(CLIENTS)[2] == model.embedding_[2]).all()
    loaded = FederatedNeighborEmbedding.load(model.save(tmp_path / "model", metrics={"trust": 0.5}))
    assert (loaded.transform(CLIENTS[1]) == model.embedding_[1]).all()
    assert (loaded.n_rounds, loaded.random_state, loaded.method) == (3, 5, "fedne")
    local = FederatedNeighborEmbedding(method="local", n_rounds=2, random_state=0).fit(CLIENTS)
    assert (local.transform(CLIENTS[1], client=1) == local.embedding_[1]).all()
    assert not (local.transform(CLIENTS[1]) == local.embedding_[1]).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: FederatedNeighborEmbedding().fit([]), "no client"),
        (
            lambda: FederatedNeighborEmbedding().fit([CLIENTS[0], CLIENTS[1][:, :3]]),
            "client 1 has 3 features.*client 0 has 6",
        ),
        (
            lambda: FederatedNeighborEmbedding().fit([CLIENTS[0], CLIENTS[1] * np.nan]),
            "points of client 1: row 0 .*NaN",
        ),
        (lambda: FederatedNeighborEmbedding().fit([CLIENTS[0], CLIENTS[1][:0]]), "client 1 has no point"),
        (lambda: FederatedNeighborEmbedding(method="fedn").fit(CLIENTS), "FederatedNeighborEmbedding: field 'method'"),
        (lambda: FederatedNeighborEmbedding(options={"rounds": 3}).fit(CLIENTS), "'rounds' is a parameter of its own"),
        (lambda: FederatedNeighborEmbedding(n_components=4).fit(CLIENTS), "dimensions.*2 or 3"),
        (lambda: FederatedNeighborEmbedding.load("nowhere"), "map encoder.*nowhere"),
    ],
)
def test_a_users_mistake_is_one_sentence(call: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()


def test_a_damaged_model_folder_is_refused(tmp_path: Path) -> None:
    config = encoder_config(EmbeddingOptions(hidden=(4,), rounds=1), 6, 2)
    encoder = FederatedNeighborEmbedding(n_rounds=1, hidden_layer_sizes=(4,), random_state=0).fit(CLIENTS).encoder_
    folder = save_encoder(encoder, tmp_path / "model", config)
    assert (load_encoder(folder)[0](torch.zeros(1, 6)) == encoder(torch.zeros(1, 6))).all()
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="model.safetensors: damaged"):
        load_encoder(folder)
    with pytest.raises(UserError, match="transform.*no meaning"):
        FederatedNeighborEmbedding(n_rounds=1, random_state=0).fit(CLIENTS).transform(CLIENTS[0], client=1)
