"""Exact nearest neighbours: every point's k nearest others, ties to the lower index, in blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.settings.errors import UserError

Array = NDArray[np.float64]
# Distances held at once: 4 million float64 numbers are 32 MB.
_DISTANCES_PER_BLOCK = 4_000_000


def as_points(points_ND: ArrayLike, *, what: str = "points") -> Array:
    """Points as a float64 matrix.

    Raises:
        UserError: for another shape, or NaN and infinite values.
    """
    try:
        points = np.asarray(points_ND, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} are no matrix of numbers ({error})") from None
    if points.ndim != 2 or points.shape[1] < 1:
        raise UserError(f"{what} are [points, features], not {list(points.shape)}")
    if not np.isfinite(points).all():
        raise UserError(f"{what}: row {int(np.argwhere(~np.isfinite(points))[0][0])} holds NaN or infinity")
    return points


def squared_distances(points_MD: Array, others_ND: Array) -> Array:
    """Squared Euclidean distances [M, N] by |a|^2 + |b|^2 - 2ab; never negative. Centre the points beforehand."""
    squares = (points_MD**2).sum(axis=1)[:, None] + (others_ND**2).sum(axis=1)
    return np.maximum(squares - 2 * (points_MD @ others_ND.T), 0.0)


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows such that a block of distances stays small."""
    size = max(1, _DISTANCES_PER_BLOCK // max(1, columns))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def nearest(points_ND: ArrayLike, k: int, *, queries_MD: ArrayLike | None = None) -> NDArray[np.int64]:
    """Indices [N, k] of the k nearest *other* points of each point, nearest first; ties go to the lower index.

    A point itself is left out by its index, not by its distance of 0: an exact copy of it stays a neighbour.

    Args:
        queries_MD: other points; then [M, k], and nothing is left out.

    Raises:
        UserError: when there are not k of them.
    """
    points = as_points(points_ND)
    queries = points if queries_MD is None else as_points(queries_MD, what="queries")
    available = len(points) - (queries_MD is None)
    if not 1 <= k <= available:
        raise UserError(f"{k} neighbours: allowed are 1 to {available} with {len(points)} points")
    if queries.shape[1] != points.shape[1]:
        raise UserError(f"queries have {queries.shape[1]} features, the points {points.shape[1]}")
    centre = points.mean(axis=0)
    points, queries = points - centre, queries - centre
    found = np.empty((len(queries), k), dtype=np.int64)
    for part in blocks(len(queries), len(points)):
        distances = squared_distances(queries[part], points)
        if queries_MD is None:
            rows = np.arange(part.start, part.stop)
            distances[rows - part.start, rows] = np.inf
        found[part] = _smallest(distances, k)
    return found


def _smallest(values_MN: Array, k: int) -> NDArray[np.int64]:
    """Columns of the k smallest values of each row, ascending, ties by lower column."""
    if k >= values_MN.shape[1]:
        return np.argsort(values_MN, axis=1, kind="stable")[:, :k]
    chosen = np.sort(np.argpartition(values_MN, k - 1, axis=1)[:, :k], axis=1)
    held = np.take_along_axis(values_MN, chosen, axis=1)
    found = np.take_along_axis(chosen, np.argsort(held, axis=1, kind="stable"), axis=1)
    # Where more values equal the k-th than have room, the partition chose among them at will.
    crowded = np.flatnonzero((values_MN <= held.max(axis=1, keepdims=True)).sum(axis=1) > k)
    for row in crowded:
        found[row] = np.argsort(values_MN[row], kind="stable")[:k]
    return found
