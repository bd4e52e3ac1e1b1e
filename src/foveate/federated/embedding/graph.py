"""Points and edges that a client trains on in one round: its points, mixed copies of them, nearest neighbors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from foveate.metrics.neighbors import nearest

Points = NDArray[np.floating]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Neighborhood:
    """Points [N, D] and directed edges head -> tail between their rows, [E] each."""

    points_ND: Points
    heads_E: Indices
    tails_E: Indices


def mix(points_ND: Points, partners_N: Indices, lambdas_N: Points) -> Points:
    """Mix points: lambda x + (1 - lambda) x', with x' the partner, a neighbor of x; [N, D]."""
    weight_N1 = lambdas_N[:, None].astype(points_ND.dtype)
    return weight_N1 * points_ND + (1 - weight_N1) * points_ND[partners_N]


def edges(points_ND: Points, k: int, *, keep_self_edges: bool = False) -> tuple[Indices, Indices]:
    """Edges from every point to its k nearest others, [N k] heads and tails; fewer where there are not k others.

    Args:
        keep_self_edges: as the public code, which asks scikit-learn for k + 1 neighbors and drops the first, whoever
            it is: a point with an exact copy may keep itself as a neighbor.
    """
    k = min(k, len(points_ND) - 1)
    if k < 1:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if keep_self_edges:
        # With exact copies scikit-learn may list a copy first and the point itself second.
        index = NearestNeighbors(n_neighbors=k + 1).fit(points_ND)
        tails_Nk = np.asarray(index.kneighbors(points_ND, return_distance=False))[:, 1:].astype(np.int64)
    else:
        tails_Nk = nearest(points_ND, k)
    return np.repeat(np.arange(len(points_ND)), k), tails_Nk.ravel()


def neighborhood(
    points_ND: Points,
    k: int,
    generator: np.random.Generator | None,
    *,
    neighbors_Nk: Indices | None = None,
    beta: float = 0.2,
    keep_self_edges: bool = False,
) -> Neighborhood:
    """Neighborhood that a client trains on in one round.

    Args:
        generator: draws the mixing of this round; None = no mixing, the points as they are.
        neighbors_Nk: k nearest others of each point, if already known.
    """
    if generator is None or len(points_ND) < 2:
        # Without mixing the graph never changes: the neighbors computed once serve every round.
        if neighbors_Nk is not None and not keep_self_edges:
            heads_E = np.repeat(np.arange(len(points_ND)), neighbors_Nk.shape[1])
            return Neighborhood(points_ND, heads_E, neighbors_Nk.ravel())
        return Neighborhood(points_ND, *edges(points_ND, k, keep_self_edges=keep_self_edges))
    if neighbors_Nk is None:
        neighbors_Nk = nearest(points_ND, min(k, len(points_ND) - 1))
    # Beta(0.2, 0.2) has its mass near 0 and 1: most mixtures are close to one of their two points.
    lambdas_N = generator.beta(beta, beta, len(points_ND))
    picks_N = generator.integers(0, neighbors_Nk.shape[1], len(points_ND))
    partners_N = neighbors_Nk[np.arange(len(points_ND)), picks_N]
    # Mixtures join the originals, and neighbors are searched among all of them.
    stacked = np.concatenate([points_ND, mix(points_ND, partners_N, lambdas_N)])
    return Neighborhood(stacked, *edges(stacked, k, keep_self_edges=keep_self_edges))
