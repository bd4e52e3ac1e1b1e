"""The tour's federated part: two maps, groups with pictures, what left each site."""

from __future__ import annotations

from typing import Any

from foveate.report import numbers
from foveate.report.charts import plot
from foveate.report.numbers import size_words
from foveate.report.scatter import legend, ranked, scatter
from foveate.report.schema import Part

MEASURES = (
    ("knn", "Neighbours’ vote", "held-out pictures whose kind 7 neighbours on the map vote for"),
    ("trustworthiness", "Trust", "neighbours on the map are neighbours in the features; 1 is best"),
    ("continuity", "Continuity", "neighbours in the features are neighbours on the map; 1 is best"),
    ("foreign", "Foreign", "share of neighbours on the map from another site"),
    ("foreign_in_space", "Foreign in the features", "the same in the features: what a faithful map would show"),
)


class FederatedGrouping(Part):
    title: str
    nmi: float
    purity: float


class FederatedMap(Part):
    title: str
    quality: dict[str, float]
    bytes_up: int
    bytes_down: int
    places: list[list[float]]
    notes: dict[str, int] = {}


class FederatedSite(Part):
    name: str
    pictures: int
    kinds: list[str]
    groups: int
    maps: dict[str, int]


class FederatedPicture(Part):
    picture: str
    kind: str = ""


class FederatedGroup(Part):
    group: int
    size: int
    sites: int
    kind: str
    share: float
    pictures: list[FederatedPicture] = []


class TourFederated(Part):
    pictures: int
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
    sites: list[FederatedSite]
    examples: list[FederatedGroup] = []


def federated_section(r: TourFederated) -> dict[str, Any]:
    """What the template shows: rows of maps, tables, and totals."""
    names = [site.name for site in r.sites]
    coloured = (
        ("By kind", r.labels, False),
        ("By site", [names[owner] for owner in r.owners], False),
        ("By group", [str(group) for group in r.groups], True),
    )
    rows = []
    for title, values, named in coloured:
        styles = ranked(values)
        drawn = [
            plot(
                one.title,
                scatter(one.places, values, styles, title=f"{one.title}, {title.lower()}", named=named),
            )
            for one in r.maps
        ]
        rows.append({"title": title, "maps": drawn, "legend": legend(styles)})
    shown = [one for one in MEASURES if any(one[0] in drawn.quality for drawn in r.maps)]
    lines = [
        {
            "title": one.title,
            "cells": [f"{one.quality[key]:.3f}" if key in one.quality else "–" for key, _, _ in shown],
            "sent": size_words(one.bytes_up),
            "received": size_words(one.bytes_down),
        }
        for one in r.maps
    ]
    sites = [
        {
            "name": site.name,
            "pictures": numbers.count(site.pictures),
            "kinds": ", ".join(site.kinds),
            "groups": size_words(site.groups),
            "maps": [size_words(size) for size in site.maps.values()],
        }
        for site in r.sites
    ]
    return {
        "r": r,
        "rows": rows,
        "heads": [(title, what) for _, title, what in shown],
        "lines": lines,
        "sites": sites,
        "titles": [one.title for one in r.maps],
        "notes": [f"{one.title}: {words} ({count} times)" for one in r.maps for words, count in one.notes.items()],
        "kinds": max(len(site.kinds) for site in r.sites),
        "sent": size_words(sum(site.groups for site in r.sites)),
    }
