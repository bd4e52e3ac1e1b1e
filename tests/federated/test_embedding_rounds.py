"""FedNE's rounds: equalities, faults, resuming, and what leaves a site."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_sites import SITES, options

from foveate.federated.embedding import site as at_site
from foveate.federated.embedding.checkpoint import load_state, save_state
from foveate.federated.embedding.estimator import FederatedNeighborEmbedding
from foveate.federated.embedding.fitting import Fitted, fit_sites
from foveate.federated.embedding.folder import load_encoder, save_encoder
from foveate.federated.embedding.server import State, begin
from foveate.federated.rounds import Log
from foveate.settings.errors import UserError


def fit(**changes: Any) -> Fitted:
    return fit_sites(SITES, options(**changes))


@pytest.mark.parametrize(
    ("method", "surrogate"),
    [
        *(("fedne", surrogate) for surrogate in ("network", "network64", "grid")),
        *((method, "network") for method in ("fedavg", "fedprox", "local", "global", "fedne_exact")),
    ],
)
def test_every_method_runs_and_repeats(method: str, surrogate: str) -> None:
    one, two = (fit(method=method, surrogate=surrogate, least_r2=-10.0) for _ in range(2))
    assert (one.state.encoder == two.state.encoder).all()
    assert len(one.state.history) == 4
    felt = [entry["foreign"] is not None for entry in one.state.history]
    assert felt == [method in ("fedne", "fedne_exact") and number >= 1 for number in range(4)]
    assert np.isfinite(one.transform(SITES[0])).all()
    if method == "local":
        assert not (one.state.own[0] == one.state.own[1]).all()
        assert one.log.entries == []


def test_one_site_is_the_pooled_method_step_for_step() -> None:
    pooled = np.concatenate(SITES)
    one = fit_sites([pooled], options(method="fedne"))
    two = fit_sites(SITES, options(method="global"))
    assert (one.state.encoder == two.state.encoder).all()
    assert [e["attraction"] for e in one.state.history] == [e["attraction"] for e in two.state.history]


def test_fedne_is_fedavg_until_sites_feel_one_another() -> None:
    one, two = fit(method="fedne", surrogate="grid"), fit(method="fedavg")
    assert one.state.history[0]["attraction"] == two.state.history[0]["attraction"]
    assert not (one.state.encoder == two.state.encoder).all()
    never = fit(method="fedne", surrogate_start=1.0)
    assert (never.state.encoder == two.state.encoder).all()


def test_weights_are_averaged_by_original_sizes() -> None:
    log = Log(record=True)
    fitted = fit_sites(SITES, options(surrogate="grid", mixing=True), log=log)
    requests = [m for _, up, m in log.messages if m.kind == at_site.TRAIN and not up and m.round == 2]
    assert [m.number("share") for m in requests] == pytest.approx([40 / 125, 25 / 125, 60 / 125])
    answers = [m for _, up, m in log.messages if m.kind == at_site.TRAIN and up and m.round == 3]
    by_hand = sum(w * m.array("encoder").astype(float) for w, m in zip((40, 25, 60), answers, strict=True)) / 125
    np.testing.assert_allclose(fitted.state.encoder, by_hand, atol=1e-7)


@pytest.mark.parametrize("surrogate", ["network", "grid"])
def test_no_rows_of_data_leave_a_site(surrogate: str) -> None:
    log = Log(record=True)
    fit_sites(SITES, options(surrogate=surrogate, least_r2=-10.0), log=log)
    numbers = fitted_size = len(fit(rounds=1).state.encoder)
    allowed = {
        at_site.POINTS: {},
        at_site.BOX: {"box": (2, 2)},
        at_site.SURROGATE: {"surrogate": (12_101,), "box": (2, 2)},
        at_site.TRAIN: {"encoder": (fitted_size,)},
    }
    assert numbers > 0
    kinds = set()
    for _, up, message in log.messages:
        if up and message.kind != at_site.FIELD:
            assert {name: one.shape for name, one in message.arrays.items()} == allowed[message.kind]
        elif up:
            assert list(message.arrays) == ["field"]
            assert 144 <= message.array("field").size <= 784
        kinds.add(message.kind)
    wanted = {at_site.POINTS, at_site.BOX, at_site.TRAIN}
    assert kinds == wanted | {at_site.SURROGATE if surrogate == "network" else at_site.FIELD}
    assert log.bytes(up=True) > 0


def test_a_surrogate_that_does_not_fit_is_left_out_and_said() -> None:
    fitted = fit(least_r2=1.1, surrogate="grid")
    assert all(entry["felt"] in (None, []) for entry in fitted.state.history)
    assert any("is left out" in note for note in fitted.state.notes)
    assert (fitted.state.encoder == fit(method="fedavg").state.encoder).all()


@pytest.mark.parametrize("refresh", [1, 2])
def test_surrogates_are_made_anew_as_asked(refresh: int) -> None:
    fitted = fit(refresh=refresh, rounds=5, surrogate_start=0.2, least_r2=-10.0)
    asked = {entry.round for entry in fitted.log.entries if entry.kind == at_site.SURROGATE}
    assert asked == ({1, 2, 3, 4} if refresh == 1 else {1, 3})


def test_few_take_part() -> None:
    fitted = fit(participation=0.34, rounds=8, surrogate="grid")
    assert {len(entry["sites"]) for entry in fitted.state.history} == {1}
    assert len({entry["sites"][0] for entry in fitted.state.history}) > 1


def test_tiny_and_degenerate_sites_take_part() -> None:
    sites = [SITES[0], SITES[1][:1], np.ones((12, 6)), SITES[2][:3]]
    fitted = fit_sites(sites, options(surrogate="network", mixing=True))
    assert np.isfinite(fitted.state.encoder).all()
    assert fitted.state.notes["site 1 has 1 points: no neighbour"] == 1
    assert fitted.state.notes["site 3 has 3 points: 2 neighbours instead of 7"] == 1


def test_a_map_of_three_dimensions() -> None:
    fitted = fit(dimensions=3, grid_most=12, least_r2=-10.0)
    assert fitted.transform(SITES[0]).shape == (40, 3)
    assert fitted.state.history[-1]["foreign"] is not None


@pytest.mark.parametrize("grid", ["own", "official"])
def test_own_grids(grid: str) -> None:
    log = Log(record=True)
    fitted = fit_sites(SITES, options(grid=grid, least_r2=-10.0), log=log)
    assert fitted.state.history[-1]["foreign"] is not None
    assert at_site.BOX not in {entry.kind for entry in log.entries}


def test_an_encoder_of_ones_own() -> None:
    torch.manual_seed(0)
    mine = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.LayerNorm(9), torch.nn.GELU(), torch.nn.Linear(9, 2))
    before = [one.detach().clone() for one in mine.parameters()]
    model = FederatedNeighborEmbedding(encoder=mine, n_rounds=3, random_state=0).fit(SITES)
    assert all((a == b).all() for a, b in zip(before, mine.parameters(), strict=True))
    assert isinstance(model.encoder_[1], torch.nn.LayerNorm)
    with pytest.raises(UserError, match="another architecture cannot be saved"):
        model.save("nowhere")


@pytest.mark.parametrize("method", ["fedne", "local", "fedne_exact"])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, stop: int, method: str) -> None:
    chosen = options(method=method, refresh=2, mixing=True, participation=0.67, rounds=5)
    whole = fit_sites(SITES, chosen)

    class Stopped(Exception):
        pass

    def killed(state: State) -> None:
        save_state(state, chosen, tmp_path / "state")
        if state.round == stop:
            raise Stopped

    with pytest.raises(Stopped):
        fit_sites(SITES, chosen, after=killed)
    resumed = fit_sites(SITES, chosen, state=load_state(tmp_path / "state", chosen))
    assert (resumed.state.encoder == whole.state.encoder).all()
    for one in whole.state.own:
        assert (resumed.state.own[one] == whole.state.own[one]).all()
    assert [e["attraction"] for e in resumed.state.history] == [e["attraction"] for e in whole.state.history]
    assert (resumed.transform(SITES[1]) == whole.transform(SITES[1])).all()


def test_a_state_of_another_run_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    FederatedNeighborEmbedding(n_rounds=2, random_state=0, checkpoint=path).fit(SITES)
    with pytest.raises(UserError, match="begun with neighbours 7, not 5"):
        FederatedNeighborEmbedding(n_rounds=2, n_neighbors=5, random_state=0, checkpoint=path).fit(SITES)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="damaged"):
        FederatedNeighborEmbedding(n_rounds=2, random_state=0, checkpoint=path).fit(SITES)


def test_exact_positions_are_refused_over_a_network() -> None:
    class Elsewhere:
        log = Log()
        sites = (0,)

    with pytest.raises(UserError, match="one process only"):
        begin(Elsewhere(), options(method="fedne_exact"))  # type: ignore[arg-type]


def test_the_estimator_keeps_the_conventions(tmp_path: Path) -> None:
    model = FederatedNeighborEmbedding(n_rounds=3, hidden_layer_sizes=(12,), random_state=5)
    parameters = model.get_params()
    copy = clone(model)
    assert model.fit(SITES) is model
    assert model.get_params() == parameters
    assert [one.shape for one in model.embedding_] == [(40, 2), (25, 2), (60, 2)]
    assert (model.transform(SITES[1]) == model.embedding_[1]).all()
    assert (copy.fit_transform(SITES)[2] == model.embedding_[2]).all()
    loaded = FederatedNeighborEmbedding.load(model.save(tmp_path / "model", metrics={"trust": 0.5}))
    assert (loaded.transform(SITES[1]) == model.embedding_[1]).all()
    assert (loaded.n_rounds, loaded.random_state, loaded.method) == (3, 5, "fedne")
    local = FederatedNeighborEmbedding(method="local", n_rounds=2, random_state=0).fit(SITES)
    assert (local.transform(SITES[1], site=1) == local.embedding_[1]).all()
    assert not (local.transform(SITES[1]) == local.embedding_[1]).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: FederatedNeighborEmbedding().fit([]), "there is no site"),
        (lambda: FederatedNeighborEmbedding().fit([SITES[0], SITES[1][:, :3]]), "site 1 has 3 features, site 0 has 6"),
        (lambda: FederatedNeighborEmbedding().fit([SITES[0], SITES[1] * np.nan]), "points of site 1: row 0 holds NaN"),
        (lambda: FederatedNeighborEmbedding().fit([SITES[0], SITES[1][:0]]), "site 1 has no point"),
        (lambda: FederatedNeighborEmbedding(method="fedn").fit(SITES), "FederatedNeighborEmbedding: field 'method'"),
        (lambda: FederatedNeighborEmbedding(options={"rounds": 3}).fit(SITES), "'rounds' is a parameter of its own"),
        (lambda: FederatedNeighborEmbedding(n_components=4).fit(SITES), "allowed are 2 and 3"),
        (lambda: FederatedNeighborEmbedding.load("nowhere"), "not a model folder"),
    ],
)
def test_a_users_mistake_is_one_sentence(call: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()


def test_a_damaged_model_folder_is_refused(tmp_path: Path) -> None:
    about = {"widths": [6, 4, 2], "precision": "float32", "method": "fedne", "rounds": 1, "sites": 2}
    encoder = FederatedNeighborEmbedding(n_rounds=1, hidden_layer_sizes=(4,), random_state=0).fit(SITES).encoder_
    folder = save_encoder(encoder, tmp_path / "model", about=about)
    assert (load_encoder(folder)[0](torch.zeros(1, 6)) == encoder(torch.zeros(1, 6))).all()
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="missing, damaged or of other shapes"):
        load_encoder(folder)
    with pytest.raises(UserError, match="transform.*no meaning"):
        FederatedNeighborEmbedding(n_rounds=1, random_state=0).fit(SITES).transform(SITES[0], site=1)
