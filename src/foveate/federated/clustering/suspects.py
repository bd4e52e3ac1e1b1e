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

from collections.abc import Mapping

import numpy as np

from foveate.federated.anomaly import MIN_CLIENTS, find_odd_sizes, find_outliers
from foveate.federated.clustering.distances import Floats, Labels, blocks, distances
from foveate.federated.clustering.pool import Pool
from foveate.federated.messages import Message

# Factors of the median distance, on top of the spread among clients; see `find_outliers`.
ALONE, FAR = 4.0, 6.0


def find_suspects(pool: Pool) -> dict[int, str]:
    """Reasons by suspected client; with fewer than four clients nothing is reported."""
    clients = np.unique(pool.client)
    if len(clients) < MIN_CLIENTS:
        return {}
    reasons: dict[int, list[str]] = {int(client): [] for client in clients}
    gap_2Q = _to_other_clients(pool, clients)
    # Two distances: poisoned clients that agree with one another are near to the nearest other client, but not to half
    # of them.
    for gap_Q, whom in zip(gap_2Q, ("every other client's", "those of half of the other clients"), strict=True):
        # Logarithms: "far" is a factor, whatever the scale of the data. `tiny` stands in for centroids that coincide.
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
        # Weighted by counts: a far mean of one point says less than one of many.
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


def _to_other_clients(pool: Pool, clients: np.ndarray) -> Floats:
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


def _by_client(pool: Pool, values_Q: Floats) -> Floats:
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
