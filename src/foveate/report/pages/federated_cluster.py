"""Page of a federated clustering: the joint map, the clients, what was exchanged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import parse_result
from foveate.federated.results import ClusterResult, GroupMap, Traffic
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


def draw_maps(positions: GroupMap, names: list[str]) -> list[dict[str, Any]]:
    """Draw the map by group with the names of groups, by client, and by label where there are labels."""
    colored = [
        ("By group", [str(group) for group in positions.groups], True),
        ("By client", [names[owner] for owner in positions.owners], False),
    ]
    if positions.labels is not None:
        colored.append(("By label", positions.labels, True))
    figures = []
    # In a run over a network the server holds no points, so there is nothing to draw.
    for title, groups, named in colored if positions.positions else []:
        styles = ranked(groups)
        image = scatter(positions.positions, groups, styles, title=f"Joint map, {title.lower()}", named=named)
        figures.append({"map": plot(title, image), "legend": legend(styles)})
    return figures


def maps(r: ClusterResult) -> list[dict[str, Any]]:
    """Draw the joint map, and the points that the server received."""
    figures = draw_maps(r.map, [client.name for client in r.clients])
    if r.map.sent:
        kinds = ["sent by a client"] * len(r.map.sent) + ["center of a group"] * len(r.map.centers)
        styles = {"sent by a client": "g0", "center of a group": "g1"}
        image = scatter([*r.map.sent, *r.map.centers], kinds, styles, title="What the server saw")
        figures.append({"map": plot("What the server saw", image), "legend": legend(styles)})
    return figures


def measures(r: ClusterResult) -> dict[str, Any]:
    """Build the column heads with their meaning, and a line of cells per method."""
    keys = [key for key in MEASURES if any(key in method.quality for method in r.methods)]
    lines = []
    for method in r.methods:
        cells = [_cell(key, method.quality.get(key)) for key in keys]
        # A central baseline sends no messages: it was given all points.
        traffic = size_words(method.bytes_up + method.bytes_down) if method.federated else "all points"
        lines.append(
            {"title": method.method, "cells": cells, "traffic": traffic, "seconds": numbers.duration(method.seconds)}
        )
    return {"heads": [MEASURES[key] for key in keys], "lines": lines}


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    # The index is a count; distances have the scale of the data, so they need significant digits.
    return (
        f"{value:.0f}" if key == "centroid_index" else f"{value:.3g}" if key.startswith(("d", "c")) else f"{value:.3f}"
    )


def traffic_rows(exchanged: list[Traffic], kinds: Mapping[str, str]) -> list[dict[str, str]]:
    """Build the rows of the traffic table: first messages from the clients, then those to them."""
    rows = []
    for row in sorted(exchanged, key=lambda row: not row.up):
        # Both the smallest and the largest: under one name, clients may send messages of different shapes.
        shapes = [" × ".join(map(str, shape)) for shape in (row.smallest, row.largest) if shape]
        rows.append(
            {
                "kind": kinds.get(row.kind, row.kind),
                "way": "from a client" if row.up else "to a client",
                "name": row.name,
                "shape": f"{' to '.join(dict.fromkeys(shapes))} {row.dtype}" if shapes else "single values",
                "messages": numbers.count(row.messages),
                "bytes": size_words(row.bytes),
            }
        )
    return rows


def describe_privacy(options: Mapping[str, Any], *, federated: bool, weights: bool = False) -> str:
    """Say what left the clients in the form of groups: a sentence that holds for these options.

    Args:
        weights: the weights of a network left them, too.
    """
    if not federated:
        return "All points were put in one place."
    # Appended to every sentence below: noise and min_count protect sums and means, not weights.
    also = " The weights of the encoder left them, too, and depend on every point." if weights else ""
    if options.get("noise"):
        return "Sums and counts left the clients with noise; what it hides is below." + also
    min_count = options.get("min_count", 1)
    if min_count > 1:
        return f"No message holds a mean or a sum of fewer than {min_count} points." + also
    return "A mean of a single point is that point, and with min_count 1 such means may have left a client." + also


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page from result.json (`ClusterResult`)."""
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
        "left": describe_privacy(r.options, federated=not r.methods or r.methods[0].federated),
        "facts": [(name, value) for name, value in facts if value],
        "maps": maps(r),
        "table": measures(r),
        "exchanged": traffic_rows(r.exchanged, KINDS),
        "labeled": r.clients and r.clients[0].classes is not None,
        # A server over a network sees no points, so it knows no groups of a client, and distances only if it asked.
        "grouped": any(client.groups for client in r.clients),
        "measured": any(client.distance is not None for client in r.clients),
        "command": command_text(r.command),
    }
    return Page("federated_cluster.html.j2", f"{r.clusters} groups at {len(r.clients)} clients", context)
