"""Centroids of all clients in one table, and their groups: a seed and all that lies within its radius.

Ties go by coordinates, so that the order of clients and of their centroids does not matter. `search` tries 48 radii for
the one that best separates the K-th group from the next. It computes distances twice, in blocks: for the range of
radii, and to find for each pair the radius at which the two become neighbors (one byte). The heaviest groups come first
and supports fall, so K + 1 groups are enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foveate.core.errors import UserError
from foveate.federated.clustering.distances import Floats, Labels, blocks, distances, within


class TooFewGroupsError(UserError):
    """Fewer groups than clusters; `groups` is their number."""

    def __init__(self, message: str, *, groups: int) -> None:
        super().__init__(message)
        self.groups = groups


@dataclass(frozen=True)
class CentroidPool:
    """Centroids of all clients together.

    Attributes:
        centers: [Q, D].
        counts: [Q], points of each; ones where clients do not report them (`counted` is then False).
        trusted: [Q], whether its client trusts it.
        client: [Q], number of its client.
        counted: counts were sent.
    """

    centers: Floats
    counts: Floats
    trusted: np.ndarray
    client: Labels
    counted: bool = True

    def __len__(self) -> int:
        return len(self.centers)

    def take(self, rows: np.ndarray) -> CentroidPool:
        """Select rows."""
        return CentroidPool(self.centers[rows], self.counts[rows], self.trusted[rows], self.client[rows], self.counted)

    def sorted(self) -> CentroidPool:
        """Sort rows by their coordinates, so that no result depends on who answered first."""
        return self.take(lexicographic(self.centers))

    def distinct(self) -> int:
        """Number of distinct centers."""
        return len(np.unique(self.centers, axis=0))

    def need(self, clusters: int) -> None:
        """Raise TooFewGroupsError if there are fewer distinct centers than clusters."""
        groups = self.distinct()
        if groups < clusters:
            raise TooFewGroupsError(
                f"clusters must be at most {groups}, the number of distinct centroids of all clients (got {clusters}); "
                "use fewer clusters, or more centroids per client",
                groups=groups,
            )


def lexicographic(centers_QD: Floats) -> Labels:
    """Order of rows by their first coordinate, then the second, and so on."""
    # Reversed, because `lexsort` sorts by its last key first.
    return np.lexsort(centers_QD.T[::-1])


SEED_RULES = ("largest_radius", "most_neighbors", "most_mass")
RADIUS_RULES = ("half_min_distance", "max_over_clients", "quantile", "fused", "k_aware")
QUANTILE = 0.75


@dataclass(frozen=True)
class Groups:
    """Groups by falling support; of equal ones the first formed.

    Attributes:
        members: row numbers of the pool, ascending. supports: number of centroids, or the sum of their counts.
    """

    members: list[Labels]
    supports: Floats


def group(centers_QD: Floats, radius_Q: Floats, counts_Q: Floats, *, seeds: str) -> Groups:
    """Form all groups of a pool.

    Args:
        radius_Q: of each centroid; a neighbor is at most that far from the seed, and the seed always belongs.
        seeds: "largest_radius" (ties: more remaining neighbors), "most_neighbors" or "most_mass" (sum of counts);
            the rest of ties goes to the smallest coordinates.
    """
    # By coordinates, so that ties do not depend on the order of clients.
    order = lexicographic(centers_QD)
    centers, radius = centers_QD[order], radius_Q[order]
    weight = counts_Q[order] if seeds == "most_mass" else np.ones(len(order))
    alive = np.ones(len(order), dtype=bool)
    # Compute the mass within the radius of each centroid once; each later group only subtracts its own members.
    mass = np.empty(len(order))
    for block in blocks(len(order), len(order)):
        mass[block] = within(centers[block], centers, radius[block]) @ weight
    member_lists: list[Labels] = []
    supports: list[float] = []
    while alive.any():
        score = mass
        if seeds == "largest_radius":
            score = np.where(radius == radius[alive].max(), mass, -np.inf)
        # `argmax` takes the first of equal scores, the one with the smallest coordinates.
        seed = int(np.where(alive, score, -np.inf).argmax())
        inside = alive & within(centers[seed : seed + 1], centers, radius[seed : seed + 1])[0]
        # Always, also where squares of huge coordinates overflow: without its seed the loop would not end.
        inside[seed] = True
        members = np.flatnonzero(inside)
        member_lists.append(np.sort(order[members]))
        supports.append(float(weight[members].sum()))
        alive &= ~inside
        left = np.flatnonzero(alive)
        for block in blocks(len(left), len(members)):
            rows = left[block]
            near = within(centers[rows], centers[members], radius[rows])
            mass[rows] -= near @ weight[members]
    # Stable: of equally supported groups the one formed earlier stays in front.
    by_support = np.argsort(-np.array(supports), kind="stable")
    return Groups([member_lists[number] for number in by_support], np.array(supports)[by_support])


def group_means(centers_QD: Floats, counts_Q: Floats, groups: Groups, clusters: int, *, weighted: bool) -> Floats:
    """Means of the first groups, [clusters, D]."""
    weights = counts_Q if weighted else np.ones(len(counts_Q))
    first = groups.members[:clusters]
    return np.array([weights[rows] @ centers_QD[rows] / weights[rows].sum() for rows in first])


def need_groups(groups: Groups, clusters: int, radius: str) -> None:
    """Raise TooFewGroupsError if there are fewer groups than clusters."""
    if len(groups.members) < clusters:
        raise TooFewGroupsError(
            f"the server formed {len(groups.members)} groups for {clusters} clusters with radius {radius}; "
            "use a smaller radius, fewer clusters or the method 'consensus'",
            groups=len(groups.members),
        )


def radius_of_centroids(
    pool: CentroidPool, radius_of_client: dict[int, float], rule: str, *, quantile: float
) -> Floats:
    """Return the radius of each centroid from those of the clients, [Q].

    A client whose radius is undefined (NaN: fewer than two working centers) gets the median of the defined ones. Where
    there is none, nothing says that two centroids are of different groups, and radii are infinite.
    """
    radii = np.array(list(radius_of_client.values()))
    defined = radii[~np.isnan(radii)]
    if rule == "max_over_clients":
        return np.full(len(pool), defined.max() if len(defined) else np.inf)
    if rule == "quantile":
        return np.full(len(pool), np.quantile(defined, quantile) if len(defined) else np.inf)
    instead = float(np.median(defined)) if len(defined) else np.inf
    filled = {number: instead if np.isnan(radius) else radius for number, radius in radius_of_client.items()}
    return np.array([filled[int(number)] for number in pool.client])


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

    def centers(self, pool: CentroidPool) -> Floats:
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


def search(pool: CentroidPool, clusters: int) -> list[RadiusGroups]:
    """Find the radii that give at least `clusters` groups, best first (ties: the smaller radius).

    Stops at the first radius with fewer groups. Seeds are those of most mass; ties go to the lower row, so the pool is
    sorted first (`CentroidPool.sorted`).
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


def _reached(pool: CentroidPool, radii: Floats) -> tuple[np.ndarray, Floats]:
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
        # Inner products leave a tiny distance between a center and itself, which must not count at any radius.
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
