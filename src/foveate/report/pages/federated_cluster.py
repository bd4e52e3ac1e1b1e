"""The page of groups found in data of several clients: the joint map, the clients, what was exchanged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import ResultModel, parse_result
from foveate.report import numbers
from foveate.report.charts import plot
from foveate.report.numbers import size_words
from foveate.report.page import Page, command_text
from foveate.report.scatter import legend, ranked, scatter

MEASURES = {
    "distance": ("Distance", "root-mean-square distance of a point to the center of its group; smaller is tighter"),
    "nmi": ("NMI", "normalized mutual information of groups and labels; 1 is best"),
    "ari": ("ARI", "adjusted Rand index: pairs on which groups and labels agree, corrected for chance; 1 is best"),
    "purity": ("Purity", "share of points with the commonest label of their group"),
    "centroid_index": ("Wrong centers", "centroid index against the classes' means; 0 is the right structure"),
    "center_error": ("Center error", "mean distance of class means and matched centers"),
}
KINDS = {
    "query.centroids": "the first exchange",
    "query.lloyd": "refinement",
    "query.assign": "how well it fits",
}


class ClusterMap(ResultModel):
    places: list[list[float]]
    owners: list[int]
    groups: list[int]
    labels: list[str] | None = None
    centers: list[list[float]] = []
    sent: list[list[float]] = []
    projected: bool = False


class ClusterClient(ResultModel):
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


class ClusterMethod(ResultModel):
    method: str
    federated: bool = True
    clusters: int
    quality: dict[str, float] = {}
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0


class ClusterExchange(ResultModel):
    kind: str
    up: bool
    what: str
    dtype: str
    messages: int
    bytes: int
    smallest: list[int] = []
    largest: list[int] = []


class ClusterResult(ResultModel):
    kind: str
    method: str
    note: str = ""
    clusters: int
    features: int
    split: str = ""
    points: int
    clients: list[ClusterClient]
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
    """The map three times: by group with the names of groups, by client, by label where there are labels."""
    colored = [
        ("By group", [str(group) for group in drawn.groups], True),
        ("By client", [names[owner] for owner in drawn.owners], False),
    ]
    if drawn.labels is not None:
        colored.append(("By label", drawn.labels, True))
    found = []
    for title, groups, named in colored if drawn.places else []:
        styles = ranked(groups)
        image = scatter(drawn.places, groups, styles, title=f"Joint map, {title.lower()}", named=named)
        found.append({"map": plot(title, image), "legend": legend(styles)})
    return found


def maps(r: ClusterResult) -> list[dict[str, Any]]:
    """The joint map, and what the server saw."""
    drawn = point_maps(r.map, [client.name for client in r.clients])
    if r.map.sent:
        kinds = ["sent by a client"] * len(r.map.sent) + ["center of a group"] * len(r.map.centers)
        styles = {"sent by a client": "g0", "center of a group": "g1"}
        image = scatter([*r.map.sent, *r.map.centers], kinds, styles, title="What the server saw")
        drawn.append({"map": plot("What the server saw", image), "legend": legend(styles)})
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
    """What left the clients and what came to them."""
    rows = []
    for row in sorted(exchanged, key=lambda one: not one.up):
        shapes = [" × ".join(map(str, shape)) for shape in (row.smallest, row.largest) if shape]
        rows.append(
            {
                "kind": kinds.get(row.kind, row.kind),
                "way": "from a client" if row.up else "to a client",
                "what": row.what,
                "shape": f"{' to '.join(dict.fromkeys(shapes))} {row.dtype}" if shapes else "numbers and words",
                "messages": numbers.count(row.messages),
                "bytes": size_words(row.bytes),
            }
        )
    return rows


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """The page of a federated clustering's result.json (`ClusterResult`)."""
    r = parse_result(ClusterResult, result)
    facts = [
        ("Clients", numbers.count(len(r.clients))),
        ("Points", numbers.count(r.points)),
        ("Features", numbers.count(r.features)),
        ("Split", r.split),
        ("From clients", size_words(r.bytes_up)),
        ("To clients", size_words(r.bytes_down)),
        ("Time", numbers.duration(r.seconds)),
    ]
    context = {
        "r": r,
        "facts": [(name, value) for name, value in facts if value],
        "maps": maps(r),
        "table": measures(r),
        "exchanged": exchange_rows(r.exchanged, KINDS),
        "labeled": r.clients and r.clients[0].classes is not None,
        "command": command_text(r.command),
    }
    return Page("federated_cluster.html.j2", f"{r.clusters} groups at {len(r.clients)} clients", context)
