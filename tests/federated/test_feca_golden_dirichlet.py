"""Sizes and class mixtures of the plain Dirichlet split agree with those of another implementation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import entropy

from foveate.federated.partition import dirichlet

GOLDENS = Path(__file__).resolve().parents[1] / "goldens" / "feca"
CASES = json.loads((GOLDENS / "dirichlet_statistics.json").read_text(encoding="utf-8"))
DRAWS = 60


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['clients']}-{case['alpha']}")
def test_statistics(case: dict) -> None:
    labels = np.repeat(np.arange(case["classes"]), case["per_class"])
    found: dict[str, list[float]] = {"largest_share": [], "class_entropy_nats": [], "classes_present_per_client": []}
    for draw in range(DRAWS):
        rng = np.random.default_rng([draw, case["clients"]])
        parts = dirichlet(labels, case["clients"], rng, alpha=case["alpha"], min_points=0).rows
        counts = np.array([np.bincount(labels[rows], minlength=case["classes"]) for rows in parts])
        filled = counts[counts.sum(1) > 0]
        found["largest_share"].append(counts.sum(1).max() / len(labels))
        found["class_entropy_nats"].append(float(np.mean(entropy(filled, axis=1))))
        found["classes_present_per_client"].append(float((counts > 0).sum(1).mean()))
    for name, values in found.items():
        mean, sd = case[name]
        assert np.mean(values) == pytest.approx(mean, abs=4 * sd / np.sqrt(50)), name
