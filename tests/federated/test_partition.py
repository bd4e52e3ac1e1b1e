"""Splits over clients: every row once, the wanted sizes and classes, reasons for what cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.federated.partition import Partition, by_id, dirichlet, even, shards
from naming import raises_naming


def every_row_once(partition: Partition, points: int) -> None:
    assert sorted(np.concatenate(partition.rows).tolist()) == list(range(points))
    assert all((np.diff(rows) > 0).all() for rows in partition.rows)
    assert len(partition.names) == len(partition.rows)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 5))
def test_even(points: int, clients: int, seed: int) -> None:
    if clients > points:
        with raises_naming(UserError, "1"):
            even(points, clients, np.random.default_rng(seed))
        return
    found = even(points, clients, np.random.default_rng(seed))
    every_row_once(found, points)
    sizes = [len(rows) for rows in found.rows]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0, 100.0])
def test_dirichlet(alpha: float, balanced: bool) -> None:
    labels = np.repeat(np.arange(6), 50)
    found = dirichlet(labels, 5, np.random.default_rng(0), alpha=alpha, min_points=3, balanced=balanced)
    every_row_once(found, 300)
    assert min(len(rows) for rows in found.rows) >= 3
    again = dirichlet(labels, 5, np.random.default_rng(0), alpha=alpha, min_points=3, balanced=balanced)
    assert all((one == two).all() for one, two in zip(found.rows, again.rows, strict=True))


def test_a_small_alpha_gives_few_classes_a_client() -> None:
    labels = np.repeat(np.arange(10), 100)

    def classes(alpha: float) -> float:
        found = dirichlet(labels, 10, np.random.default_rng(1), alpha=alpha)
        return float(np.mean([len(np.unique(labels[rows])) for rows in found.rows]))

    assert classes(0.05) < 5 < 9 < classes(50.0)


def test_balance_evens_the_sizes_out() -> None:
    labels = np.repeat(np.arange(10), 100)

    def largest(balanced: bool) -> float:
        draws = [dirichlet(labels, 10, np.random.default_rng(seed), alpha=0.1, balanced=balanced) for seed in range(10)]
        return float(np.mean([max(len(rows) for rows in found.rows) for found in draws]))

    assert largest(True) < largest(False)


def test_impossible_dirichlet_splits_say_so() -> None:
    labels = np.repeat(np.arange(2), 20)
    with raises_naming(UserError, "0"):
        dirichlet(labels, 4, np.random.default_rng(0), alpha=0.0)
    with raises_naming(UserError, "80", "40"):
        dirichlet(labels, 4, np.random.default_rng(0), alpha=1.0, min_points=20)
    with raises_naming(UserError, "--max-draws", "1,000", "--min-points"):
        dirichlet(labels, 4, np.random.default_rng(0), alpha=1e-9, min_points=10, max_draws=1000)


@pytest.mark.parametrize(("clients", "classes"), [(5, 2), (8, 3), (2, 2), (1, 10), (3, 1)])
def test_shards(clients: int, classes: int) -> None:
    labels = np.repeat(np.arange(10), 30)
    found = shards(labels, clients, np.random.default_rng(0), classes=classes)
    every_row_once(found, 300)
    held = [len(np.unique(labels[rows])) for rows in found.rows]
    assert min(held) >= classes
    if clients * classes >= 10:
        assert max(held) <= classes + 1  # a class that nobody drew goes to the smallest client


def test_natural_ids() -> None:
    found = by_id(["b", "a", "b", 7, "a"])
    assert found.names == ["7", "a", "b"]
    assert [rows.tolist() for rows in found.rows] == [[3], [1, 4], [0, 2]]
    with pytest.raises(UserError, match="no row"):
        by_id([])
    with raises_naming(UserError, "2"):
        shards([0, 1], 1, np.random.default_rng(0), classes=3)
