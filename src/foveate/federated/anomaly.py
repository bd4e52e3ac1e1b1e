"""Clients that are unlike the others in what they send: a report for people, not a proof.

Each sign is taken against the median over clients, so that it holds while most of them are honest.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

FEWEST = 4
"""Of fewer clients nothing can be said."""
WEIGHTS_ALONE, BOX_FAR = 4.0, 4.0
SIZE_MOST, SIZE_ALONE = 0.5, 30.0
_NUMBERS_AT_ONCE = 1 << 22


def beyond(clients: NDArray[np.int64], log_M: NDArray[np.float64], least: float) -> dict[int, float]:
    """Clients whose value is `least` times the median or more, and four robust standard deviations above it."""
    middle = np.median(log_M)
    spread = 1.4826 * np.median(np.abs(log_M - middle))
    above = log_M - middle
    chosen = (above > np.log(least)) & (above > 4 * spread)
    return {
        int(client): float(np.exp(min(one, 700.0))) for client, one in zip(clients[chosen], above[chosen], strict=True)
    }


def odd_sizes(points: Mapping[int, float]) -> dict[int, str]:
    """Clients that say that they have more than half of all points, or thirty times the median of all clients or more."""
    if len(points) < FEWEST:
        return {}
    clients, size_M = np.array(list(points)), np.array(list(points.values()), dtype=np.float64)
    found = {
        client: f"it says that it has {times:.3g} times as many points as usual"
        for client, times in beyond(clients, np.log(np.maximum(size_M, 1.0)), SIZE_ALONE).items()
    }
    share_M = size_M / max(size_M.sum(), 1.0)
    for client, share in zip(clients[share_M > SIZE_MOST], share_M[share_M > SIZE_MOST], strict=True):
        found[int(client)] = f"it says that it has {share:.0%} of all points"
    return found


def odd_weights(weights: Mapping[int, NDArray[np.floating]]) -> dict[int, float]:
    """Clients whose weights after training are far from those of half of the others: how many times as far as usual.

    Finds weights that are noise, or an update that is much too long. An update of usual length in a wrong direction is
    not found.
    """
    if len(weights) < FEWEST:
        return {}
    clients = np.array(list(weights))
    rows = list(weights.values())
    size, count = len(rows[0]), len(rows)
    gram_MM = np.zeros((count, count))
    width = max(1, _NUMBERS_AT_ONCE // count)
    for start in range(0, size, width):
        part = np.stack([row[start : start + width] for row in rows]).astype(np.float64)
        gram_MM += part @ part.T
    squares_M = np.diag(gram_MM)
    gap_MM = np.sqrt(np.maximum(squares_M[:, None] + squares_M - 2 * gram_MM, 0.0))
    others_M = np.array([np.median(np.delete(gaps, place)) for place, gaps in enumerate(gap_MM)])
    return beyond(clients, np.log(np.maximum(others_M, np.finfo(float).tiny)), WEIGHTS_ALONE)


def odd_boxes(boxes: Mapping[int, NDArray[np.floating]]) -> dict[int, float]:
    """Clients whose box [2, d] of map positions reaches much farther from the middle of all boxes than usual."""
    if len(boxes) < FEWEST:
        return {}
    clients = np.array(list(boxes))
    corners_M2d = np.stack(list(boxes.values())).astype(np.float64)
    middle_d = np.median(corners_M2d.mean(1), axis=0)
    reach_M = np.abs(corners_M2d - middle_d).max(axis=(1, 2))
    return beyond(clients, np.log(np.maximum(reach_M, np.finfo(float).tiny)), BOX_FAR)
