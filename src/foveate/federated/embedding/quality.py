"""Quality of a map (on points that trained it and on held-out points), its cost, and the privacy of its messages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.seeds import generator
from foveate.federated.embedding.grids import max_change
from foveate.federated.embedding.options import FEDNE, METHODS, EmbeddingOptions, first_surrogate_round, is_refreshed
from foveate.federated.embedding.state import OWN_NOISE, MapState
from foveate.federated.privacy import DELTA, cost_row, gaussian_cost
from foveate.federated.results import EmbedClient, EmbedMap, EmbedMethod, PrivacyCost
from foveate.federated.rounds import sum_bytes
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


def account(options: EmbeddingOptions, state: MapState, *, delta: float = DELTA) -> list[PrivacyCost]:
    """List for each kind of message that reveals points the unit that noise hides and how well, or none.

    encoder: the unit is a whole client. All that a client has may be replaced; the change it sends has at most the norm
    C, so its answer moves by at most 2 C; the noise is `update_noise` C. Counted over the rounds in which it trained.

    field, surrogate: the unit is one point of a client. One of n points moves each of G values by at most R / n, all
    together by sqrt(G) R / n, where R is log 2 (kernel "shifted") or 9.21 ("cauchy"), and n is without dropped points
    (`max_change`); the client with the largest change counts. It holds for the encoder and the box as they were sent;
    these are accounted for separately, and the box of a map is sent without any noise.
    """
    # A server that was stopped within a round asks it again, and clients answer with fresh noise: two noisy answers to
    # one question. So every restart counts as one more message of each kind.
    rounds = state.resumed + max(
        (sum(client in entry["clients"] for entry in state.history) for client in state.sizes), default=0
    )
    # 2 C: replacing a client may turn a change of norm C into the opposite one.
    rho = rounds * gaussian_cost(2.0, options.update_noise) if options.update_noise else None
    # Clients over a network may add noise that no server knows; their own accounts have its cost.
    is_hidden = OWN_NOISE in state.notes

    def row(name: str, unit: str, rho: float | None, messages: int) -> PrivacyCost:
        if is_hidden and rho is None:
            return PrivacyCost(name=name, unit="by the client's own noise", messages=messages, delta=delta)
        return cost_row(name, unit, rho, messages, delta)

    rows = [row("encoder", "a whole client", rho, rounds)]
    # The baselines exchange nothing but the encoder.
    if options.method != FEDNE:
        return rows
    start = first_surrogate_round(options.rounds, options.surrogate_start)
    refreshed = sum(is_refreshed(entry["round"], start=start, refresh=options.refresh) for entry in state.history)
    # Without a request for fields, or with a single client, no field reaches anyone: there is nothing to account for.
    if not refreshed or len(state.sizes) < 2:
        return rows
    # A restart requests them again, like the encoder above.
    refreshed += state.resumed
    name = "field" if options.surrogate == "grid" else "surrogate"
    rho = None
    if options.target_noise:
        # The largest grid that the options allow, because the number of values of each round is not recorded.
        queries = options.max_axis_points**options.dimensions
        # A network of three dimensions is fitted to random queries, of which there are fewer.
        if options.surrogate != "grid" and options.dimensions > 2:
            queries = min(queries, options.max_points)
        changes = (max_change(size, drop=options.drop, kernel=options.kernel) for size in state.sizes.values())
        rho = refreshed * gaussian_cost(math.sqrt(queries) * max(changes), options.target_noise)
    rows.append(row(name, "one point of any client", rho, refreshed))
    # Boxes go without noise whatever the options, so the account must name them.
    if options.grid == "union":
        rows.append(row("box", "nothing", None, refreshed))
    return rows


def measure_method(
    options: EmbeddingOptions,
    state: MapState,
    clients: list[EmbedClient],
    map: EmbedMap,
    quality: dict[str, float] | None = None,
) -> EmbedMethod:
    """Build one method's row in the result."""
    return EmbedMethod(
        method=options.method,
        description=METHODS[options.method],
        quality=quality or {},
        clients=clients,
        notes=state.notes,
        exchanged=state.exchanged,
        privacy=account(options, state) if state.exchanged else [],
        # Sum over the whole table: requests before the first round are in no round's entry.
        bytes_up=sum_bytes(state.exchanged, up=True),
        bytes_down=sum_bytes(state.exchanged, up=False),
        seconds=round(sum(entry["seconds"] for entry in state.history), 2),
        history=state.history,
        map=map,
    )
