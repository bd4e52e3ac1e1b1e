"""`central`: k-means on all points in one place. Not federated: it shows what moving the data would have brought."""

from __future__ import annotations

import numpy as np

from foveate.federated.clustering.consensus import Merged
from foveate.federated.clustering.local import local_kmeans
from foveate.federated.clustering.options import ClusteringOptions, Method
from foveate.federated.clustering.pool import Pool, TooFewGroupsError


def merge(pool: Pool, options: ClusteringOptions, rng: np.random.Generator, radii: dict[int, float]) -> Merged:
    """k-means of the pooled points; `pool` holds points here, not centroids."""
    clusters = local_kmeans(
        pool.centers,
        options.clusters,
        rng,
        start=options.client_init,
        tries=options.n_init,
        spherical=options.spherical,
    )
    if len(clusters.centers) < options.clusters and options.on_few_groups == "raise":
        raise TooFewGroupsError(
            f"clusters must be at most {len(clusters.centers)}, the number of distinct points (got {options.clusters})",
            groups=len(clusters.centers),
        )
    return Merged(clusters.centers, {"sse": clusters.inertia, "runs": options.n_init})


METHOD = Method(
    name="central",
    note="all points in one place, k-means++ 20 times: not federated",
    merge=merge,
    defaults={"n_init": 20, "refine_rounds": 0, "eliminate": "none"},
    uses=frozenset({"client_init", "n_init", "scale", "spherical"}),
    federated=False,
)
