"""Exact nearest neighbors: every point's k nearest others, ties to the lower index, in blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError

Array = NDArray[np.float64]
# Distances held at once: 4 million float64 numbers are 32 MB.
_DISTANCES_PER_BLOCK = 4_000_000
_SPARE = 8  # candidates beyond k, so that rounding rarely makes a second look necessary
# Error of rough squared distances, relative to the largest squares: many times what float64 loses.
_ROUNDING = 1e-13


def as_points(points_ND: ArrayLike, *, what: str = "points") -> Array:
    """Convert points to a float64 matrix.

    Raises:
        UserError: for another shape, NaN and infinite values, or complex numbers, dates and strings, which NumPy would
            convert.
    """
    try:
        array = np.asarray(points_ND)
        # Objects are what data frames of mixed types become.
        is_real = array.dtype.kind in "biuf" or (
            array.dtype.kind == "O" and all(isinstance(value, Real) for value in array.flat)
        )
        if not is_real:
            raise UserError(f"{what}: must be real numbers (got {array.dtype})")
        points = np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{what}: not a matrix of numbers ({error})") from None
    if points.ndim != 2 or points.shape[1] < 1:
        raise UserError(f"{what}: wrong shape (got {list(points.shape)}); expected [points, features]")
    if not np.isfinite(points).all():
        raise UserError(f"{what}: row {int(np.argwhere(~np.isfinite(points))[0][0])} has NaN or infinity")
    return points


def squared_distances(points_MD: Array, others_ND: Array) -> Array:
    """Return squared Euclidean distances [M, N] by |a|^2 + |b|^2 - 2ab, never negative. Center the points first."""
    squares = (points_MD**2).sum(axis=1)[:, None] + (others_ND**2).sum(axis=1)
    # Rounding can make the distance to an equal point slightly negative.
    return np.maximum(squares - 2 * (points_MD @ others_ND.T), 0.0)


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Return slices of rows such that a block of distances stays small."""
    size = max(1, _DISTANCES_PER_BLOCK // max(1, columns))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def nearest(points_ND: ArrayLike, k: int, *, queries_MD: ArrayLike | None = None) -> NDArray[np.int64]:
    """Return indices [N, k] of the k nearest *other* points, nearest first; ties go to the lower index.

    A point itself is left out by its index, not by its distance of 0: an exact copy of it stays a neighbor.

    Args:
        queries_MD: other points; then [M, k], and nothing is left out.

    Raises:
        UserError: when there are not k of them.
    """
    points = as_points(points_ND)
    queries = points if queries_MD is None else as_points(queries_MD, what="queries")
    available = len(points) - (queries_MD is None)
    if not 1 <= k <= available:
        raise UserError(f"neighbors: out of range (got {k}); expected 1 to {available} with {len(points)} points")
    if queries.shape[1] != points.shape[1]:
        raise UserError(f"queries: {queries.shape[1]} features, but the points have {points.shape[1]}")
    # |a|^2 + |b|^2 - 2ab cancels badly far from the origin.
    center = points.mean(axis=0)
    points, queries = points - center, queries - center
    # Fast distances select candidates; exact differences order them, so that equal distances tie exactly.
    candidates = min(k + _SPARE, available)
    scale = float((points**2).sum(axis=1).max(initial=0.0)) + float((queries**2).sum(axis=1).max(initial=0.0))
    indices_MK = np.empty((len(queries), k), dtype=np.int64)
    for part in blocks(len(queries), max(len(points), candidates * points.shape[1])):
        distances = squared_distances(queries[part], points)
        if queries_MD is None:
            rows = np.arange(part.start, part.stop)
            distances[rows - part.start, rows] = np.inf
        indices_MK[part] = _smallest(distances, queries[part], points, k, candidates, scale * _ROUNDING)
    return indices_MK


def _smallest(
    rough_MN: Array, queries_MD: Array, points_ND: Array, k: int, candidates: int, slack: float
) -> NDArray[np.int64]:
    """Return the columns of the k smallest exact distances of each row, ascending, ties by lower column."""
    if candidates < rough_MN.shape[1]:
        # Ascending, so that the stable sort by distance leaves equal ones in the order of their columns.
        columns = np.sort(np.argpartition(rough_MN, candidates - 1, axis=1)[:, :candidates], axis=1)
    else:
        columns = np.broadcast_to(np.arange(rough_MN.shape[1]), rough_MN.shape)
    best_MK = _order_exactly(queries_MD, points_ND, columns, rough_MN)[:, :k]
    # If more columns than candidates are within rounding of the k-th, all of them are compared.
    last = np.take_along_axis(rough_MN, best_MK[:, -1:], axis=1) + slack
    for row in np.flatnonzero((rough_MN <= last).sum(axis=1) > candidates):
        near = np.flatnonzero(rough_MN[row] <= last[row])[None]
        best_MK[row] = _order_exactly(queries_MD[row : row + 1], points_ND, near, rough_MN[row : row + 1])[0, :k]
    return best_MK


def _order_exactly(
    queries_MD: Array, points_ND: Array, columns_MC: NDArray[np.int64], rough_MN: Array
) -> NDArray[np.int64]:
    """Sort columns by their exact distance; excluded ones (rough distance infinite) come last."""
    # Sums of squared differences: equal distances come out equal, which the expanded form does not give.
    exact = ((queries_MD[:, None] - points_ND[columns_MC]) ** 2).sum(axis=2)
    exact[np.isinf(np.take_along_axis(rough_MN, columns_MC, axis=1))] = np.inf
    return np.take_along_axis(columns_MC, np.argsort(exact, axis=1, kind="stable"), axis=1)
