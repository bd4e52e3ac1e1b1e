"""k-means: Lloyd's steps with weights, their spherical form, and the best of several k-means++ starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.federated.clustering.distances import Floats, Labels, margins, squared_to, sums
from foveate.federated.clustering.starts import plus_plus

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
