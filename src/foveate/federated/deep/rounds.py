"""DeepFeCA's rounds: centroids up, centers down, training, weighted averaging of weights.

The round's shape is a reconstruction: the paper names DeepFeCA's parts, and its body was not available.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from foveate.federated.anomaly import odd_sizes, odd_weights
from foveate.federated.clients import stream
from foveate.federated.clustering import protocol as clustering
from foveate.federated.clustering.fit import points_of, pool_of
from foveate.federated.clustering.lloyd import unit
from foveate.federated.clustering.options import Settings, method
from foveate.federated.clustering.suspects import suspects
from foveate.federated.deep.protocol import (
    Training,
    check_trained,
    embedded_request,
    embedded_rule,
    train_request,
    train_rule,
)
from foveate.federated.messages import Message
from foveate.federated.rounds import Transport


@dataclass
class Deep:
    """Where training stands.

    Attributes:
        weights: of the common encoder. width: of its embeddings. centers: [K, D] of the last round; None before it.
        round: how many rounds are done. history: one entry a round. excluded: by client the last reason why it was left
            out. suspects: by client and what it sent ("centroids", "weights", "points") why that is odd, in the last
            round in which it was.
    """

    weights: NDArray[np.float32]
    width: int
    centers: NDArray[np.float64] | None = None
    round: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    excluded: dict[int, str] = field(default_factory=dict)
    suspects: dict[tuple[int, str], str] = field(default_factory=dict)

    def odd(self) -> dict[int, str]:
        """By client what is odd about it, in one sentence."""
        clients = sorted({client for client, _ in self.suspects})
        return {
            one: "; ".join(reason for (client, _), reason in sorted(self.suspects.items()) if client == one)
            for one in clients
        }


def average(answers: list[tuple[NDArray[np.float32], int]]) -> NDArray[np.float32]:
    """FedAvg: weights in the mean, each client counting by its points. Equal weights come back as they are."""
    total = sum(points for _, points in answers)
    first = answers[0][0].astype(np.float64)
    moved = sum((points / total) * (weights.astype(np.float64) - first) for weights, points in answers)
    return (first + moved).astype(np.float32)


def matched(centers_KD: NDArray[np.float64], before_KD: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """The centers in the order that fits those of the round before best (Hungarian, by cosine)."""
    if before_KD is None or len(before_KD) != len(centers_KD):
        return centers_KD
    _, order = linear_sum_assignment(before_KD @ centers_KD.T, maximize=True)
    return centers_KD[order]


def aggregate(exchange: Transport, settings: Settings, state: Deep, number: int, at_least: int) -> dict[int, Message]:
    """First half of a round: sets `state.centers`; returns what clients answered."""
    requests = {client: embedded_request(state.weights, settings, client, number) for client in exchange.clients}
    found = exchange.ask(
        requests,
        embedded_rule(settings, state.width),
        at_least=at_least,
        check=lambda client, answer: clustering.check_centroids(settings, client, answer),
    )
    state.excluded |= found.excluded
    pool, radii = pool_of(found.answers)
    state.suspects |= {(client, "centroids"): reason for client, reason in suspects(pool).items()}
    rng = stream(settings.seed, round=number, client=-1, purpose="server")
    centers = unit(method(settings.method).merge(pool, settings, rng, radii).centers)
    state.centers = matched(centers, state.centers)
    return found.answers


def run_round(
    exchange: Transport,
    settings: Settings,
    training: Training,
    state: Deep,
    number: int,
    *,
    at_least: int = 1,
    common: bool = True,
) -> None:
    """One whole round; changes `state`.

    Args:
        settings: of the clustering. training: of the clients.
        common: clients train towards the common centers; without, each towards the centroids that it sent itself.

    Raises:
        TooFewClientsError, TooFewGroupsError: as the clustering.
    """
    before = state.centers
    answered = aggregate(exchange, settings, state, number, at_least)
    assert state.centers is not None
    if common:
        shared = train_request(state.weights, state.centers, training, settings.seed, number)
        requests = dict.fromkeys(answered, shared)
    else:
        own = {client: unit(np.asarray(answer.array("centers"))) for client, answer in answered.items()}
        requests = {
            client: train_request(state.weights, one, training, settings.seed, number) for client, one in own.items()
        }
    points = points_of(answered, settings)
    found = exchange.ask(
        requests,
        train_rule(len(state.weights)),
        at_least=at_least,
        check=lambda client, answer: check_trained(points.get(client), answer),
    )
    state.excluded |= found.excluded
    if not points:
        sizes = {client: answer.number("points") for client, answer in found.answers.items()}
        state.suspects |= {(client, "points"): reason for client, reason in odd_sizes(sizes).items()}
    answers = [(one.array("weights"), int(one.number("points"))) for one in found.answers.values()]
    for client, times in odd_weights({client: one.array("weights") for client, one in found.answers.items()}).items():
        state.suspects[client, "weights"] = (
            f"its weights are {times:.3g} times as far from those of half of the others as usual"
        )
    state.weights = average(answers)
    total = sum(count for _, count in answers)
    loss = sum(one.number("loss") * one.number("points") for one in found.answers.values()) / total
    moved = None
    if before is not None and len(before) == len(state.centers):
        moved = float(1 - (before * state.centers).sum(1).mean())
    state.round = number + 1
    state.history.append({"round": number, "loss": loss, "clients": found.clients, "moved": moved})


def run(
    exchange: Transport,
    settings: Settings,
    training: Training,
    state: Deep,
    rounds: int,
    *,
    at_least: int = 1,
    common: bool = True,
    after: Callable[[Deep], None] = lambda state: None,
) -> Deep:
    """The rounds that are not done yet, and a last look at the centers of the trained encoder.

    Args:
        settings, training, common: see `run_round`. after: called at each round's end.
    """
    for number in range(state.round, rounds):
        run_round(exchange, settings, training, state, number, at_least=at_least, common=common)
        after(state)
    aggregate(exchange, settings, state, rounds, at_least)
    return state
