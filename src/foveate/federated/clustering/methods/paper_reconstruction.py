"""`paper_reconstruction`: what can be known of FeCA (arXiv 2407.12764), and its variants by options.

The paper's body was not available and no code was published: the rules for radii and elimination are reconstructed, and
nothing here reproduces the paper's numbers.
"""

from __future__ import annotations

import numpy as np

from foveate.federated.clustering.consensus import Merged, coinciding_centers
from foveate.federated.clustering.grouping import Groups, group, group_means, need_groups, radius_of_centroids
from foveate.federated.clustering.options import CLIENT_OPTIONS, ClusteringOptions, Method
from foveate.federated.clustering.pool import Pool
from foveate.federated.clustering.radius_search import search


def merge(pool: Pool, options: ClusteringOptions, rng: np.random.Generator, radii: dict[int, float]) -> Merged:
    """Groups within a radius; the K of largest support become centers. A single group has all centroids."""
    # Counts weigh only where clients send them: the reconstruction itself asks for none.
    weighted = options.seeds == "most_mass" or options.radius == "k_aware"
    if options.clusters == 1:
        # A radius would leave out what lies farther away; one group is all there is.
        support = pool.counts.sum() if weighted else float(len(pool))
        everything = Groups([np.arange(len(pool))], np.array([support]))
        centers = group_means(pool.centers, pool.counts, everything, 1, weighted=weighted)
        return Merged(centers, _report(everything, 1))
    if options.radius == "k_aware":
        # The search breaks ties by the row, so the pool must not depend on the order of clients.
        return _k_aware(pool.sorted(), options)
    if isinstance(options.radius, str):
        radius_Q = radius_of_centroids(pool, radii, options.radius, quantile=options.quantile)
    else:
        radius_Q = np.full(len(pool), float(options.radius))
    groups = group(pool.centers, radius_Q, pool.counts, seeds=options.seeds)
    if options.on_few_groups == "raise":
        need_groups(groups, options.clusters, str(options.radius))
    centers = group_means(pool.centers, pool.counts, groups, options.clusters, weighted=weighted)
    return Merged(centers, {"radii": radius_Q.tolist()} | _report(groups, options.clusters))


def _report(groups: Groups, clusters: int) -> dict[str, object]:
    return {
        "groups": len(groups.members),
        "supports": groups.supports[:clusters].tolist(),
        "rejected_supports": groups.supports[clusters:].tolist(),
        "members": [rows.tolist() for rows in groups.members[:clusters]],
    }


def _k_aware(pool: Pool, options: ClusteringOptions) -> Merged:
    pool.need(options.clusters)
    tried = search(pool, options.clusters)
    if not tried:
        # If there are few centroids, far apart, even the smallest radius on the list may join two of them.
        centers, supports = coinciding_centers(pool, options.clusters)
        return Merged(centers, {"radius": 0.0, "score": 0.0, "supports": supports.tolist()})
    best = tried[0]
    report = {"radius": best.radius, "score": best.score, "supports": best.supports.tolist()}
    return Merged(best.centers(pool), report)


METHOD = Method(
    name="paper_reconstruction",
    note="a reconstruction of FeCA: doubted centroids stay at home, groups within half the smallest distance",
    merge=merge,
    defaults={
        "client_init": "random",
        "n_init": 1,
        "eliminate": "drop",
        "radius": "half_min_distance",
        "seeds": "largest_radius",
        "refine_rounds": 0,
    },
    uses=CLIENT_OPTIONS | {"eliminate", "radius", "quantile", "seeds"},
    counts=False,
)
