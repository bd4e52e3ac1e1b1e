"""Page of one encoder trained at several clients: quality, groups, rounds, what was exchanged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foveate.core.results import parse_result
from foveate.federated.results import FeaturesResult
from foveate.report import numbers
from foveate.report.charts import Series, line_chart, plot
from foveate.report.numbers import size_words
from foveate.report.page import Page, command_text
from foveate.report.pages.federated_cluster import describe_privacy, draw_maps, traffic_rows

TITLES = {
    "deepfeca": "DeepFeCA, reconstructed",
    "local": "Towards each client’s own centroids",
    "central": "All data in one place",
    "untrained": "Untrained",
    "plain": "No encoder: the points as they are",
}
MEASURES = {
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
KINDS = {"query.size": "size of the data", "query.embedded": "centroids of embeddings", "train.prototypes": "training"}


def measures(r: FeaturesResult) -> dict[str, Any]:
    """Build the column heads with their meaning, and a line of cells per method."""
    keys = [key for key in MEASURES if any(key in method.quality for method in r.methods)]
    lines = []
    for method in r.methods:
        traffic = size_words(method.bytes_up + method.bytes_down) if method.federated else "all points"
        lines.append(
            {
                "title": TITLES.get(method.method, method.method),
                "cells": [f"{method.quality[key]:.3f}" if key in method.quality else "–" for key in keys],
                "rounds": method.rounds,
                "traffic": traffic,
                "seconds": numbers.duration(method.seconds),
            }
        )
    return {"heads": [MEASURES[key] for key in keys], "lines": lines}


def charts(r: FeaturesResult) -> list[Markup]:
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


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
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
        "title_of": TITLES,
        "facts": [(name, value) for name, value in facts if value],
        "maps": draw_maps(r.map, [client.name for client in r.clients]),
        "table": measures(r),
        "charts": charts(r),
        "exchanged": traffic_rows(r.exchanged, KINDS),
        "measured": any(client.distance is not None for client in r.clients),
        "labeled": r.clients and r.clients[0].classes is not None,
        "command": command_text(r.command),
    }
    return Page("federated_features.html.j2", f"One encoder of {len(r.clients)} clients", context)
