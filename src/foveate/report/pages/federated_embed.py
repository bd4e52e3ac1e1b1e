"""The page of one map of data at several clients: the maps side by side, what they are worth, what was exchanged."""

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
from foveate.report.scatter import legend, ranked, scatter

TITLES = {
    "fedne": "FedNE",
    "fedavg": "Federated averaging",
    "fedprox": "FedProx",
    "local": "Each client alone",
    "global": "All data in one place",
    "fedne_exact": "Exact positions, not private",
}
MEASURES = (
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
KINDS = {
    "query.points": "how many points",
    "query.box": "the box of its map",
    "query.surrogate": "its surrogate",
    "query.field": "its field of repulsion",
    "query.positions": "all map positions",
    "train": "training",
}


class EmbedMap(ResultModel):
    places: list[list[float]]
    owners: list[int]
    labels: list[str] | None = None


class EmbedClient(ResultModel):
    name: str
    points: int
    classes: int | None = None
    trustworthiness: float | None = None


class EmbedExchange(ResultModel):
    kind: str
    up: bool
    what: str
    dtype: str
    messages: int
    bytes: int
    smallest: list[int] = []
    largest: list[int] = []


class EmbedHidden(ResultModel):
    what: str
    unit: str
    messages: int
    delta: float
    epsilon: float | None = None


class EmbedRound(ResultModel):
    round: int
    attraction: float | None = None
    repulsion: float | None = None
    foreign: float | None = None
    outside: int | None = None
    r2: dict[str, float] = {}


class EmbedMethod(ResultModel):
    method: str
    what: str = ""
    quality: dict[str, float] = {}
    clients: list[EmbedClient] = []
    notes: dict[str, int] = {}
    exchanged: list[EmbedExchange] = []
    hidden: list[EmbedHidden] = []
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    history: list[EmbedRound] = []
    map: EmbedMap


class EmbedResult(ResultModel):
    kind: str
    method: str
    clients: dict[str, int]
    held_out: int = 0
    neighbors: int = 7
    maps: list[EmbedMethod]
    data: dict[str, Any] = {}
    options: dict[str, Any] = {}
    command: str | list[str] = ""


def maps(r: EmbedResult) -> list[dict[str, Any]]:
    """Rows of maps: by label (where there are labels) and by client, each method beside the next."""
    names = list(r.clients)
    rows: list[dict[str, Any]] = []
    if not any(one.map.places for one in r.maps):
        return rows  # a server over a network has no points to place
    for key, title in (("labels", "Colored by label"), ("owners", "Colored by client")):
        if key == "labels" and r.maps[0].map.labels is None:
            continue
        drawn, styles = [], {}
        for one in r.maps:
            groups = one.map.labels if key == "labels" else [names[owner] for owner in one.map.owners]
            styles = styles or ranked(groups or [])
            name = TITLES.get(one.method, one.method)
            image = scatter(
                one.map.places, groups or [], styles, title=f"{name}, {title.lower()}", named=key == "labels"
            )
            drawn.append(plot(name, image))
        rows.append({"title": title, "maps": drawn, "legend": legend(styles)})
    return rows


def measures(r: EmbedResult) -> dict[str, Any]:
    """Heads with their meaning, and a line of cells for each method."""
    shown = [(key, what) for key, what in MEASURES if any(key in one.quality for one in r.maps)]
    lines = []
    for one in r.maps:
        cells = [f"{one.quality[key]:.3f}" if key in one.quality else "–" for key, _ in shown]
        traffic = size_words(one.bytes_up + one.bytes_down) if one.bytes_up else "nothing"
        lines.append(
            {
                "title": TITLES.get(one.method, one.method),
                "cells": cells,
                "traffic": traffic,
                "seconds": numbers.duration(one.seconds),
            }
        )
    return {"heads": [(SHORT[key], what) for key, what in shown], "lines": lines}


def charts(one: EmbedMethod) -> list[Markup]:
    """Losses by round, and the surrogates' fit."""
    series = [
        Series(name, [(float(e.round), float(value)) for e in one.history if (value := getattr(e, key)) is not None], n)
        for n, (name, key) in enumerate(
            (("attraction", "attraction"), ("own repulsion", "repulsion"), ("others’ repulsion", "foreign"))
        )
    ]
    drawn = []
    if any(one.points for one in series):
        drawn.append(plot("Losses", line_chart(series, title="Losses", x_label="round")))
    fits = [(e.round, list(e.r2.values())) for e in one.history if e.r2]
    if fits:
        lines = [
            Series("mean", [(float(number), sum(own) / len(own)) for number, own in fits], 0),
            Series("worst client", [(float(number), min(own)) for number, own in fits], 1),
        ]
        drawn.append(plot("How well surrogates fit, R²", line_chart(lines, title="R2", x_label="round")))
    return drawn


def exchanged(one: EmbedMethod) -> list[dict[str, str]]:
    """What left the clients and what came to them."""
    rows = []
    for row in one.exchanged:
        shapes = {" × ".join(map(str, shape)) for shape in (row.smallest, row.largest) if shape}
        rows.append(
            {
                "kind": KINDS.get(row.kind, row.kind),
                "way": "from a client" if row.up else "to a client",
                "what": row.what,
                "shape": f"{' to '.join(sorted(shapes))} {row.dtype}".strip() if shapes else "numbers and words",
                "messages": numbers.count(row.messages),
                "bytes": size_words(row.bytes),
            }
        )
    return sorted(rows, key=lambda row: row["way"])


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """The page of a federated map's result.json (`EmbedResult`)."""
    r = parse_result(EmbedResult, result)
    main = r.maps[0]
    facts = [
        ("Clients", numbers.count(len(r.clients))),
        ("Points", numbers.count(sum(r.clients.values()))),
        ("Kept apart for measuring", numbers.count(r.held_out)),
        ("Features", numbers.count(r.data.get("features"))),
        ("Split", str(r.data.get("split", ""))),
        ("Rounds", numbers.count(len(main.history))),
        ("Exchanged", size_words(main.bytes_up + main.bytes_down)),
        ("Time", numbers.duration(main.seconds)),
    ]
    context = {
        "r": r,
        "main": main,
        "title_of": TITLES,
        "facts": [(name, value) for name, value in facts if value],
        "rows": maps(r),
        "table": measures(r),
        "charts": charts(main),
        "exchanged": exchanged(main),
        "options": r.options,
        "command": command_text(r.command),
    }
    return Page("federated_embed.html.j2", "One map of several clients", context)
