"""Steadiness and cohesiveness: whether clusters on the map are clusters in space, and the reverse.

Jeon et al. 2021, "Measuring and Explaining the Inter-Cluster Reliability of Multidimensional Projections"
(arXiv 2107.07859). Similarity is that of shared nearest neighbors; groups are drawn by random walks in one space and
split by HDBSCAN in the other. Both numbers are estimates over the walks: state them with their spread.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix
from sklearn.cluster import HDBSCAN  # pyrefly: ignore[missing-module-attribute]

from foveate.core.errors import UserError
from foveate.metrics.neighbors import as_points, nearest

Array = NDArray[np.float64]
MAX_POINTS = 4000
_SMALLEST_GROUP = 5
_ATTEMPTS = 200


@dataclass(frozen=True)
class Reliability:
    """Both in [0, 1], 1 is best.

    Attributes:
        steadiness: 1 - mean distortion of groups that the map shows and space does not have.
        cohesiveness: 1 - mean distortion of groups that space has and the map does not show.
    """

    steadiness: float
    cohesiveness: float


@dataclass(frozen=True)
class _Space:
    """Neighbors [N, k] of one space, nearest first, and the similarity [N, N], 1 on the diagonal."""

    neighbors: NDArray[np.int64]
    similarity: Array


def shared_neighbors(points_ND: ArrayLike, k: int) -> tuple[NDArray[np.int64], Array]:
    """Return neighbors [N, k], and the shared-nearest-neighbor similarity [N, N] in [0, 1].

    Sum over shared neighbors of (k + 1 - m) (k + 1 - n), m and n their places from 0 in both lists, over its maximum.
    """
    neighbors = nearest(points_ND, k)
    rows = len(neighbors)
    # A sparse matrix of weights by rank: its product with itself sums over shared neighbors for all pairs at once.
    weights = np.tile(np.arange(k + 1, 1, -1, dtype=np.float64), rows)
    starts = np.arange(0, neighbors.size + 1, k)
    table = csr_matrix((weights, neighbors.ravel(), starts), shape=(rows, rows))
    shared = np.asarray((table @ table.T).todense())
    return neighbors, shared / shared.max()


def reliability(
    points_ND: ArrayLike,
    map_Nd: ArrayLike,
    generator: np.random.Generator,
    *,
    k: int | None = None,
    iterations: int = 150,
    walk_share: float = 0.3,
    alpha: float = 0.1,
) -> Reliability:
    """Estimate steadiness and cohesiveness of a map.

    Args:
        k: neighbors; the square root of N where None. walk_share: steps of a walk, as a share of N.
        alpha: the distance of two groups is 1 / (mean similarity + alpha).

    Raises:
        UserError: fewer than 10 or more than 4,000 points (it holds N x N numbers: draw a sample).
    """
    points, drawn = as_points(points_ND), as_points(map_Nd, what="map points")
    rows = len(points)
    if len(drawn) != rows:
        raise UserError(f"map points: {len(drawn)} for {rows} points; expected one for each")
    if not 10 <= rows <= MAX_POINTS:
        raise UserError(
            f"steadiness and cohesiveness: too few or too many points (got {rows:,}); expected 10 to {MAX_POINTS:,}, "
            "a sample of them if need be"
        )
    k = int(np.sqrt(rows)) if k is None else k
    space, on_map = (_Space(*shared_neighbors(side, k)) for side in (points, drawn))
    walk = max(2, int(walk_share * rows))
    return Reliability(
        _score(on_map, space, generator, iterations, walk, alpha),
        _score(space, on_map, generator, iterations, walk, alpha),
    )


def _score(
    here: _Space, there: _Space, generator: np.random.Generator, iterations: int, walk: int, alpha: float
) -> float:
    """Return 1 minus the mean distortion of groups of `here` that are farther apart `there`."""
    # The largest possible distortion scales the score to [0, 1].
    largest = float((1 / (there.similarity + alpha) - 1 / (here.similarity + alpha)).max())
    if largest <= 0:
        return 1.0
    distorted = weights = 0.0
    for _ in range(iterations):
        group = _random_walk(here, generator, walk)
        labels = _split(1 / (there.similarity[np.ix_(group, group)] + alpha))
        apart_there = _distances(there.similarity, group, labels, alpha)
        apart_here = _distances(here.similarity, group, labels, alpha)
        sizes = np.bincount(labels).astype(np.float64)
        # Only pairs that are farther apart in the other space are distorted; each weighs by its points.
        pairs = np.triu(np.outer(sizes, sizes) * (apart_there > apart_here), k=1)
        distorted += float((pairs * (apart_there - apart_here)).sum()) / largest
        weights += float(pairs.sum())
    return 1.0 - distorted / weights if weights else 1.0


def _random_walk(space: _Space, generator: np.random.Generator, walk: int) -> NDArray[np.int64]:
    """Draw a group of at least two points: walk from a random point to neighbors with their similarity as chance."""
    for _ in range(_ATTEMPTS):
        seed = int(generator.integers(len(space.neighbors)))
        members, queue, visited = {seed}, deque([seed]), 0
        while queue and visited < walk:
            point = queue.popleft()
            others = space.neighbors[point]
            drawn = others[generator.random(len(others)) < space.similarity[point, others]].tolist()
            members.update(drawn)
            queue.extend(drawn)
            visited += len(drawn)
        # A point that shares no neighbors gives a group of one: start again at another.
        if len(members) > 1:
            return np.array(sorted(members))
    raise UserError("no two points share neighbors: steadiness and cohesiveness are undefined")


def _split(distances_GG: Array) -> NDArray[np.int64]:
    """Cluster by HDBSCAN, numbered from 0; each noise point is a group of its own."""
    np.fill_diagonal(distances_GG, 0.0)
    # scikit-learn counts the point itself among the samples, the hdbscan package does not.
    samples = min(_SMALLEST_GROUP + 1, len(distances_GG))
    labels = HDBSCAN(
        min_cluster_size=_SMALLEST_GROUP,
        min_samples=samples,
        metric="precomputed",
        allow_single_cluster=True,
        copy=True,
    ).fit_predict(distances_GG)
    noise = np.flatnonzero(labels < 0)
    labels[noise] = labels.max() + 1 + np.arange(len(noise))
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _distances(similarity: Array, group: NDArray[np.int64], labels: NDArray[np.int64], alpha: float) -> Array:
    """Return the distances [C, C] of the groups: 1 / (mean similarity of their pairs + alpha)."""
    belongs = (labels[:, None] == np.arange(labels.max() + 1)).astype(np.float64)
    sizes = belongs.sum(axis=0)
    mean = belongs.T @ similarity[np.ix_(group, group)] @ belongs / np.outer(sizes, sizes)
    return 1 / (mean + alpha)
