"""k-FED's server: centers of the first client, then the farthest of the others, then Lloyd on the local centers.

Source: Dennis, Li, Smith, "Heterogeneity for the win: one-shot federated clustering" (arXiv 2103.00697). Its theory
asks for at most sqrt(K) clusters a client; with as many as K, all seeds come from the first client.
"""

from __future__ import annotations

import numpy as np

from foveate.federated.clustering.distances import Floats, Labels, squared
from foveate.federated.clustering.lloyd import MOST_STEPS, lloyd


def farthest_seeds(centers_QD: Floats, first: int, clusters: int) -> Floats:
    """The first rows, then again and again the row farthest from all chosen ones (ties: the lower row)."""
    chosen = list(range(min(first, clusters)))
    gap_Q = squared(centers_QD, centers_QD[chosen]).min(0)
    while len(chosen) < clusters:
        chosen.append(int(gap_Q.argmax()))
        gap_Q = np.minimum(gap_Q, squared(centers_QD, centers_QD[chosen[-1:]])[0])
    return centers_QD[chosen]


def kfed_server(centers_QD: Floats, first: int, clusters: int, *, one_step: bool = False) -> tuple[Floats, Labels]:
    """Global centers [K, D] and the group of every local center [Q].

    Args:
        centers_QD: local centers, clients in order. first: how many of them are the first client's.
        one_step: a single step of Lloyd, as in the public code of MUFC; k-FED's own runs until nothing changes.
    """
    seeds = farthest_seeds(centers_QD, first, clusters)
    run = lloyd(centers_QD, seeds, most_steps=1 if one_step else MOST_STEPS)
    return run.centers, run.labels
