"""The S-sets of the goldens, split over clients; what the tests of clustering share."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from foveate.federated.partition import dirichlet, even
from foveate.metrics.clustering import class_means

GOLDENS = Path(__file__).resolve().parents[1] / "goldens" / "feca"


@cache
def s_set(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points / 1e5 [5000, 2], labels, and the means of the 15 classes."""
    arrays = np.load(GOLDENS / f"{name}.npz")
    points, labels = arrays["X"] / 1e5, arrays["y"].astype(np.int64)
    return points, labels, class_means(points, labels)


def split_s_set(name: str, *, alpha: float | None, clients: int, seed: int) -> list[np.ndarray]:
    """The points of each client; alpha None = even."""
    points, labels, _ = s_set(name)
    return split_over(points, labels, alpha=alpha, clients=clients, seed=seed)


def split_over(
    points: np.ndarray, labels: np.ndarray, *, alpha: float | None, clients: int, seed: int
) -> list[np.ndarray]:
    """Any points, by client; alpha None = even."""
    rng = np.random.default_rng([seed, clients])
    split = even(len(points), clients, rng) if alpha is None else None
    split = split or dirichlet(labels, clients, rng, alpha=alpha or 1.0, min_points=30)
    return [points[rows] for rows in split.rows]


def balls(seed: int, *, clusters: int = 8, points: int = 200, dimensions: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Points of unit balls at least 10 apart, and the balls' numbers (the stochastic ball model)."""
    rng = np.random.default_rng([seed, 77])
    centers: list[np.ndarray] = []
    while len(centers) < clusters:
        tried = rng.uniform(0, 50, dimensions)
        if all(np.linalg.norm(tried - one) >= 10 for one in centers):
            centers.append(tried)
    direction = rng.normal(size=(clusters, points, dimensions))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    radius = rng.random((clusters, points, 1)) ** (1 / dimensions)
    found = np.array(centers)[:, None] + direction * radius
    return found.reshape(-1, dimensions), np.repeat(np.arange(clusters), points)


def mixture(seed: int, *, dimensions: int, clusters: int = 10, apart: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """Points of Gaussians with standard deviation 1 and 80 to 500 points each, and their numbers.

    The smallest distance of two means is `apart`.
    """
    rng = np.random.default_rng([seed, dimensions, 78])
    means = rng.normal(size=(clusters, dimensions))
    gaps = np.linalg.norm(means[:, None] - means[None], axis=-1)
    means *= apart / gaps[np.triu_indices(clusters, k=1)].min()
    labels = np.repeat(np.arange(clusters), rng.integers(80, 501, clusters))
    return means[labels] + rng.normal(size=(len(labels), dimensions)), labels
