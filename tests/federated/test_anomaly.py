"""Clients that are unlike the others: poisoned weights and maps are reported by all that trains; honest ones rarely."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_clients import train, train_deep

from foveate import FederatedKMeans
from foveate.federated.anomaly import find_far_boxes, find_odd_sizes, find_odd_weights
from foveate.federated.clustering.methods import resolve
from foveate.federated.deep.encoder import Embedder
from foveate.federated.deep.estimator import FederatedDeepClustering, as_samples
from foveate.federated.deep.job import Rounds
from foveate.federated.deep.protocol import EMBEDDED, TRAIN, Training, handlers
from foveate.federated.embedding import client as at_client
from foveate.federated.embedding.client import ClientData, make_client
from foveate.federated.embedding.job import MapJob, fit_clients
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.messages import Message
from foveate.federated.rounds import Client, InProcess
from foveate.federated.sources import gather

BAD = (1, 4, 7)


def parts(seed: int = 0) -> list[np.ndarray]:
    """Ten clients with points of three groups, two groups a client."""
    random = np.random.default_rng(seed)
    means = 3 * random.normal(size=(3, 6))
    return [means[random.permutation(3)[:2]].repeat(20, axis=0) + random.normal(size=(40, 6)) for _ in range(10)]


def noise(weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.normal(size=weights.shape)


def scaled(weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return 100 * weights


def opposite(weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return -weights


POISON = {"noise": noise, "scaled": scaled, "opposite": opposite}


def poisoned(handler: Any, array: str, poison: Any) -> Any:
    def answer(data: Any, request: Message, client: int) -> Message:
        good = handler(data, request, client)
        made = poison(good.array(array), np.random.default_rng(client)).astype(good.array(array).dtype)
        return request.answer(arrays={**good.arrays, array: made}, **good.values)

    return answer


@pytest.mark.parametrize("name", POISON)
def test_three_poisoned_clients_of_ten_are_reported_by_fedne(name: str) -> None:
    members = [make_client(number, ClientData(one.astype(np.float32))) for number, one in enumerate(parts())]
    for number in BAD:
        bent = {
            **at_client.HANDLERS,
            at_client.TRAIN: poisoned(at_client.HANDLERS[at_client.TRAIN], "encoder", POISON[name]),
        }
        members[number] = Client(number, members[number].data, bent)
    transport = InProcess(members)
    options = EmbeddingOptions(rounds=2, hidden=(16,), method="fedavg", neighbors=3)
    state = train(transport, options)
    odd = {note.split(" is suspicious")[0] for note in state.notes if "is suspicious: its weights" in note}
    assert odd == {f"client {number}" for number in BAD}


@pytest.mark.parametrize("name", POISON)
def test_three_poisoned_clients_of_ten_are_reported_by_deepfeca(name: str) -> None:
    torch.manual_seed(0)
    network = Embedder(None, 6, hidden=16, width=8)
    good = handlers(network)
    bent = {**good, TRAIN: poisoned(good[TRAIN], "weights", POISON[name])}
    clients = [Client(number, as_samples(one), bent if number in BAD else good) for number, one in enumerate(parts())]
    state = train_deep(InProcess(clients), Rounds(resolve(3, refine_rounds=0, spherical=True), Training()), network, 1)
    assert {client for client, sign in state.suspects if sign == "weights"} == set(BAD)
    assert all("its weights are" in state.describe_suspects()[client] for client in BAD)


def test_maps_that_reach_far_are_reported() -> None:
    members = [make_client(number, ClientData(one.astype(np.float32))) for number, one in enumerate(parts())]
    for number in BAD:
        far = poisoned(at_client.HANDLERS[at_client.BOX], "box", lambda box, random: 1000 * box)
        members[number] = Client(number, members[number].data, {**at_client.HANDLERS, at_client.BOX: far})
    transport = InProcess(members)
    options = EmbeddingOptions(rounds=1, hidden=(16,), surrogate="grid", surrogate_start=0.0, min_r2=-1e9)
    state = train(transport, options)
    assert {note.split(" is suspicious")[0] for note in state.notes if "its map reaches" in note} == {
        f"client {number}" for number in BAD
    }


def claiming(handler: Any, points: int) -> Any:
    def answer(data: Any, request: Message, client: int) -> Message:
        good = handler(data, request, client)
        counts = {"counts": np.r_[points, good.array("counts")[1:]]} if "counts" in good.arrays else {}
        total = int(counts["counts"].sum()) if counts else points
        return request.answer(arrays={**good.arrays, **counts}, **{**good.values, "points": total})

    return answer


def test_three_clients_of_ten_that_claim_many_points_are_reported_by_fedne() -> None:
    members = [make_client(number, ClientData(one.astype(np.float32))) for number, one in enumerate(parts())]
    for number in BAD:
        bent = {**at_client.HANDLERS, at_client.POINTS: claiming(at_client.answer_points, 2**52)}
        members[number] = Client(number, members[number].data, bent)
    state = MapJob(EmbeddingOptions(method="fedavg", neighbors=3)).begin(InProcess(members))
    odd = [note for note in state.notes if "x the median number of points" in note]
    assert [note.split(" is suspicious")[0] for note in odd] == [f"client {number}" for number in BAD]


@pytest.mark.parametrize(
    ("kind", "clustering"), [(EMBEDDED, "consensus"), (TRAIN, "consensus"), (TRAIN, "kfed")]
)  # k-FED asks for no counts with centroids
def test_three_clients_of_ten_that_claim_many_points_are_reported_by_deepfeca(kind: str, clustering: str) -> None:
    torch.manual_seed(0)
    network = Embedder(None, 6, hidden=16, width=8)
    good = handlers(network)
    bent = {**good, kind: claiming(good[kind], 2**40)}
    if kind == EMBEDDED:  # both claims agree
        bent[TRAIN] = claiming(good[TRAIN], 2**40 + 40)
    clients = [Client(number, as_samples(one), bent if number in BAD else good) for number, one in enumerate(parts())]
    plan = resolve(3, method=clustering, refine_rounds=0, spherical=True)
    state = train_deep(InProcess(clients), Rounds(plan, Training()), network, 1)
    if kind == TRAIN and clustering == "consensus":
        assert set(state.excluded) == set(BAD)
        assert "1.09951e+12 points, but 40 with its centroids" in state.excluded[1]
    else:
        suspects = state.describe_suspects()
        assert {client for client, reason in suspects.items() if "x the median number" in reason} == set(BAD)


def digits(split: str, seed: int) -> list[np.ndarray]:
    return gather(["digits"], split=split, clients=10, seed=seed).points


def fedne(data: list[np.ndarray], seed: int) -> set[int]:
    """Clients that FedNE calls odd within four rounds, clients feeling one another in the last two."""
    options = EmbeddingOptions(rounds=4, hidden=(50,), surrogate="grid", surrogate_start=0.5, seed=seed)
    notes = fit_clients(data, options).state.notes
    return {
        int(note.split(" is suspicious")[0].removeprefix("client ")) for note in notes if " is suspicious: " in note
    }


def deepfeca(data: list[np.ndarray], seed: int) -> set[int]:
    """Clients that DeepFeCA calls odd within two rounds."""
    return set(FederatedDeepClustering(10, n_rounds=2, width=64, random_state=seed).fit(data).suspects_)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_three_clients_of_ten_with_poisoned_data_are_reported(seed: int) -> None:
    """Data of another place by DeepFeCA, of another unit by FedNE; what is not found stands in the methods' pages."""
    random = np.random.default_rng(seed)
    bad = set(random.choice(10, 3, replace=False).tolist())
    data = digits("dirichlet:0.3", seed)
    far = [one + random.uniform(-20, 20, 64) if client in bad else one for client, one in enumerate(data)]
    assert bad <= deepfeca(far, seed)
    assert set(FederatedKMeans(10, random_state=seed).fit(far).suspects_) == bad
    assert fedne([50 * one if client in bad else one for client, one in enumerate(data)], seed) == bad


def add_noise(one: np.ndarray) -> np.ndarray:
    return one.mean() + one.std() * np.random.default_rng(len(one)).normal(size=one.shape)


WRONG: dict[str, Any] = {
    "another unit": (lambda one: 50 * one, 0, 3),
    "negative": (lambda one: one.max() - one, 0, 0),
    "noise": (add_noise, 0, 0),
    "repeated": (lambda one: np.repeat(one[:1], len(one), axis=0), 0, 2),  # by columns that hardly vary
}
"""Wrong points of a client, and how many of three such clients DeepFeCA and plain clustering report."""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", WRONG)
def test_what_the_page_says_of_poisoned_data(name: str, seed: int) -> None:
    """The table in docs/methods/feca.md, mostly of nothing: if this fails, the page says too little or too much."""
    wrong, by_deepfeca, by_clustering = WRONG[name]
    bad = set(np.random.default_rng(seed).choice(10, 3, replace=False).tolist())
    data = [wrong(one) if client in bad else one for client, one in enumerate(digits("dirichlet:0.3", seed))]
    assert len(deepfeca(data, seed) & bad) == by_deepfeca
    assert len(set(FederatedKMeans(10, random_state=seed).fit(data).suspects_) & bad) == by_clustering


@pytest.mark.parametrize("split", ["even", "dirichlet:0.3", "shards:2"])
def test_honest_clients_are_not_reported(split: str) -> None:
    """Negative control: clients that hold different digits."""
    data = digits(split, 0)
    assert fedne(data, 0) == set()
    assert deepfeca(data, 0) == set()


def test_what_is_far_is_counted_against_the_median() -> None:
    random = np.random.default_rng(0)
    weights = {client: random.normal(size=100_000).astype(np.float32) for client in range(5, 11)}
    assert find_odd_weights(weights) == {}
    weights[7] = weights[7] * 40
    found = find_odd_weights(weights)
    assert list(found) == [7]
    # Far from others by 40 lengths, where they are far from one another by the root of two.
    assert found[7] == pytest.approx(np.sqrt((40**2 + 1) / 2), rel=0.02)
    assert find_odd_weights({client: weights[client] for client in (5, 6, 7)}) == {}, "nothing is said of three"
    same = dict.fromkeys(range(5), np.ones(10, np.float32))
    assert find_odd_weights(same) == {}
    boxes = {client: np.array([[-1.0, -1.0], [1.0, 1.0]]) + 0.1 * client for client in range(6)}
    assert find_far_boxes(boxes) == {}
    assert list(find_far_boxes(boxes | {2: 50 * boxes[2]})) == [2]
    assert find_far_boxes({client: boxes[client] for client in range(3)}) == {}
    sizes = {client: 100.0 + 20 * client for client in range(6)}
    assert find_odd_sizes(sizes) == {}
    assert find_odd_sizes(sizes | {2: 2000}) == {2: "reports 72% of all points"}
    assert list(find_odd_sizes(sizes | {1: 1e5, 4: 1e5})) == [1, 4]
    assert find_odd_sizes({client: 10.0**client for client in range(3)}) == {}
