"""`naive`: one k-means from random rows on the centroids, without weights: what not to do."""

from __future__ import annotations

import numpy as np

from foveate.federated.clustering.consensus import Merged
from foveate.federated.clustering.lloyd import lloyd
from foveate.federated.clustering.options import CLIENT_OPTIONS, ClusteringOptions, Method
from foveate.federated.clustering.pool import Pool
from foveate.federated.clustering.starts import random_rows


def merge(pool: Pool, options: ClusteringOptions, rng: np.random.Generator, radii: dict[int, float]) -> Merged:
    """Run k-means once from random rows."""
    pool.need(options.clusters)
    pool = pool.sorted()
    run = lloyd(pool.centers, random_rows(pool.centers, options.clusters, rng))
    return Merged(run.centers, {"sse": run.inertia})


METHOD = Method(
    name="naive",
    note="one k-means from random rows on all centroids, without weights",
    merge=merge,
    defaults={"client_init": "random", "n_init": 1, "eliminate": "none", "refine_rounds": 0},
    uses=CLIENT_OPTIONS,
    counts=False,
)
