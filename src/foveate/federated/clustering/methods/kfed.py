"""`kfed`: k-FED (arXiv 2103.00697), see `foveate.federated.clustering.kfed`."""

from __future__ import annotations

import numpy as np

from foveate.federated.clustering.consensus import Merged
from foveate.federated.clustering.kfed import kfed_server
from foveate.federated.clustering.pool import Pool
from foveate.federated.clustering.settings import CLIENT_OPTIONS, Method, Settings


def merge(pool: Pool, settings: Settings, rng: np.random.Generator, radii: dict[int, float]) -> Merged:
    """Farthest-first seeds from the first client on, then Lloyd. Clients are taken in the order of their numbers."""
    pool.need(settings.clusters)
    first = int((pool.client == pool.client[0]).sum()) if settings.kfed_seeds == "all" else 1
    centers, _ = kfed_server(pool.centers, first, settings.clusters, one_step=settings.kfed_steps == "one")
    return Merged(centers, {"seeds_of_first_client": min(first, settings.clusters)})


METHOD = Method(
    name="kfed",
    note="k-FED: seeds are the first client's centroids, then the farthest ones; Lloyd on centroids without weights",
    merge=merge,
    defaults={"client_init": "awasthi_sheffet", "n_init": 1, "eliminate": "none", "refine_rounds": 0},
    uses=CLIENT_OPTIONS | {"kfed_seeds", "kfed_steps"},
    counts=False,
)
