"""Quality of a map: the measures of `foveate.metrics` on points that trained it, and on held-out points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.seeds import generator
from foveate.federated.results import EmbedClient
from foveate.metrics import embedding

# Trustworthiness and continuity need all pairwise distances, memory quadratic in the points.
MAX_POINTS = 3000
Array = NDArray[np.floating]


@dataclass(frozen=True)
class MapPoints:
    """Points of all clients one after another, their map positions, client indices, and labels (None without)."""

    points_ND: Array
    positions_Nd: Array
    owners_N: NDArray[np.int64]
    labels_N: NDArray[Any] | None

    def rows(self, index: NDArray[Any]) -> MapPoints:
        """Select some of them."""
        labels = None if self.labels_N is None else self.labels_N[index]
        return MapPoints(self.points_ND[index], self.positions_Nd[index], self.owners_N[index], labels)


def stack_clients(
    points: Sequence[Array], positions: Sequence[Array], labels: Sequence[NDArray[Any]] | None
) -> MapPoints:
    """Put the points of all clients one after another."""
    owners = np.repeat(np.arange(len(points)), [len(part) for part in points])
    return MapPoints(
        np.concatenate(points), np.concatenate(positions), owners, None if labels is None else np.concatenate(labels)
    )


def sample_rows(rows: int, max_rows: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Draw at most `max_rows` row indices, ascending, the same ones for every method."""
    if rows <= max_rows:
        return np.arange(rows)
    # The same rows for every method: maps are compared on the same points.
    return np.sort(generator("quality", seed, rows).permutation(rows)[:max_rows])


def measure_quality(fitted: MapPoints, held_out: MapPoints | None, *, k: int) -> dict[str, float]:
    """Compute measures by name; those that are undefined for so few points are left out, see `describe_missing`.

    trustworthiness, continuity: of held-out points among themselves where there are enough, else of the fitted ones.
    knn: accuracy of a vote of fitted places on held-out ones, or leave one out. hit: neighborhood hit. foreign,
    foreign_in_space: share of neighbors of another client, on the map and in the points' own space.
    """
    sample = fitted.rows(sample_rows(len(fitted.points_ND), MAX_POINTS))
    measures: dict[str, float] = {}
    # Below this the neighborhoods of k points overlap so much that the measures say nothing.
    enough = held_out is not None and len(held_out.points_ND) > 2 * k + 2
    unseen = held_out.rows(sample_rows(len(held_out.points_ND), MAX_POINTS)) if enough and held_out else sample
    if len(unseen.points_ND) > 2 * k:
        measures["trustworthiness"] = embedding.trustworthiness(unseen.points_ND, unseen.positions_Nd, k=k)
        measures["continuity"] = embedding.continuity(unseen.points_ND, unseen.positions_Nd, k=k)
    if len(unseen.points_ND) > 2:
        measures["distances"] = embedding.distance_correlation(unseen.points_ND, unseen.positions_Nd)
    # The following measures need k other points for every fitted point.
    if len(sample.points_ND) <= k:
        return measures
    if fitted.labels_N is not None:
        if enough and held_out is not None:
            measures["knn"] = embedding.knn_accuracy(
                fitted.positions_Nd,
                fitted.labels_N,
                k=k,
                test_map_Md=held_out.positions_Nd,
                test_labels_M=held_out.labels_N,
            )
        else:
            assert sample.labels_N is not None
            measures["knn"] = embedding.knn_accuracy(sample.positions_Nd, sample.labels_N, k=k)
        assert sample.labels_N is not None
        measures["hit"] = embedding.neighborhood_hit(sample.positions_Nd, sample.labels_N, k=k)
    if len(np.unique(fitted.owners_N)) > 1:
        # Always next to its value in the points' own space: clients may overlap there already.
        measures["foreign"] = embedding.foreign_share(sample.positions_Nd, sample.owners_N, k=k)
        measures["foreign_in_space"] = embedding.foreign_share(sample.points_ND, sample.owners_N, k=k)
    return measures


def describe_missing(quality: Mapping[str, float], points: MapPoints, *, k: int) -> str:
    """Say which measures too few points leave out, and why; "" where none is."""
    names = ["trustworthiness", "continuity", "distances"]
    names += [] if points.labels_N is None else ["knn", "hit"]
    names += ["foreign", "foreign_in_space"] if len(np.unique(points.owners_N)) > 1 else []
    if not (missing := [name for name in names if name not in quality]):
        return ""
    return f"not measured: {', '.join(missing)}; {len(points.points_ND)} points are too few for neighbors={k}"


def measure_clients(points: MapPoints, names: Sequence[str], *, k: int) -> list[EmbedClient]:
    """Trustworthiness of each client's own part of the map; None where a client has too few points."""
    rows = []
    for number, name in enumerate(names):
        part = points.rows(np.flatnonzero(points.owners_N == number))
        sample = part.rows(sample_rows(len(part.points_ND), MAX_POINTS))
        enough = len(sample.points_ND) > 2 * k + 2
        trust = embedding.trustworthiness(sample.points_ND, sample.positions_Nd, k=k) if enough else None
        classes = None if part.labels_N is None else len(np.unique(part.labels_N))
        rows.append(EmbedClient(name=name, points=len(part.points_ND), classes=classes, trustworthiness=trust))
    return rows
