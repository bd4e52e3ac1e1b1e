"""k-means: initial centers (random rows, k-means++), and Lloyd's steps with weights, also on directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.federated.clustering.distances import (
    FAST_CELLS,
    FEW,
    ROUNDING,
    Floats,
    Labels,
    blocks,
    margins,
    squared,
    squared_to,
    sums,
)

# Relative; sums by inner products that are closer than this are decided by differences.
_NEAR_TIE = 1e-8


def random_rows(points_ND: Floats, clusters: int, rng: np.random.Generator) -> Floats:
    """Draw distinct rows as centers; fewer if the data have fewer distinct rows."""
    picked = points_ND[rng.choice(len(points_ND), size=min(clusters, len(points_ND)), replace=False)]
    # Rows may repeat in the data; only then the sort over all rows is needed.
    if len(np.unique(picked, axis=0)) == clusters:
        return picked
    rows = np.unique(points_ND, axis=0)
    return rows[rng.permutation(len(rows))[:clusters]]


def plus_plus(points_ND: Floats, clusters: int, rng: np.random.Generator, *, weight_N: Floats | None = None) -> Floats:
    """k-means++ (Arthur and Vassilvitskii 2007), greedy: of 2 + log(K) drawn rows the one that lowers the sum most.

    Stops with fewer centers where every row has one already.
    """
    weights = np.ones(len(points_ND)) if weight_N is None else weight_N
    # scikit-learn takes as many candidates per center.
    tries = 2 + int(np.log(max(1, clusters)))
    picked = [int(_draw(weights, np.cumsum(weights), 1, rng)[0])]
    nearest = (_ByDifferences if points_ND.shape[1] <= FEW else _ByProducts)(points_ND, weights, picked[0])
    while len(picked) < clusters:
        mass_N = nearest.best_N if weight_N is None else nearest.best_N * weights
        # "right": a row without mass has the running total of the row before it, and is skipped.
        total_N = np.cumsum(mass_N)
        # Every row has a center already: the data have fewer distinct rows than clusters.
        if not total_N[-1] > 0:
            break
        picked.append(nearest.add_best_of(_draw(mass_N, total_N, tries, rng)))
    return points_ND[picked]


def _draw(mass_N: Floats, total_N: Floats, count: int, rng: np.random.Generator) -> Labels:
    """Rows drawn with probability proportional to their mass, whose running total is given; never one without mass."""
    drawn = np.searchsorted(total_N, rng.random(count) * total_N[-1], side="right")
    if drawn.max() == len(mass_N):  # totals that are infinite, or hardly above 0
        drawn = np.minimum(drawn, np.flatnonzero(mass_N)[-1])
    return drawn


class _ByDifferences:
    """Squared distances of all points to the nearest chosen row, `best_N`."""

    def __init__(self, points_ND: Floats, weight_N: Floats, first: int) -> None:
        self._points_ND, self._weight_N = points_ND, weight_N
        self.best_N = np.full(len(points_ND), np.inf)
        self.best_N = self._table(np.array([first]))[0]

    def add_best_of(self, drawn_T: Labels) -> int:
        """Adds the row whose weighted sum of squared distances is lowest, the first of equal ones; returns it."""
        table_TN = self._table(drawn_T)
        winner = int((table_TN @ self._weight_N).argmin())
        self.best_N = table_TN[winner]
        return int(drawn_T[winner])

    def _table(self, drawn_T: Labels) -> Floats:
        """`best_N` as each of these rows would leave it."""
        table_TN = np.empty((len(drawn_T), len(self._points_ND)))
        centers_TD = self._points_ND[drawn_T]
        for block in blocks(len(self._points_ND), max(centers_TD.shape), cells=FAST_CELLS):
            found_TB = squared(self._points_ND[block], centers_TD)
            np.minimum(self.best_N[block], found_TB, out=table_TN[:, block])
        return table_TN


class _ByProducts(_ByDifferences):
    """The same distances, bit for bit, computed faster in many dimensions.

    Inner products find the row that wins and the points that it changes; differences are then computed only for these
    points, or for all points if two rows are too close to call.
    """

    def __init__(self, points_ND: Floats, weight_N: Floats, first: int) -> None:
        super().__init__(points_ND, weight_N, first)
        # Centered first: inner products of points far from zero lose all digits of small distances.
        self._offset_D = points_ND.mean(0)
        self._length_N = np.empty(len(points_ND))
        for block in self._blocks(1):
            shifted_BD = points_ND[block] - self._offset_D
            self._length_N[block] = np.einsum("bd,bd->b", shifted_BD, shifted_BD)

    def add_best_of(self, drawn_T: Labels) -> int:
        """Add the best row, see `_ByDifferences.add_best_of`."""
        near_TN, total_T, rounding = self._guess(drawn_T)
        winner = int(total_T.argmin())
        # Negated, so that NaN counts as a rival.
        rivals_T = drawn_T[~(total_T > total_T[winner] * (1 + _NEAR_TIE) + rounding)]
        if (rivals_T != drawn_T[winner]).any():
            return super().add_best_of(drawn_T)
        chosen_D = self._points_ND[drawn_T[winner]]
        rows_R = np.flatnonzero(near_TN[winner])
        for block in blocks(len(rows_R), len(chosen_D), cells=FAST_CELLS):
            rows_B = rows_R[block]
            found_B = squared(self._points_ND[rows_B], chosen_D[None])[0]
            self.best_N[rows_B] = np.minimum(self.best_N[rows_B], found_B)
        return int(drawn_T[winner])

    def _guess(self, drawn_T: Labels) -> tuple[np.ndarray, Floats, float]:
        """Points that may be nearer to each row than to all chosen ones [T, N]; weighted sums [T]; their rounding."""
        moved_TD = self._points_ND[drawn_T] - self._offset_D
        length_T = self._length_N[drawn_T]
        near_TN = np.empty((len(drawn_T), len(self._points_ND)), dtype=bool)
        total_T = np.zeros(len(drawn_T))
        for block in self._blocks(len(drawn_T)):
            best_B, length_B, weight_B = self.best_N[block], self._length_N[block], self._weight_N[block]
            guess_TB = moved_TD @ (self._points_ND[block] - self._offset_D).T
            guess_TB *= -2.0
            guess_TB += length_B
            guess_TB += length_T[:, None]
            # Rounding may only add points to those that are compared exactly, never hide one.
            slack_B = ROUNDING * (length_B + length_T.max())
            np.less(guess_TB, best_B + slack_B, out=near_TN[:, block])
            np.minimum(guess_TB, best_B, out=guess_TB)
            total_T += guess_TB @ weight_B
        rounding = 2 * ROUNDING * float(self._weight_N @ self._length_N + self._weight_N.sum() * length_T.max())
        return near_TN, total_T, rounding

    def _blocks(self, tries: int):
        return blocks(len(self._points_ND), max(tries, self._points_ND.shape[1]), cells=FAST_CELLS)


MAX_STEPS = 300
_ADDING = 1e-11  # relative; 300 float64 additions are wrong by at most 7e-14, so this has room to spare


@dataclass(frozen=True)
class Clustering:
    """Result of Lloyd's algorithm.

    Attributes:
        centers: [K, D]; a cluster that became empty has the center it had before.
        labels: [N], nearest center.
        weights: [K], points (or their weight) of each.
        inertia: weighted sum of squared distances.
        steps: updates of the centers.
        converged: labels no longer changed.
    """

    centers: Floats
    labels: Labels
    weights: Floats
    inertia: float
    steps: int
    converged: bool


def unit(points_ND: Floats) -> Floats:
    """Scale rows to length 1; a zero row stays zero."""
    # The smallest normal float: it turns 0 / 0 into 0 and changes no other row.
    return points_ND / np.maximum(np.linalg.norm(points_ND, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def lloyd(
    points_ND: Floats,
    centers_KD: Floats,
    *,
    weight_N: Floats | None = None,
    max_steps: int = MAX_STEPS,
    spherical: bool = False,
) -> Clustering:
    """Lloyd's algorithm from given centers until no label changes.

    Ties go to the lower index; an empty cluster keeps its center. `spherical`: points and centers have length 1, so
    that the nearest center is that of the largest cosine; centers are scaled to length 1 after each step.
    """
    centers = unit(centers_KD) if spherical else centers_KD.astype(np.float64)
    nearest = _Nearest(points_ND, centers)
    steps, converged = 0, False
    total_KD, changed_K = np.zeros_like(centers), np.ones(len(centers), dtype=bool)
    while steps < max_steps and not converged:
        # Only sums of clusters that lost or won points are added up anew; the others are those of the step before.
        anew_KD, weight_K = sums(points_ND, nearest.label_N, len(centers), weight_N, only_K=changed_K)
        total_KD[changed_K] = anew_KD[changed_K]
        filled = weight_K > 0
        before, centers = centers, centers.copy()
        # An empty cluster keeps its center; it is not moved to a far point, as other implementations do.
        centers[filled] = total_KD[filled] / weight_K[filled, None]
        if spherical:
            centers[filled] = unit(centers[filled])
        steps += 1
        changed_K = nearest.follow(before, centers)
        converged = not changed_K.any()
    weight_K = np.bincount(nearest.label_N, weights=weight_N, minlength=len(centers)).astype(np.float64)
    best_N = squared_to(points_ND, centers, nearest.label_N)
    inertia = float(best_N.sum() if weight_N is None else weight_N @ best_N)
    return Clustering(centers, nearest.label_N, weight_K, inertia, steps, converged)


class _Nearest:
    """The nearest center of every point while centers move; only points whose center may change are compared again.

    A point keeps its center until this one and the fastest other one together have moved as far as the second nearest
    was farther away (Hamerly, "Making k-means even faster", 2010). What they moved is added up for each cluster, so
    that a step costs one comparison a point. Labels are those of `nearest`, ties included.

    Attributes:
        label_N: [N], the nearest center.
    """

    def __init__(self, points_ND: Floats, centers_KD: Floats) -> None:
        self._points_ND = points_ND
        self._moved_K = np.zeros(len(centers_KD))
        self.label_N, self._until_N = margins(points_ND, centers_KD)

    def follow(self, before_KD: Floats, centers_KD: Floats) -> NDArray[np.bool_]:
        """Update labels for new centers; return which clusters lost or won points, [K]."""
        moved_K = np.sqrt(((centers_KD - before_KD) ** 2).sum(1))
        self._moved_K += moved_K + _largest_other(moved_K)
        # Rounded up: rounding may only cause a comparison too many, never a missed change of label.
        reached_K = self._moved_K * (1 + _ADDING)
        # `not >` instead of `<=`: points with NaN are compared in every step.
        rows_R = np.flatnonzero(~(self._until_N > reached_K[self.label_N]))
        # If most points must be compared, copying their rows costs more than comparing all points.
        everywhere = 2 * len(rows_R) > len(self.label_N)
        label_R, margin_R = margins(self._points_ND, centers_KD, None if everywhere else rows_R)
        rows = slice(None) if everywhere else rows_R
        before_R = self.label_N[rows]
        other_R = before_R != label_R
        changed_K = np.zeros(len(moved_K), dtype=bool)
        changed_K[before_R[other_R]] = changed_K[label_R[other_R]] = True
        self.label_N[rows] = label_R
        # `_moved_K` is a running total, so a new margin counts from what its cluster has moved so far.
        self._until_N[rows] = margin_R + self._moved_K[label_R]
        return changed_K


def _largest_other(values_K: Floats) -> Floats:
    """For each value the largest of the others; 0 if there is no other."""
    largest_K = np.zeros(len(values_K))
    if len(values_K) > 1:
        order_K = values_K.argsort()
        largest_K[:] = values_K[order_K[-1]]
        largest_K[order_K[-1]] = values_K[order_K[-2]]
    return largest_K


def weighted_kmeans(
    points_ND: Floats,
    clusters: int,
    rng: np.random.Generator,
    *,
    restarts: int,
    weight_N: Floats | None = None,
    max_steps: int = MAX_STEPS,
) -> Clustering | None:
    """Return the best of several k-means++ starts, each followed by Lloyd; None with fewer distinct rows."""
    best: Clustering | None = None
    for _ in range(restarts):
        start = plus_plus(points_ND, clusters, rng, weight_N=weight_N)
        if len(start) < clusters:
            return None
        run = lloyd(points_ND, start, weight_N=weight_N, max_steps=max_steps)
        # Strictly smaller: of equal runs the first wins, so that the result does not hang on how many follow.
        if best is None or run.inertia < best.inertia:
            best = run
    return best
