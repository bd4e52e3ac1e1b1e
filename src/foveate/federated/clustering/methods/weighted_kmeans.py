"""`weighted_kmeans`: the plain strong baseline, k-means++ with restarts on centroids weighted by their counts."""

from __future__ import annotations

import numpy as np

from foveate.core.errors import UserError
from foveate.federated.clustering.consensus import Merged
from foveate.federated.clustering.lloyd import weighted_kmeans
from foveate.federated.clustering.options import CLIENT_OPTIONS, ClusteringOptions, Method
from foveate.federated.clustering.pool import Pool


def merge(pool: Pool, options: ClusteringOptions, rng: np.random.Generator, radii: dict[int, float]) -> Merged:
    """Return the best of several starts by the weighted sum of squares.

    Raises:
        UserError: no restarts, without which no center would be left; `consensus` has other candidates.
    """
    if not options.restarts:
        raise UserError("restarts: method 'weighted_kmeans' needs at least one start (got 0); expected 1 or more")
    pool.need(options.clusters)
    pool = pool.sorted()
    run = weighted_kmeans(pool.centers, options.clusters, rng, restarts=options.restarts, weight_N=pool.counts)
    assert run is not None
    return Merged(run.centers, {"weighted_sse": run.inertia, "restarts": options.restarts})


METHOD = Method(
    name="weighted_kmeans",
    note="weighted k-means++ with restarts on all centroids",
    merge=merge,
    defaults={"eliminate": "none", "restarts": 20, "refine_rounds": 0},
    uses=CLIENT_OPTIONS | {"restarts"},
)
