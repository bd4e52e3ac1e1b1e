"""Faithfulness of a map: neighborhoods, classes and distances that it preserves.

X [N, D] are the points in their own space, Z [N, d] the same points on the map, k a number of neighbors. Neighbors
are exact and a point is never its own neighbor, unless `include_self` asks for the public FedNE code's way.
Trustworthiness and continuity: Venna and Kaski 2001; neighborhood hit: Paulovich et al. 2008, section 5.1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
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
    return float(1.0 - penalty * (2.0 / (rows * k * (2.0 * rows - 3.0 * k - 1.0))))


def continuity(points_ND: ArrayLike, map_Nd: ArrayLike, *, k: int) -> float:
    """Return 1 minus the weight of neighbors in space that the map separates: trustworthiness, swapped."""
    return trustworthiness(map_Nd, points_ND, k=k)


def _neighbors(map_Nd: ArrayLike, k: int, *, include_self: bool) -> NDArray[np.int64]:
    drawn = as_points(map_Nd, what="map points")
    # Points that are passed as queries are not left out of their own neighbors.
    return nearest(drawn, k, queries_MD=drawn) if include_self else nearest(drawn, k)


def neighborhood_hit(map_Nd: ArrayLike, labels_N: ArrayLike, *, k: int, include_self: bool = False) -> float:
    """Return the mean share of a point's k map neighbors that have its label.

    Args:
        include_self: each point is its own first neighbor and votes for itself, as in the public FedNE code.
    """
    neighbors = _neighbors(map_Nd, k, include_self=include_self)
    labels = encode_labels(labels_N, rows=len(neighbors))
    return float((labels[neighbors] == labels[:, None]).mean())


def foreign_share(map_Nd: ArrayLike, owners_N: ArrayLike, *, k: int) -> float:
    """Return the mean share of a point's k neighbors that belong to another owner (client).

    Compare it with its value in the points' own space: far above it, clients lie on one another without a reason.
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
    """Return the accuracy of a vote of the k map neighbors: the mean of `knn_right`."""
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
    pairs = rows * (rows - 1) / 2 + (rows / 2 if include_self else 0)
    covariance = sums[4] / pairs - sums[0] * sums[1] / pairs**2
    spread = (sums[2] / pairs - (sums[0] / pairs) ** 2) * (sums[3] / pairs - (sums[1] / pairs) ** 2)
    # Distances were scaled to about 1, so a product of variances this small counts as no spread.
    return float(covariance / np.sqrt(spread)) if spread > 1e-24 else 0.0
