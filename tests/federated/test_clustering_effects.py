"""Effects on the S-sets and on balls, with controls; expected sizes are those that were measured with the reference."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from s_sets import balls, s_set, split_s_set

from foveate.federated.clustering.grouping import TooFewGroupsError
from foveate.federated.estimators import FederatedKMeans
from foveate.federated.partition import even
from foveate.metrics.clustering import center_error, centroid_index, class_means

TABLES = json.loads(
    (Path(__file__).resolve().parents[1] / "goldens" / "feca" / "measured_tables.json").read_text(encoding="utf-8")
)["table_6_1"]
SEEDS = range(5)


def runs(name: str, alpha: float | None, **options) -> tuple[np.ndarray, np.ndarray]:
    """Error and centroid index of each seed, 10 clients."""
    truth = s_set(name)[2]
    found = []
    for seed in SEEDS:
        parts = split_s_set(name, alpha=alpha, clients=10, seed=seed)
        centers = FederatedKMeans(15, random_state=seed, **options).fit(parts).cluster_centers_
        found.append((center_error(truth, centers).mean, centroid_index(truth, centers)))
    errors, indices = zip(*found, strict=True)
    return np.array(errors), np.array(indices)


@pytest.mark.slow
def test_paper_reconstruction_on_an_even_split() -> None:
    errors, indices = runs("s1", None, method="paper_reconstruction")
    central, _ = runs("s1", None, method="central", client_init="random", n_init=1)
    assert errors.mean() < 0.10
    assert errors.mean() < central.mean() / 5
    assert (indices == 0).sum() >= 4


@pytest.mark.slow
def test_consensus_in_one_shot_from_random_clients() -> None:
    errors, indices = runs("s1", 0.3, client_init="random", n_init=1, refine_rounds=0)
    assert errors.mean() < 0.05
    assert (indices == 0).all()


@pytest.mark.parametrize("alpha", [None, *(pytest.param(one, marks=pytest.mark.slow) for one in (0.3, 0.1))])
def test_the_default_finds_s1(alpha: float | None) -> None:
    errors, indices = runs("s1", alpha)
    assert errors.mean() < 0.02
    assert (indices == 0).all()


@pytest.mark.slow
def test_the_default_on_s4_is_near_central_kmeans() -> None:
    errors, _ = runs("s4", 0.3)
    points, _, truth = s_set("s4")
    central = FederatedKMeans(15, method="central", random_state=0).fit(points).cluster_centers_
    assert errors.mean() < 0.16
    assert center_error(truth, central).mean == pytest.approx(0.10, abs=0.01)


@pytest.mark.slow
def test_the_reconstruction_fails_on_unlike_clients() -> None:
    """Negative control: along a Dirichlet split of 0.1 the radius collapses."""
    errors, indices = runs("s1", 0.1, method="paper_reconstruction", on_few_groups="return")
    default, _ = runs("s1", 0.1)
    assert errors.mean() > 10 * default.mean()
    assert (indices > 0).all()


@pytest.mark.parametrize(
    ("options", "name", "alpha"),
    [
        ({"method": "paper_reconstruction"}, "paper_reconstruction", None),
        ({"client_init": "random", "n_init": 1, "restarts": 0, "refine_rounds": 0}, "consensus", None),
        ({"method": "weighted_kmeans", "client_init": "random", "n_init": 1}, "weighted_kmeanspp20", None),
    ],
)
def test_sizes_of_the_measured_table(options: dict, name: str, alpha: float | None) -> None:
    key = f"{name}|s1|10|{alpha}"
    errors, _ = runs("s1", alpha, **options)
    wanted = TABLES[key]
    # The median: one run in fifty ends at a wrong structure (see the table of the method's page), which moves a mean.
    assert np.median(errors) == pytest.approx(wanted["l2"], abs=4 * wanted["l2_sd"] / np.sqrt(len(SEEDS)) + 1e-3)


RANDOM = {"client_init": "random", "n_init": 1}


@pytest.mark.parametrize(
    ("options", "seeds", "least", "most"),
    [
        ({}, 10, 1.0, 1.0),
        pytest.param(RANDOM, 40, 0.7, 1.0, marks=pytest.mark.slow),
        pytest.param(RANDOM | {"restarts": 0}, 40, 0.7, 1.0, marks=pytest.mark.slow),
        ({"method": "paper_reconstruction"}, 10, 0.7, 1.0),
        ({"method": "central"} | RANDOM, 10, 0.0, 0.3),
    ],
    ids=["default", "random clients", "random clients, no restarts", "paper_reconstruction", "one central run"],
)
def test_balls(options: dict, seeds: int, least: float, most: float) -> None:
    """The share of seeds with the right structure. The reference had 1, .8, .9, .9 and, as a control, 0, of ten each.

    Random clients have more seeds: of the first ten 4 are right and 8 without restarts, of 200 (as many partitions)
    163 and 170.
    """
    right = 0
    for seed in range(seeds):
        points, labels = balls(seed)
        split = even(len(points), 10, np.random.default_rng(seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = FederatedKMeans(8, random_state=seed, **options).fit([points[rows] for rows in split.rows])
            except TooFewGroupsError:
                continue
        right += centroid_index(class_means(points, labels), found.cluster_centers_) == 0
    print(f"{right} of {seeds} are right")
    assert least <= right / seeds <= most
