"""Flag outlier clients from their centroids: a heuristic, not proof of an attack. Broken sensors and poison look alike.

Three signs, each against the median over clients, so they hold while most clients are honest:

- alone: its centroids are far from those of the nearest other client, or from those of half of the others (three
  poisoned clients may well agree with one another);
- far away: its centroids are far from the middle of all, or in a refinement its sums are far from the centers;
- heavy: it reports more points than all others together, or many times the median.

A client that alone has a group of points may be flagged as alone, too.

`root_mean_square` and the functions after it are the signs of one center for many clusters, and of many for one, in the
predecessor of FeCA, "A Geometric Approach to k-means" (arXiv 2201.04822); they are here to compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from foveate.federated.anomaly import MIN_CLIENTS, find_odd_sizes, find_outliers
from foveate.federated.clustering.distances import Floats, Labels, blocks, distances
from foveate.federated.clustering.grouping import CentroidPool
from foveate.federated.messages import Message

# Factors of the median distance, on top of the spread among clients; see `find_outliers`.
ALONE, FAR = 4.0, 6.0
SCALE_ALONE, WIDE, APART = 5.0, 20.0, 100.0
"""Ratios at which columns' magnitudes, groups' radii and centroids' distances are reported.

From the first a client is left out by default where spread, radii and `REACH` say the same.
"""
SPREAD_ALONE = 2.0
"""Ratio of radii below which another magnitude is another place and no other unit."""
MAX_SCALE = 1e6
"""No two units of a measurement in use are farther apart (nanogram and milligram, meter and micrometer)."""
REACH = 1.0
"""Smallest difference of a column that matters, in units of the other clients' whole spread."""


def find_suspects(pool: CentroidPool) -> dict[int, str]:
    """Reasons by suspected client; with fewer than four clients nothing is reported."""
    clients = np.unique(pool.client)
    if len(clients) < MIN_CLIENTS:
        return {}
    reasons: dict[int, list[str]] = {int(client): [] for client in clients}
    gap_2Q = _to_other_clients(pool, clients)
    # Two distances: poisoned clients that agree with one another are near to the nearest other client, but not to half
    # of them.
    for gap_Q, whom in zip(gap_2Q, ("every other client's", "those of half of the other clients"), strict=True):
        # Logarithms make "far" a factor that does not depend on the scale of the data. `tiny` avoids log(0) where
        # centroids coincide.
        gap_M = _by_client(pool, np.log(np.maximum(gap_Q, np.finfo(float).tiny)))
        for client, ratio in find_outliers(clients, gap_M, ALONE).items():
            reasons[client].append(f"its centroids are {ratio:.3g}x the median distance from {whom}")
    median_D = np.median(pool.centers, axis=0)
    away_M = _by_client(pool, np.log(np.maximum(distances(median_D[None], pool.centers)[0], np.finfo(float).tiny)))
    for client, ratio in find_outliers(clients, away_M, FAR).items():
        reasons[client].append(f"its centroids are {ratio:.3g}x the median distance from the middle of all")
    if pool.counted:
        for client, reason in find_odd_sizes(
            {int(client): pool.counts[pool.client == client].sum() for client in clients}
        ).items():
            reasons[client].append(reason)
    return {client: "; ".join(listed) for client, listed in reasons.items() if listed}


@dataclass(frozen=True)
class ColumnScales:
    """How one client's columns compare with those of all others, as factors [D]; 0 where they do not compare.

    Attributes:
        larger_D: the median of its centroids' absolute values over the largest 90th percentile of any other client.
        smaller_D: the reverse.
        unit_D: the factor by which both magnitude and spread are larger, where the difference is at least `REACH` times
            the others' whole spread, and the client's groups are wider, too; else 0.
        is_alike: its groups' radii are like those of the others; False where they are not sent.
    """

    larger_D: Floats
    smaller_D: Floats
    unit_D: Floats
    is_alike: bool


def measure_scales(answers: Mapping[int, Message]) -> dict[int, ColumnScales]:
    """Compare each client's columns with those of the others; quantiles are weighted by points."""
    clients = list(answers)
    if len(clients) < 2:
        return {}
    middle_MD, high_MD = (
        np.array([_column_quantile(answers[client], share) for client in clients]) for share in (0.5, 0.9)
    )
    spread_MD = np.array([_column_spread(answers[client]) for client in clients])
    radius_M = np.array([float(np.median(answers[client].arrays.get("spreads", [0.0]))) for client in clients])
    others_M = _spread_of_others(list(answers.values()))
    scales = {}
    for index, client in enumerate(clients):
        middle_D, high_D, spread_D = (np.delete(rows, index, axis=0) for rows in (middle_MD, high_MD, spread_MD))
        # The median of one against the 90th percentile of the others: a few far centroids are no other unit.
        larger_D = _ratios(middle_MD[index], high_D.max(axis=0))
        smaller_D = _ratios(middle_D.min(axis=0), high_MD[index])
        radius, other = radius_M[index], float(np.median(np.delete(radius_M, index)))
        # A different unit scales radii and centers alike; a different location changes only the centers.
        is_alike = min(radius, other) > 0 and 1 / SPREAD_ALONE < radius / other < SPREAD_ALONE
        # Each sign alone is seen among honest clients: a group that only one of them has may be far out in a column
        # that is nearly zero elsewhere, and a column that is tiny beside the rest differs a lot and moves no group.
        is_wider = other > 0 and radius >= SPREAD_ALONE * other
        matters_D = middle_MD[index] - high_D.max(axis=0) >= REACH * others_M[index]
        unit_D = np.minimum(larger_D, _ratios(spread_MD[index], spread_D.max(axis=0)))
        scales[client] = ColumnScales(larger_D, smaller_D, np.where(is_wider & matters_D, unit_D, 0.0), is_alike)
    return scales


def find_unit_errors(answers: Mapping[int, Message]) -> dict[int, str]:
    """Clients with a column that is certainly in a smaller unit, with the columns and their factors.

    The largest factor of an honest client was 1.48 in 2,520 runs (docs/methods/feca.md). In a larger unit a column
    nearly vanishes, which does less harm, and which honest clients' columns may do, too.
    """
    return {
        client: _list_columns(scales, scales.unit_D, SCALE_ALONE)
        for client, scales in measure_scales(answers).items()
        if scales.unit_D.max() >= SCALE_ALONE
    }


def find_scales(answers: Mapping[int, Message]) -> dict[int, tuple[float, str]]:
    """Clients with a column that is in another unit: far larger, or smaller, than at every other client.

    Larger: the median of its centroids' absolute values is five times the 90th percentile of any other client's, or
    more; smaller: the reverse. Another place alone is no other unit: where radii are sent, the client's must differ,
    too, except where it is smaller than each of several others. Of two clients both are named, because nothing says
    which is right.

    Returns:
        By client the largest ratio and the reason.
    """
    reasons: dict[int, tuple[float, str]] = {}
    for client, scales in measure_scales(answers).items():
        if scales.is_alike:
            # A client whose values are smaller than those of several others still counts despite similar radii; with
            # only two clients, nothing shows which one is wrong.
            zero_D = np.zeros_like(scales.larger_D)
            scales = replace(scales, larger_D=zero_D, smaller_D=scales.smaller_D if len(answers) > 2 else zero_D)
        far_D = np.maximum(scales.larger_D, scales.smaller_D)
        if far_D.max() >= SCALE_ALONE:
            reasons[client] = (float(far_D.max()), f"{_list_columns(scales, far_D, SCALE_ALONE)}: another unit?")
    return reasons


def _list_columns(scales: ColumnScales, value_D: Floats, threshold: float) -> str:
    """Up to three columns of the largest values from the threshold, with their factors."""
    order = np.argsort(-value_D, kind="stable")[: int((value_D >= threshold).sum())]
    ratio_D = np.where(scales.larger_D >= scales.smaller_D, scales.larger_D, _ratios(np.ones(1), scales.smaller_D))
    listed = ", ".join(f"column {column} is {ratio_D[column]:.3g}x" for column in order[:3])
    more = f" and {len(order) - 3} more" if len(order) > 3 else ""
    return f"{listed}{more} the other clients' magnitude"


def _ratios(above_D: Floats, below_D: Floats) -> Floats:
    """Ratios where both are above 0, else 0: a column of zeros has no unit."""
    comparable_D = (above_D > 0) & (below_D > 0)
    return np.where(comparable_D, above_D / np.where(comparable_D, below_D, 1.0), 0.0)


def _column_quantile(answer: Message, share: float) -> Floats:
    """Quantile of the centroids' absolute values in each column, weighted by points, [D]."""
    center_kD = np.abs(answer.array("centers"))
    count_k = _weights(answer)
    order_kD = np.argsort(center_kD, axis=0)
    mass_kD = np.cumsum(count_k[order_kD], axis=0)
    # The cumulative sum may fall short of the share by a rounding error.
    row_D = (mass_kD >= share * count_k.sum() * (1 - 1e-12)).argmax(axis=0)
    return np.take_along_axis(center_kD, order_kD, axis=0)[row_D, np.arange(center_kD.shape[1])]


def _weights(answer: Message) -> Floats:
    """Points of each centroid, or 1 where counts are not sent, [k]."""
    return answer.arrays.get("counts", np.ones(len(answer.array("centers"))))


def _column_spread(answer: Message) -> Floats:
    """Standard deviation of the centroids in each column, weighted by points, [D]."""
    center_kD, count_k = answer.array("centers"), _weights(answer)
    mean_D = count_k @ center_kD / count_k.sum()
    return np.sqrt(count_k @ (center_kD - mean_D) ** 2 / count_k.sum())


def _spread_of_others(answers: Sequence[Message]) -> Floats:
    """For each client the root-mean-square distance of all others' points from their mean, [M].

    Radii that are not sent count as 0.
    """
    # About a middle of all, so that a large mean leaves digits for the spread.
    middle_D = np.median(np.concatenate([answer.array("centers") for answer in answers]), axis=0)
    rows = []
    for answer in answers:
        center_kD, count_k = answer.array("centers") - middle_D, _weights(answer)
        square_k = (center_kD**2).sum(1) + answer.arrays.get("spreads", np.zeros(len(count_k))) ** 2
        rows.append(np.concatenate([[count_k.sum(), count_k @ square_k], count_k @ center_kD]))
    # Sums of those before and after each client: subtracting its own from the total would lose the others' digits where
    # it is in another unit.
    zero = np.zeros((1, len(rows[0])))
    before = np.cumsum(np.concatenate([zero, rows[:-1]]), axis=0)
    after = np.cumsum(np.concatenate([zero, rows[:0:-1]]), axis=0)[::-1]
    count_M, square_M, sum_MD = np.split(before + after, [1, 2], axis=1)
    mean_square_M = ((sum_MD / count_M) ** 2).sum(1)
    return np.sqrt(np.maximum(square_M[:, 0] / count_M[:, 0] - mean_square_M, 0.0))


def find_wide_groups(answers: Mapping[int, Message]) -> dict[int, str]:
    """Clients with a group much wider than usual, or a centroid much farther from all others than is usual.

    A single value with three digits too many makes such a group, whether it is alone in it or not.
    """
    clients = np.repeat(list(answers), [len(answer.array("centers")) for answer in answers.values()])
    center_QD = np.concatenate([answer.array("centers") for answer in answers.values()])
    reasons: dict[int, list[str]] = {}
    if all("spreads" in answer.arrays for answer in answers.values()):
        spread_Q = np.concatenate([answer.array("spreads") for answer in answers.values()])
        # The lower median: of two groups it is the narrower one, so that the wide one stands out.
        if (usual := float(np.sort(spread_Q)[(len(spread_Q) - 1) // 2])) > 0:
            for index in np.flatnonzero(spread_Q > WIDE * usual)[:3]:
                reasons.setdefault(int(clients[index]), []).append(
                    f"a group has a radius {spread_Q[index] / usual:.3g}x the median: a typing error?"
                )
    if len(center_QD) > 2:
        gap_Q = np.empty(len(center_QD))
        for block in blocks(len(center_QD), len(center_QD)):
            gap_BQ = distances(center_QD[block], center_QD)
            gap_BQ[np.arange(len(gap_BQ)), np.arange(block.start, block.stop)] = np.inf
            gap_Q[block] = gap_BQ.min(axis=1)
        if (usual := float(np.sort(gap_Q)[(len(gap_Q) - 1) // 2])) > 0:
            for index in np.flatnonzero(gap_Q > APART * usual)[:3]:
                reasons.setdefault(int(clients[index]), []).append(
                    f"a centroid is {gap_Q[index] / usual:.3g}x the median distance from all others: a typing error?"
                )
    return {client: "; ".join(listed) for client, listed in reasons.items()}


def find_suspicious_sums(centers_KD: Floats, answers: Mapping[int, Message], *, sized: bool) -> dict[int, str]:
    """Reasons by suspected client of a refinement; `answers` hold its sums and counts.

    Args:
        sized: the clients' numbers of points were reported and checked before.
    """
    counts = {client: float(answer.array("counts").sum()) for client, answer in answers.items()}
    nonempty = {client: answer for client, answer in answers.items() if counts[client] > 0}
    if len(nonempty) < MIN_CLIENTS:
        return {}
    away = []
    for client, answer in nonempty.items():
        count_K = answer.array("counts")
        filled = count_K > 0
        gap_KD = answer.array("sums")[filled] / count_K[filled, None] - centers_KD[filled]
        # Weight by counts: a far mean of one point is weaker evidence than a far mean of many.
        away.append(np.sqrt(count_K[filled] @ (gap_KD**2).sum(1) / counts[client]))
    log_M = np.log(np.maximum(np.array(away), np.finfo(float).tiny))
    reasons = {
        client: [f"its sums are {ratio:.3g}x the median distance from the centers"]
        for client, ratio in find_outliers(np.array(list(nonempty)), log_M, FAR).items()
    }
    # With reported sizes the same signs were taken in the first round; they would be named twice.
    for client, reason in ({} if sized else find_odd_sizes(counts)).items():
        reasons.setdefault(client, []).append(reason)
    return {client: "; ".join(listed) for client, listed in reasons.items()}


def _to_other_clients(pool: CentroidPool, clients: np.ndarray) -> Floats:
    """Distance of each centroid to the nearest other client, and to the client in the middle of the others, [2, Q].

    The distance to a client is that to its nearest centroid.
    """
    # Centroids of one client stand together, so that `reduceat` takes the minimum over each client in one pass.
    sorted_pool = pool.take(np.argsort(pool.client, kind="stable"))
    starts = np.searchsorted(sorted_pool.client, clients)
    gap_2Q = np.empty((2, len(pool)))
    for block in blocks(len(pool), len(pool)):
        to_client_BM = np.minimum.reduceat(distances(pool.centers[block], sorted_pool.centers), starts, axis=1)
        # A client is no measure of itself.
        to_client_BM[pool.client[block, None] == clients[None]] = np.inf
        # The client itself is sorted to the end as infinite, so this is the median of the others.
        middle = (len(clients) - 1) // 2
        ordered = np.partition(to_client_BM, [0, middle], axis=1)
        gap_2Q[:, block] = ordered[:, [0, middle]].T
    return gap_2Q


def _by_client(pool: CentroidPool, values_Q: Floats) -> Floats:
    """Return the median of each client's values."""
    return np.array([np.median(values_Q[pool.client == client]) for client in np.unique(pool.client)])


def _radii(points_ND: Floats, centers_KD: Floats, labels_N: Labels) -> list[Floats]:
    """Distances of the points of each cluster to its center."""
    return [np.linalg.norm(points_ND[labels_N == number] - center, axis=1) for number, center in enumerate(centers_KD)]


def root_mean_square(points_ND: Floats, centers_KD: Floats, labels_N: Labels) -> Floats:
    """[K]: root-mean-square distance to the center. The largest is suspected."""
    return np.sqrt([(radii**2).mean() for radii in _radii(points_ND, centers_KD, labels_N)])


def shape_normalized(points_ND: Floats, centers_KD: Floats, labels_N: Labels) -> Floats:
    """[K]: the same, over the cluster's largest distance. The largest is suspected."""
    radii_K = _radii(points_ND, centers_KD, labels_N)
    return np.sqrt([(radii**2).mean() for radii in radii_K]) / [radii.max() for radii in radii_K]


def sum_of_squares(points_ND: Floats, centers_KD: Floats, labels_N: Labels) -> Floats:
    """[K]: the cluster's share of the k-means objective. The largest is suspected."""
    return np.array([(radii**2).sum() for radii in _radii(points_ND, centers_KD, labels_N)])


def share_near_center(points_ND: Floats, centers_KD: Floats, labels_N: Labels, *, epsilon: float) -> Floats:
    """[K]: share of a cluster's points within `epsilon` times the smallest median distance of all clusters.

    A center between several clusters has few points near it: the smallest share is suspected. The predecessor halves
    epsilon by a rule of its own until the shares tell clusters apart; here it is given.
    """
    radii_K = _radii(points_ND, centers_KD, labels_N)
    reach = epsilon * min(np.median(radii) for radii in radii_K)
    return np.array([(radii <= reach).mean() for radii in radii_K])
