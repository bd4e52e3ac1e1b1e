"""Clients with a column in another unit: left out by default where it is certain, and honest ones never."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from foveate import FederatedKMeans
from foveate.core.errors import UserError
from foveate.federated.clustering.suspects import (
    SCALE_ALONE,
    SPREAD_ALONE,
    find_unit_errors,
    measure_scales,
)
from foveate.federated.messages import Message
from foveate.federated.partition import dirichlet
from foveate.metrics.clustering import adjusted_rand_index
from naming import raises_naming

RANDOM = np.random.default_rng(0)
MIDDLES = RANDOM.uniform(10, 40, (5, 4))
LABELS = RANDOM.integers(5, size=600)
POINTS = MIDDLES[LABELS] + RANDOM.normal(size=(600, 4))
Mistake = Callable[[np.ndarray], np.ndarray]


def split(sites: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rows = np.array_split(np.arange(600), sites)
    return [POINTS[part] for part in rows], [LABELS[part] for part in rows]


def broken(part: np.ndarray, mistake: Mistake) -> np.ndarray:
    part = part.copy()
    part[:, 2] = mistake(part[:, 2])
    return part


def fit(parts: list[np.ndarray], **options: Any) -> FederatedKMeans:
    return FederatedKMeans(5, random_state=0, **options).fit(parts)


def answer(centers: Any, spreads: float = 1.0) -> Message:
    array = np.asarray(centers, dtype=float)
    arrays = {"centers": array, "counts": np.full(len(array), 10.0), "spreads": np.full(len(array), spreads)}
    return Message("query.centroids", 0, arrays)


GROUPS = np.array([[10.0, 1.0], [11.0, 3.0], [12.0, 2.0]])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sites", [3, 5])
@pytest.mark.parametrize(
    "mistake", [lambda x: x * 1000, lambda x: x * 100, lambda x: x * 10], ids=["1000", "100", "10"]
)
def test_a_larger_unit_is_left_out(mistake: Mistake, sites: int) -> None:
    parts, labels = split(sites)
    parts[1] = broken(parts[1], mistake)
    model = fit(parts)
    assert list(model.excluded_) == [1]
    assert model.excluded_[1].startswith("another unit (column 2 is ")
    honest = [site for site in range(sites) if site != 1]
    truth, groups = (np.concatenate([rows[site] for site in honest]) for rows in (labels, model.labels_))
    assert adjusted_rand_index(truth, groups) > 0.99
    assert adjusted_rand_index(truth, np.concatenate([fit(parts, suspects="report").labels_[n] for n in honest])) < 0.5


UNCERTAIN: dict[str, Mistake] = {
    # The column nearly vanishes, as it may where a site lacks a group; it is reported.
    "divided": lambda x: x / 1000,
    "inches": lambda x: x / 2.54,
    "Fahrenheit": lambda x: x * 1.8 + 32,
    "sign": lambda x: -x,
    "constant": lambda x: x + 10 * x.std(),
    "zero": lambda x: x * 0,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", UNCERTAIN)
def test_what_another_place_or_device_may_do_is_kept(name: str) -> None:
    parts, _ = split(3)
    parts[1] = broken(parts[1], UNCERTAIN[name])
    assert not fit(parts).excluded_
    assert (1 in fit(parts).suspects_) == (name == "divided")
    swapped = [parts[0], split(3)[0][1][:, [1, 0, 2, 3]], parts[2]]
    assert not fit(swapped).excluded_


def unlike(kind: str) -> list[np.ndarray]:
    """Honest sites that differ from one another."""
    random = np.random.default_rng(1)
    if kind == "skewed":
        return [POINTS[rows] for rows in dirichlet(LABELS, 5, random, alpha=0.1, min_points=10).rows]
    if kind == "one group each":
        return [POINTS[number == LABELS] for number in range(5)]
    if kind == "groups on axes":
        # A column that is nearly zero everywhere but at the site that alone has the group.
        axes = 9 * np.eye(5, 4)[LABELS] + 0.2 * random.normal(size=(600, 4))
        return [axes[rows] for rows in dirichlet(LABELS, 5, random, alpha=0.3, min_points=10).rows]
    if kind == "sizes":
        return np.split(POINTS, [10, 30, 90])
    if kind == "devices":
        return [part * random.uniform(0.7, 1.4, 4) + 4 * random.normal(size=4) for part in split(5)[0]]
    # Places: all values of a site are far from those of the others, but vary as much.
    return [part + random.uniform(0, 1000, 4) for part in split(5)[0]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options", [{}, {"min_count": 5, "winsorize": 3.0, "refine_rounds": 0}, {"method": "weighted_kmeans"}]
)
@pytest.mark.parametrize("kind", ["skewed", "one group each", "groups on axes", "sizes", "devices", "places"])
def test_honest_sites_are_not_left_out_and_results_are_the_same(kind: str, options: dict[str, Any]) -> None:
    parts = unlike(kind)
    model, before = fit(parts, **options), fit(parts, suspects="report", **options)
    assert not model.excluded_
    np.testing.assert_array_equal(model.cluster_centers_, before.cluster_centers_)


@pytest.mark.parametrize("sites", [2, 3])
def test_the_threshold(sites: int) -> None:
    def errors(factor: float, spreads: float = 3.0) -> dict[int, str]:
        # The others' median of the second column is 2 and their 90th percentile 3.
        odd = answer(GROUPS * [1.0, factor * 1.5], spreads)
        return find_unit_errors({0: answer(GROUPS), 1: odd} | {site: answer(GROUPS) for site in range(2, sites)})

    assert errors(1.01 * SCALE_ALONE) == {1: "column 1 is 5.05x the other clients' magnitude"}
    assert errors(0.99 * SCALE_ALONE) == {}
    assert list(errors(1000, 1.01 * SPREAD_ALONE)) == [1]
    assert errors(1000, 0.99 * SPREAD_ALONE) == {}, "the groups are not wider"


def test_each_sign_alone_is_not_enough() -> None:
    usual = {0: answer(GROUPS), 1: answer(GROUPS)}
    # Far, as at another place, but the column is not wider.
    assert not find_unit_errors(usual | {2: answer(GROUPS + [0, 1000], 100.0)})
    tiny = answer(GROUPS * [1, 1e-6])
    assert not find_unit_errors({0: tiny, 1: tiny, 2: answer(GROUPS * [1, 1e-3], 100.0)}), "moves no group"
    # A column of zeros has no unit, and a single centroid no spread.
    flat = answer(GROUPS * [1, 0])
    assert not find_unit_errors({0: flat, 1: flat, 2: answer(GROUPS * [1, 1000], 100.0)})
    single = answer(GROUPS[:1])
    assert not find_unit_errors({0: single, 1: single, 2: answer(GROUPS[:1] * 1000, 1000.0)})
    assert not find_unit_errors({0: answer(GROUPS)})
    assert measure_scales({}) == {}


def test_a_wild_value_of_one_site_changes_nothing_for_the_others() -> None:
    wild = GROUPS.copy()
    wild[0] = 1e20
    scales = measure_scales({0: answer(wild), 1: answer(GROUPS), 2: answer(GROUPS * [1, 1000], 1000.0)})
    assert scales[1].unit_D.tolist() == [0, 0]
    alone = measure_scales({1: answer(GROUPS), 2: answer(GROUPS * [1, 1000], 1000.0)})
    with_usual = measure_scales({0: answer(GROUPS), 1: answer(GROUPS), 2: answer(GROUPS * [1, 1000], 1000.0)})
    np.testing.assert_allclose(alone[2].unit_D, with_usual[2].unit_D)


def test_of_two_sites_the_run_stops_and_says_what_to_set() -> None:
    parts, _ = split(2)
    with raises_naming(UserError, "column 2", "nothing says which", "suspects=report"):
        fit([broken(parts[0], lambda x: x * 1000), parts[1]])
    with pytest.warns(UserWarning, match="nothing says which"):
        assert not fit([broken(parts[0], lambda x: x * 1000), parts[1]], suspects="report").excluded_


@pytest.mark.filterwarnings("ignore")
def test_without_radii_clients_are_only_reported() -> None:
    parts, _ = split(3)
    model = fit([broken(parts[0], lambda x: x * 1000), *parts[1:]], method="naive")
    assert not model.excluded_
    assert 0 in model.suspects_


@pytest.mark.filterwarnings("ignore")
def test_with_noise_and_for_directions_clients_are_kept() -> None:
    parts, _ = split(3)
    parts[1] = broken(parts[1], lambda x: x * 1000)
    assert not fit(parts, noise=0.1, clip=100.0).excluded_
    assert not fit(parts, spherical=True).excluded_
