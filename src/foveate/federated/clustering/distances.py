"""Distances between points and centers, in blocks: no table of all of them is ever held.

With few dimensions differences are squared and added. With many, inner products of centered points are used, which is
many times faster; where that leaves two centers too close to call, the differences decide, so that ties always go to
the lower index and large offsets do no harm.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

CELLS = 1 << 18
"""Cells of a block of distances: 2 MiB of float64, which stays in a processor's cache."""
# Number of dimensions up to which differences are taken everywhere.
FEW = 8
# Relative to the squared scale of the points; scores closer than this are decided by differences.
_TOO_CLOSE = 1e-10
# Relative bound on the rounding of squared distances from inner products, with room to spare.
ROUNDING = 1e-12
FAST_CELLS = 1 << 17  # a MiB: with the few other tables of a search for the nearest, in the cache of one core


def blocks(rows: int, columns: int, *, cells: int = CELLS) -> Iterator[slice]:
    """Consecutive slices of `rows` whose tables with `columns` columns have about `cells` cells."""
    step = max(1, cells // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def squared(points_BD: Floats, centers_KD: Floats) -> Floats:
    """Squared distances [K, B], by differences; exact zeros for equal rows."""
    # One center at a time: a table of differences [K, B, D] would be D times the size of the result.
    if points_BD.shape[1] > FEW:
        return np.stack([((points_BD - center) ** 2).sum(1) for center in centers_KD])
    result = np.empty((len(centers_KD), len(points_BD)))
    gap = np.empty_like(result)
    # Column by column, the order in which `squared_to` adds, which must give the same numbers.
    for column, points_B in enumerate(np.ascontiguousarray(points_BD.T)):
        into = gap if column else result
        np.subtract(centers_KD[:, column, None], points_B, out=into)
        into *= into
        if column:
            result += gap
    return result


def squared_to(points_ND: Floats, centers_KD: Floats, label_N: Labels) -> Floats:
    """Squared distance [N] of each point to its labeled center; bit for bit the number that `squared` has there."""
    found_N = np.empty(len(points_ND))
    for block in blocks(len(points_ND), points_ND.shape[1], cells=FAST_CELLS):
        gap_BD = centers_KD[label_N[block]] - points_ND[block]
        gap_BD *= gap_BD
        if points_ND.shape[1] > FEW:
            found_N[block] = gap_BD.sum(1)
            continue
        found_N[block] = gap_BD[:, 0]
        for column in range(1, points_ND.shape[1]):
            found_N[block] += gap_BD[:, column]
    return found_N


def distances(left_AD: Floats, right_BD: Floats) -> Floats:
    """Euclidean distances [A, B]. With many dimensions by inner products; pairs are then right to about 1e-8 of the
    largest distance to the mean of B.
    """
    if left_AD.shape[1] <= FEW:
        return np.sqrt(squared(right_BD, left_AD))
    # Centered first: inner products of points far from zero lose all digits of small distances.
    offset_D = right_BD.mean(0)
    left_AD, right_BD = left_AD - offset_D, right_BD - offset_D
    result = -2.0 * (left_AD @ right_BD.T)
    result += (left_AD**2).sum(1)[:, None]
    result += (right_BD**2).sum(1)[None]
    # Rounding can make the square of a distance near zero negative.
    return np.sqrt(np.maximum(result, 0.0, out=result), out=result)


def within(left_AD: Floats, right_BD: Floats, radius_A: Floats) -> NDArray[np.bool_]:
    """Mark pairs [A, B] whose distance is at most the radius of the left row; pairs near it are decided by differences.

    Equal rows are thus within a radius of 0, whatever the number of dimensions.
    """
    table = distances(left_AD, right_BD)
    near = table <= radius_A[:, None]
    if left_AD.shape[1] <= FEW:
        return near
    offset_D = right_BD.mean(0)
    scale = np.linalg.norm(left_AD - offset_D, axis=1).max() + np.linalg.norm(right_BD - offset_D, axis=1).max()
    # Squares are wrong by at most ROUNDING of the squared scale, so distances by its root: at 0 they are that coarse.
    rows, columns = np.nonzero(np.abs(table - radius_A[:, None]) <= np.sqrt(ROUNDING) * scale)
    for block in blocks(len(rows), left_AD.shape[1]):
        gap_PD = left_AD[rows[block]] - right_BD[columns[block]]
        near[rows[block], columns[block]] = np.sqrt((gap_PD**2).sum(1)) <= radius_A[rows[block]]
    return near


def nearest(points_ND: Floats, centers_KD: Floats) -> tuple[Labels, Floats]:
    """Find the nearest center of every point [N], ties to the lower index, and the squared distance to it [N].

    Example:
        >>> labels, squared_distances = nearest_centers(np.array([[0.0], [1.0], [9.0]]), np.array([[0.0], [10.0]]))
        >>> labels.tolist(), squared_distances.tolist()
        ([0, 0, 1], [0.0, 1.0, 1.0])
    """
    label_N = np.empty(len(points_ND), dtype=np.int64)
    best_N = np.empty(len(points_ND))
    frame = _Frame(centers_KD)
    for block in blocks(len(points_ND), max(len(centers_KD), points_ND.shape[1]), cells=FAST_CELLS):
        label_N[block], best_N[block], _ = frame.two_nearest(points_ND[block])
    # Inner products found the labels; the distances themselves are taken by differences, without their rounding.
    if points_ND.shape[1] > FEW:
        best_N = squared_to(points_ND, centers_KD, label_N)
    return label_N, best_N


def margins(points_ND: Floats, centers_KD: Floats, rows_R: Labels | None = None) -> tuple[Labels, Floats]:
    """Find nearest centers as `nearest` does, and how much farther away every other one is at least; each [R].

    Args:
        rows_R: of these points only; None = of all.
    """
    rows = len(points_ND) if rows_R is None else len(rows_R)
    label_R = np.empty(rows, dtype=np.int64)
    margin_R = np.empty(rows)
    frame = _Frame(centers_KD)
    for block in blocks(rows, max(len(centers_KD), points_ND.shape[1]), cells=FAST_CELLS):
        part_BD = points_ND[block if rows_R is None else rows_R[block]]
        label_R[block], best_B, second_B = frame.two_nearest(part_BD)
        # Rounded down: a margin that is too small costs a needless comparison, one too large a wrong label.
        margin_R[block] = np.sqrt(second_B) * (1 - ROUNDING) - np.sqrt(best_B) * (1 + ROUNDING)
    return label_R, margin_R


class _Frame:
    """Centers with what every block of points reuses: their mean, and half their squared lengths around it."""

    def __init__(self, centers_KD: Floats) -> None:
        self.centers_KD = centers_KD
        self.offset_D = centers_KD.mean(0)
        self.moved_KD = centers_KD - self.offset_D
        self.half_K = (self.moved_KD**2).sum(1) / 2

    def two_nearest(self, points_BD: Floats) -> tuple[Labels, Floats, Floats]:
        """Find each point's nearest center, ties to the lower index; its squared distance and that of the second.

        With many dimensions the first distance is rounded up and the second down, by more than they may be wrong.
        """
        if points_BD.shape[1] <= FEW:
            return _two_smallest(squared(points_BD, self.centers_KD))
        shifted_BD = points_BD - self.offset_D
        # |x - c|^2 / 2 less |x|^2 / 2, which is the same for all centers: one matrix product ranks them.
        label_B, score_B, second_B = _two_smallest(self.half_K[:, None] - self.moved_KD @ shifted_BD.T)
        length_B = np.einsum("bd,bd->b", shifted_BD, shifted_BD)
        scale_B = length_B + 2 * self.half_K.max()
        # Inner products are too coarse to tell these apart; differences decide, so that ties go to the lower index.
        # Written with `not`, so that NaN counts as close.
        close = np.flatnonzero(~(second_B - score_B > _TOO_CLOSE * scale_B))
        if len(close):
            label_B[close] = _two_smallest(squared(points_BD[close], self.centers_KD))[0]
        rounding_B = ROUNDING * scale_B
        best_B = np.maximum(length_B + 2 * score_B, 0.0) + rounding_B
        return label_B, best_B, np.maximum(length_B + 2 * second_B - rounding_B, 0.0)


def _two_smallest(table_KB: Floats) -> tuple[Labels, Floats, Floats]:
    """Return for each column the row of its smallest cell (first of equals), that cell, and the second smallest.

    The table is used up.
    """
    rows, columns = table_KB.shape
    best_B = table_KB.min(0)
    # Row k counts as K - k where it has the smallest value: the largest of these is the first such row.
    backwards_K = np.arange(rows, 0, -1).astype(np.min_scalar_type(rows))
    first_B = ((table_KB == best_B) * backwards_K[:, None]).max(0)
    label_B = np.minimum(rows - first_B.astype(np.int64), rows - 1)  # past the last where all cells are NaN
    table_KB[label_B, np.arange(columns)] = np.inf
    return label_B, best_B, table_KB.min(0)


def sums(
    points_ND: Floats,
    label_N: Labels,
    groups: int,
    weight_N: Floats | None = None,
    *,
    only_K: NDArray[np.bool_] | None = None,
) -> tuple[Floats, Floats]:
    """Weighted sums [groups, D] and weights [groups] of the points of each group.

    Args:
        only_K: compute only the sums of these groups; the others are 0.
    """
    weights, labels, starts = weight_N, label_N, np.arange(len(label_N) + 1)
    if only_K is not None:
        taken_N = only_K[label_N]
        weights, labels = None if weight_N is None else weight_N[taken_N], label_N[taken_N]
        starts = np.concatenate([[0], np.cumsum(taken_N)])
    weights = np.ones(len(labels)) if weights is None else weights
    # A sparse product adds up all groups in one pass over the points, without sorting or copying them.
    pick = csr_matrix((weights, labels, starts), shape=(len(label_N), groups))
    return np.asarray(pick.T @ points_ND), np.bincount(label_N, weights=weight_N, minlength=groups).astype(np.float64)


def closest_pair(centers_KD: Floats) -> tuple[int, int, float]:
    """Find the closest pair of two or more centers (of equally near pairs the lower one) and its distance."""
    distance_KK = np.sqrt(squared(centers_KD, centers_KD))
    rows, columns = np.triu_indices(len(centers_KD), k=1)
    at = int(distance_KK[rows, columns].argmin())
    return int(rows[at]), int(columns[at]), float(distance_KK[rows[at], columns[at]])
