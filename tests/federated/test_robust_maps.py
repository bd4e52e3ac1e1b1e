"""FedNE where some clients send poisoned weights: robust averages, and leaving out those that are reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from small_clients import train
from test_anomaly import BAD, POISON, claiming, parts, poisoned

from foveate import FederatedNeighborEmbedding
from foveate.core.errors import UserError
from foveate.federated.embedding import client as at_client
from foveate.federated.embedding.client import ClientData, make_client
from foveate.federated.embedding.job import MapJob
from foveate.federated.embedding.networks import average_arrays, trimmed_mean
from foveate.federated.embedding.options import EmbeddingOptions, read_options
from foveate.federated.embedding.state import MapState
from foveate.federated.flower.app import CONFIG, read_job
from foveate.federated.rounds import Client, InProcess, TooFewClientsError
from naming import raises_naming

HONEST = [number for number in range(10) if number not in BAD]
ROBUST = {
    "median": {"aggregation": "median"},
    "trimmed_mean": {"aggregation": "trimmed_mean", "trim": 0.3},
    "exclude": {"suspects": "exclude"},
}


def drawn(
    clients: Sequence[int], bent: Any = None, kind: str = at_client.TRAIN, **changed: Any
) -> tuple[MapState, np.ndarray]:
    """The state after a run of these clients, of which `BAD` answer otherwise; and the places of all honest points."""
    members = []
    for number in clients:
        member = make_client(number, ClientData(parts()[number].astype(np.float32)))
        if bent is not None and number in BAD:
            member = Client(number, member.data, {**at_client.HANDLERS, kind: bent})
        members.append(member)
    given = {"rounds": 8, "hidden": (16,), "method": "fedavg", "neighbors": 5, "learning_rate": 0.01}
    options = EmbeddingOptions(**{**given, **changed})
    transport = InProcess(members)
    state = train(transport, options)
    fitted = MapJob(options).finished(state)
    return state, np.concatenate([fitted.transform(parts()[number]) for number in HONEST])


def apart(left: np.ndarray, right: np.ndarray) -> float:
    """How far places are from those of the second map, as a share of its spread; all maps start from one encoder."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    return float(np.linalg.norm(left - right) / np.linalg.norm(right - right.mean(axis=0)))


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("name", ROBUST)
def test_the_map_stays_that_of_the_honest_clients(name: str, poison: str) -> None:
    bent = poisoned(at_client.HANDLERS[at_client.TRAIN], "encoder", POISON[poison])
    _, wanted = drawn(HONEST)
    state, places = drawn(range(10), bent, **ROBUST[name])
    assert apart(places, wanted) < 0.3
    notes = [note for note in state.notes if "its weights" in note]
    assert len(notes) == len(BAD), "they are still reported"
    assert all(note.endswith("; left out") == (name == "exclude") for note in notes)


@pytest.mark.parametrize("poison", POISON)
def test_by_default_poison_is_averaged(poison: str) -> None:
    bent = poisoned(at_client.HANDLERS[at_client.TRAIN], "encoder", POISON[poison])
    assert apart(drawn(range(10), bent)[1], drawn(HONEST)[1]) > 1


def test_without_those_reported_the_encoder_is_that_of_the_others() -> None:
    bent = poisoned(at_client.HANDLERS[at_client.TRAIN], "encoder", POISON["scaled"])
    np.testing.assert_array_equal(drawn(range(10), bent, suspects="exclude")[1], drawn(HONEST)[1])


@pytest.mark.parametrize("changed", [{"suspects": "exclude"}, {"aggregation": "median"}])
def test_nobody_is_left_out_where_nobody_is_odd(changed: dict[str, str]) -> None:
    state, places = drawn(range(10), **changed)
    assert not state.notes
    if "suspects" in changed:
        np.testing.assert_array_equal(places, drawn(range(10))[1])


def test_a_map_that_reaches_far_does_not_stretch_the_grid() -> None:
    far = poisoned(at_client.HANDLERS[at_client.BOX], "box", lambda box, random: 1000 * box)
    changed = {"method": "fedne", "surrogate": "grid", "surrogate_start": 0.0, "min_r2": -1e9, "rounds": 2}
    state, _ = drawn(range(10), far, at_client.BOX, **changed, suspects="exclude")
    reported, _ = drawn(range(10), far, at_client.BOX, **changed)
    assert state.grid is not None
    assert reported.grid is not None
    assert np.ptp(state.grid.box_2d) < np.ptp(reported.grid.box_2d) / 50
    assert sorted(state.repulsions) == HONEST
    assert sorted(reported.repulsions) == list(range(10))


def test_clients_that_claim_many_points_are_left_out() -> None:
    bent = claiming(at_client.answer_points, 2**52)
    state, _ = drawn(range(10), bent, at_client.POINTS, suspects="exclude")
    assert sorted(state.sizes) == HONEST
    transport = InProcess(
        [
            Client(
                number, ClientData(parts()[number].astype(np.float32)), {**at_client.HANDLERS, at_client.POINTS: bent}
            )
            if number in BAD
            else make_client(number, ClientData(parts()[number].astype(np.float32)))
            for number in range(10)
        ]
    )
    with raises_naming(TooFewClientsError, "7", "8"):
        MapJob(EmbeddingOptions(method="fedavg", neighbors=3, suspects="exclude")).begin(transport, min_clients=8)


def test_the_middle_of_arrays() -> None:
    random = np.random.default_rng(0)
    for count in (1, 2, 3, 6, 7):
        arrays = list(random.normal(size=(count, 4, 3)).astype(np.float32))
        stacked = np.stack(arrays).astype(np.float64)
        found = trimmed_mean(arrays, 0.5)
        assert (found.dtype, found.shape) == (np.float32, (4, 3))
        np.testing.assert_array_equal(found, np.median(stacked, axis=0).astype(np.float32))
        np.testing.assert_allclose(trimmed_mean(arrays, 0.0), average_arrays(arrays, [1] * count), rtol=1e-6)
        np.testing.assert_array_equal(trimmed_mean(arrays[::-1], 0.3), trimmed_mean(arrays, 0.3))
    ten = [np.array([value]) for value in (-1e30, -1e20, -1e10, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)]
    assert trimmed_mean(ten, 0.3) == 2.5
    assert trimmed_mean([*ten[3:], *(-one for one in ten[:3])], 0.3) == 5.5


def test_the_options_reach_the_estimator_and_are_checked() -> None:
    model = FederatedNeighborEmbedding(
        n_rounds=2, hidden_layer_sizes=(8,), random_state=0, options={"aggregation": "median", "suspects": "exclude"}
    ).fit(parts())
    assert model.options_.aggregation == "median"
    config = CONFIG | {"job": "embed", "out": "map", "options": "aggregation=trimmed_mean trim=0.3 suspects=exclude"}
    _, over_flower = read_job(config)
    assert (over_flower.aggregation, over_flower.trim, over_flower.suspects) == ("trimmed_mean", 0.3, "exclude")
    for content, words in (
        ({"aggregation": "krum"}, "mean"),
        ({"trim": 0.5}, "trim"),
        ({"suspects": "excluded"}, "exclude"),
        ({"aggregation": "median", "method": "local"}, "averages nothing"),
        ({"suspects": "exclude", "method": "global"}, "averages nothing"),
    ):
        with pytest.raises(UserError, match=words):
            read_options(content)
