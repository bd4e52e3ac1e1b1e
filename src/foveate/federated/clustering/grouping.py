"""Server grouping: a seed and all that lies within its radius are one group, until the pool is empty.

Rules for the next seed, ties by coordinates, so that the order of clients and of their centroids does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foveate.federated.clustering.distances import Floats, Labels, blocks, within
from foveate.federated.clustering.pool import Pool, TooFewGroupsError, lexicographic

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


def radius_of_centroids(pool: Pool, radius_of_client: dict[int, float], rule: str, *, quantile: float) -> Floats:
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
