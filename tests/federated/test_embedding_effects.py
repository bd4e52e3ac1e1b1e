"""Effects of feeling other clients, on digits over five clients of two each (0-1, 2-3, ...), 60 rounds, against sizes
that two free-standing implementations gave. Points that trained a map are scored on it, each by the others.

Measured here (seeds 0, 1, 2; 857 s on one core of a shared machine):

| method | right votes of 7 map neighbors | map neighbors of another client |
|---|---|---|
| fedavg | .464 .346 .469 | .586 .688 .595 |
| fedne | .558 .599 .558 | .503 .435 .490 |
| fedne_exact | .548 .622 .580 | .514 .424 .475 |
| global | .980 .986 .985 | .022 .016 .016 |

R2 of the published surrogate networks .987 on the queries they were fitted to; fitted to nine of ten, .906 on the
tenth. Encoded in units of the box, as now, both are above .99.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from sklearn.datasets import load_digits

from foveate.federated.embedding.client import SURROGATE
from foveate.federated.embedding.job import EmbeddingFit, fit_clients
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.rounds import Log
from foveate.metrics.embedding import foreign_share, knn_accuracy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

K = 7
SEEDS = (0, 1, 2)


@cache
def clients() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Points of each client [n, 64] in [0, 1], labels and owners of all [1797]."""
    digits = load_digits()
    points, labels = digits.data / 16, digits.target
    owners = labels // 2
    order = np.argsort(owners, kind="stable")
    return [points[owners == one] for one in range(5)], labels[order], owners[order]


@cache
def fit(method: str, seed: int, held_out: float = 0.1, surrogate: str = "grid") -> EmbeddingFit:
    options = EmbeddingOptions(rounds=60, neighbors=K, method=method, seed=seed, held_out=held_out, surrogate=surrogate)
    assert not options.mixing
    return fit_clients(clients()[0], options, log=Log(record=method == "fedne"))


@cache
def scores(method: str) -> np.ndarray:
    """Votes of map neighbors that are right, and neighbors of another client: [seeds, 2]."""
    parts, labels, owners = clients()
    found = []
    for seed in SEEDS:
        places = fit(method, seed).transform(np.concatenate(parts))
        found.append((knn_accuracy(places, labels, k=K), foreign_share(places, owners, k=K)))
    print(f"{method}: votes and foreign neighbors by seed {np.round(found, 3).tolist()}")
    return np.array(found)


def gains(method: str) -> np.ndarray:
    """Mean over seeds of the differences to federated averaging: votes, foreign neighbors."""
    return (scores(method) - scores("fedavg")).mean(0)


def test_exact_positions_of_the_others_help() -> None:
    vote, foreign = gains("fedne_exact")
    assert vote >= 0.07
    assert foreign < 0


def test_surrogates_help() -> None:
    vote, foreign = gains("fedne")
    assert vote >= 0.05
    assert foreign < 0


def test_all_data_in_one_place_are_far_ahead() -> None:
    assert gains("global")[0] > 0.2


def test_surrogates_fit_on_the_common_grid() -> None:
    """R2 is that between the queries, in the middles of the grid's cells, with and without queries held out."""
    whole, parts = (fit("fedne", 0, held_out, "network") for held_out in (0.0, 0.1))
    for fitted in (whole, parts):
        for name, least in (("r2", 0.95), ("gradient_cosine", 0.8)):
            fits = [list(entry[name].values()) for entry in fitted.state.history if entry["usable"]]
            assert np.shape(fits) == (42, 5)
            print(f"{name} {np.mean(fits):.3f}")
            assert np.mean(fits) >= least
    messages = [one for _, up, one in parts.log.messages if up and one.kind == SURROGATE]
    held_out = [one.number("r2_held_out") for one in messages]
    print(f"fitted to 9 of 10 queries, R2 of the tenth {np.mean(held_out):.3f}")
    assert np.mean(held_out) >= 0.95
