"""DeepFeCA's rounds: centroids up, centres down, training, weighted averaging of weights.

The round's shape is a reconstruction: the paper names DeepFeCA's parts, and its body was not available.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from foveate.federated.clustering import protocol as clustering
from foveate.federated.clustering.fit import points_of, pool_of
from foveate.federated.clustering.lloyd import unit
from foveate.federated.clustering.settings import Settings, method
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
from foveate.federated.odd import odd_sizes, odd_weights
from foveate.federated.rounds import Exchange
from foveate.federated.sites import stream


@dataclass
class Deep:
    """Where training stands.

    Attributes:
        weights: of the common encoder. width: of its embeddings. centres: [K, D] of the last round; None before it.
        round: how many rounds are done. history: one entry a round. excluded: by site the last reason why it was left
            out. suspects: by site and what it sent ("centroids", "weights", "points") why that is odd, in the last
            round in which it was.
    """

    weights: NDArray[np.float32]
    width: int
    centres: NDArray[np.float64] | None = None
    round: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    excluded: dict[int, str] = field(default_factory=dict)
    suspects: dict[tuple[int, str], str] = field(default_factory=dict)

    def odd(self) -> dict[int, str]:
        """By site what is odd about it, in one sentence."""
        sites = sorted({site for site, _ in self.suspects})
        return {
            one: "; ".join(reason for (site, _), reason in sorted(self.suspects.items()) if site == one)
            for one in sites
        }


def average(answers: list[tuple[NDArray[np.float32], int]]) -> NDArray[np.float32]:
    """FedAvg: weights in the mean, each site counting by its points. Equal weights come back as they are."""
    total = sum(points for _, points in answers)
    first = answers[0][0].astype(np.float64)
    moved = sum((points / total) * (weights.astype(np.float64) - first) for weights, points in answers)
    return (first + moved).astype(np.float32)


def matched(centres_KD: NDArray[np.float64], before_KD: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """The centres in the order that fits those of the round before best (Hungarian, by cosine)."""
    if before_KD is None or len(before_KD) != len(centres_KD):
        return centres_KD
    _, order = linear_sum_assignment(before_KD @ centres_KD.T, maximize=True)
    return centres_KD[order]


def aggregate(exchange: Exchange, settings: Settings, state: Deep, number: int, at_least: int) -> dict[int, Message]:
    """First half of a round: sets `state.centres`; returns what sites answered."""
    requests = {site: embedded_request(state.weights, settings, site, number) for site in exchange.sites}
    found = exchange.ask(
        requests,
        embedded_rule(settings, state.width),
        at_least=at_least,
        check=lambda site, answer: clustering.check_centroids(settings, site, answer),
    )
    state.excluded |= found.excluded
    pool, radii = pool_of(found.answers)
    state.suspects |= {(site, "centroids"): reason for site, reason in suspects(pool).items()}
    rng = stream(settings.seed, round=number, site=-1, purpose="server")
    centres = unit(method(settings.method).merge(pool, settings, rng, radii).centres)
    state.centres = matched(centres, state.centres)
    return found.answers


def run_round(
    exchange: Exchange,
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
        settings: of the clustering. training: of the sites.
        common: sites train towards the common centres; without, each towards the centroids that it sent itself.

    Raises:
        TooFewSitesError, TooFewGroupsError: as the clustering.
    """
    before = state.centres
    answered = aggregate(exchange, settings, state, number, at_least)
    assert state.centres is not None
    if common:
        shared = train_request(state.weights, state.centres, training, settings.seed, number)
        requests = dict.fromkeys(answered, shared)
    else:
        own = {site: unit(np.asarray(answer.array("centres"))) for site, answer in answered.items()}
        requests = {
            site: train_request(state.weights, one, training, settings.seed, number) for site, one in own.items()
        }
    points = points_of(answered, settings)
    found = exchange.ask(
        requests,
        train_rule(len(state.weights)),
        at_least=at_least,
        check=lambda site, answer: check_trained(points.get(site), answer),
    )
    state.excluded |= found.excluded
    if not points:
        sizes = {site: answer.number("points") for site, answer in found.answers.items()}
        state.suspects |= {(site, "points"): reason for site, reason in odd_sizes(sizes).items()}
    answers = [(one.array("weights"), int(one.number("points"))) for one in found.answers.values()]
    for site, times in odd_weights({site: one.array("weights") for site, one in found.answers.items()}).items():
        state.suspects[site, "weights"] = (
            f"its weights are {times:.3g} times as far from those of half of the others as usual"
        )
    state.weights = average(answers)
    total = sum(count for _, count in answers)
    loss = sum(one.number("loss") * one.number("points") for one in found.answers.values()) / total
    moved = None
    if before is not None and len(before) == len(state.centres):
        moved = float(1 - (before * state.centres).sum(1).mean())
    state.round = number + 1
    state.history.append({"round": number, "loss": loss, "sites": found.sites, "moved": moved})


def run(
    exchange: Exchange,
    settings: Settings,
    training: Training,
    state: Deep,
    rounds: int,
    *,
    at_least: int = 1,
    common: bool = True,
    after: Callable[[Deep], None] = lambda state: None,
) -> Deep:
    """The rounds that are not done yet, and a last look at the centres of the trained encoder.

    Args:
        settings, training, common: see `run_round`. after: called at each round's end.
    """
    for number in range(state.round, rounds):
        run_round(exchange, settings, training, state, number, at_least=at_least, common=common)
        after(state)
    aggregate(exchange, settings, state, rounds, at_least)
    return state
