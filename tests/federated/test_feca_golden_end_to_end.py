"""Whole clusterings of S-sets from stored owners and starting rows: what clients send, and five variants' centers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from s_sets import s_set

from foveate.federated.clustering import protocol
from foveate.federated.clustering.fit import Clustered, cluster
from foveate.federated.clustering.local import local_kmeans
from foveate.federated.clustering.methods import resolve
from foveate.federated.clustering.options import ClusteringOptions
from foveate.federated.messages import Message
from foveate.federated.rounds import Client, InProcess
from foveate.metrics.clustering import center_error, centroid_index

GOLDENS = Path(__file__).resolve().parents[1] / "goldens" / "feca"
CASES = json.loads((GOLDENS / "end_to_end.json").read_text(encoding="utf-8"))
ARRAYS = np.load(GOLDENS / "end_to_end.npz")
VARIANTS = {
    "paper_reconstruction": {"method": "paper_reconstruction"},
    "half_min,most_neighbours": {"method": "paper_reconstruction", "seeds": "most_neighbors"},
    "max_over_clients,most_neighbours": {
        "method": "paper_reconstruction",
        "seeds": "most_neighbors",
        "radius": "max_over_clients",
    },
    "consensus_restarts0": {"restarts": 0, "refine_rounds": 0},
    "consensus_restarts0_refine1": {"restarts": 0, "refine_rounds": 1},
}


def run(case: dict, options: ClusteringOptions) -> Clustered:
    """The protocol itself; only the rows that clients start from are given."""
    points = s_set(case["set"])[0]
    owner, rows = (ARRAYS[f"{case['case']}_{name}"] for name in ("owner", "init_rows"))

    def answer(data: np.ndarray, request: Message, client: int) -> Message:
        local = local_kmeans(data, options.clusters, np.random.default_rng(0), starts_KD=points[rows[client]])
        return protocol.describe(data, local, request)

    handlers = protocol.HANDLERS | {protocol.CENTROIDS: answer}
    clients = [Client(number, points[owner == number], handlers) for number in range(case["clients"])]
    return cluster(InProcess(clients), options)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_what_clients_send(case: dict) -> None:
    flags = run(case, resolve(15, restarts=0, refine_rounds=0))
    sent = list(flags.client_reports.values())
    wanted = {name: ARRAYS[f"{case['case']}_{name}"] for name in ("pool", "counts", "kept", "client_radii")}
    np.testing.assert_allclose(np.concatenate([one["centers"] for one in sent]), wanted["pool"], atol=1e-6)
    np.testing.assert_array_equal(np.concatenate([one["counts"] for one in sent]), wanted["counts"])
    np.testing.assert_array_equal(np.concatenate([one["trusted"] for one in sent]), wanted["kept"])
    paper = run(case, resolve(15, method="paper_reconstruction"))
    radii = np.concatenate([one["radius"] for one in paper.client_reports.values()])
    np.testing.assert_allclose(radii, wanted["client_radii"], atol=1e-6)
    assert all("counts" not in one for one in paper.client_reports.values())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_centers(case: dict, variant: str) -> None:
    found = run(case, resolve(15, **VARIANTS[variant])).centers
    stored = ARRAYS[f"{case['case']}_{variant}"]
    matched = center_error(stored, found)
    np.testing.assert_allclose(found[matched.match], stored, atol=1e-6)
    truth = s_set(case["set"])[2]
    wanted = case["results"][variant]
    assert center_error(truth, found).mean == pytest.approx(wanted["hungarian_l2"], abs=1e-6)
    assert centroid_index(truth, found) == wanted["centroid_index"]
