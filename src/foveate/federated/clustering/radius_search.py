"""Search 48 radii for the one that best separates the K-th group from the next.

Distances are computed twice, in blocks: once for the range of radii, once to find for each pair the radius at which
the two become neighbors (one byte). The heaviest groups come first and supports fall, so K + 1 groups are enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foveate.federated.clustering.distances import Floats, Labels, blocks, distances
from foveate.federated.clustering.pool import Pool

# Less than 256: `_reached` stores the number of a radius in one byte.
RADII = 48
BEST = 5
SMALLEST_QUANTILE = 0.002
SMALLEST_SHARE = 1e-3


@dataclass(frozen=True)
class RadiusGroups:
    """One radius: its score, and the first K groups (rows of the pool) with their supports.

    score = K (s_K - s_{K+1}) / (sum of all counts); between 0 and 1.
    """

    radius: float
    score: float
    members: list[Labels]
    supports: Floats
    rejected: float

    def centers(self, pool: Pool) -> Floats:
        """Count-weighted means of the groups, [K, D]."""
        counts = pool.counts
        return np.array([counts[rows] @ pool.centers[rows] / counts[rows].sum() for rows in self.members])


def radius_range(centers_QD: Floats) -> tuple[float, float]:
    """Smallest and largest radius to try; zeros with fewer than two centers.

    The smallest is the 0.2 % quantile of all distances, at least a thousandth of the largest one.
    """
    count = len(centers_QD)
    pairs = count * (count - 1) // 2
    if pairs == 0:
        return 0.0, 0.0
    position = SMALLEST_QUANTILE * (pairs - 1)
    rank = int(position)
    smallest, largest = np.zeros(0), 0.0
    for block in blocks(count, count):
        table = distances(centers_QD[block], centers_QD[block.start :])
        pair_distances = table[np.triu_indices(table.shape[0], k=1, m=table.shape[1])]
        if len(pair_distances):
            largest = max(largest, float(pair_distances.max()))
            smallest = np.concatenate([smallest, pair_distances])
        if len(smallest) > rank + 2:
            # Only the smallest rank + 2 distances can decide the quantile; the table of all pairs is never held.
            smallest = np.partition(smallest, rank + 1)[: rank + 2]
    smallest = np.sort(smallest)
    upper = smallest[min(rank + 1, len(smallest) - 1)]
    quantile = float(smallest[rank] + (position - rank) * (upper - smallest[rank]))
    return max(quantile, SMALLEST_SHARE * largest), largest


def search(pool: Pool, clusters: int) -> list[RadiusGroups]:
    """Find the radii that give at least `clusters` groups, best first (ties: the smaller radius).

    Stops at the first radius with fewer groups. Seeds are those of most mass; ties go to the lower row, so the pool is
    sorted first (`Pool.sorted`).
    """
    low, high = radius_range(pool.centers)
    if not high > 0:
        return []
    # Geometric: the scales of groups may differ by orders of magnitude.
    radii = np.geomspace(low, high, RADII)
    reached_QQ, mass_QR = _reached(pool, radii)
    total = float(pool.counts.sum())
    tried = []
    for number, radius in enumerate(radii):
        # One group more than asked: its support is what the K-th has to stand out from.
        members, supports = _heaviest(reached_QQ, number, mass_QR[:, number], pool.counts, clusters + 1)
        # Larger radii merge groups, so the search ends here.
        if len(members) < clusters:
            break
        following = float(supports[clusters]) if len(members) > clusters else 0.0
        score = clusters * (float(supports[clusters - 1]) - following) / total
        tried.append(RadiusGroups(float(radius), score, members[:clusters], supports[:clusters], following))
    return sorted(tried, key=lambda groups: (-groups.score, groups.radius))


def _reached(pool: Pool, radii: Floats) -> tuple[np.ndarray, Floats]:
    """For each pair the number of the first radius that joins them, uint8 [Q, Q]; and the mass within each radius of
    each center, [Q, radii].
    """
    count = len(pool)
    reached_QQ = np.empty((count, count), dtype=np.uint8)
    mass_QR = np.empty((count, len(radii)))
    for block in blocks(count, count):
        table = distances(pool.centers[block], pool.centers)
        # `geomspace` may end below the largest distance by rounding; the last radius joins every pair.
        number = np.minimum(np.searchsorted(radii, table.ravel()), len(radii) - 1).reshape(table.shape)
        number[np.arange(len(table)), np.arange(block.start, block.stop)] = 0
        reached_QQ[block] = number
        cell = number + (np.arange(len(table)) * len(radii))[:, None]
        weights = np.broadcast_to(pool.counts, table.shape)
        added = np.bincount(cell.ravel(), weights=weights.ravel(), minlength=len(table) * len(radii))
        mass_QR[block] = added.reshape(len(table), len(radii)).cumsum(1)
    return reached_QQ, mass_QR


def _heaviest(
    reached_QQ: np.ndarray, number: int, mass_Q: Floats, counts_Q: Floats, num_groups: int
) -> tuple[list[Labels], Floats]:
    """Form the first groups by most mass at one radius; return them with their supports, which never rise."""
    alive = np.ones(len(counts_Q), dtype=bool)
    mass = mass_Q.copy()
    members: list[Labels] = []
    supports: list[float] = []
    while alive.any() and len(members) < num_groups:
        seed = int(np.where(alive, mass, -np.inf).argmax())
        inside = np.flatnonzero(alive & (reached_QQ[seed] <= number))
        members.append(inside)
        supports.append(float(counts_Q[inside].sum()))
        alive[inside] = False
        left = np.flatnonzero(alive)
        for block in blocks(len(inside), len(left)):
            rows = inside[block]
            mass[left] -= counts_Q[rows] @ (reached_QQ[rows][:, left] <= number)
    return members, np.array(supports)
