"""Clients and servers of federated clustering side by side on the S-sets, and the default on mixtures new to it."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s_sets import mixture, s_set, split_over, split_s_set

from foveate.federated.clustering.grouping import TooFewGroupsError
from foveate.federated.estimators import FederatedKMeans
from foveate.metrics.clustering import center_error, centroid_index, class_means

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

STORED = json.loads(
    (Path(__file__).resolve().parents[1] / "goldens" / "feca" / "measured_tables.json").read_text(encoding="utf-8")
)["table_6_2_s"]
RANDOM = {"client_init": "random", "n_init": 1}
PAPER = {"method": "paper_reconstruction", "client_init": "kmeans++", "n_init": 5}
ROWS: dict[str, dict[str, Any]] = {
    "random: gap+restarts": RANDOM | {"refine_rounds": 0},
    "random: gap+restarts +1round": RANDOM,
    "kpp1: gap+restarts +1round": {"n_init": 1},
    "kpp5: gap+restarts": {"refine_rounds": 0},
    "kpp5: gap+restarts +1round": {},
    "kpp5: no elimination flags, gap+restarts": {"eliminate": "none", "refine_rounds": 0},
    "kpp5: weighted kmeans++20": {"method": "weighted_kmeans"},
    "kpp5: weighted kmeans++20 +1round": {"method": "weighted_kmeans", "refine_rounds": 1},
    "kpp5: paper server": PAPER,
    "kpp5: max_over_clients": PAPER | {"radius": "max_over_clients", "seeds": "most_neighbors"},
}
"""Options by the reference's names: `gap` is the server of `consensus`, `kpp5` clients with five k-means++ starts."""
DEFAULT = "kpp5: gap+restarts +1round"
SETS = ("s1", "s2", "s3", "s4")
SPLITS = (None, 0.3, 0.1)
CLIENTS = (5, 10, 20)
SEEDS = (0, 1, 2)


def score(parts: list[np.ndarray], truth: np.ndarray, seed: int, options: dict[str, Any]) -> tuple[float, float]:
    """Mean distance of matched centers, and whether the structure is right; NaN and 0 for fewer than K groups."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            centers = FederatedKMeans(len(truth), random_state=seed, **options).fit(parts).cluster_centers_
        except TooFewGroupsError:
            return np.nan, 0.0
    return center_error(truth, centers).mean, float(centroid_index(truth, centers) == 0)


@cache
def row(name: str) -> np.ndarray:
    """Error and right structure, [sets, splits, numbers of clients, seeds, 2]; its line of the table is printed."""
    found = np.array(
        [
            [
                [
                    [
                        score(
                            split_s_set(one, alpha=alpha, clients=clients, seed=seed), s_set(one)[2], seed, ROWS[name]
                        )
                        for seed in SEEDS
                    ]
                    for clients in CLIENTS
                ]
                for alpha in SPLITS
            ]
            for one in SETS
        ]
    )
    errors = np.nanmean(found[..., 0], axis=(2, 3))
    cells = [" / ".join(f"{value:.3f}" for value in values) for values in errors]
    failures = int(np.isnan(found[..., 0]).sum())
    print(
        f"| {name} | {' | '.join(cells)} | {np.nanmean(found[..., 0]):.3f} | {found[..., 1].mean():.0%} | {failures} |"
    )
    return found


def mean(name: str) -> float:
    """The error over all cells."""
    return float(np.nanmean(row(name)[..., 0]))


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_table_is_no_worse_than_that_of_the_reference(name: str) -> None:
    """Over all 108 runs; a cell has nine, of which one with a wrong structure moves it by a multiple.

    Weighted k-means++ is better here (.059, with a round .050, right in all runs, against .088, .073 and 89 %): its
    server's k-means++ is greedy.
    """
    stored = [
        STORED[f"{name}|{one}|{clients}|{alpha}"]["l2"] for one in SETS for clients in CLIENTS for alpha in SPLITS
    ]
    assert mean(name) < 1.25 * np.mean(stored) + 0.01


def test_the_default() -> None:
    found = row(DEFAULT)
    s1, s4 = found[0], found[3]
    assert (s1[..., 0] < 0.02).all()
    assert (s1[..., 1] == 1).all()
    assert s4[..., 0].mean() < 0.16
    assert (found[..., 1] == 1).all()


def test_order_over_all_cells() -> None:
    """What starts and rounds are worth. Nothing is said of a cell, nor of consensus against weighted k-means++."""
    assert mean(DEFAULT) < mean("kpp5: gap+restarts") < mean("random: gap+restarts")
    assert mean(DEFAULT) < mean("random: gap+restarts +1round") < mean("random: gap+restarts")
    assert mean("kpp5: weighted kmeans++20 +1round") < mean("kpp5: weighted kmeans++20")
    assert 3 * mean(DEFAULT) < min(mean("kpp5: paper server"), mean("kpp5: max_over_clients"))


@pytest.mark.parametrize("dimensions", [8, 32])
@pytest.mark.parametrize("alpha", SPLITS)
def test_mixtures_of_unequal_sizes(dimensions: int, alpha: float | None) -> None:
    check_mixtures(dimensions, alpha, clients=(5, 10))


@pytest.mark.parametrize("alpha", [None, 0.1])
def test_the_default_was_fixed_before_it_saw_these(alpha: float | None) -> None:
    """The reference had the right structure in 12 of 12 and an error of at most .012."""
    check_mixtures(16, alpha, clients=(5, 20))


def check_mixtures(dimensions: int, alpha: float | None, clients: tuple[int, ...]) -> None:
    found = []
    for seed in SEEDS:
        points, labels = mixture(seed, dimensions=dimensions)
        for count in clients:
            parts = split_over(points, labels, alpha=alpha, clients=count, seed=seed)
            found.append(score(parts, class_means(points, labels), seed, {}))
    errors, right = np.array(found).T
    print(f"D {dimensions}, alpha {alpha}: right {right.mean():.0%}, errors {np.round(errors, 4).tolist()}")
    assert (right == 1).all()
    assert (errors < 0.05).all()


@pytest.mark.parametrize(("clients", "worst"), [(2, 0.5), (10, 1.5)])
def test_groups_through_noise(clients: int, worst: float) -> None:
    """Mean squared distance to the nearest center on S1, by noise and rounds; the table of the page on privacy."""
    parts = split_s_set("s1", alpha=None, clients=clients, seed=0)
    middle = np.concatenate(parts).mean(0)
    parts = [part - middle for part in parts]
    clip = float(np.quantile(np.linalg.norm(np.concatenate(parts), axis=1), 0.95))
    distances: dict[tuple[float, int], float] = {}
    for noise, rounds in ((0, 0), (0.5, 0), (2, 0), (8, 0), (8, 3)):
        hidden = {"noise": noise, "clip": clip} if noise else {}
        options: dict[str, Any] = {"min_count": 10, "refine_rounds": rounds, "on_few_groups": "return", **hidden}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            models = [FederatedKMeans(15, random_state=seed, **options).fit(parts) for seed in SEEDS[:3]]
        distances[noise, rounds] = float(np.mean([model.inertia_ for model in models]) / sum(map(len, parts)))
    print(f"{clients} clients, clip {clip:.2f}: {distances}")
    assert distances[0, 0] < min(value for (noise, _), value in distances.items() if noise)
    assert distances[8, 3] < worst
