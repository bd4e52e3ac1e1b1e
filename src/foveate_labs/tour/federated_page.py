"""The tour's federated part: two maps, groups with images, what left each client."""

from __future__ import annotations

from typing import Any

from foveate.core.results import ResultModel
from foveate.report import numbers
from foveate.report.charts import legend, plot, ranked, scatter
from foveate.report.numbers import size_words

MEASURES = (
    ("knn", "Neighbors’ vote", "held-out images whose kind 7 neighbors on the map vote for"),
    ("trustworthiness", "Trust", "neighbors on the map are neighbors in the features; 1 is best"),
    ("continuity", "Continuity", "neighbors in the features are neighbors on the map; 1 is best"),
    ("foreign", "Foreign", "share of neighbors on the map from another client"),
    ("foreign_in_space", "Foreign in the features", "the same in the features: what a faithful map would show"),
)


class FederatedGrouping(ResultModel):
    title: str
    nmi: float
    purity: float


class FederatedMap(ResultModel):
    title: str
    quality: dict[str, float]
    bytes_up: int
    bytes_down: int
    positions: list[list[float]]
    notes: dict[str, int] = {}


class FederatedClient(ResultModel):
    name: str
    images: int
    kinds: list[str]
    groups: int
    maps: dict[str, int]


class FederatedImage(ResultModel):
    image: str
    kind: str = ""


class FederatedGroup(ResultModel):
    group: int
    size: int
    clients: int
    kind: str
    share: float
    images: list[FederatedImage] = []


class TourFederated(ResultModel):
    images: int
    features: int
    clusters: int
    method: str
    rounds: int
    held_out: int
    sentence: str
    groupings: list[FederatedGrouping]
    maps: list[FederatedMap]
    owners: list[int]
    labels: list[str]
    groups: list[int]
    clients: list[FederatedClient]
    examples: list[FederatedGroup] = []


def federated_section(r: TourFederated) -> dict[str, Any]:
    """Build the values of the template: rows of maps, tables, and totals."""
    names = [client.name for client in r.clients]
    colored = (
        ("By kind", r.labels, False),
        ("By client", [names[owner] for owner in r.owners], False),
        ("By group", [str(group) for group in r.groups], True),
    )
    rows = []
    for title, values, named in colored:
        # One set of colors per row of maps: a kind must not change its color from map to map.
        styles = ranked(values)
        drawn = [
            plot(
                drawn_map.title,
                scatter(drawn_map.positions, values, styles, title=f"{drawn_map.title}, {title.lower()}", named=named),
            )
            for drawn_map in r.maps
        ]
        rows.append({"title": title, "maps": drawn, "legend": legend(styles)})
    # A measure that no map has would be a column of dashes.
    measures = [measure for measure in MEASURES if any(measure[0] in drawn.quality for drawn in r.maps)]
    lines = [
        {
            "title": drawn_map.title,
            "cells": [f"{drawn_map.quality[key]:.3f}" if key in drawn_map.quality else "–" for key, _, _ in measures],
            "sent": size_words(drawn_map.bytes_up),
            "received": size_words(drawn_map.bytes_down),
        }
        for drawn_map in r.maps
    ]
    clients = [
        {
            "name": client.name,
            "images": numbers.count(client.images),
            "kinds": ", ".join(client.kinds),
            "groups": size_words(client.groups),
            "maps": [size_words(size) for size in client.maps.values()],
        }
        for client in r.clients
    ]
    return {
        "r": r,
        "rows": rows,
        "heads": [(title, what) for _, title, what in measures],
        "lines": lines,
        "clients": clients,
        "titles": [drawn_map.title for drawn_map in r.maps],
        "notes": [
            f"{drawn_map.title}: {note} ({count} times)"
            for drawn_map in r.maps
            for note, count in drawn_map.notes.items()
        ],
        "kinds": max(len(client.kinds) for client in r.clients),
        "sent": size_words(sum(client.groups for client in r.clients)),
    }
