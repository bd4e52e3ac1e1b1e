"""Clients with a column in another unit: left out by default where it is certain, and honest ones never."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from foveate import FederatedKMeans
from foveate.core.errors import UserError
from foveate.federated.clustering.suspects import (
    CERTAIN,
    CERTAIN_OF_TWO,
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


@pytest.mark.filterwarnings("ignore")
def test_a_smaller_unit_is_left_out() -> None:
    parts, _ = split(3)
    parts[1] = broken(parts[1], lambda x: x / 1000)
    model = fit(parts)
    assert list(model.excluded_) == [1]
    assert "column 2 is 0.00" in model.excluded_[1]


UNCERTAIN: dict[str, Mistake] = {
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
    swapped = [parts[0], split(3)[0][1][:, [1, 0, 2, 3]], parts[2]]
    assert not fit(swapped).excluded_


def unlike(kind: str) -> list[np.ndarray]:
    """Honest sites that differ from one another."""
    random = np.random.default_rng(1)
    if kind == "skewed":
        return [POINTS[rows] for rows in dirichlet(LABELS, 5, random, alpha=0.1, min_points=10).rows]
    if kind == "one group each":
        return [POINTS[number == LABELS] for number in range(5)]
    if kind == "sizes":
        return np.split(POINTS, [10, 30, 90])
    if kind == "devices":
        return [part * random.uniform(0.7, 1.4, 4) + 4 * random.normal(size=4) for part in split(5)[0]]
    # Places: all values of a site are far from those of the others, but vary as much.
    return [part + random.uniform(0, 1000, 4) for part in split(5)[0]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"min_count": 5, "winsorize": 3.0, "refine_rounds": 0}, {"method": "naive"}])
@pytest.mark.parametrize("kind", ["skewed", "one group each", "sizes", "devices", "places"])
def test_honest_sites_are_not_left_out_and_results_are_the_same(kind: str, options: dict[str, Any]) -> None:
    parts = unlike(kind)
    model, before = fit(parts, **options), fit(parts, suspects="report", **options)
    assert not model.excluded_
    np.testing.assert_array_equal(model.cluster_centers_, before.cluster_centers_)


@pytest.mark.parametrize("sites", [2, 3])
def test_the_threshold(sites: int) -> None:
    threshold = CERTAIN if sites > 2 else CERTAIN_OF_TWO

    def errors(factor: float) -> list[int]:
        # The others' median of the second column is 2 and their 90th percentile 3.
        wide = [answer(GROUPS), answer(GROUPS * [1.0, factor * 1.5])] + [answer(GROUPS)] * (sites - 2)
        return list(find_unit_errors(dict(enumerate(wide))))

    # Of two, both may stand out.
    assert 1 in errors(1.01 * threshold)
    assert sites == 2 or errors(1.01 * threshold) == [1]
    assert errors(0.99 * threshold) == []


def test_magnitude_and_spread_must_both_differ_and_the_difference_must_matter() -> None:
    usual = {0: answer(GROUPS), 1: answer(GROUPS)}
    # Far, as at another place, but no wider.
    assert not find_unit_errors(usual | {2: answer(GROUPS + [0, 1000])})
    tiny = GROUPS * [1, 1e-6]
    assert not find_unit_errors({0: answer(tiny), 1: answer(tiny), 2: answer(GROUPS * [1, 1e-3])}), "moves no group"
    assert find_unit_errors(usual | {2: answer(GROUPS * [1, 1000])}) == {
        2: "column 1 is 667x the other clients' magnitude"
    }
    assert measure_scales({0: answer(GROUPS)}) == {}
    # A column of zeros has no unit; a single centroid has no spread.
    flat = answer(GROUPS * [1, 0])
    assert not find_unit_errors({0: flat, 1: flat, 2: answer(GROUPS * [1, 1000])})
    assert not find_unit_errors({0: answer(GROUPS[:1]), 1: answer(GROUPS[:1]), 2: answer(GROUPS[:1] * 1000)})


def test_of_two_sites_the_run_stops_and_says_what_to_set() -> None:
    parts, _ = split(2)
    with raises_naming(UserError, "column 2", "nothing says which", "suspects=report"):
        fit([broken(parts[0], lambda x: x * 1000), parts[1]])
    # Honest sites of one kind each differ as much as ten times; two of them are reported only.
    with pytest.warns(UserWarning, match="another unit"):
        assert not fit([parts[0], broken(parts[1], lambda x: x * 10)]).excluded_


@pytest.mark.filterwarnings("ignore")
def test_with_noise_and_for_directions_clients_are_kept() -> None:
    parts, _ = split(3)
    parts[1] = broken(parts[1], lambda x: x * 1000)
    assert not fit(parts, noise=0.1, clip=100.0).excluded_
    assert not fit(parts, spherical=True).excluded_
