"""Flag outlier clients from their updates: a heuristic for people to look at, not proof of an attack.

Each sign is taken against the median over clients, so it holds while most of them are honest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

MIN_CLIENTS = 4
"""With fewer clients no median says what is usual."""
WEIGHTS_ALONE, BOX_FAR = 4.0, 4.0
"""Multiples of the median at which weights and boxes are flagged."""
MAX_SIZE_SHARE, SIZE_ALONE = 0.5, 30.0
EXCLUDE = "--set suspects=exclude leaves it out"
"""Remedy of the command line."""
KEEP = "--set suspects=report keeps it"
"""How the command line keeps a client that is left out by default."""
OTHER_UNIT = "another unit ("
"""Beginning of the reason why a client is left out by default."""
_SUSPICIOUS, _LEFT_OUT = " is suspicious: ", "; left out"
# Values of a block of weights of all clients together: 32 MiB of float64.
_BLOCK_VALUES = 1 << 22


def note_suspect(name: str, reason: str, *, left_out: bool = False) -> str:
    """Sentence about an anomalous client."""
    return f"{name}{_SUSPICIOUS}{reason}{_LEFT_OUT * left_out}"


def warn_of_suspects(notes: Iterable[str], clients: int, *, remedy: str) -> list[str]:
    """Sentences about the anomalous clients that are in a result, each with what to do.

    Args:
        notes: of `note_suspect`; others, and those of clients that were left out, are skipped.
        clients: number of all clients.
        remedy: how to do without such a client.
    """
    suspects = [note for note in notes if _SUSPICIOUS in note and not note.endswith(_LEFT_OUT)]
    # Signs are taken against the other clients: of two it may be the honest one that stands out.
    if 2 * len({note.partition(_SUSPICIOUS)[0] for note in suspects}) >= clients:
        remedy = "half of the clients or more are suspected, so nothing says which of them is wrong"
    return [f"{note}; it is in the result all the same: check its data and their units; {remedy}" for note in suspects]


def find_outliers(clients: NDArray[np.int64], log_M: NDArray[np.float64], min_ratio: float) -> dict[int, float]:
    """Clients whose value is `min_ratio` times the median or more, and four robust standard deviations above it.

    Args:
        log_M: logarithms of the values, one per client: ratios become differences, and sizes look more normal.

    Returns:
        The ratio to the median, by client.
    """
    median = np.median(log_M)
    # 1.4826: the median absolute deviation of a normal distribution times it is the standard deviation.
    spread = 1.4826 * np.median(np.abs(log_M - median))
    above_M = log_M - median
    # Require both: the ratio by itself flags honest clients that differ a lot, the spread flags trifles among near
    # equals.
    outliers = (above_M > np.log(min_ratio)) & (above_M > 4 * spread)
    # exp overflows above 709; a ratio of e^700 says as much as infinity.
    return {
        int(client): float(np.exp(min(above, 700.0)))
        for client, above in zip(clients[outliers], above_M[outliers], strict=True)
    }


def find_odd_sizes(points: Mapping[int, float]) -> dict[int, str]:
    """Clients that report more than half of all points, or thirty times the median or more."""
    if len(points) < MIN_CLIENTS:
        return {}
    clients, size_M = np.array(list(points)), np.array(list(points.values()), dtype=np.float64)
    # A client that reports no points has no logarithm.
    reasons = {
        client: f"reports {ratio:.3g}x the median number of points"
        for client, ratio in find_outliers(clients, np.log(np.maximum(size_M, 1.0)), SIZE_ALONE).items()
    }
    # A client with most of all points decides every average by itself.
    share_M = size_M / max(size_M.sum(), 1.0)
    for client, share in zip(clients[share_M > MAX_SIZE_SHARE], share_M[share_M > MAX_SIZE_SHARE], strict=True):
        reasons[int(client)] = f"reports {share:.0%} of all points"
    return reasons


def find_odd_weights(weights: Mapping[int, NDArray[np.floating]]) -> dict[int, float]:
    """Clients whose trained weights are far from those of half of the others, as multiples of the median distance.

    Finds weights that are noise, or an update that is much too long. An update of usual length in a wrong direction is
    not found.
    """
    if len(weights) < MIN_CLIENTS:
        return {}
    clients = np.array(list(weights))
    rows = list(weights.values())
    size, count = len(rows[0]), len(rows)
    # Distances from the Gram matrix, summed over blocks of weights: all weights of all clients need not fit in float64.
    gram_MM = np.zeros((count, count))
    width = max(1, _BLOCK_VALUES // count)
    for start in range(0, size, width):
        part = np.stack([row[start : start + width] for row in rows]).astype(np.float64)
        gram_MM += part @ part.T
    squares_M = np.diag(gram_MM)
    # Rounding can make the squared distance of nearly equal weights negative.
    gap_MM = np.sqrt(np.maximum(squares_M[:, None] + squares_M - 2 * gram_MM, 0.0))
    # Against half of the others, not the nearest: poisoned clients that agree are near to one another.
    others_M = np.array([np.median(np.delete(gaps, index)) for index, gaps in enumerate(gap_MM)])
    # Equal weights have a distance of 0, which has no logarithm.
    return find_outliers(clients, np.log(np.maximum(others_M, np.finfo(float).tiny)), WEIGHTS_ALONE)


def find_far_boxes(boxes: Mapping[int, NDArray[np.floating]]) -> dict[int, float]:
    """Clients whose box [2, d] of map positions reaches much farther from the median center than usual."""
    if len(boxes) < MIN_CLIENTS:
        return {}
    clients = np.array(list(boxes))
    corners_M2d = np.stack(list(boxes.values())).astype(np.float64)
    center_d = np.median(corners_M2d.mean(1), axis=0)
    reach_M = np.abs(corners_M2d - center_d).max(axis=(1, 2))
    return find_outliers(clients, np.log(np.maximum(reach_M, np.finfo(float).tiny)), BOX_FAR)
