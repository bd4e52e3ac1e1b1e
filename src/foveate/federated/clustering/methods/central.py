"""`central`: k-means on all points in one place. Not federated: it shows what moving the data would have brought."""

from __future__ import annotations

import numpy as np

from foveate.federated.clustering.consensus import Merged
from foveate.federated.clustering.local import local_kmeans
from foveate.federated.clustering.options import Method, Settings
from foveate.federated.clustering.pool import Pool, TooFewGroupsError


def merge(pool: Pool, settings: Settings, rng: np.random.Generator, radii: dict[int, float]) -> Merged:
    """k-means of the pooled points; `pool` holds points here, not centroids."""
    found = local_kmeans(
        pool.centers,
        settings.clusters,
        rng,
        start=settings.client_init,
        tries=settings.n_init,
        spherical=settings.spherical,
    )
    if len(found.centers) < settings.clusters and settings.on_few_groups == "raise":
        raise TooFewGroupsError(
            f"the data have {len(found.centers)} groups; {settings.clusters} clusters cannot be made",
            groups=len(found.centers),
        )
    return Merged(found.centers, {"sse": found.inertia, "runs": settings.n_init})


METHOD = Method(
    name="central",
    note="all points in one place, k-means++ 20 times: not federated",
    merge=merge,
    defaults={"n_init": 20, "refine_rounds": 0, "eliminate": "none"},
    uses=frozenset({"client_init", "n_init", "spherical"}),
    federated=False,
)
