"""k-means that skips what cannot matter gives bit for bit what k-means that looks at everything gives."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.federated.clustering import lloyd as module
from foveate.federated.clustering.distances import squared
from foveate.federated.clustering.lloyd import lloyd, plus_plus, unit

KINDS = {
    "blobs": lambda rng, n, d: rng.normal(size=(n, d)) + 4 * rng.normal(size=(12, d))[rng.integers(0, 12, n)],
    "many ties": lambda rng, n, d: rng.integers(-3, 4, size=(n, d)).astype(float),
    "ties that rounding decides": lambda rng, n, d: rng.integers(-30, 31, size=(n, d)) / 10,
    "far from zero": lambda rng, n, d: rng.normal(size=(n, d)) + 1e8,
    "one far away": lambda rng, n, d: rng.normal(size=(n, d)) + 1e8 * (np.arange(n) == 0)[:, None],
    "repeated rows": lambda rng, n, d: np.repeat(rng.normal(size=(n // 10 + 1, d)), 10, axis=0)[:n],
    "no clusters": lambda rng, n, d: rng.random((n, d)),
    "directions": lambda rng, n, d: unit(rng.normal(size=(n, d))),
}


def plain_lloyd(points: np.ndarray, centers: np.ndarray, weights: np.ndarray | None, spherical: bool):
    centers = unit(centers) if spherical else centers.copy()
    each = np.ones(len(points)) if weights is None else weights
    table = squared(points, centers)
    steps, before, labels = 0, None, table.argmin(0)
    while steps < 300 and not (before is not None and (labels == before).all()):
        for number in range(len(centers)):
            mine = labels == number
            if each[mine].sum() > 0:
                total = np.zeros(points.shape[1])
                for row, weight in zip(points[mine], each[mine], strict=True):
                    total += weight * row
                mean = total / np.bincount(labels, weights=weights, minlength=len(centers))[number]
                centers[number] = unit(mean[None])[0] if spherical else mean
        steps += 1
        before, table = labels, squared(points, centers)
        labels = table.argmin(0)
    best = table.min(0)
    return centers, labels, best.sum() if weights is None else weights @ best, steps


def plain_plus_plus(points: np.ndarray, clusters: int, rng: np.random.Generator, weights: np.ndarray) -> np.ndarray:
    def draw(mass: np.ndarray, count: int) -> np.ndarray:
        total = np.cumsum(mass)
        return np.searchsorted(total, rng.random(count) * total[-1], side="right")

    chosen = list(draw(weights, 1))
    best = squared(points, points[chosen])[0]
    while len(chosen) < clusters and (best * weights).sum() > 0:
        drawn = draw(best * weights, 2 + int(np.log(clusters)))
        table = np.minimum(best, squared(points, points[drawn]))
        winner = int((table @ weights).argmin())
        best = table[winner]
        chosen.append(drawn[winner])
    return points[chosen]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 2, 8, 9, 33])
@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_is_lost(kind: str, width: int, weighted: bool) -> None:
    for rows, clusters in ((7, 3), (300, 1), (300, 8), (300, 40)):
        rng = np.random.default_rng([rows, clusters, width])
        points = KINDS[kind](rng, rows, width)
        weights = rng.choice([0.0, 0.5, 1.0, 2.0], rows) if weighted else None
        starts = plus_plus(points, clusters, np.random.default_rng(0), weight_N=weights)
        each = np.ones(rows) if weights is None else weights
        np.testing.assert_array_equal(starts, plain_plus_plus(points, clusters, np.random.default_rng(0), each))
        empty = np.concatenate([starts[:1], starts])[: len(starts)]  # the second of two equal centers has no point
        for centers in (starts, points[rng.integers(0, rows, clusters)], empty):
            found = lloyd(points, centers, weight_N=weights, spherical=kind == "directions")
            wanted = plain_lloyd(points, centers, weights, kind == "directions")
            np.testing.assert_array_equal(found.labels, wanted[1])
            np.testing.assert_array_equal(found.centers, wanted[0])
            assert (found.inertia, found.steps) == wanted[2:]


def test_few_points_are_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two centers share a group and drift for long: the points of the others are left alone."""
    rng = np.random.default_rng(0)
    means = 20 * np.eye(12)
    points = np.concatenate([one + rng.normal(size=(500, 12)) for one in means])
    looked = []
    within = module.margins

    def counted(points_ND, centers_KD, rows_R=None):
        looked.append(len(points_ND) if rows_R is None else len(rows_R))
        return within(points_ND, centers_KD, rows_R)

    monkeypatch.setattr(module, "margins", counted)
    found = lloyd(points, np.concatenate([means, points[:1]]))
    assert found.steps > 10
    assert sum(looked) < 0.3 * len(points) * len(looked)
