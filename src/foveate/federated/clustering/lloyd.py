"""k-means: starts (random rows, k-means++), Lloyd's steps with weights, and the spherical form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foveate.federated.clustering.distances import Floats, Labels, nearest, squared, sums

MOST_STEPS = 300


@dataclass(frozen=True)
class Clustering:
    """Where Lloyd's steps ended.

    Attributes:
        centres: [K, D]; a cluster that became empty has the centre it had before. labels: [N], the nearest centre.
        weights: [K], points (or their weight) of each. inertia: weighted sum of squared distances.
        steps: updates of the centres. converged: labels no longer changed.
    """

    centres: Floats
    labels: Labels
    weights: Floats
    inertia: float
    steps: int
    converged: bool


def unit(points_ND: Floats) -> Floats:
    """Rows scaled to length 1; a zero row stays zero."""
    return points_ND / np.maximum(np.linalg.norm(points_ND, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def lloyd(
    points_ND: Floats,
    centres_KD: Floats,
    *,
    weight_N: Floats | None = None,
    most_steps: int = MOST_STEPS,
    spherical: bool = False,
) -> Clustering:
    """Lloyd's algorithm from given centres until no label changes.

    Ties go to the lower index; an empty cluster keeps its centre. `spherical`: points and centres have length 1, so
    that the nearest centre is that of the largest cosine; centres are scaled to length 1 after each step.
    """
    centres = unit(centres_KD) if spherical else centres_KD.astype(np.float64)
    labels, best_N = nearest(points_ND, centres)
    steps, converged = 0, False
    while steps < most_steps and not converged:
        total_KD, weight_K = sums(points_ND, labels, len(centres), weight_N)
        filled = weight_K > 0
        centres = centres.copy()
        centres[filled] = total_KD[filled] / weight_K[filled, None]
        if spherical:
            centres[filled] = unit(centres[filled])
        steps += 1
        before = labels
        labels, best_N = nearest(points_ND, centres)
        converged = bool((labels == before).all())
    weight_K = np.bincount(labels, weights=weight_N, minlength=len(centres)).astype(np.float64)
    inertia = float(best_N.sum() if weight_N is None else weight_N @ best_N)
    return Clustering(centres, labels, weight_K, inertia, steps, converged)


def random_rows(points_ND: Floats, clusters: int, rng: np.random.Generator) -> Floats:
    """That many distinct rows as centres; fewer where the data have fewer distinct rows."""
    chosen = points_ND[rng.choice(len(points_ND), size=min(clusters, len(points_ND)), replace=False)]
    if len(np.unique(chosen, axis=0)) == clusters:
        return chosen
    rows = np.unique(points_ND, axis=0)
    return rows[rng.permutation(len(rows))[:clusters]]


def plus_plus(points_ND: Floats, clusters: int, rng: np.random.Generator, *, weight_N: Floats | None = None) -> Floats:
    """k-means++ (Arthur and Vassilvitskii 2007), greedy: of 2 + log(K) drawn rows the one that lowers the sum most.

    Stops with fewer centres where every row has one already.
    """
    weights = np.ones(len(points_ND)) if weight_N is None else weight_N
    tries = 2 + int(np.log(max(1, clusters)))
    chosen = [int(_draw(weights, 1, rng)[0])]
    best_N = squared(points_ND, points_ND[chosen])[0]
    while len(chosen) < clusters:
        mass_N = best_N * weights
        if not mass_N.sum() > 0:
            break
        drawn = _draw(mass_N, tries, rng)
        table_TN = np.minimum(best_N, squared(points_ND, points_ND[drawn]))
        winner = int((table_TN @ weights).argmin())
        best_N = table_TN[winner]
        chosen.append(int(drawn[winner]))
    return points_ND[chosen]


def _draw(mass_N: Floats, count: int, rng: np.random.Generator) -> Labels:
    """Rows drawn with probability proportional to their mass; never one without mass."""
    total_N = np.cumsum(mass_N)
    drawn = np.searchsorted(total_N, rng.random(count) * total_N[-1], side="right")
    return np.minimum(drawn, np.flatnonzero(mass_N)[-1])


def weighted_kmeans(
    points_ND: Floats,
    clusters: int,
    rng: np.random.Generator,
    *,
    restarts: int,
    weight_N: Floats | None = None,
    most_steps: int = MOST_STEPS,
) -> Clustering | None:
    """The best of several k-means++ starts, each followed by Lloyd; None where there are fewer distinct rows."""
    found: Clustering | None = None
    for _ in range(restarts):
        start = plus_plus(points_ND, clusters, rng, weight_N=weight_N)
        if len(start) < clusters:
            return None
        run = lloyd(points_ND, start, weight_N=weight_N, most_steps=most_steps)
        if found is None or run.inertia < found.inertia:
            found = run
    return found
