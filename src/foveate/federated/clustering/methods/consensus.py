"""`consensus`, Foveate's default: see `foveate.federated.clustering.consensus`."""

from __future__ import annotations

import numpy as np

from foveate.federated.clustering.consensus import Merged, consensus
from foveate.federated.clustering.options import CLIENT_OPTIONS, ClusteringOptions, Method
from foveate.federated.clustering.pool import Pool


def merge(pool: Pool, options: ClusteringOptions, rng: np.random.Generator, radii: dict[int, float]) -> Merged:
    """K centers by the best of several candidates."""
    return consensus(pool, options.clusters, rng, restarts=options.restarts)


METHOD = Method(
    name="consensus",
    note="candidates from fitting radii and from weighted k-means++; the best weighted sum of squares wins",
    merge=merge,
    uses=CLIENT_OPTIONS | {"eliminate", "restarts"},
)
