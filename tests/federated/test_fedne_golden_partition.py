"""The balanced Dirichlet split and the shards of the public FedNE code."""

from __future__ import annotations

import numpy as np
import pytest
from fedne_goldens import about
from scipy.stats import entropy
from sklearn.datasets import load_digits

from foveate.federated.partition import dirichlet, shards

STORED = about("partition")
LABELS = load_digits().target


@pytest.mark.parametrize("case", STORED["dirichlet_balanced"], ids=lambda one: f"{one['clients']} at {one['alpha']}")
def test_with_the_same_numbers_drawn_it_is_the_same_split(case: dict) -> None:
    # The public code draws from numpy's legacy generator, eleven permutations for nothing at first.
    random = np.random.RandomState(case["seed"])  # noqa: NPY002
    for label in range(10):
        random.choice(np.flatnonzero(label == LABELS), 0, replace=False)
    random.choice(np.arange(len(LABELS)), 0, replace=False)
    found = dirichlet(LABELS, case["clients"], random, alpha=case["alpha"], min_points=10, balanced=True)  # type: ignore
    assert found.draws == case["draws"]
    assert [len(rows) for rows in found.rows] == case["sizes"]
    assert [np.bincount(LABELS[rows], minlength=10).tolist() for rows in found.rows] == case["class_counts"]
    for rows, stored in zip(found.rows, case["indices"] or [None] * len(found.rows), strict=True):
        assert stored is None or rows.tolist() == sorted(stored)
    for rows, first in zip(found.rows, case["first5"], strict=True):
        assert set(first) <= set(rows.tolist())


@pytest.mark.parametrize("case", STORED["statistics"], ids=lambda one: f"{one['clients']} at {one['alpha']}")
def test_statistics(case: dict) -> None:
    draws = 40
    measured: dict[str, list[float]] = {"largest_share": [], "class_entropy": [], "smallest_client": []}
    for draw in range(draws):
        random = np.random.default_rng([draw, case["clients"]])
        rows = dirichlet(LABELS, case["clients"], random, alpha=case["alpha"], min_points=10, balanced=True).rows
        counts = np.array([np.bincount(LABELS[one], minlength=10) for one in rows])
        sizes = counts.sum(axis=1)
        measured["largest_share"].append(sizes.max() / len(LABELS))
        measured["class_entropy"].append(float(np.mean(entropy(counts, axis=1))))
        measured["smallest_client"].append(float(sizes.min()))
    for name, values in measured.items():
        assert np.mean(values) == pytest.approx(case[f"{name}_mean"], abs=4 * case[f"{name}_sd"] / np.sqrt(draws)), name


@pytest.mark.parametrize("case", STORED["shards"], ids=lambda one: f"{one['clients']} x {one['classes_per_client']}")
def test_shards_use_classes_about_equally_often(case: dict) -> None:
    labels = np.repeat(np.arange(case["n_classes"]), 60)
    found = shards(labels, case["clients"], np.random.default_rng(0), classes=case["classes_per_client"])
    sets = [set(labels[rows].tolist()) for rows in found.rows]
    stored = [set(one) for one in case["classes"]]
    assert {len(one) for one in sets} == {len(one) for one in stored} == {case["classes_per_client"]}
    used, before = (np.bincount([c for one in side for c in one], minlength=10) for side in (sets, stored))
    assert used.sum() == before.sum()
    assert np.ptp(used) <= np.ptp(before) + 2
