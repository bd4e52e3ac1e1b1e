"""The page of one encoder trained at several clients: what it is worth, its groups, its rounds, what was exchanged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foveate.core.results import ResultModel, parse_result
from foveate.report import numbers
from foveate.report.charts import Series, line_chart, plot
from foveate.report.numbers import size_words
from foveate.report.page import Page, command_text
from foveate.report.pages.federated_cluster import ClusterExchange, ClusterMap, exchange_rows, point_maps

TITLES = {
    "deepfeca": "DeepFeCA, reconstructed",
    "local": "Towards each client’s own centroids",
    "central": "All data in one place",
    "untrained": "Untrained",
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


class FeaturesClient(ResultModel):
    name: str
    points: int
    groups: int | None = None
    rounds: int = 0
    distance: float | None = None
    classes: int | None = None
    nmi: float | None = None
    purity: float | None = None
    excluded: str = ""


class FeaturesMethod(ResultModel):
    method: str
    what: str = ""
    federated: bool = True
    rounds: int = 0
    quality: dict[str, float] = {}
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0


class FeaturesRound(ResultModel):
    round: int
    loss: float
    moved: float | None = None


class FeaturesResult(ResultModel):
    kind: str
    method: str
    what: str = ""
    clustering: str = ""
    encoder: str = "none"
    clusters: int
    features: int
    width: int
    split: str = ""
    points: int
    clients: list[FeaturesClient]
    methods: list[FeaturesMethod]
    exchanged: list[ClusterExchange] = []
    history: list[FeaturesRound] = []
    notes: list[str] = []
    map: ClusterMap
    options: dict[str, Any] = {}
    command: str | list[str] = ""


def measures(r: FeaturesResult) -> dict[str, Any]:
    """Heads with their meaning, and a line of cells for each method."""
    shown = [key for key in MEASURES if any(key in one.quality for one in r.methods)]
    lines = []
    for one in r.methods:
        traffic = size_words(one.bytes_up + one.bytes_down) if one.federated else "all points"
        lines.append(
            {
                "title": TITLES.get(one.method, one.method),
                "cells": [f"{one.quality[key]:.3f}" if key in one.quality else "–" for key in shown],
                "rounds": one.rounds,
                "traffic": traffic,
                "seconds": numbers.duration(one.seconds),
            }
        )
    return {"heads": [MEASURES[key] for key in shown], "lines": lines}


def charts(r: FeaturesResult) -> list[Markup]:
    """The loss by round, and how far centers moved."""
    loss = [(float(one.round + 1), one.loss) for one in r.history]
    moved = [(float(one.round + 1), one.moved) for one in r.history if one.moved is not None]
    drawn = [
        ("Loss of the clients", line_chart([Series("loss", loss)], title="Loss", x_label="round")),
        (
            "How far centers moved, 1 − cosine",
            line_chart([Series("moved", moved, 1)], title="Movement of centers", x_label="round"),
        ),
    ]
    return [plot(title, chart) for title, chart in drawn if chart]


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """The page of result.json of `foveate federated features` (`FeaturesResult`)."""
    r = parse_result(FeaturesResult, result)
    first = r.methods[0]
    facts = [
        ("Clients", numbers.count(len(r.clients))),
        ("Points", numbers.count(r.points)),
        ("Numbers of a point", numbers.count(r.features)),
        ("Numbers of an embedding", numbers.count(r.width)),
        ("Encoder", "a head on the features" if r.encoder == "none" else r.encoder),
        ("Split", r.split),
        ("Rounds", numbers.count(first.rounds)),
        ("From clients", size_words(first.bytes_up)),
        ("To clients", size_words(first.bytes_down)),
        ("Time", numbers.duration(first.seconds)),
    ]
    context = {
        "r": r,
        "title_of": TITLES,
        "facts": [(name, value) for name, value in facts if value],
        "maps": point_maps(r.map, [client.name for client in r.clients]),
        "table": measures(r),
        "charts": charts(r),
        "exchanged": exchange_rows(r.exchanged, KINDS),
        "seen": any(client.distance is not None for client in r.clients),
        "labeled": r.clients and r.clients[0].classes is not None,
        "command": command_text(r.command),
    }
    return Page("federated_features.html.j2", f"One encoder of {len(r.clients)} clients", context)
