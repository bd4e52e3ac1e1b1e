"""Reference values of scikit-learn, SciPy and the predecessor's centroid index."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from foveate.metrics.clustering import (
    adjusted_mutual_information,
    adjusted_rand_index,
    center_error,
    centroid_index,
    matched_accuracy,
    normalized_mutual_information,
    purity,
    unmatched,
)

GOLDENS = Path(__file__).resolve().parents[1] / "goldens" / "feca"
CASES = json.loads((GOLDENS / "metrics.json").read_text(encoding="utf-8"))
LABELS = [case for case in CASES if "y" in case]
CENTERS = [case for case in CASES if "truth" in case]
DETECTORS = json.loads((GOLDENS / "detectors.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", LABELS, ids=lambda case: case["case"])
def test_labels(case: dict) -> None:
    for name, metric in (
        ("nmi_arithmetic", normalized_mutual_information),
        ("ami", adjusted_mutual_information),
        ("ari", adjusted_rand_index),
        ("purity", purity),
        ("hungarian_accuracy", matched_accuracy),
    ):
        assert metric(case["y"], case["pred"]) == pytest.approx(case[name], abs=1e-10), name


@pytest.mark.parametrize("case", CENTERS, ids=lambda case: case["case"])
def test_centers(case: dict) -> None:
    error = center_error(case["truth"], case["centres"])
    assert error.mean == pytest.approx(case["hungarian_l2_mean"], abs=1e-10)
    assert error.max == pytest.approx(case["hungarian_l2_max"], abs=1e-10)
    assert error.match.tolist() == case["match"]
    assert centroid_index(case["truth"], case["centres"]) == case["centroid_index"]


@pytest.mark.parametrize("case", DETECTORS, ids=lambda case: case["case"])
def test_centroid_index_of_the_predecessor(case: dict) -> None:
    arrays = np.load(GOLDENS / "detectors.npz")
    truth, centers = arrays[f"{case['case']}_truth"], arrays[f"{case['case']}_centres"]
    assert centroid_index(truth, centers) == case["centroid_index"]
    assert unmatched(truth, centers[:-1]) == case["centroid_index_unequal"]
