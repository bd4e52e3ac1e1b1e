"""`consensus`: Foveate's own server step, not that of the FeCA paper.

Candidates come from radii that fit the number of clusters, on all centroids and on those that clients trust, and from
weighted k-means++; weighted Lloyd improves each on all centroids, the smallest weighted sum of squares wins, and one
last step looks at trusted centroids only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foveate.core.errors import UserError
from foveate.federated.clustering.distances import Floats, nearest, sums
from foveate.federated.clustering.grouping import group
from foveate.federated.clustering.lloyd import lloyd
from foveate.federated.clustering.pool import Pool
from foveate.federated.clustering.radius_search import BEST, search
from foveate.federated.clustering.starts import plus_plus

MAX_STEPS = 100
# Relative: far above the rounding of a weighted sum of squares, far below any difference that matters.
TIE = 1e-12


@dataclass(frozen=True)
class Merged:
    """Centers that a server merged from a pool.

    Attributes:
        centers: [K, D].
        report: how they were obtained, as plain values for result.json.

    Raises:
        UserError: a center that is not finite.
    """

    centers: Floats
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not np.isfinite(self.centers).all():
            raise UserError("the clients' centroids have no finite means: their values are too large to be merged")


def consensus(pool: Pool, clusters: int, rng: np.random.Generator, *, restarts: int) -> Merged:
    """Merge a pool into K centers; the order of its rows does not matter.

    Args:
        restarts: weighted k-means++ starts, from `rng`; 0 makes the server deterministic.

    Raises:
        TooFewGroupsError: fewer distinct centroids than clusters.
    """
    pool.need(clusters)
    # Sorted, so that the random starts do not depend on the order of clients.
    pool = pool.sorted()
    candidates: list[tuple[str, float, float, Floats]] = []
    parts: dict[str, Pool] = {}
    for name, part in (("all centroids", pool), ("trusted centroids", pool.take(pool.trusted))):
        parts[name] = part
        tried = search(part, clusters) if len(part) else []
        # Try several radii: the score of a radius does not predict the sum of squares that Lloyd reaches from it.
        candidates += [(name, groups.radius, groups.score, groups.centers(part)) for groups in tried[:BEST]]
    if not candidates:
        candidates.append(("coinciding centroids", 0.0, 0.0, coinciding_centers(pool, clusters)[0]))
    best_start: tuple[float, Floats] | None = None
    for _ in range(restarts):
        start = plus_plus(pool.centers, clusters, rng, weight_N=pool.counts)
        run = lloyd(pool.centers, start, weight_N=pool.counts, max_steps=MAX_STEPS)
        if best_start is None or run.inertia < best_start[0]:
            best_start = (run.inertia, start)
    if best_start is not None:
        # Only the best start joins the candidates: the others cannot win from the same sum of squares.
        candidates.append(("weighted k-means++", float("nan"), float("nan"), best_start[1]))
    best, winner = None, 0
    errors = []
    for number, (_, _, _, start) in enumerate(candidates):
        # Every candidate ends in the same refinement on all centroids, so that their sums of squares can be compared.
        run = lloyd(pool.centers, start, weight_N=pool.counts, max_steps=MAX_STEPS)
        errors.append(run.inertia)
        # A candidate must be better by more than rounding; else an earlier one stays, and the result is the same on
        # every machine.
        if best is None or run.inertia < best.inertia * (1 - TIE):
            best, winner = run, number
    assert best is not None
    source, radius, score, _ = candidates[winner]
    report = {
        "candidates": [
            {"from": name, "radius": _plain(r), "score": _plain(s), "weighted_sse": error}
            for (name, r, s, _), error in zip(candidates, errors, strict=True)
        ],
        "chosen": source,
        "radius": _plain(radius),
        "score": _plain(score),
        "weighted_sse": best.inertia,
        **_groups(parts.get(source), radius, clusters),
    }
    # The step onto trusted centroids comes last: the candidates are compared on what all clients sent.
    return Merged(onto_trusted(pool, best.centers), report)


def _groups(part: Pool | None, radius: float, clusters: int) -> dict[str, Any]:
    """Summarize the groups that the winning candidate began with: number, points in the K heaviest and in the others.

    None if it did not come from a radius: k-means++ has no groups, and rejects none.
    """
    if part is None:
        return {"groups": None, "supports": None, "rejected_supports": None}
    # Grouped again, because the search stops at K + 1 groups and the report counts all.
    groups = group(part.centers, np.full(len(part), radius), part.counts, seeds="most_mass")
    supports = groups.supports.tolist()
    return {"groups": len(supports), "supports": supports[:clusters], "rejected_supports": supports[clusters:]}


def _plain(value: float) -> float | None:
    # NaN is not JSON; candidates without a radius have no value here.
    return None if np.isnan(value) else value


def coinciding_centers(pool: Pool, clusters: int) -> tuple[Floats, Floats]:
    """Return the K centers on which most points coincide, and their masses: the groups of radius 0.

    For pools in which no radius of `search` gives enough groups.
    """
    rows, group_Q = np.unique(pool.centers, axis=0, return_inverse=True)
    mass = np.bincount(group_Q.ravel(), weights=pool.counts).astype(np.float64)
    # Stable: of equally heavy centers the first in coordinate order, on every machine.
    heaviest = np.argsort(-mass, kind="stable")[:clusters]
    return rows[heaviest], mass[heaviest]


def onto_trusted(pool: Pool, centers_KD: Floats) -> Floats:
    """Move each center to the weighted mean of the trusted centroids nearest to it.

    A center without any takes all centroids nearest to it, and stays where it is if there are none either.
    """
    label_Q, _ = nearest(pool.centers, centers_KD)
    centers = centers_KD.copy()
    # Trusted centroids only, where there are any: a doubted one lies between groups and would pull a center off.
    for rows in (np.arange(len(pool)), np.flatnonzero(pool.trusted)):  # the second overrides the first
        total_KD, weight_K = sums(pool.centers[rows], label_Q[rows], len(centers), pool.counts[rows])
        centers[weight_K > 0] = total_KD[weight_K > 0] / weight_K[weight_K > 0, None]
    return centers
