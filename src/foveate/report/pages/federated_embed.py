"""Page of one map of several clients: the maps side by side, their quality, what was exchanged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foveate.core.results import parse_result
from foveate.federated.results import EmbedMethod, EmbedResult
from foveate.report import numbers
from foveate.report.charts import Series, line_chart, plot
from foveate.report.numbers import size_words
from foveate.report.page import Page, command_text
from foveate.report.pages.federated_cluster import traffic_rows
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
KINDS = {
    "query.points": "how many points",
    "query.box": "the box of its map",
    "query.surrogate": "its surrogate",
    "query.field": "its field of repulsion",
    "query.positions": "all map positions",
    "train": "training",
}


def maps(r: EmbedResult) -> list[dict[str, Any]]:
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
            name = TITLES.get(method.method, method.method)
            image = scatter(
                method.map.positions, groups or [], styles, title=f"{name}, {title.lower()}", named=key == "labels"
            )
            figures.append(plot(name, image))
        rows.append({"title": title, "maps": figures, "legend": legend(styles)})
    return rows


def measures(r: EmbedResult) -> dict[str, Any]:
    """Build the column heads with their meaning, and a line of cells per method."""
    columns = [(key, meaning) for key, meaning in MEASURES if any(key in method.quality for method in r.maps)]
    lines = []
    for method in r.maps:
        cells = [f"{method.quality[key]:.3f}" if key in method.quality else "–" for key, _ in columns]
        # Nothing is sent if clients train alone or all data is in one place.
        traffic = size_words(method.bytes_up + method.bytes_down) if method.bytes_up else "nothing"
        lines.append(
            {
                "title": TITLES.get(method.method, method.method),
                "cells": cells,
                "traffic": traffic,
                "seconds": numbers.duration(method.seconds),
            }
        )
    return {"heads": [(SHORT[key], meaning) for key, meaning in columns], "lines": lines}


def charts(method: EmbedMethod) -> list[Markup]:
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


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
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
        "title_of": TITLES,
        "facts": [(name, value) for name, value in facts if value],
        "rows": maps(r),
        "table": measures(r),
        "charts": charts(main),
        "exchanged": traffic_rows(main.exchanged, KINDS),
        "options": r.options,
        "command": command_text(r.command),
    }
    return Page("federated_embed.html.j2", "One map of several clients", context)
