"""The page of groups found in data of several sites: the joint map, the sites, what was exchanged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.report import numbers
from foveate.report.charts import plot
from foveate.report.numbers import size_words
from foveate.report.page import Page, command_text
from foveate.report.scatter import legend, ranked, scatter
from foveate.report.schema import Part, read

MEASURES = {
    "distance": ("Distance", "root-mean-square distance of a point to the centre of its group; smaller is tighter"),
    "nmi": ("NMI", "normalised mutual information of groups and labels; 1 is best"),
    "ari": ("ARI", "adjusted Rand index: pairs on which groups and labels agree, corrected for chance; 1 is best"),
    "purity": ("Purity", "share of points with the commonest label of their group"),
    "centroid_index": ("Wrong centres", "centroid index against the classes' means; 0 is the right structure"),
    "centre_error": ("Centre error", "mean distance of class means and matched centres"),
}
KINDS = {
    "query.centroids": "the first exchange",
    "query.lloyd": "refinement",
    "query.assign": "how well it fits",
}


class ClusterMap(Part):
    places: list[list[float]]
    owners: list[int]
    groups: list[int]
    labels: list[str] | None = None
    centres: list[list[float]] = []
    sent: list[list[float]] = []
    projected: bool = False


class ClusterSite(Part):
    name: str
    points: int
    sent: int = 0
    trusted: int | None = None
    smallest: int | None = None
    groups: int = 0
    classes: int | None = None
    distance: float | None = None
    nmi: float | None = None
    purity: float | None = None
    excluded: str = ""
    suspect: str = ""


class ClusterMethod(Part):
    method: str
    federated: bool = True
    clusters: int
    quality: dict[str, float] = {}
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0


class ClusterExchange(Part):
    kind: str
    up: bool
    what: str
    dtype: str
    messages: int
    bytes: int
    smallest: list[int] = []
    largest: list[int] = []


class ClusterResult(Part):
    kind: str
    method: str
    note: str = ""
    clusters: int
    features: int
    split: str = ""
    points: int
    sites: list[ClusterSite]
    methods: list[ClusterMethod]
    exchanged: list[ClusterExchange] = []
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    notes: list[str] = []
    map: ClusterMap
    options: dict[str, Any] = {}
    command: str | list[str] = ""


def point_maps(drawn: ClusterMap, names: list[str]) -> list[dict[str, Any]]:
    """The map three times: by group with the names of groups, by site, by label where there are labels."""
    coloured = [
        ("By group", [str(group) for group in drawn.groups], True),
        ("By site", [names[owner] for owner in drawn.owners], False),
    ]
    if drawn.labels is not None:
        coloured.append(("By label", drawn.labels, True))
    found = []
    for title, groups, named in coloured if drawn.places else []:
        styles = ranked(groups)
        picture = scatter(drawn.places, groups, styles, title=f"Joint map, {title.lower()}", named=named)
        found.append({"map": plot(title, picture), "legend": legend(styles)})
    return found


def maps(r: ClusterResult) -> list[dict[str, Any]]:
    """The joint map, and what the server saw."""
    drawn = point_maps(r.map, [site.name for site in r.sites])
    if r.map.sent:
        kinds = ["sent by a site"] * len(r.map.sent) + ["centre of a group"] * len(r.map.centres)
        styles = {"sent by a site": "g0", "centre of a group": "g1"}
        picture = scatter([*r.map.sent, *r.map.centres], kinds, styles, title="What the server saw")
        drawn.append({"map": plot("What the server saw", picture), "legend": legend(styles)})
    return drawn


def measures(r: ClusterResult) -> dict[str, Any]:
    """Heads with their meaning, and a line of cells for each method."""
    shown = [key for key in MEASURES if any(key in one.quality for one in r.methods)]
    lines = []
    for one in r.methods:
        cells = [_cell(key, one.quality.get(key)) for key in shown]
        traffic = size_words(one.bytes_up + one.bytes_down) if one.federated else "all points"
        lines.append(
            {"title": one.method, "cells": cells, "traffic": traffic, "seconds": numbers.duration(one.seconds)}
        )
    return {"heads": [MEASURES[key] for key in shown], "lines": lines}


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    return (
        f"{value:.0f}" if key == "centroid_index" else f"{value:.3g}" if key.startswith(("d", "c")) else f"{value:.3f}"
    )


def exchange_rows(exchanged: list[ClusterExchange], kinds: Mapping[str, str]) -> list[dict[str, str]]:
    """What left the sites and what came to them."""
    rows = []
    for row in sorted(exchanged, key=lambda one: not one.up):
        shapes = [" × ".join(map(str, shape)) for shape in (row.smallest, row.largest) if shape]
        rows.append(
            {
                "kind": kinds.get(row.kind, row.kind),
                "way": "from a site" if row.up else "to a site",
                "what": row.what,
                "shape": f"{' to '.join(dict.fromkeys(shapes))} {row.dtype}" if shapes else "numbers and words",
                "messages": numbers.count(row.messages),
                "bytes": size_words(row.bytes),
            }
        )
    return rows


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """The page of a federated clustering's result.json (`ClusterResult`)."""
    r = read(ClusterResult, result)
    facts = [
        ("Sites", numbers.count(len(r.sites))),
        ("Points", numbers.count(r.points)),
        ("Features", numbers.count(r.features)),
        ("Split", r.split),
        ("From sites", size_words(r.bytes_up)),
        ("To sites", size_words(r.bytes_down)),
        ("Time", numbers.duration(r.seconds)),
    ]
    context = {
        "r": r,
        "facts": [(name, value) for name, value in facts if value],
        "maps": maps(r),
        "table": measures(r),
        "exchanged": exchange_rows(r.exchanged, KINDS),
        "labelled": r.sites and r.sites[0].classes is not None,
        "command": command_text(r.command),
    }
    return Page("federated_cluster.html.j2", f"{r.clusters} groups at {len(r.sites)} sites", context)
