"""Distances between points and centres, in blocks: no table of all of them is ever held.

With few dimensions differences are squared and added. With many, inner products of centred points are used, which is
many times faster; where that leaves two centres too close to call, the differences decide, so that ties always go to
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
FEW = 8
_TOO_CLOSE = 1e-10


def blocks(rows: int, columns: int, *, cells: int = CELLS) -> Iterator[slice]:
    """Consecutive slices of `rows` whose tables with `columns` columns have about `cells` cells."""
    step = max(1, cells // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def squared(points_BD: Floats, centres_KD: Floats) -> Floats:
    """Squared distances [K, B], by differences; exact zeros for equal rows."""
    if points_BD.shape[1] <= FEW:
        found = np.zeros((len(centres_KD), len(points_BD)))
        for column in range(points_BD.shape[1]):
            gap = centres_KD[:, column, None] - points_BD[None, :, column]
            found += gap * gap
        return found
    return np.stack([((points_BD - centre) ** 2).sum(1) for centre in centres_KD])


def distances(left_AD: Floats, right_BD: Floats) -> Floats:
    """Euclidean distances [A, B]. With many dimensions by inner products; pairs are then right to about 1e-8 of the
    largest distance to the mean of B.
    """
    if left_AD.shape[1] <= FEW:
        return np.sqrt(squared(right_BD, left_AD))
    offset_D = right_BD.mean(0)
    left_AD, right_BD = left_AD - offset_D, right_BD - offset_D
    found = -2.0 * (left_AD @ right_BD.T)
    found += (left_AD**2).sum(1)[:, None]
    found += (right_BD**2).sum(1)[None]
    return np.sqrt(np.maximum(found, 0.0, out=found), out=found)


def nearest(points_ND: Floats, centres_KD: Floats) -> tuple[Labels, Floats]:
    """The nearest centre of every point, ties to the lower index, and the squared distance to it; each [N]."""
    label_N = np.empty(len(points_ND), dtype=np.int64)
    best_N = np.empty(len(points_ND))
    few = points_ND.shape[1] <= FEW
    offset_D = centres_KD.mean(0)
    moved_KD = centres_KD - offset_D
    half_K = (moved_KD**2).sum(1) / 2
    for place in blocks(len(points_ND), max(len(centres_KD), points_ND.shape[1])):
        part_BD = points_ND[place]
        if few:
            label_N[place], best_N[place], _ = _smallest(squared(part_BD, centres_KD))
            continue
        shifted_BD = part_BD - offset_D
        label_B, score_B, second_B = _smallest(half_K[:, None] - moved_KD @ shifted_BD.T)
        scale_B = (shifted_BD**2).sum(1) + 2 * half_K.max()
        close = np.flatnonzero(~(second_B - score_B > _TOO_CLOSE * scale_B))
        if len(close):
            label_B[close] = _smallest(squared(part_BD[close], centres_KD))[0]
        label_N[place] = label_B
        best_N[place] = ((part_BD - centres_KD[label_B]) ** 2).sum(1)
    return label_N, best_N


def _smallest(table_KB: Floats) -> tuple[Labels, Floats, Floats]:
    """For each column the row of its smallest cell (the first of equal ones), that cell, and the second smallest."""
    label_B = np.zeros(table_KB.shape[1], dtype=np.int64)
    best_B = table_KB[0].copy()
    second_B = np.full(table_KB.shape[1], np.inf)
    for row in range(1, len(table_KB)):
        here_B = table_KB[row]
        nearer_B = here_B < best_B
        np.minimum(second_B, np.maximum(here_B, best_B), out=second_B)
        label_B[nearer_B] = row
        np.minimum(best_B, here_B, out=best_B)
    return label_B, best_B, second_B


def sums(points_ND: Floats, label_N: Labels, groups: int, weight_N: Floats | None = None) -> tuple[Floats, Floats]:
    """Weighted sums [groups, D] and weights [groups] of the points of each group."""
    weights = np.ones(len(label_N)) if weight_N is None else weight_N
    pick = csr_matrix((weights, label_N, np.arange(len(label_N) + 1)), shape=(len(label_N), groups))
    return np.asarray(pick.T @ points_ND), np.bincount(label_N, weights=weight_N, minlength=groups).astype(np.float64)


def closest_pair(centres_KD: Floats) -> tuple[int, int, float]:
    """The two centres nearest to each other (the lower pair of equally near ones) and their distance; at least two."""
    distance_KK = np.sqrt(squared(centres_KD, centres_KD))
    rows, columns = np.triu_indices(len(centres_KD), k=1)
    at = int(distance_KK[rows, columns].argmin())
    return int(rows[at]), int(columns[at]), float(distance_KK[rows[at], columns[at]])
