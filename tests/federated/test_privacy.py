"""Noise on what is sent: its size, its account, that no seed gives it away; and attacks on what is sent without."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from small_clients import train

from foveate.core.errors import UserError
from foveate.federated import privacy
from foveate.federated.attacks import positions_from_field, unused_features
from foveate.federated.clustering.methods import resolve
from foveate.federated.deep.encoder import Embedder
from foveate.federated.deep.protocol import EMBEDDED, embedded_request, handlers
from foveate.federated.embedding import client as at_client
from foveate.federated.embedding.client import ClientData, make_client
from foveate.federated.embedding.grids import targets, union_grid
from foveate.federated.embedding.job import MapJob, fit_clients
from foveate.federated.embedding.networks import flatten_weights
from foveate.federated.embedding.options import EmbeddingOptions, read_options
from foveate.federated.embedding.quality import account
from foveate.federated.embedding.run import run_embedding
from foveate.federated.embedding.state import MapState
from foveate.federated.embedding.surrogates import ARCHITECTURES, SurrogateNetwork, r_squared, r_squared_of_noisy
from foveate.federated.job import serve
from foveate.federated.messages import Message
from foveate.federated.rounds import Client, InProcess, Log
from foveate.federated.run_options import EmbedRun
from foveate.federated.sources import Clients
from foveate.report import render
from naming import raises_naming

RANDOM = np.random.default_rng(0)
CLIENTS = [RANDOM.normal(size=(40, 5)).astype(np.float32) + 3 * number for number in range(3)]
SMALL: dict[str, Any] = {"rounds": 4, "hidden": (8,), "surrogate_start": 0.25, "surrogate": "grid", "min_r2": -1e9}


def messages(kind: str, **changes: Any) -> list[np.ndarray]:
    log = Log(record=True)
    members = [make_client(n, ClientData(one, noise=np.random.default_rng(n))) for n, one in enumerate(CLIENTS)]
    transport = InProcess(members, log=log)
    chosen = EmbeddingOptions(**(SMALL | changes))
    train(transport, chosen)
    name = "encoder" if kind == at_client.TRAIN else "field"
    return [message.array(name) for _, up, message in log.messages if up and message.kind == kind]


def test_a_change_is_clipped_and_hidden() -> None:
    free, bound = messages(at_client.TRAIN), messages(at_client.TRAIN, update_clip=1e-3)
    start = at_client.build_encoder(EmbeddingOptions(**SMALL), 5)
    before = flatten_weights(start)
    assert np.linalg.norm(free[0] - before) > 0.005
    for change in (one - before for one in bound[:3]):
        assert np.linalg.norm(change) == pytest.approx(1e-3, rel=1e-3)
    loud = messages(at_client.TRAIN, update_clip=1e-3, update_noise=10.0)
    assert np.std(loud[0] - before) == pytest.approx(1e-2, rel=0.2)


def test_noise_on_a_field_has_its_size_and_none_is_none() -> None:
    quiet, loud = messages(at_client.FIELD), messages(at_client.FIELD, target_noise=0.05)
    assert np.std(loud[0] - quiet[0]) == pytest.approx(0.05, rel=0.1)


def sent_up(**changes: Any) -> list[Message]:
    """All that left the clients in a run."""
    log = Log(record=True)
    transport = InProcess([make_client(n, ClientData(one)) for n, one in enumerate(CLIENTS)], log=log)
    chosen = EmbeddingOptions(**(SMALL | changes))
    train(transport, chosen)
    return [message for _, up, message in log.messages if up]


@pytest.mark.parametrize("surrogate", ["grid", "network"])
def test_no_number_goes_round_the_noise(surrogate: str) -> None:
    noise = {"update_clip": 1.0, "update_noise": 4.0, "target_noise": 0.05, "surrogate": surrogate}
    values = {message.kind: set(message.values) for message in sent_up(**noise)}
    made_of_noisy = {"r2"} if surrogate == "grid" else {"r2", "r2_held_out", "epochs", "queries"}
    kind = at_client.FIELD if surrogate == "grid" else at_client.SURROGATE
    assert values == {
        at_client.POINTS: {"points", "features"},
        at_client.BOX: set(),
        kind: made_of_noisy,
        at_client.TRAIN: set(),
    }
    losses = {"attraction", "repulsion", "foreign", "steps", "outside"}
    assert losses in [set(message.values) for message in sent_up(surrogate=surrogate)]


def test_the_fit_of_a_noisy_field_is_read_from_what_is_sent() -> None:
    for message in sent_up(target_noise=0.05):
        if message.kind == at_client.FIELD:
            field = message.array("field").astype(float)
            assert message.number("r2") == pytest.approx(1 - 0.05**2 / 4 / (field.var() - 0.05**2), rel=1e-3)


@pytest.mark.parametrize("sigma", [0.01, 0.1])
def test_the_fit_that_is_read_is_near_the_true_one(sigma: float) -> None:
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(rng.random(4000) * 0.7)
    guess = truth + 0.05 * torch.from_numpy(rng.standard_normal(4000))
    noisy = truth + sigma * torch.from_numpy(rng.standard_normal(4000))
    error = float((guess - noisy).square().mean()) - sigma**2
    assert r_squared_of_noisy(noisy, sigma, error) == pytest.approx(r_squared(guess, truth), abs=0.02)
    assert r_squared_of_noisy(noisy, 10.0, error) == 0.0


def test_losses_that_are_told_in_a_hidden_training_are_refused() -> None:
    def telling(data: Any, request: Message, client: int) -> Message:
        return request.answer(arrays={"encoder": request.array("encoder")}, attraction=1.0)

    chosen = EmbeddingOptions(**SMALL, update_clip=1.0, update_noise=1.0)
    members = [make_client(n, ClientData(one)) for n, one in enumerate(CLIENTS)]
    members[1] = Client(1, members[1].data, {**at_client.HANDLERS, at_client.TRAIN: telling})
    transport = InProcess(members)
    state = train(transport, chosen)
    assert [entry["clients"] for entry in state.history] == [[0, 2]] * 4
    assert {entry["attraction"] for entry in state.history} == {None}
    assert {entry["outside"] for entry in state.history} == {None}


def test_a_hidden_training_has_a_page(tmp_path: Path) -> None:
    clients = Clients(["a", "b", "c"], [one.astype(float) for one in CLIENTS], None, "")
    chosen = EmbeddingOptions(**SMALL, update_clip=1.0, update_noise=1.0, target_noise=0.1)
    run_embedding(clients, chosen, tmp_path, EmbedRun(compare=()))
    page = render(tmp_path).read_text()
    assert "a whole client" in page
    assert "Losses are hidden by the clients’ noise" in page
    assert 'title="Losses"' not in page


def test_the_seed_does_not_give_the_noise_away() -> None:
    chosen = EmbeddingOptions(**SMALL, update_clip=0.1, update_noise=0.1)
    assert chosen.is_noisy
    one, two = (fit_clients(CLIENTS, chosen) for _ in range(2))
    assert not (one.state.encoder == two.state.encoder).all()


def test_one_point_moves_a_field_by_no_more_than_is_accounted_for() -> None:
    z = torch.from_numpy(RANDOM.normal(size=(25, 2)))
    grid = union_grid(np.array([[[-9.0, -9.0], [9.0, 9.0]]]))
    asked = torch.from_numpy(grid.points_Gd)
    whole = targets(asked, z)
    for other in (z[1:2].clone(), torch.full((1, 2), 1e6, dtype=z.dtype)):
        moved = targets(asked, torch.cat([other, z[1:]]))
        assert float((whole - moved).norm()) <= math.sqrt(len(asked)) * math.log(2) / 25


@pytest.mark.parametrize("kernel", ["shifted", "cauchy"])
@pytest.mark.parametrize("drop", ["none", "nearest", "farthest"])
def test_the_account_covers_what_one_point_moves(kernel: Any, drop: Any) -> None:
    """The worst case that was found: places in a heap where the field is asked, and one that leaves it."""
    points = 30
    heap = torch.from_numpy(np.random.default_rng(0).normal(size=(points, 2)) * 0.02)
    far = torch.full((points, 2), 1e6, dtype=heap.dtype)
    grid = union_grid(np.array([[[-0.05, -0.05], [0.05, 0.05]]]), min_axis_points=12, max_axis_points=12)
    asked = torch.from_numpy(grid.points_Gd)
    moved = 0.0
    for near in (8, 23, 24, 30):
        fields = [
            targets(asked, torch.cat([heap[:count], far[count:]]), drop=drop, kernel=kernel)
            for count in (near, near - 1)
        ]
        moved = max(moved, float((fields[0] - fields[1]).norm()))
    few = {"target_noise": 0.5, "max_axis_points": 12, "surrogate_start": 0.0}
    chosen = EmbeddingOptions(**(SMALL | few), kernel=kernel, drop=drop)
    state = MapState(np.zeros(1), {0: points, 1: 2 * points}, 2, round=1, history=[{"round": 0, "clients": [0, 1]}])
    rho = next(row.rho for row in account(chosen, state) if row.name == "field")
    accounted = 0.5 * math.sqrt(2 * rho)
    assert moved <= accounted
    assert moved > accounted / 5


@pytest.mark.parametrize(("surrogate", "values"), [("grid", 12**3), ("network", 2000)])
def test_the_account_counts_the_values_of_three_dimensions(surrogate: str, values: int) -> None:
    chosen = EmbeddingOptions(surrogate=surrogate, dimensions=3, target_noise=0.5, surrogate_start=0.0)
    state = MapState(np.zeros(1), {0: 40, 1: 80}, 3, round=1, history=[{"round": 0, "clients": [0, 1]}])
    rho = next(row.rho for row in account(chosen, state) if row.name in ("field", "surrogate"))
    assert rho == pytest.approx(values * (math.log(2) / 40) ** 2 / (2 * 0.5**2))


def test_a_surrogate_is_clamped_to_the_range_of_its_kernel() -> None:
    options = EmbeddingOptions(kernel="cauchy", surrogate="network")
    with torch.device("cpu"):
        network = SurrogateNetwork(ARCHITECTURES["network"], 2, torch.Generator().manual_seed(0))
    torch.nn.init.constant_(network.layers[-1].bias, 5.0)
    vector = np.concatenate([one.detach().numpy().ravel() for one in network.state_dict().values()])
    arrays = {"surrogates": vector[None], "shares": np.ones(1), "boxes": np.array([[[0.0, 0.0], [1.0, 1.0]]])}
    felt, _ = at_client._foreign(Message(at_client.TRAIN, 0, arrays), options, "cpu")
    assert felt is not None
    assert float(felt(torch.tensor([[9.0, 9.0]]))) > 2


@pytest.mark.parametrize(
    ("rho", "renyi", "pld"),
    [
        (1e-6, 0.0034566680444981486, 0.0029263925697075987),
        (0.001, 0.15733555637292018, 0.14168541535964296),
        (0.125, 2.1657191674534593, 1.99309140791015),
        (0.5, 4.728393618035284, 4.37717810002877),
        (4.0, 16.511411344607154, 15.456155825705777),
        (50.0, 96.0353517700951, 91.81728962350326),
    ],
)
def test_epsilon_is_that_of_dp_accounting(rho: float, renyi: float, pld: float) -> None:
    """Numbers of dp-accounting 0.6.0 at delta 1e-5.

    `renyi`: `rdp_privacy_accountant.compute_epsilon(alphas, alphas * rho, 1e-5)` with alphas = 1 + exp(linspace(-5, 12,
    4000)). `pld`: `from_gaussian_mechanism((2 * rho) ** -0.5).get_epsilon_for_delta(1e-5)`, for one normal value.
    """
    value = privacy.epsilon(rho, delta=1e-5)
    # Its orders are a grid, among which the best is not.
    assert renyi * (1 - 1e-5) <= value <= renyi
    assert pld < value < rho + 2 * math.sqrt(rho * math.log(1e5))
    assert privacy.max_rho(value, delta=1e-5) == pytest.approx(rho, rel=1e-9)


def test_epsilon_that_was_published() -> None:
    """Gboard's first Spanish next-word model: rho 0.81 (announced in 2022), epsilon 8.9 at delta 1e-10 (2024).

    Source: McMahan and Thakurta 2022, "Federated Learning with Formal Differential Privacy Guarantees"; Xu and Zhang
    2024, "Advances in private training for production on-device language models"; both in Google's research blog.
    """
    assert privacy.epsilon(0.81, delta=1e-10) == pytest.approx(8.9, abs=0.05)


def test_epsilon_of_nothing_and_of_everything() -> None:
    assert (privacy.epsilon(0.0), privacy.epsilon(math.inf), privacy.max_rho(0.0)) == (0.0, math.inf, 0.0)
    assert (privacy.max_rho(1e-20), privacy.max_rho(math.inf)) == (0.0, math.inf)
    assert privacy.epsilon(privacy.max_rho(1e-6)) == pytest.approx(1e-6, rel=1e-6)
    values = [privacy.epsilon(10.0**power) for power in range(-300, 301, 20)]
    assert values == sorted(values)
    assert all(0 <= value < math.inf for value in values)


def test_costs_by_hand() -> None:
    assert privacy.gaussian_cost(2.0, 4.0) == pytest.approx(4 / 32)
    chosen = EmbeddingOptions(**SMALL, update_clip=1.0, update_noise=4.0, target_noise=0.1)
    fitted = fit_clients(CLIENTS, chosen)
    lines = {row.name: row for row in account(chosen, fitted.state)}
    assert lines["encoder"].rho == pytest.approx(4 * 4 / 32)
    assert lines["encoder"].unit == "a whole client"
    sensitivity = 28 * math.log(2) / 40
    assert lines["field"].rho == pytest.approx(3 * sensitivity**2 / (2 * 0.1**2))
    assert lines["box"].epsilon is None
    without = account(EmbeddingOptions(**SMALL), fitted.state)
    assert [row.unit for row in without] == ["nothing"] * 3


@pytest.mark.parametrize("stop", [0, 2])
def test_a_question_that_is_asked_again_costs_again(tmp_path: Path, stop: int) -> None:
    """The server is killed while a client trains: clients have sent their fields, and send others with other noise."""

    class Killed(BaseException):
        pass

    def killing(data: Any, request: Message, client: int) -> Message:
        if request.round == stop:
            raise Killed
        return at_client.answer_train(data, request, client)

    chosen = EmbeddingOptions(**(SMALL | {"surrogate_start": 0.0}), target_noise=0.1, update_clip=1.0, update_noise=4.0)
    members = [make_client(n, ClientData(one)) for n, one in enumerate(CLIENTS)]
    log = Log(record=True)
    dying = [*members[:2], Client(2, members[2].data, {**at_client.HANDLERS, at_client.TRAIN: killing})]
    with pytest.raises(Killed):
        serve(MapJob(chosen), InProcess(dying, log=log), tmp_path)
    result = serve(MapJob(chosen), InProcess(members, log=log), tmp_path)
    sent = {
        kind: sum(up and client == 0 and message.kind == kind for client, up, message in log.messages)
        for kind in (at_client.FIELD, at_client.TRAIN)
    }
    assert sent == {at_client.FIELD: 5, at_client.TRAIN: 5}
    counted = {line["name"]: line["messages"] for line in result["maps"][0]["privacy"]}
    assert counted == {"encoder": 5, "field": 5, "box": 5}


def test_weights_tell_which_features_nobody_has_and_noise_hides_it() -> None:
    points = RANDOM.random((30, 8)).astype(np.float32)
    points[:, [1, 4]] = 0
    found = []
    for changes in ({}, {"update_clip": 1.0, "update_noise": 0.01}):
        chosen = EmbeddingOptions(rounds=1, method="fedavg", hidden=(6,), **changes)
        before = flatten_weights(at_client.build_encoder(chosen, 8))
        fitted = fit_clients([points], chosen)
        found.append(np.flatnonzero(unused_features(before, fitted.state.encoder, chosen, 8)).tolist())
    assert found == [[1, 4], []]


def test_a_field_tells_where_few_points_are_and_noise_hides_it() -> None:
    z = np.array([[0.0, 0.0], [3.0, 1.0], [-2.0, 4.0]])
    grid = union_grid(np.stack([[z.min(axis=0), z.max(axis=0)]]))
    field = targets(torch.from_numpy(grid.points_Gd), torch.from_numpy(z)).numpy()
    errors = []
    for sigma in (0.0, 1.0):
        sent = privacy.add_noise(field, sigma, np.random.default_rng(1))
        found = positions_from_field(sent, grid, 3, np.random.default_rng(0), starts=4, steps=150)
        apart = np.linalg.norm(z[:, None] - found[None], axis=2)
        errors.append(apart[linear_sum_assignment(apart)].mean())
    assert errors[0] < 0.05
    assert errors[1] > 1.0


def test_deepfeca_sends_nothing_of_fewer_points_than_min_count() -> None:
    network = Embedder(None, 5, hidden=8, width=4)
    request = embedded_request(
        flatten_weights(network), resolve(2, refine_rounds=0, spherical=True, min_count=10), 0, 0
    )
    answer = handlers(network)[EMBEDDED]
    assert answer(torch.from_numpy(CLIENTS[0]), request, 0).array("counts").min() >= 10
    with raises_naming(UserError, "9", "min_count", "10"):
        answer(torch.from_numpy(CLIENTS[0][:9]), request, 0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: read_options({"update_noise": 1.0}), "noise hides only what is bounded"),
        (lambda: read_options({"target_noise": 1.0, "grid": "own"}), "target_noise needs"),
        (lambda: privacy.gaussian_cost(1.0, 0.0), "noise.*0"),
        (lambda: privacy.epsilon(1.0, delta=0.0), "delta.*0.0"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()
