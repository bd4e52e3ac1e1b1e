"""Metrics of maps against stored numbers of scikit-learn, the public FedNE code and the package snc."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from foveate.metrics import embedding
from foveate.metrics.embedding import reliability

FOLDER = Path(__file__).resolve().parents[1] / "goldens" / "fedne"
CASES = json.loads((FOLDER / "metrics.json").read_text(encoding="utf-8"))
BY_NAME = {case["case"]: case for case in CASES}


def arrays(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.load(FOLDER / "metrics.npz") as file:
        return file[f"{name}_X"] / 16.0, file[f"{name}_Z"], file[f"{name}_y"]


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_stored_numbers(name: str) -> None:
    case, (points, drawn, labels) = BY_NAME[name], arrays(name)
    k = case["k"]
    trust, kept = embedding.trustworthiness(points, drawn, k=k), embedding.continuity(points, drawn, k=k)
    assert trust == pytest.approx(case["trustworthiness_sklearn"], abs=1e-10)
    assert trust == pytest.approx(case["trustworthiness_official"], abs=1e-3)
    assert kept == pytest.approx(case["continuity_sklearn"], abs=1e-10)
    assert kept == pytest.approx(case["continuity_official"], abs=1e-3)
    hit = embedding.neighborhood_hit(drawn, labels, k=k)
    assert hit == pytest.approx(case["neighborhood_hit_excluding_self"], abs=1e-10)
    hit = embedding.neighborhood_hit(drawn, labels, k=k, include_self=True)
    assert hit == pytest.approx(case["neighborhood_hit_official"], abs=1e-10)
    accuracy = embedding.knn_accuracy(drawn, labels, k=k)
    assert accuracy == pytest.approx(case["knn_accuracy_leave_one_out"], abs=1e-10)
    accuracy = embedding.knn_accuracy(drawn, labels, k=k, include_self=True)
    assert accuracy == pytest.approx(case["knn_accuracy_self_included"], abs=1e-10)
    related = embedding.distance_correlation(points, drawn, include_self=True)
    assert related == pytest.approx(case["distance_pearson"], abs=1e-10)


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_reliability_lies_where_snc_has_it(name: str) -> None:
    stored, (points, drawn, _) = BY_NAME[name]["snc"], arrays(name)
    found = reliability(
        points, drawn, np.random.default_rng(0), iterations=stored["iteration"], walk_share=stored["walk_num_ratio"]
    )
    for value, key in ((found.steadiness, "steadiness"), (found.cohesiveness, "cohesiveness")):
        assert value == pytest.approx(stored[f"{key}_mean"], abs=4 * stored[f"{key}_sd"] + 0.005), key
