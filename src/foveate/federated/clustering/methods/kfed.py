"""`kfed`: k-FED. Seeds are the first client's centers, then the farthest of the others; Lloyd on all local centers.

Source: Dennis, Li, Smith, "Heterogeneity for the win: one-shot federated clustering" (arXiv 2103.00697). Its theory
asks for at most sqrt(K) clusters per client; with as many as K, all seeds come from the first client.
"""

from __future__ import annotations

import numpy as np

from foveate.federated.clustering.consensus import Merged
from foveate.federated.clustering.distances import Floats, Labels, squared
from foveate.federated.clustering.lloyd import MAX_STEPS, lloyd
from foveate.federated.clustering.options import CLIENT_OPTIONS, ClusteringOptions, Method
from foveate.federated.clustering.pool import Pool


def farthest_seeds(centers_QD: Floats, first: int, clusters: int) -> Floats:
    """Select the first rows, then repeatedly the row farthest from all selected ones (ties: the lower row)."""
    seeds = list(range(min(first, clusters)))
    gap_Q = squared(centers_QD, centers_QD[seeds]).min(0)
    while len(seeds) < clusters:
        seeds.append(int(gap_Q.argmax()))
        gap_Q = np.minimum(gap_Q, squared(centers_QD, centers_QD[seeds[-1:]])[0])
    return centers_QD[seeds]


def kfed_server(centers_QD: Floats, first: int, clusters: int, *, one_step: bool = False) -> tuple[Floats, Labels]:
    """Global centers [K, D] and the group of every local center [Q].

    Args:
        centers_QD: local centers, clients in order. first: how many of them are the first client's.
        one_step: a single step of Lloyd, as in the public code of MUFC; k-FED's own runs until nothing changes.
    """
    seeds = farthest_seeds(centers_QD, first, clusters)
    run = lloyd(centers_QD, seeds, max_steps=1 if one_step else MAX_STEPS)
    return run.centers, run.labels


def merge(pool: Pool, options: ClusteringOptions, rng: np.random.Generator, radii: dict[int, float]) -> Merged:
    """Farthest-first seeds from the first client on, then Lloyd. Clients are taken in the order of their numbers."""
    pool.need(options.clusters)
    # `all` is k-FED's own rule. With K centers per client, all seeds are the first client's; one seed does better.
    first = int((pool.client == pool.client[0]).sum()) if options.kfed_seeds == "all" else 1
    centers, _ = kfed_server(pool.centers, first, options.clusters, one_step=options.kfed_steps == "one")
    return Merged(centers, {"seeds_of_first_client": min(first, options.clusters)})


METHOD = Method(
    name="kfed",
    note="k-FED: seeds are the first client's centroids, then the farthest ones; Lloyd on centroids without weights",
    merge=merge,
    defaults={"client_init": "awasthi_sheffet", "n_init": 1, "eliminate": "none", "refine_rounds": 0},
    uses=CLIENT_OPTIONS | {"kfed_seeds", "kfed_steps"},
    counts=False,
)
