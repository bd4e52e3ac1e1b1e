"""Maps over a network: the noise of a client's answers, its account, what is cut without noise, and two attacks."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_hostile_server import WINE, Ask, asker, attack_map, configure

from foveate.federated import attacks, privacy
from foveate.federated.costs import answer_cost
from foveate.federated.embedding import client as at_client
from foveate.federated.embedding import grids
from foveate.federated.embedding import options as kinds
from foveate.federated.embedding.client import ClientData, answer_remote, build_encoder
from foveate.federated.embedding.job import MapJob
from foveate.federated.embedding.networks import flatten_weights
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.embedding.training import max_repulsion
from foveate.federated.job import run_rounds
from foveate.federated.limits import ClientLimits
from foveate.federated.messages import Message
from foveate.federated.node import answer_request
from foveate.federated.privacy import epsilon
from foveate.federated.reasons import FAILURE
from foveate.federated.rounds import Client, InProcess, Log
from foveate.federated.scaling import Scaling

RANDOM = np.random.default_rng(0)
PARTS = [RANDOM.normal(size=(60, 5)) + 2 * number for number in range(3)]
SMALL: dict[str, Any] = {"rounds": 3, "hidden": (8,), "surrogate_start": 0.4}
BOX = np.array([[-3.0, -3.0], [3.0, 3.0]])


def limits(noise: float = 15.0, **own: Any) -> ClientLimits:
    return ClientLimits(**({"min_count": 10, "jobs": ("embed",), "noise_multiplier": noise} | own))


def request_of(
    kind: str, arrays: dict[str, Any] | None = None, values: dict[str, Any] | None = None, **options: Any
) -> Message:
    """A request of the first round, with the weights that the seed draws."""
    chosen = EmbeddingOptions(**(SMALL | options))
    sent: dict[str, Any] = {"encoder": flatten_weights(build_encoder(chosen, 5))}
    if kind == kinds.FIELD:
        sent |= {"box": BOX, "counts": np.array([28, 28])}
    training = {"rate": 1e-3, "share": 1.0} if kind == kinds.TRAIN else {}
    values = {"options": chosen.model_dump_json(), **training, **(values or {})}
    return Message(kind, 0, sent | (arrays or {}), values)


# --- The most that one point can change.


def test_one_point_changes_the_counts_of_a_box_by_what_is_accounted_for() -> None:
    values = [-1e9, -300.0, -7.0, 0.0, 0.1, 7.0, 256.0, 1e9, np.inf, np.nan]
    rest = RANDOM.normal(size=(20, 2)) * 5
    changes = []
    for before, after in itertools.product(itertools.product(values, repeat=2), repeat=2):
        counts = [grids.count_positions(np.vstack([rest, [position]])) for position in (before, after)]
        assert all((count.sum(axis=1) == 21).all() for count in counts)
        changes.append(float(np.linalg.norm(counts[0] - counts[1])))
    assert max(changes) == pytest.approx(grids.box_change(2)) == pytest.approx(2)


@pytest.mark.parametrize("kernel", ["shifted", "cauchy"])
@pytest.mark.parametrize("drop", ["none", "nearest", "farthest"])
@pytest.mark.parametrize(("width", "counts"), [(0.1, (12, 12)), (3.0, (28, 12)), (12.0, (28, 28)), (200.0, (28, 20))])
def test_one_point_changes_a_field_by_no_more(kernel: Any, drop: Any, width: float, counts: tuple[int, int]) -> None:
    grid = grids.grid_between(np.array([[-width, -width / 2], [width, width / 2]]), np.array(counts))
    queries, points, rng = torch.from_numpy(grid.points_Gd), 20, np.random.default_rng(0)
    bound = grids.max_norm_change(len(queries), points, grid=grid, drop=drop, kernel=kernel)
    assert bound <= grids.max_norm_change(len(queries), points, drop=drop, kernel=kernel)
    # Points at a query, between two and four of them, and far away; the others anywhere, or in a heap.
    corner, cell = (
        grid.points_Gd[len(queries) // 2 + counts[0] // 2],
        np.array([np.ptp(axis[:2]) for axis in grid.axes]),
    )
    spots = [corner, corner + cell / 2, corner + cell * [0.5, 0], grid.points_Gd[0], np.array([1e6, 1e6])]
    spots += list(rng.uniform(-width, width, (6, 2)))
    largest = 0.0
    for rest in (rng.uniform(-width, width, (points - 1, 2)), np.zeros((points - 1, 2)), np.full((points - 1, 2), 1e6)):
        fields = [
            grids.targets(queries, torch.from_numpy(np.vstack([rest, spot])), drop=drop, kernel=kernel)
            for spot in spots
        ]
        largest = max(largest, *(float((one - two).norm()) for one, two in itertools.combinations(fields, 2)))
    assert largest <= bound
    # No account of ten times the noise that is needed.
    assert drop != "none" or largest > bound / 4


def test_a_bound_of_queries_in_three_dimensions() -> None:
    queries, rng = torch.from_numpy(RANDOM.uniform(-2, 2, (500, 3))), np.random.default_rng(0)
    z = torch.from_numpy(rng.normal(size=(30, 3)))
    moved = torch.cat([torch.full((1, 3), 1e6, dtype=z.dtype), z[1:]])
    change = float((grids.targets(queries, z) - grids.targets(queries, moved)).norm())
    assert change <= grids.max_norm_change(500, 30)


# --- The noise that is used.


def repeat(request: Message, own: ClientLimits, times: int, points: np.ndarray = PARTS[0]) -> list[Message]:
    return [answer_remote(points, request, 0, own) for _ in range(times)]


@pytest.mark.parametrize(("own", "asked"), [(0.2, 0.0), (0.2, 0.5)])
def test_noise_on_a_field_has_the_size_that_is_charged(own: float, asked: float) -> None:
    request = request_of(kinds.FIELD, target_noise=asked)
    grid = grids.grid_between(BOX, np.array([28, 28]))
    sigma = max(own * grids.max_norm_change(784, 60, grid=grid), asked)
    answers = np.stack([answer.array("field") for answer in repeat(request, limits(own), 40)])
    exact = answer_remote(PARTS[0], request_of(kinds.FIELD), 0).array("field")
    assert (answers >= 0).all()
    assert (answers <= math.log(2)).all()
    if asked:
        return  # most values are clipped
    inside = (exact > 4 * sigma) & (exact < math.log(2) - 4 * sigma)
    assert inside.sum() > 50
    assert np.std((answers - exact)[:, inside]) == pytest.approx(sigma, rel=0.05)
    assert answer_cost(request, limits(own)).noise_multiplier == own


def test_the_server_can_raise_the_noise_on_a_field_and_not_lower_it(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[float] = []
    monkeypatch.setattr(at_client, "add_noise", lambda values, sigma, source: used.append(sigma) or values)
    for asked in (0.0, 1e-3, 0.5):
        answer_remote(PARTS[0], request_of(kinds.FIELD, target_noise=asked), 0, limits(15.0))
    grid = grids.grid_between(BOX, np.array([28, 28]))
    own = 15 * grids.max_norm_change(784, 60, grid=grid)
    assert used == [pytest.approx(own), pytest.approx(own), pytest.approx(max(own, 0.5))]


@pytest.mark.parametrize(
    ("options", "clip", "multiplier"),
    [
        ({}, 1.0, 15.0),
        ({"update_clip": 5.0}, 1.0, 15.0),
        ({"update_clip": 0.1}, 0.1, 15.0),
        ({"update_clip": 1.0, "update_noise": 1.0}, 1.0, 15.0),
        ({"update_clip": 1.0, "update_noise": 60.0}, 1.0, 30.0),
        ({"method": "local"}, 1.0, 15.0),
        ({"method": "global", "update_clip": 1.0, "update_noise": 60.0}, 1.0, 15.0),
    ],
)
def test_noise_on_weights_has_the_size_that_is_charged(
    options: dict[str, Any], clip: float, multiplier: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(kinds.TRAIN, hidden=(300, 300), **options)
    assert at_client.update_protection(EmbeddingOptions(**options), limits()) == (clip, multiplier * 2 * clip)
    assert answer_cost(request, limits()).noise_multiplier == multiplier
    noisy: list[np.ndarray] = []
    draw = privacy.add_noise
    monkeypatch.setattr(privacy, "add_noise", lambda *given: noisy.append(draw(*given)) or noisy[-1])
    (answer,) = repeat(request, limits(), 1)
    assert np.std(noisy[0]) == pytest.approx(multiplier * 2 * clip, rel=0.02)
    # What is sent is the noisy change, in the length that a change without noise has at most.
    change = answer.array("encoder").astype(float) - request.array("encoder")
    np.testing.assert_allclose(change, noisy[0] * clip / np.linalg.norm(noisy[0]), atol=1e-6)
    assert not answer.values, "no losses, no steps, no count of points outside"


def test_a_noisy_map_stays_as_wide_as_maps_are(tmp_path: Path) -> None:
    clients = clients_of(tmp_path)
    job, transport = MapJob(EmbeddingOptions(**(SMALL | {"rounds": 20, "method": "fedavg"}))), InProcess(clients)
    state = run_rounds(job, transport, job.begin(transport))
    start = flatten_weights(build_encoder(job.options, 5))
    assert 0 < np.linalg.norm(state.encoder - start) <= 20
    # Without the second clip the weights' norm is thousands, and coordinates are millions.
    assert np.abs(job.finished(state).transform(PARTS[0])).max() < 100


def test_a_change_is_clipped_to_the_smaller_of_two_norms() -> None:
    for own, asked, norm in ((1e-3, None, 1e-3), (1e-3, 1.0, 1e-3), (1.0, 2e-3, 2e-3)):
        request = request_of(kinds.TRAIN, update_clip=asked)
        (answer,) = repeat(request, limits(0.0, update_clip=own), 1)
        change = answer.array("encoder").astype(float) - request.array("encoder")
        assert np.linalg.norm(change) == pytest.approx(norm, rel=1e-3)


def test_the_noise_of_a_box_has_the_size_that_is_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[float] = []
    draw = grids.discrete_gaussian
    monkeypatch.setattr(
        grids, "discrete_gaussian", lambda sigma, shape: used.append(float(sigma)) or draw(sigma, shape)
    )
    (answer,) = repeat(request_of(kinds.BOX), limits(15.0), 1)
    assert used == [pytest.approx(15 * 2, rel=1e-3)]
    assert set(answer.array("box").ravel()) <= set(grids.THRESHOLDS)
    # A grid of the client's own is a second release: both have more noise, and cost as much as one.
    sigmas: list[float] = []
    monkeypatch.setattr(at_client, "add_noise", lambda values, sigma, source: sigmas.append(sigma) or values)
    used.clear()
    own = request_of(kinds.SURROGATE, grid="own", surrogate="network")
    (answer,) = repeat(own, limits(15.0), 1)
    assert used == [pytest.approx(math.sqrt(2) * 15 * 2, rel=1e-3)]
    queries = int(answer.number("queries"))
    assert sigmas[0] <= math.sqrt(2) * 15 * grids.max_norm_change(queries, 60) * 1.001
    assert answer_cost(own, limits(15.0)).rho == pytest.approx(1 / 450)


@pytest.mark.parametrize("sigma", [0.0, 1.0, 30.0])
def test_a_noisy_box_of_many_points_holds_them(sigma: float) -> None:
    z = np.random.default_rng(0).normal(size=(20_000, 2)) * [3, 0.5] + [0, 6]
    # One box in a hundred is too wide.
    low, high = np.median([grids.threshold_box(z, 10, sigma=sigma) for _ in range(15)], axis=0)
    assert np.mean(((z >= low) & (z <= high)).all(axis=1)) > 0.95
    assert (high - low <= [32, 8]).all()


@pytest.mark.parametrize("points", [1, 5, 100])
def test_a_noisy_box_of_few_points_is_a_box(points: int) -> None:
    for place in (0.0, 1e11, np.nan):
        for _ in range(20):
            low, high = grids.threshold_box(np.full((points, 2), place), 10, sigma=30.0)
            assert (low <= high).all()
            assert set([*low, *high]) <= set(grids.THRESHOLDS)


def test_the_budget_pays_for_what_is_answered(tmp_path: Path) -> None:
    config = configure(tmp_path, PARTS[0], jobs="embed", noise_multiplier=3.0, max_epsilon=8.0)
    answered = 0
    for _ in range(100):
        if FAILURE in (values := answer_request(config, lambda: request_of(kinds.TRAIN)).values):
            break
        answered += 1
    assert values[FAILURE] == "max-epsilon"
    assert epsilon(answered / 18) <= 8 < epsilon((answered + 1) / 18)


# --- No failure because of a value.


def wild_requests() -> dict[str, Message]:
    rng = np.random.default_rng(0)
    huge = (rng.normal(size=58 + 8) * 1e37).astype(np.float32)
    infinite = np.full(66, 3e38, np.float32)
    assert flatten_weights(build_encoder(EmbeddingOptions(**SMALL), 5)).shape == (66,)
    scale = Scaling(np.zeros(5), np.full(5, 1e-300))
    field = {"box": BOX, "counts": np.array([28, 28]), "field": np.full(784, np.nan, np.float32)}
    cases = {}
    for kind in (kinds.BOX, kinds.FIELD, kinds.TRAIN):
        cases[f"{kind} huge"] = request_of(kind, {"encoder": huge})
        cases[f"{kind} infinite"] = request_of(kind, {"encoder": infinite})
        cases[f"{kind} scaled"] = scale.add_to(request_of(kind))
    cases["mixing"] = scale.add_to(request_of(kinds.TRAIN, mixing=True))
    cases["exact"] = request_of(kinds.TRAIN, {"encoder": infinite}, negatives="all")
    cases["a field of NaN"] = request_of(kinds.TRAIN, field | {"encoder": huge})
    cases["a surrogate"] = request_of(kinds.SURROGATE, {"encoder": huge}, surrogate="network", grid="own")
    cases["a surrogate in space"] = request_of(kinds.SURROGATE, surrogate="network", grid="own", dimensions=3)
    return cases


@pytest.mark.parametrize("name", wild_requests())
def test_a_question_with_noise_never_fails_because_of_a_value(name: str) -> None:
    request = wild_requests()[name]
    data = np.vstack([PARTS[0], np.full((1, 5), 1e30), np.full((1, 5), -1e30)])
    with np.errstate(all="ignore"):
        answer = answer_remote(data, request, 0, limits())
    for array in answer.arrays.values():
        assert np.isfinite(array).all() or (request.array("encoder") > 1e36).any()


def test_what_no_client_can_compute_is_refused_before_the_ledger(tmp_path: Path) -> None:
    config = configure(tmp_path, PARTS[0], jobs="embed")
    for box in (BOX * np.nan, BOX * np.inf, BOX * 1e13, BOX[:1]):
        request = request_of(kinds.FIELD, {"box": box})
        assert answer_request(config, lambda request=request: request).values == {FAILURE: "request-invalid"}
    assert not list((tmp_path / "state").glob("*.jsonl"))


# --- Without noise.


def identity(points: np.ndarray, counts: tuple[int, int], box: np.ndarray) -> Message:
    """A field of a map that shows two columns as they are."""
    options = EmbeddingOptions(hidden=(), precision="float64")
    arrays = {"encoder": np.concatenate([np.eye(2).ravel(), np.zeros(2)]), "box": box, "counts": np.array(counts)}
    return Message(kinds.FIELD, 0, arrays, {"options": options.model_dump_json()})


def test_a_field_without_noise_is_cut_and_rounded() -> None:
    points = np.vstack([RANDOM.normal(size=(200, 2)), [[6.0, 6.0]], RANDOM.normal(size=(9, 2)) * 0.1 + [-6, 0]])
    grid = grids.grid_between(np.array([[-7.0, -7.0], [7.0, 7.0]]), np.array([28, 28]))
    answer = answer_remote(points, identity(points, (28, 28), grid.box_2d), 0, limits(0.0))
    field, places = answer.array("field"), grid.points_Gd
    for lonely in ([6.0, 6.0], [-6.0, 0.0]):
        assert not field[np.linalg.norm(places - lonely, axis=1) < 1].any()
    near = np.linalg.norm(places, axis=1) < 0.7
    exact = answer_remote(points, identity(points, (28, 28), grid.box_2d), 0).array("field")
    np.testing.assert_allclose(field[near], exact[near], atol=0.02)
    assert answer.number("r2") == round(answer.number("r2"), 3)
    assert answer.number("r2") > 0.9


def test_a_server_reads_the_same_table_through_any_grid() -> None:
    points = RANDOM.normal(size=(200, 2))
    data = ClientData(points, min_count=10, limits=limits(0.0))
    table = at_client._cut_field(torch.from_numpy(points), EmbeddingOptions(), data)
    assert all(count <= 28 for count in table.grid.shape)
    assert set(table.grid.box_2d.ravel().round(6)) <= {-4.0 - 1.3, 4.0 + 1.3, -2.9, 2.9, -2.0 - 0.9, 2.0 + 0.9}
    assert np.array_equal(table.values_G.numpy(), table.values_G.numpy().round(3))
    for box in ([[0.0, 0.0], [1e-3, 1e-3]], [[-1e9, -1e9], [1e9, 1e9]], [[0.1, -0.3], [1.7, 2.0]]):
        grid = grids.grid_between(np.array(box), np.array([20, 20]))
        answer = answer_remote(points, identity(points, (20, 20), np.array(box)), 0, limits(0.0))
        read = table.read(torch.from_numpy(grid.points_Gd)).numpy()
        np.testing.assert_array_equal(answer.array("field"), read)


def test_losses_without_noise_have_three_digits() -> None:
    (answer,) = repeat(request_of(kinds.TRAIN), limits(0.0), 1)
    for name in ("attraction", "repulsion"):
        assert answer.number(name) == round(answer.number(name), 3)


# --- Whole runs through the client's door.


def clients_of(folder: Path, **own: Any) -> list[Client]:
    """Clients that answer by their nodes' own configuration."""

    def answer(config: dict[str, Any], request: Message, number: int) -> Message:
        return answer_request(config, lambda: request)

    clients = []
    for number, part in enumerate(PARTS):
        (place := folder / str(number)).mkdir(parents=True)
        config = configure(place, part, **{"jobs": "embed", "max_epsilon": 1000.0, **own}) | {"partition-id": number}
        clients.append(Client(number, config, dict.fromkeys(kinds.REMOTE_KINDS, answer)))
    return clients


RUNS: dict[str, dict[str, Any]] = {
    "fedne": {},
    "fedavg": {"method": "fedavg"},
    "fedprox": {"method": "fedprox"},
    "networks": {"surrogate": "network"},
    "networks on their own grids": {"surrogate": "network", "grid": "own"},
    "in space": {"dimensions": 3},
    "mixing and a trimmed mean": {"mixing": True, "aggregation": "trimmed_mean", "suspects": "exclude"},
    "the server's own noise": {"update_clip": 0.5, "update_noise": 4.0, "target_noise": 0.1},
    "more noise than the clients'": {"update_clip": 1.0, "update_noise": 100.0, "target_noise": 3.0},
    "in some rounds": {"participation": 0.5, "rounds": 6},
    "float64": {"precision": "float64", "negatives": "all"},
}


@pytest.mark.parametrize("noise", [0.0, 15.0])
@pytest.mark.parametrize("name", RUNS)
def test_honest_runs_pass_the_clients_door(name: str, noise: float, tmp_path: Path) -> None:
    options = EmbeddingOptions(**(SMALL | RUNS[name]))
    job, log = MapJob(options), Log()
    transport = InProcess(clients_of(tmp_path, noise_multiplier=noise), log=log)
    state = run_rounds(job, transport, job.begin(transport, min_clients=3))
    assert [entry.reason for entry in log.entries if entry.reason] == []
    assert np.isfinite(state.encoder).all()
    hidden = noise or options.hides_training
    assert all((entry["attraction"] is None) == bool(hidden) for entry in state.history)


def test_runs_of_two_seeds_and_of_one_seed_twice(tmp_path: Path) -> None:
    clients, log = clients_of(tmp_path), Log()
    for seed in (0, 1, 0):
        job, transport = MapJob(EmbeddingOptions(**SMALL, seed=seed)), InProcess(clients, log=log)
        run_rounds(job, transport, job.begin(transport))
    assert [entry.reason for entry in log.entries if entry.reason] == []


def test_a_client_that_joins_late(tmp_path: Path) -> None:
    clients, log = clients_of(tmp_path), Log()
    job = MapJob(EmbeddingOptions(**(SMALL | {"rounds": 5})))
    transport = InProcess(clients, log=log)
    state = job.begin(transport)
    for round in range(5):
        state.round = round
        # The third client is away in the first two rounds, and in the fourth.
        present = clients if round in (2, 4) else clients[:2]
        sizes, state.sizes = state.sizes, {client.number: state.sizes[client.number] for client in present}
        state.history.append(job.run_round(InProcess(present, log=log), state))
        state.sizes = sizes
    assert [entry.reason for entry in log.entries if entry.reason] == []


def test_weights_of_the_servers_choice_are_refused(tmp_path: Path) -> None:
    config = configure(tmp_path, PARTS[0], jobs="embed")
    honest = request_of(kinds.BOX)
    assert FAILURE not in answer_request(config, lambda: honest).values
    other = request_of(kinds.BOX, {"encoder": 2 * honest.array("encoder")})
    later = replace(other, round=2, arrays={"encoder": honest.array("encoder") + np.float32(1e4)})
    for request in (other, replace(honest, round=3), later):
        assert answer_request(config, lambda request=request: request).values == {FAILURE: "weights"}
    assert len(next((tmp_path / "state").glob("*.jsonl")).read_text().splitlines()) == 1, "refused, not answered"


# --- Attacks.


def in_bounds(ask: Ask, rounds: int = 1000) -> Ask:
    """Ask in late rounds, one after another, where honest weights may have moved far."""
    number = itertools.count(rounds // 2)

    def ask_late(request: Message) -> Message | None:
        options = EmbeddingOptions.model_validate_json(str(request.values["options"]))
        values = {**request.values, "options": options.model_copy(update={"rounds": rounds}).model_dump_json()}
        return ask(replace(request, round=next(number), values=values))

    return ask_late


def attack_box(ask: Ask, features: int) -> list[np.ndarray]:
    """The row that is farthest in a direction, by a unit that only it turns on: the mean of ten is a tenth of it."""
    options, rows = EmbeddingOptions(hidden=(1,), precision="float64"), []

    def ask_side(direction: np.ndarray, threshold: float) -> float | None:
        weights = np.concatenate([direction, [-threshold], [10.0, 10.0], [0.0, 0.0]])
        answer = ask(Message(kinds.BOX, 0, {"encoder": weights}, {"options": options.model_dump_json()}))
        return None if answer is None else float(answer.array("box")[1, 0])

    for seed in range(3):
        direction = np.random.default_rng(seed).normal(size=features)
        direction /= np.linalg.norm(direction)
        low, high = 0.0, 20.0
        # The largest threshold at which the unit is on, by halving; just below it one row turns it on.
        for _ in range(30):
            middle = (low + high) / 2
            side = ask_side(direction, middle)
            if side is None:
                return rows
            low, high = (middle, high) if side > 1e-9 else (low, middle)
        threshold = low - 0.05
        base = ask_side(direction, threshold)
        steps = [ask_side(direction + 1e-3 * unit, threshold) for unit in np.eye(features)]
        if base is None or None in steps:
            return rows
        rows.append(np.array([(step - base) / 1e-3 for step in steps]))
    return rows


def test_the_attack_on_a_box_works_where_nothing_protects() -> None:
    rows = WINE[:, :4]
    read = attack_box(lambda request: at_client.answer_box(ClientData(rows, min_count=10), request, 0), 4)
    assert attacks.count_rows_read(read, rows, within=1e-6) >= 2


@pytest.mark.parametrize("noise", [15.0, 0.0])
@pytest.mark.parametrize("late", [False, True])
def test_a_client_that_answers_about_maps_lets_nobody_read_rows(noise: float, late: bool, tmp_path: Path) -> None:
    rows, codes = WINE[::8, :4], []
    own = {"jobs": "embed", "noise_multiplier": noise, "max_questions": 10_000, "max_epsilon": 1e6}
    for number, attack in enumerate((partial(attack_map, points=len(rows), side=28), attack_box)):
        (folder := tmp_path / str(number)).mkdir()
        table = rows if number == 0 else WINE[:, :4]
        ask = asker(configure(folder, table, **own), codes)
        read = attack(in_bounds(ask) if late else ask, features=4)
        assert attacks.count_rows_read(read, table, within=1e-2) == 0
    assert late or set(codes) == {"weights"}


@pytest.mark.parametrize("noise", [15.0, 0.0])
def test_what_is_sent_reads_no_rows_whatever_the_weights(noise: float) -> None:
    """The second line alone: no check of the weights, and a server that may ask as often as it likes."""
    for attack, rows in ((partial(attack_map, side=28), WINE[::8, :4]), (attack_box, WINE[:, :4])):
        more = {"points": len(rows)} if attack is not attack_box else {}
        read = attack(lambda request, rows=rows: answer_remote(rows, request, 0, limits(noise)), features=4, **more)
        assert attacks.count_rows_read(read, rows, within=1e-2) == 0


def test_honest_values_of_a_repulsion_are_the_range() -> None:
    assert max_repulsion("shifted") == pytest.approx(math.log(2))
