"""A client's k-means, elimination, fusing and merging against the float64 reference, step by step; detectors against
the predecessor's own code.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from foveate.federated.clustering import suspects
from foveate.federated.clustering.distances import closest_pair
from foveate.federated.clustering.lloyd import lloyd
from foveate.federated.clustering.local import Local, eliminate, fuse, half_smallest_distance, merge_small

GOLDENS = Path(__file__).resolve().parents[1] / "goldens" / "feca"
CASES = json.loads((GOLDENS / "client.json").read_text(encoding="utf-8"))
ARRAYS = np.load(GOLDENS / "client.npz")
DETECTORS = json.loads((GOLDENS / "detectors.json").read_text(encoding="utf-8"))
CLUSTERINGS = np.load(GOLDENS / "detectors.npz")


def arrays_of(case: dict) -> dict[str, np.ndarray]:
    prefix = f"{case['case']}_"
    return {name.removeprefix(prefix): ARRAYS[name] for name in ARRAYS.files if name.startswith(prefix)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_lloyd(case: dict) -> None:
    given = arrays_of(case)
    found = lloyd(given["X"], given["init"])
    np.testing.assert_array_equal(found.labels, given["labels"])
    np.testing.assert_array_equal(found.weights, case["counts"])
    np.testing.assert_allclose(found.centers, given["centres"], rtol=1e-9, atol=1e-12)
    assert found.inertia == pytest.approx(case["inertia"], rel=1e-9)
    assert found.converged


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_elimination(case: dict) -> None:
    given, wanted = arrays_of(case), case["result"]
    filled = np.flatnonzero(case["counts"])  # the reference numbers clusters before empty ones are dropped
    local = Local.of(given["X"], given["centres"], given["labels"])
    found = eliminate(local)
    assert filled[found.trusted].tolist() == wanted["kept"]
    assert filled[found.order].tolist() == wanted["eliminated_in_order"]
    assert [filled[group].tolist() for group in found.groups] == wanted["working_groups"]
    np.testing.assert_allclose(found.working, wanted["working_centres"], rtol=1e-9, atol=1e-12)
    assert len(found.steps) == len(wanted["iterations"])
    for step, expected in zip(found.steps, wanted["iterations"], strict=True):
        assert filled[step.active].tolist() == expected["active"]
        np.testing.assert_allclose(step.spread, expected["rms"], rtol=1e-9)
        assert filled[step.candidate] == expected["candidate"]
        assert filled[list(step.pair)].tolist() == expected["pair"]
        assert step.squares_candidate == pytest.approx(expected["G_candidate"], rel=1e-9)
        assert step.squares_merged == pytest.approx(expected["G_merged"], rel=1e-9)
        assert step.eliminate == expected["eliminate"]
    radius = half_smallest_distance(found.working)
    if wanted["radius_half_min"] is None:
        assert np.isnan(radius)
    else:
        assert radius == pytest.approx(wanted["radius_half_min"], rel=1e-9)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_fusing_and_merging(case: dict) -> None:
    given = arrays_of(case)
    local = Local.of(given["X"], given["centres"], given["labels"])
    for name, found in (("fused", fuse(given["X"], local)), ("merged_small", merge_small(given["X"], local, 10))):
        np.testing.assert_allclose(found.centers, given[name], rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(found.counts, given[f"{name}_counts"])


@pytest.mark.parametrize("case", DETECTORS, ids=lambda case: case["case"])
def test_detectors(case: dict) -> None:
    points, centers, labels = (CLUSTERINGS[f"{case['case']}_{name}"] for name in ("X", "centres", "labels"))
    for name, detector, pick in (
        ("ofm_rms", suspects.root_mean_square, np.argmax),
        ("ofm_rms_shape_normalised", suspects.shape_normalized, np.argmax),
        ("ofm_sum_of_squares", suspects.sum_of_squares, np.argmax),
    ):
        found = detector(points, centers, labels)
        np.testing.assert_allclose(found, case[name]["values"], rtol=1e-10)
        assert pick(found) == case[name]["index"]
    wanted = case["ofm_radius_min"]
    shares = suspects.share_near_center(points, centers, labels, epsilon=wanted["final_epsilon"])
    np.testing.assert_allclose(shares, wanted["values"], rtol=1e-10)
    assert shares.argmin() == wanted["index"]
    assert list(closest_pair(centers)[:2]) == case["mfo_distance_pair"]
