"""Clustering with noise: sums and counts that hide one point of a client (zero-concentrated differential privacy).

The unit is one point of a client, replaced by any other. Rows are clipped to norm C and rounded towards zero to a grid
of C / 2^16, so that sums are whole numbers; exact discrete Gaussian noise of z C is added to sums, of z to counts. A
row that moves within its group changes sums by at most 2 C and no count; one that changes its group moves two sums by C
and two counts by 1. In units of the noise both are at most 2 / z, so that one answer costs rho = 2 / z^2.

A client's own k-means would depend on single points. So with noise it is DP-Lloyd (Blum, Dwork, McSherry, Nissim 2005):
starts that do not depend on the data, `noise_steps` steps on noisy sums and counts, each of which costs as much.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from foveate.federated.clustering.distances import Floats, nearest
from foveate.federated.messages import Message
from foveate.federated.privacy import discrete_gaussian, gaussian_cost

GRID = 1 << 16
"""Steps of the grid within the clipping norm: much finer than any noise, and sums of 2^37 rows still fit."""


def request_cost(request: Message) -> float:
    """rho of the answer to a request of a clustering; 0 = no noise."""
    if "noise" not in request.values:
        return 0.0
    scale = float(request.number("noise"))
    if "clusters" in request.values:
        return max(1, int(request.number("noise_steps"))) * gaussian_cost(2.0, scale)
    # The fit is a single sum, which a replaced point changes by at most one unit of the noise.
    return gaussian_cost(1.0 if request.kind.endswith("assign") else 2.0, scale)


def _exact(scale: float, grid: int = 1) -> Fraction:
    """Noise scale as a fraction that is not below it, with a small denominator: the sampler computes with it."""
    return Fraction(int(np.ceil(scale * grid * 1024)), 1024)


def clip_to_grid(points_ND: Floats, clip: float) -> NDArray[np.int64]:
    """Rows of norm at most `clip` in whole steps of the grid, rounded towards zero so that the norm stays below it."""
    norm_N = np.linalg.norm(points_ND, axis=1)
    # A row of zeros has no norm to divide by; it stays as it is.
    scale_N = np.minimum(1.0, clip / np.maximum(norm_N, np.finfo(float).tiny))
    # The factor leaves room for rounding: the norm in whole steps is at most GRID, which is all the account needs.
    return np.trunc(points_ND * (scale_N * (GRID / clip) * (1 - 1e-12))[:, None]).astype(np.int64)


def from_grid(steps_ND: NDArray[np.int64], clip: float) -> Floats:
    """Rows in the points' own unit."""
    return steps_ND.astype(np.float64) * (clip / GRID)


def noisy_sums(
    steps_ND: NDArray[np.int64], labels_N: NDArray[np.int64], groups: int, *, clip: float, noise: float, min_count: int
) -> tuple[Floats, Floats]:
    """Sums [K, D] and counts [K] with noise; both are 0 where the noisy count is below `min_count`.

    Args:
        steps_ND: rows of `clip_to_grid`.
    """
    total_KD = np.zeros((groups, steps_ND.shape[1]), dtype=np.int64)
    np.add.at(total_KD, labels_N, steps_ND)
    total_KD += discrete_gaussian(_exact(noise, GRID), total_KD.shape)
    count_K = np.bincount(labels_N, minlength=groups) + discrete_gaussian(_exact(noise), (groups,))
    # The noisy count decides: a decision by the true count would reveal without noise whether it is small.
    small_K = count_K < max(min_count, 1)
    total_KD[small_K], count_K[small_K] = 0, 0
    return from_grid(total_KD, clip), count_K.astype(np.float64)


def noisy_kmeans(
    points_ND: Floats,
    clusters: int,
    rng: np.random.Generator,
    *,
    clip: float,
    noise: float,
    steps: int,
    min_count: int,
) -> tuple[Floats, Floats]:
    """Centers [k, D] and noisy counts [k] of a client; only groups whose noisy count reaches `min_count`.

    Args:
        rng: of the starts, which the server knows; never of the noise.
    """
    steps_ND = clip_to_grid(points_ND, clip)
    clipped_ND = from_grid(steps_ND, clip)
    width = points_ND.shape[1]
    # Starts of about half the clipping norm, wherever the points may be.
    centers_KD = rng.standard_normal((clusters, width)) * (clip / (2 * np.sqrt(width)))
    count_K, filled_K = np.zeros(clusters), np.zeros(clusters, dtype=bool)
    for step in range(max(1, steps)):
        labels_N = nearest(clipped_ND, centers_KD)[0]
        total_KD, count_K = noisy_sums(steps_ND, labels_N, clusters, clip=clip, noise=noise, min_count=min_count)
        filled_K = count_K > 0
        centers_KD[filled_K] = total_KD[filled_K] / count_K[filled_K, None]
        # After the last step a new center would have no count.
        if filled_K.any() and step < steps - 1:
            # Empty ones split the largest: what was sent with noise may be used for anything.
            near = rng.standard_normal(centers_KD.shape) * (clip / (8 * np.sqrt(width)))
            centers_KD[~filled_K] = centers_KD[count_K.argmax()] + near[~filled_K]
        # A center that noise threw out of reach attracts nothing any more.
        norm_K = np.linalg.norm(centers_KD, axis=1, keepdims=True)
        centers_KD *= np.minimum(1.0, clip / np.maximum(norm_K, np.finfo(float).tiny))
    return centers_KD[filled_K], count_K[filled_K]


def noisy_inertia(points_ND: Floats, centers_KD: Floats, *, clip: float, noise: float) -> float:
    """Sum of squared distances to the nearest center with noise; of each row at most (2 C)^2 counts."""
    clipped_ND = from_grid(clip_to_grid(points_ND, clip), clip)
    max_square = (2 * clip) ** 2
    square_N = np.minimum(nearest(clipped_ND, centers_KD)[1], max_square)
    total = int(np.trunc(square_N * (GRID / max_square)).astype(np.int64).sum())
    total += int(discrete_gaussian(_exact(noise, GRID), (1,))[0])
    # Noise may take a small sum below 0, which no sum of squares is.
    return max(total, 0) * (max_square / GRID)
