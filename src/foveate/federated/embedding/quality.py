"""What a map is worth: the measures of `foveate.metrics` on points that trained it, and on points that did not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.seeds import generator
from foveate.metrics import embedding

MOST_POINTS = 3000
Array = NDArray[np.floating]


@dataclass(frozen=True)
class Mapped:
    """Points of all clients one under another, their places, whose they are, and their labels (None without)."""

    points_ND: Array
    places_Nd: Array
    owners_N: NDArray[np.int64]
    labels_N: NDArray[Any] | None

    def rows(self, chosen: NDArray[Any]) -> Mapped:
        """Some of them."""
        labels = None if self.labels_N is None else self.labels_N[chosen]
        return Mapped(self.points_ND[chosen], self.places_Nd[chosen], self.owners_N[chosen], labels)


def stacked(points: Sequence[Array], places: Sequence[Array], labels: Sequence[NDArray[Any]] | None) -> Mapped:
    """Clients one under another."""
    owners = np.repeat(np.arange(len(points)), [len(one) for one in points])
    return Mapped(
        np.concatenate(points), np.concatenate(places), owners, None if labels is None else np.concatenate(labels)
    )


def sample(rows: int, most: int, *, seed: int = 0) -> NDArray[np.int64]:
    """At most so many row numbers, ascending, the same ones for every method."""
    if rows <= most:
        return np.arange(rows)
    return np.sort(generator("quality", seed, rows).permutation(rows)[:most])


def quality(fitted: Mapped, held_out: Mapped | None, *, k: int) -> dict[str, float]:
    """Measures by name.

    trustworthiness, continuity: of held-out points among themselves where there are enough, else of the fitted ones.
    knn: accuracy of a vote of fitted places on held-out ones, or leave one out. hit: neighborhood hit. foreign,
    foreign_in_space: share of neighbors of another client, on the map and in the points' own space.
    """
    chosen = fitted.rows(sample(len(fitted.points_ND), MOST_POINTS))
    found: dict[str, float] = {}
    enough = held_out is not None and len(held_out.points_ND) > 2 * k + 2
    judged = held_out.rows(sample(len(held_out.points_ND), MOST_POINTS)) if enough and held_out is not None else chosen
    found["trustworthiness"] = embedding.trustworthiness(judged.points_ND, judged.places_Nd, k=k)
    found["continuity"] = embedding.continuity(judged.points_ND, judged.places_Nd, k=k)
    found["distances"] = embedding.distance_correlation(judged.points_ND, judged.places_Nd)
    if fitted.labels_N is not None:
        if enough and held_out is not None:
            found["knn"] = embedding.knn_accuracy(
                fitted.places_Nd,
                fitted.labels_N,
                k=k,
                test_map_Md=held_out.places_Nd,
                test_labels_M=held_out.labels_N,
            )
        else:
            assert chosen.labels_N is not None
            found["knn"] = embedding.knn_accuracy(chosen.places_Nd, chosen.labels_N, k=k)
        assert chosen.labels_N is not None
        found["hit"] = embedding.neighborhood_hit(chosen.places_Nd, chosen.labels_N, k=k)
    if len(np.unique(fitted.owners_N)) > 1:
        found["foreign"] = embedding.foreign_share(chosen.places_Nd, chosen.owners_N, k=k)
        found["foreign_in_space"] = embedding.foreign_share(chosen.points_ND, chosen.owners_N, k=k)
    return found


def by_client(mapped: Mapped, names: Sequence[str], *, k: int) -> list[dict[str, Any]]:
    """Points, and trustworthiness of each client's own part of the map; None where a client has too few points."""
    rows = []
    for number, name in enumerate(names):
        own = mapped.rows(np.flatnonzero(mapped.owners_N == number))
        chosen = own.rows(sample(len(own.points_ND), MOST_POINTS))
        enough = len(chosen.points_ND) > 2 * k + 2
        trust = embedding.trustworthiness(chosen.points_ND, chosen.places_Nd, k=k) if enough else None
        classes = None if own.labels_N is None else len(np.unique(own.labels_N))
        rows.append({"name": name, "points": len(own.points_ND), "classes": classes, "trustworthiness": trust})
    return rows
