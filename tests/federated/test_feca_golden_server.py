"""Server steps against the float64 reference (grouping, consensus) and against public code (k-FED)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from foveate.federated.clustering.distances import sums
from foveate.federated.clustering.grouping import (
    SEED_RULES,
    CentroidPool,
    TooFewGroupsError,
    group,
    group_means,
    need_groups,
    search,
)
from foveate.federated.clustering.lloyd import lloyd
from foveate.federated.clustering.methods import consensus, kfed_server
from foveate.metrics.clustering import center_error, centroid_index

GOLDENS = Path(__file__).resolve().parents[1] / "goldens" / "feca"
GROUPS = json.loads((GOLDENS / "server_groups.json").read_text(encoding="utf-8"))
KFED = json.loads((GOLDENS / "kfed_server.json").read_text(encoding="utf-8"))
CONSENSUS = json.loads((GOLDENS / "consensus.json").read_text(encoding="utf-8"))
POOLS = np.load(GOLDENS / "consensus.npz")


def as_set(centers: np.ndarray) -> np.ndarray:
    return centers[np.lexsort(centers.round(6).T[::-1])]


@pytest.mark.parametrize("seeds", SEED_RULES)
@pytest.mark.parametrize("case", GROUPS, ids=lambda case: case["case"])
def test_groups(case: dict, seeds: str) -> None:
    wanted = case["expected"][seeds.replace("neighbors", "neighbours")]  # the stored spelling
    centers, radii, counts = (np.array(case[name]) for name in ("centroids", "radii", "counts"))
    found = group(centers, radii, counts, seeds=seeds)
    if wanted["error"]:
        with pytest.raises(TooFewGroupsError) as caught:
            need_groups(found, case["K"], "half_min_distance")
        assert caught.value.groups == len(found.members) < case["K"]
        return
    need_groups(found, case["K"], "half_min_distance")
    assert [rows.tolist() for rows in found.members] == wanted["groups"]
    np.testing.assert_array_equal(found.supports, wanted["support"])
    means = group_means(centers, counts, found, case["K"], weighted=seeds == "most_mass")
    np.testing.assert_allclose(means, wanted["centres"], rtol=1e-12)
    order = np.random.default_rng(0).permutation(len(centers))
    again = group(centers[order], radii[order], counts[order], seeds=seeds)
    moved = group_means(centers[order], counts[order], again, case["K"], weighted=seeds == "most_mass")
    np.testing.assert_allclose(moved, means, rtol=1e-12)


def make_pool(case: dict) -> CentroidPool:
    arrays = {name: POOLS[f"{case['case']}_{name}"] for name in ("centroids", "counts", "kept", "client")}
    return CentroidPool(arrays["centroids"], arrays["counts"], arrays["kept"], arrays["client"])


@pytest.mark.parametrize("case", CONSENSUS, ids=lambda case: case["case"])
def test_radius_search(case: dict) -> None:
    pool = make_pool(case).sorted()
    for name, part in (("all_pool", pool), ("kept_pool", pool.take(pool.trusted))):
        found = search(part, case["K"])[:5]
        np.testing.assert_allclose([one.radius for one in found], case[name]["radii_in_score_order"], rtol=1e-9)
        np.testing.assert_allclose([one.score for one in found], case[name]["scores"], rtol=1e-9)
    gap = search(pool, case["K"])[0].centers(pool)
    np.testing.assert_allclose(as_set(gap), as_set(POOLS[f"{case['case']}_gap_centres"]), rtol=1e-8)


@pytest.mark.parametrize("case", CONSENSUS, ids=lambda case: case["case"])
def test_consensus(case: dict) -> None:
    pool, name = make_pool(case), case["case"]
    found = consensus(pool, case["K"], np.random.default_rng(0), restarts=0)
    np.testing.assert_allclose(as_set(found.centers), as_set(POOLS[f"{name}_consensus"]), rtol=1e-8)
    truth = POOLS[f"{name}_truth"]
    assert centroid_index(truth, found.centers) == case["centroid_index"]
    assert center_error(truth, found.centers).mean == pytest.approx(case["hungarian_l2"], rel=1e-8)
    points, owner = POOLS[f"{name}_X"], POOLS[f"{name}_owner"]
    total, weight = np.zeros_like(found.centers), np.zeros(case["K"])
    for client in np.unique(owner):  # what one round of refinement sends
        own = points[owner == client]
        added = sums(own, lloyd(own, found.centers, max_steps=0).labels, case["K"])
        total, weight = total + added[0], weight + added[1]
    refined = np.where(weight[:, None] > 0, total / np.maximum(weight, 1)[:, None], found.centers)
    np.testing.assert_allclose(as_set(refined), as_set(POOLS[f"{name}_after_one_round"]), rtol=1e-8)
    assert center_error(truth, refined).mean == pytest.approx(case["hungarian_l2_after_round"], rel=1e-8)


@pytest.mark.parametrize("case", KFED, ids=lambda case: str(case["case"]))
def test_kfed(case: dict) -> None:
    local = np.array(case["local_centres"])
    one, labels = kfed_server(local, case["k_local"], case["K"], one_step=True)
    np.testing.assert_allclose(one, case["one_step_centres"], rtol=1e-9)
    assert labels.tolist() == case["assignments"]
    converged, _ = kfed_server(local, case["k_local"], case["K"])
    np.testing.assert_allclose(converged, case["converged_centres"], rtol=1e-9)
