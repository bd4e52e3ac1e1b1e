"""Pages of what several clients found together: clusters, maps and encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foveate.core.results import parse_result
from foveate.federated.results import ClusterResult, EmbedMethod, EmbedResult, FeaturesResult, GroupMap, Traffic
from foveate.report import numbers
from foveate.report.charts import Series, legend, line_chart, plot, ranked, scatter
from foveate.report.numbers import size_words
from foveate.report.page import Page, command_text

# Page of a federated clustering: the joint map, the clients, what was exchanged.


CLUSTER_MEASURES = {
    "distance": ("Distance", "root-mean-square distance of a point to the center of its group; smaller is tighter"),
    "nmi": ("NMI", "normalized mutual information of groups and labels; 1 is best"),
    "ari": ("ARI", "adjusted Rand index: pairs on which groups and labels agree, corrected for chance; 1 is best"),
    "purity": ("Purity", "share of points with the commonest label of their group"),
    "centroid_index": ("Wrong centers", "centroid index against the classes' means; 0 is the right structure"),
    "center_error": ("Center error", "mean distance of class means and matched centers"),
}
CLUSTER_KINDS = {
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


def cluster_maps(r: ClusterResult) -> list[dict[str, Any]]:
    """Draw the joint map, and the points that the server received."""
    figures = draw_maps(r.map, [client.name for client in r.clients])
    if r.map.sent:
        kinds = ["sent by a client"] * len(r.map.sent) + ["center of a group"] * len(r.map.centers)
        styles = {"sent by a client": "g0", "center of a group": "g1"}
        image = scatter([*r.map.sent, *r.map.centers], kinds, styles, title="What the server saw")
        figures.append({"map": plot("What the server saw", image), "legend": legend(styles)})
    return figures


def cluster_measures(r: ClusterResult) -> dict[str, Any]:
    """Build the column heads with their meaning, and a line of cells per method."""
    keys = [key for key in CLUSTER_MEASURES if any(key in method.quality for method in r.methods)]
    lines = []
    for method in r.methods:
        cells = [_cell(key, method.quality.get(key)) for key in keys]
        # A central baseline sends no messages: it was given all points.
        traffic = size_words(method.bytes_up + method.bytes_down) if method.federated else "all points"
        lines.append(
            {"title": method.method, "cells": cells, "traffic": traffic, "seconds": numbers.duration(method.seconds)}
        )
    return {"heads": [CLUSTER_MEASURES[key] for key in keys], "lines": lines}


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


def build_federated_cluster(result: Mapping[str, Any], run_folder: Path) -> Page:
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
        "maps": cluster_maps(r),
        "table": cluster_measures(r),
        "exchanged": traffic_rows(r.exchanged, CLUSTER_KINDS),
        "labeled": r.clients and r.clients[0].classes is not None,
        # A server over a network sees no points, so it knows no groups of a client, and distances only if it asked.
        "grouped": any(client.groups for client in r.clients),
        "measured": any(client.distance is not None for client in r.clients),
        "command": command_text(r.command),
    }
    return Page("federated_cluster.html.j2", f"{r.clusters} groups at {len(r.clients)} clients", context)


# Page of one map of several clients: the maps side by side, their quality, what was exchanged.


EMBED_TITLES = {
    "fedne": "FedNE",
    "fedavg": "Federated averaging",
    "fedprox": "FedProx",
    "local": "Each client alone",
    "global": "All data in one place",
    "fedne_exact": "Exact positions, not private",
}
EMBED_MEASURES = (
    ("trustworthiness", "map neighbors are neighbors in the data; 1 is best"),
    ("continuity", "neighbors in the data are map neighbors; 1 is best"),
    ("knn", "how often the vote of map neighbors is the label"),
    ("hit", "share of map neighbors with the same label"),
    ("foreign", "share of map neighbors from another client; should be that of the data"),
    ("foreign_in_space", "the same in the data themselves"),
    ("distances", "correlation of distances on the map with those in the data"),
)
SHORT = {
    "trustworthiness": "Trust",
    "continuity": "Continuity",
    "knn": "Neighbors’ vote",
    "hit": "Same label",
    "foreign": "Foreign",
    "foreign_in_space": "Foreign in the data",
    "distances": "Distances",
}
_AVERAGED = "The weights of the encoder left the clients, and depend on every point"
LEFT = {
    "fedne": _AVERAGED + "; so did a density of each client's map.",
    "fedavg": _AVERAGED + ".",
    "fedprox": _AVERAGED + ".",
    "local": "Nothing left the clients.",
    "global": "All points were put in one place.",
    "fedne_exact": _AVERAGED + "; so did every map position.",
}
"""What left the clients, by method."""
EMBED_KINDS = {
    "query.points": "how many points",
    "query.box": "the box of its map",
    "query.surrogate": "its surrogate",
    "query.field": "its field of repulsion",
    "query.positions": "all map positions",
    "train": "training",
}


def embed_maps(r: EmbedResult) -> list[dict[str, Any]]:
    """Draw rows of maps: by label (where there are labels) and by client, one method next to the other."""
    names = list(r.clients)
    rows: list[dict[str, Any]] = []
    if not any(method.map.positions for method in r.maps):
        return rows  # a server over a network has no points to draw
    for key, title in (("labels", "Colored by label"), ("owners", "Colored by client")):
        if key == "labels" and r.maps[0].map.labels is None:
            continue
        figures, styles = [], {}
        for method in r.maps:
            groups = method.map.labels if key == "labels" else [names[owner] for owner in method.map.owners]
            # The colors of the first map for all of them: a client has one color on the whole page.
            styles = styles or ranked(groups or [])
            name = EMBED_TITLES.get(method.method, method.method)
            image = scatter(
                method.map.positions, groups or [], styles, title=f"{name}, {title.lower()}", named=key == "labels"
            )
            figures.append(plot(name, image))
        rows.append({"title": title, "maps": figures, "legend": legend(styles)})
    return rows


def embed_measures(r: EmbedResult) -> dict[str, Any]:
    """Build the column heads with their meaning, and a line of cells per method."""
    columns = [(key, meaning) for key, meaning in EMBED_MEASURES if any(key in method.quality for method in r.maps)]
    lines = []
    for method in r.maps:
        cells = [f"{method.quality[key]:.3f}" if key in method.quality else "–" for key, _ in columns]
        # Nothing is sent if clients train alone or all data is in one place.
        traffic = size_words(method.bytes_up + method.bytes_down) if method.bytes_up else "nothing"
        lines.append(
            {
                "title": EMBED_TITLES.get(method.method, method.method),
                "cells": cells,
                "traffic": traffic,
                "seconds": numbers.duration(method.seconds),
            }
        )
    return {"heads": [(SHORT[key], meaning) for key, meaning in columns], "lines": lines}


def embed_charts(method: EmbedMethod) -> list[Markup]:
    """Draw the losses by round, and the surrogates' fit."""
    series = [
        Series(
            name, [(float(e.round), float(value)) for e in method.history if (value := getattr(e, key)) is not None], n
        )
        for n, (name, key) in enumerate(
            (("attraction", "attraction"), ("own repulsion", "repulsion"), ("others’ repulsion", "foreign"))
        )
    ]
    figures = []
    if any(line.points for line in series):
        figures.append(plot("Losses", line_chart(series, title="Losses", x_label="round")))
    # The worst client is shown beside the mean, where a single poor surrogate would be lost.
    fits = [(e.round, list(e.r2.values())) for e in method.history if e.r2]
    if fits:
        lines = [
            Series("mean", [(float(number), sum(values) / len(values)) for number, values in fits], 0),
            Series("worst client", [(float(number), min(values)) for number, values in fits], 1),
        ]
        figures.append(plot("How well surrogates fit, R²", line_chart(lines, title="R2", x_label="round")))
    return figures


def build_federated_embed(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page from result.json (`EmbedResult`)."""
    r = parse_result(EmbedResult, result)
    main = r.maps[0]
    facts = [
        ("Clients", numbers.count(len(r.clients))),
        ("Points", numbers.count(sum(r.clients.values()))),
        ("Held out for measuring", numbers.count(r.held_out)),
        ("Features", numbers.count(r.features)),
        ("Split", r.split),
        ("Rounds", numbers.count(len(main.history))),
        ("Exchanged", size_words(main.bytes_up + main.bytes_down)),
        ("Time", numbers.duration(main.seconds)),
        ("Verdict", r.payoff),
    ]
    context = {
        "r": r,
        "left": LEFT.get(str(r.options.get("method", main.method)), ""),
        "main": main,
        "title_of": EMBED_TITLES,
        "facts": [(name, value) for name, value in facts if value],
        "rows": embed_maps(r),
        "table": embed_measures(r),
        "charts": embed_charts(main),
        "exchanged": traffic_rows(main.exchanged, EMBED_KINDS),
        "options": r.options,
        "command": command_text(r.command),
    }
    return Page("federated_embed.html.j2", "One map of several clients", context)


# Page of one encoder trained at several clients: quality, groups, rounds, what was exchanged.


FEATURES_TITLES = {
    "deepfeca": "DeepFeCA, reconstructed",
    "local": "Towards each client’s own centroids",
    "central": "All data in one place",
    "untrained": "Untrained",
    "plain": "No encoder: the points as they are",
}
FEATURES_MEASURES = {
    "nmi": ("NMI", "normalized mutual information of groups and labels; 1 is best"),
    "ari": ("ARI", "adjusted Rand index: pairs on which groups and labels agree, corrected for chance; 1 is best"),
    "purity": ("Purity", "share of points with the commonest label of their group"),
    "knn": ("Neighbors’ vote", "how often the vote of 7 neighbors in the encoder’s output is the label"),
    "probe": ("Linear probe", "logistic regression on the encoder’s output, points that it did not see"),
    "distance": (
        "Distance",
        "root-mean-square distance of a unit vector to its center; not comparable across encoders",
    ),
}
FEATURES_KINDS = {
    "query.size": "size of the data",
    "query.embedded": "centroids of embeddings",
    "train.prototypes": "training",
}


def features_measures(r: FeaturesResult) -> dict[str, Any]:
    """Build the column heads with their meaning, and a line of cells per method."""
    keys = [key for key in FEATURES_MEASURES if any(key in method.quality for method in r.methods)]
    lines = []
    for method in r.methods:
        traffic = size_words(method.bytes_up + method.bytes_down) if method.federated else "all points"
        lines.append(
            {
                "title": FEATURES_TITLES.get(method.method, method.method),
                "cells": [f"{method.quality[key]:.3f}" if key in method.quality else "–" for key in keys],
                "rounds": method.rounds,
                "traffic": traffic,
                "seconds": numbers.duration(method.seconds),
            }
        )
    return {"heads": [FEATURES_MEASURES[key] for key in keys], "lines": lines}


def features_charts(r: FeaturesResult) -> list[Markup]:
    """Draw the loss by round, and how far centers moved."""
    # Rounds count from 0 in the result, and from 1 on the page.
    loss = [(float(entry.round + 1), entry.loss) for entry in r.history]
    moved = [(float(entry.round + 1), entry.moved) for entry in r.history if entry.moved is not None]
    titled = [
        ("Loss of the clients", line_chart([Series("loss", loss)], title="Loss", x_label="round")),
        (
            "How far centers moved, 1 − cosine",
            line_chart([Series("moved", moved, 1)], title="Movement of centers", x_label="round"),
        ),
    ]
    return [plot(title, chart) for title, chart in titled if chart]


def build_federated_features(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page from result.json (`FeaturesResult`)."""
    r = parse_result(FeaturesResult, result)
    first = r.methods[0]
    facts = [
        ("Clients", numbers.count(len(r.clients))),
        ("Points", numbers.count(r.points)),
        ("Values per point", numbers.count(r.features)),
        ("Values per embedding", numbers.count(r.width)),
        ("Encoder", "a head on the features" if r.encoder == "none" else r.encoder),
        ("Split", r.split),
        ("Rounds", numbers.count(first.rounds)),
        ("From clients", size_words(first.bytes_up)),
        ("To clients", size_words(first.bytes_down)),
        ("Time", numbers.duration(first.seconds)),
    ]
    context = {
        "r": r,
        # Unlike in plain clustering, weights of the encoder leave the clients, too.
        "left": describe_privacy(r.options, federated=r.methods[0].federated, weights=True),
        "title_of": FEATURES_TITLES,
        "facts": [(name, value) for name, value in facts if value],
        "maps": draw_maps(r.map, [client.name for client in r.clients]),
        "table": features_measures(r),
        "charts": features_charts(r),
        "exchanged": traffic_rows(r.exchanged, FEATURES_KINDS),
        "measured": any(client.distance is not None for client in r.clients),
        "labeled": r.clients and r.clients[0].classes is not None,
        "command": command_text(r.command),
    }
    return Page("federated_features.html.j2", f"One encoder of {len(r.clients)} clients", context)


PAGES: Mapping[str, Callable[[Mapping[str, Any], Path], Page]] = {
    "federated_cluster": build_federated_cluster,
    "federated_embed": build_federated_embed,
    "federated_features": build_federated_features,
}
