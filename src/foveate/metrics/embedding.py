"""Faithfulness of a map: neighborhoods, classes and distances that it preserves.

X [N, D] are the points in their own space, Z [N, d] the same points on the map, k a number of neighbors. Neighbors
are exact and a point is never its own neighbor, unless `include_self` asks for the public FedNE code's way.
Trustworthiness and continuity: Venna and Kaski 2001; neighborhood hit: Paulovich et al. 2008, section 5.1.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix
from sklearn.cluster import HDBSCAN  # pyrefly: ignore[missing-module-attribute]
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from foveate.core.errors import UserError
from foveate.metrics.neighbors import as_points, blocks, nearest

Array = NDArray[np.float64]


def _pair(points_ND: ArrayLike, map_Nd: ArrayLike) -> tuple[Array, Array]:
    points, drawn = as_points(points_ND), as_points(map_Nd, what="map points")
    if len(points) != len(drawn):
        raise UserError(f"map points: {len(drawn)} for {len(points)} points; expected one for each")
    return points, drawn


def encode_labels(labels_N: ArrayLike, *, rows: int, what: str = "labels") -> NDArray[np.int64]:
    """Encode names or numbers as 0, 1, ... in sorted order.

    Raises:
        UserError: when there is not one for each row.
    """
    labels = np.asarray(labels_N)
    if labels.shape != (rows,):
        raise UserError(f"{what}: wrong shape (got {list(labels.shape)}); expected [{rows}], one for each point")
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def trustworthiness(points_ND: ArrayLike, map_Nd: ArrayLike, *, k: int) -> float:
    """Return 1 minus the weight of map neighbors that are not neighbors in space, in [0, 1].

    1 - 2 / (N k (2N - 3k - 1)) * sum over i and the k map neighbors j of i of max(0, rank of j from i in space - k).
    scikit-learn's definition, order of equal distances included; in blocks, where that one holds N x N distances.

    Raises:
        UserError: unless 1 <= k < N / 2.

    Example:
        >>> points = np.arange(8.0)[:, None]
        >>> trustworthiness(points, points, k=2)
        1.0
    """
    points, drawn = _pair(points_ND, map_Nd)
    rows = len(points)
    if not 1 <= k < rows / 2:
        raise UserError(
            f"neighbors of trustworthiness: out of range (got {k}); expected 1 to {(rows - 1) // 2} with {rows} points"
        )
    neighbors = np.asarray(NearestNeighbors(n_neighbors=k).fit(drawn).kneighbors(return_distance=False))
    penalty = 0
    for part in blocks(rows, rows):
        distances = pairwise_distances(points[part], points)
        rows_of_part = np.arange(part.start, part.stop)
        # Infinite: the point itself gets the last rank.
        distances[rows_of_part - part.start, rows_of_part] = np.inf
        order = np.argsort(distances, axis=1)
        ranks = np.empty_like(order)
        # Inverts the permutation: rank of each point instead of point of each rank.
        np.put_along_axis(ranks, order, np.arange(1, rows + 1)[None], axis=1)
        beyond = np.take_along_axis(ranks, neighbors[part], axis=1) - k
        penalty += int(beyond[beyond > 0].sum())
    # One over the largest possible penalty where k < N / 2, so that the result lies in [0, 1].
    return float(1.0 - penalty * (2.0 / (rows * k * (2.0 * rows - 3.0 * k - 1.0))))


def continuity(points_ND: ArrayLike, map_Nd: ArrayLike, *, k: int) -> float:
    """Return 1 minus the weight of neighbors in space that the map separates: trustworthiness, swapped.

    Example:
        >>> points = np.arange(8.0)[:, None]
        >>> continuity(points, points, k=2)
        1.0
    """
    return trustworthiness(map_Nd, points_ND, k=k)


def _neighbors(map_Nd: ArrayLike, k: int, *, include_self: bool) -> NDArray[np.int64]:
    drawn = as_points(map_Nd, what="map points")
    # Points that are passed as queries are not left out of their own neighbors.
    return nearest(drawn, k, queries_MD=drawn) if include_self else nearest(drawn, k)


def neighborhood_hit(map_Nd: ArrayLike, labels_N: ArrayLike, *, k: int, include_self: bool = False) -> float:
    """Return the mean share of a point's k map neighbors that have its label.

    Args:
        include_self: each point is its own first neighbor and votes for itself, as in the public FedNE code.

    Example:
        >>> neighborhood_hit([[0.0], [1.0], [10.0], [11.0]], ["a", "a", "b", "b"], k=1)
        1.0
    """
    neighbors = _neighbors(map_Nd, k, include_self=include_self)
    labels = encode_labels(labels_N, rows=len(neighbors))
    return float((labels[neighbors] == labels[:, None]).mean())


def foreign_share(map_Nd: ArrayLike, owners_N: ArrayLike, *, k: int) -> float:
    """Return the mean share of a point's k neighbors that belong to another owner (client).

    Compare it with its value in the points' own space: far above it, clients lie on one another without a reason.

    Example:
        >>> foreign_share([[0.0], [1.0], [10.0], [11.0]], ["ours", "ours", "ours", "theirs"], k=1)
        0.5
    """
    return 1.0 - neighborhood_hit(map_Nd, owners_N, k=k)


def knn_accuracy(
    map_Nd: ArrayLike,
    labels_N: ArrayLike,
    *,
    k: int,
    test_map_Md: ArrayLike | None = None,
    test_labels_M: ArrayLike | None = None,
    include_self: bool = False,
) -> float:
    """Return the accuracy of a vote of the k map neighbors: the mean of `knn_right`.

    Example:
        >>> drawn, labels = [[0.0], [1.0], [10.0], [11.0]], ["a", "a", "b", "b"]
        >>> knn_accuracy(drawn, labels, k=1, test_map_Md=[[0.4], [10.4]], test_labels_M=["a", "a"])
        0.5
    """
    right = knn_right(
        map_Nd, labels_N, k=k, test_map_Md=test_map_Md, test_labels_M=test_labels_M, include_self=include_self
    )
    return float(right.mean())


def knn_right(
    map_Nd: ArrayLike,
    labels_N: ArrayLike,
    *,
    k: int,
    test_map_Md: ArrayLike | None = None,
    test_labels_M: ArrayLike | None = None,
    include_self: bool = False,
) -> NDArray[np.bool_]:
    """Mark points whose label is the vote of their k map neighbors, [N] or [M]; on a tie the lowest label wins.

    Without test points every point is classified by the others (leave one out).

    Raises:
        UserError: for test points without labels or the other way round.
    """
    if (test_map_Md is None) != (test_labels_M is None):
        raise UserError("test points and test labels go together: expected both or neither")
    drawn = as_points(map_Nd, what="map points")
    if test_map_Md is None or test_labels_M is None:
        truth = labels = encode_labels(labels_N, rows=len(drawn))
        neighbors = _neighbors(drawn, k, include_self=include_self)
    else:
        tested = as_points(test_map_Md, what="test points")
        known, test_labels = np.asarray(labels_N), np.asarray(test_labels_M)
        if known.shape != (len(drawn),) or test_labels.shape != (len(tested),):
            sizes = f"{known.size} labels for {len(drawn)} points, {test_labels.size} for {len(tested)} test points"
            raise UserError(sizes)
        # Encoded together, so that a label that only test points have equals none of the known labels.
        both = np.unique(np.concatenate([known, test_labels]), return_inverse=True)[1].astype(np.int64)
        labels, truth = both[: len(drawn)], both[len(drawn) :]
        neighbors = nearest(drawn, k, queries_MD=tested)
    votes = np.zeros((len(neighbors), int(labels.max()) + 1), dtype=np.int64)
    np.add.at(votes, (np.arange(len(neighbors))[:, None], labels[neighbors]), 1)
    return votes.argmax(axis=1) == truth


def distance_correlation(points_ND: ArrayLike, map_Nd: ArrayLike, *, include_self: bool = False) -> float:
    """Return Pearson's correlation of all distances in space with those on the map; 0 if one has no spread.

    Args:
        include_self: each point's distance of 0 to itself counts too, as in the public FedNE code.

    Example:
        >>> points = np.arange(8.0)[:, None]
        >>> round(distance_correlation(points, 3 * points), 6)
        1.0
    """
    points, drawn = _pair(points_ND, map_Nd)
    rows = len(points)
    if rows < 3:
        raise UserError(f"the correlation of distances needs at least 3 points (got {rows})")
    # The correlation does not depend on units; distances near 1 keep the sums of squares exact enough to subtract.
    scale = [float(pairwise_distances(side[:1], side).max()) or 1.0 for side in (points, drawn)]
    sums = np.zeros(5)
    for part in blocks(rows, rows):
        # Each pair once.
        above = np.arange(rows)[None] > np.arange(part.start, part.stop)[:, None]
        far = pairwise_distances(points[part], points)[above] / scale[0]
        near = pairwise_distances(drawn[part], drawn)[above] / scale[1]
        sums += (far.sum(), near.sum(), far @ far, near @ near, far @ near)
    # A full matrix holds each pair twice, and N zeros on its diagonal; like the sums, this counts half of it.
    pairs = rows * (rows - 1) / 2 + (rows / 2 if include_self else 0)
    covariance = sums[4] / pairs - sums[0] * sums[1] / pairs**2
    spread = (sums[2] / pairs - (sums[0] / pairs) ** 2) * (sums[3] / pairs - (sums[1] / pairs) ** 2)
    # Distances were scaled to about 1, so a product of variances this small counts as no spread.
    return float(covariance / np.sqrt(spread)) if spread > 1e-24 else 0.0


# Steadiness and cohesiveness: whether clusters on the map are clusters in space, and the reverse.
#
# Jeon et al. 2021, "Measuring and Explaining the Inter-Cluster Reliability of Multidimensional Projections"
# (arXiv 2107.07859). Similarity is that of shared nearest neighbors; groups are drawn by random walks in one space and
# split by HDBSCAN in the other. Both numbers are estimates over the walks: state them with their spread.


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

    Example:
        >>> points = np.random.default_rng(0).normal(size=(60, 2))
        >>> scores = reliability(points, points, np.random.default_rng(1), iterations=20)
        >>> scores.steadiness > 0.8, scores.cohesiveness > 0.8
        (True, True)
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
