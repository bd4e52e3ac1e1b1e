"""A client's own noise on the answers of DeepFeCA (zero-concentrated differential privacy), whatever a server asks.

The unit is one point of a client, replaced by any other; how many points there are is no secret. With the client's
noise multiplier z each answer costs rho = 1 / (2 z^2), however many steps it takes:

- centroids: embeddings have length 1. The first step is their mean. The others are steps of DP-Lloyd around it
  (`foveate.federated.clustering.noise`), within a radius that follows from the noisy mean: points of one encoder lie in
  a small part of the sphere, and what is clipped to a small radius needs less noise. A step changes by at most 2 units
  of its noise, so that the noise of each of S steps is 2 z sqrt(S).
- training of a head on features: steps on all points, whose gradients are clipped one by one (Abadi et al. 2016, arXiv
  1607.00133, without sampling). A replaced point changes a sum of gradients of norm C by at most 2 C.
- training of any other network: its whole change is clipped to norm C, batch statistics included, and changes by 2 C.

What is sent is then no longer than the client's `update_clip`. Everything after the noise is post-processing.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from foveate.federated.clustering.distances import Floats
from foveate.federated.clustering.noise import clip_to_grid, noisy_kmeans, noisy_sums
from foveate.federated.deep.encoder import Embedder, flatten_weights, set_weights
from foveate.federated.privacy import NormalSource, add_noise, clip_norm, private_noise

SENSITIVITY = 2.0
"""Of a sum of vectors of norm 1: a replaced one is taken out, and another one added."""
# The mean and two steps of Lloyd. More steps find better groups, but in units of more noise: on digits over eight
# clients five were worse than two and three at every epsilon from 1 to 10.
STEPS = 3
# Rows farther from the mean than so many root-mean-square distances are clipped.
REACH = 1.5
# A mean of length 1 would leave no room for any group.
MIN_RADIUS = 0.05
# Gradients of single points are longer (3 to 10 at a temperature of 0.1), so that nearly all count as directions.
GRADIENT_CLIP = 1.0
_MIN_VARIANCE = 0.1
"""Smallest part of a variance of batch normalization that a noisy answer leaves; below 0 it has no root."""


def clean_vectors(vectors_ND: Floats) -> Floats:
    """Rows of length 1, or of zeros where a network returns no number: an error would say that it does."""
    finite_ND = np.where(np.isfinite(vectors_ND).all(1, keepdims=True), vectors_ND, 0.0)
    norm_N = np.linalg.norm(finite_ND, axis=1, keepdims=True)
    return finite_ND / np.where(norm_N > 0, norm_N, 1.0)


def noisy_centroids(
    vectors_ND: Floats, clusters: int, rng: np.random.Generator, *, multiplier: float, min_count: int
) -> tuple[Floats, Floats]:
    """Centroids [k, D] and counts [k] with noise; whole numbers from `min_count` that add up to the number of points.

    Args:
        vectors_ND: of norm 1 at most.
        rng: of the starts, which the server knows; never of the noise.
    """
    num_points, width = vectors_ND.shape
    noise = SENSITIVITY * multiplier * math.sqrt(STEPS)
    together_N = np.zeros(num_points, dtype=np.int64)
    total_1D, _ = noisy_sums(clip_to_grid(vectors_ND, 1.0), together_N, 1, clip=1.0, noise=noise, min_count=1)
    mean_D = clip_norm(total_1D[0] / num_points, 1.0)
    # The noise makes a mean longer by its own variance, on average.
    square = float(mean_D @ mean_D) - width * (noise / num_points) ** 2
    radius = min(1.0, max(MIN_RADIUS, REACH * math.sqrt(1.0 - min(1.0, max(0.0, square)))))
    centers_KD, count_K = noisy_kmeans(
        vectors_ND - mean_D, clusters, rng, clip=radius, noise=noise, steps=STEPS - 1, min_count=1
    )
    num_groups = max(1, min(clusters, num_points // min_count))
    largest = np.sort(np.argsort(-count_K, kind="stable")[:num_groups])
    centers_KD, count_K = centers_KD[largest], count_K[largest]
    # As many as were asked for, or the clients together might have too few: groups that noise emptied lie anywhere.
    num_missing = num_groups - len(centers_KD)
    filling_KD = rng.standard_normal((num_missing, width)) * (radius / (2 * math.sqrt(width)))
    count_K = share_points(np.concatenate([count_K, np.zeros(num_missing)]), num_points, min_count)
    return np.concatenate([centers_KD, filling_KD]) + mean_D, count_K


def share_points(count_K: Floats, points: int, min_count: int) -> Floats:
    """Whole numbers from `min_count` that add up to `points`, larger where noisy counts are.

    How many points there are is known, so that this reveals no more than the noisy counts.
    """
    above_K = np.maximum(count_K - min_count, 0.0)
    total = float(above_K.sum())
    part_K = above_K / total if total else np.full(len(count_K), 1.0 / len(count_K))
    min_count = min(min_count, points // len(count_K))
    share_K = part_K * (points - min_count * len(count_K))
    whole_K = np.floor(share_K)
    # The largest remainders are rounded up.
    whole_K[np.argsort(whole_K - share_K, kind="stable")[: round(float(share_K.sum() - whole_K.sum()))]] += 1
    return whole_K + min_count


def keep_variances(
    network: Embedder, before_P: NDArray[np.float32], sent_P: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Weights to send, in which noise leaves each variance of batch normalization well above 0."""
    set_weights(network, before_P)
    names = [name for name in network.state_dict() if name.endswith("running_var")]
    floors = {name: _MIN_VARIANCE * network.state_dict()[name].clone() for name in names}
    set_weights(network, sent_P)
    state = network.state_dict()
    with torch.no_grad():
        for name, floor in floors.items():
            state[name].copy_(torch.maximum(state[name], floor))
    return flatten_weights(network)


def clipped_gradients(
    network: Embedder, points: Tensor, prototypes_KD: Tensor, labels_N: Tensor, *, temperature: float, clip: float
) -> list[NDArray[np.float64]]:
    """Sum over points of the head's gradients, each clipped to norm `clip`: weight and bias of both layers.

    Args:
        network: a head on features, without an encoder.
    """
    first, _, second = network.head
    with torch.no_grad():
        before_NH = first(points)
        hidden_NH = before_NH.relu()
    # The gradient of a linear layer at one point is an outer product, so that its norm needs no gradient per point.
    outputs_NW = second(hidden_NH).requires_grad_()
    logits_NK = normalize(outputs_NW, dim=1) @ normalize(prototypes_KD, dim=1).T / temperature
    (output_NW,) = torch.autograd.grad(cross_entropy(logits_NK, labels_N, reduction="sum"), outputs_NW)
    with torch.no_grad():
        output_NW = output_NW.double()
        hidden_gradient_NH = (output_NW @ second.weight.double()) * (before_NH > 0)
        points_ND, hidden_NH = points.double(), hidden_NH.double()
        square_N = (hidden_gradient_NH**2).sum(1) * ((points_ND**2).sum(1) + 1)
        square_N += (output_NW**2).sum(1) * ((hidden_NH**2).sum(1) + 1)
        factor_N = clip / torch.clamp(square_N.sqrt(), min=clip)
        # A point at which the network is no number has no gradient: an error would say so, and so would NaN.
        usable_N = torch.isfinite(square_N)
        hidden_gradient_NH = torch.where(usable_N[:, None], hidden_gradient_NH * factor_N[:, None], 0.0)
        output_NW = torch.where(usable_N[:, None], output_NW * factor_N[:, None], 0.0)
        points_ND, hidden_NH = (torch.where(usable_N[:, None], part, 0.0) for part in (points_ND, hidden_NH))
        sums = [hidden_gradient_NH.T @ points_ND, hidden_gradient_NH.sum(0), output_NW.T @ hidden_NH, output_NW.sum(0)]
    return [part.cpu().numpy() for part in sums]


def train_with_noise(
    network: Embedder,
    points: Tensor,
    prototypes_KD: Tensor,
    labels_N: Tensor,
    *,
    steps: int,
    learning_rate: float,
    temperature: float,
    multiplier: float,
    source: NormalSource | None = None,
) -> None:
    """Train a head on features by steps on all points, with noise on each sum of clipped gradients.

    Args:
        labels_N: pseudo-label of each point, which depends on that point alone.
        steps: each with noise of z sqrt(steps), in units of the most that one point changes its sum.
    """
    source = source or private_noise()
    sigma = SENSITIVITY * GRADIENT_CLIP * multiplier * math.sqrt(steps)
    for _ in range(steps):
        sums = clipped_gradients(network, points, prototypes_KD, labels_N, temperature=temperature, clip=GRADIENT_CLIP)
        with torch.no_grad():
            for parameter, total in zip(network.head.parameters(), sums, strict=True):
                noisy = torch.from_numpy(add_noise(total, sigma, source)).to(parameter)
                parameter -= learning_rate / len(points) * noisy
