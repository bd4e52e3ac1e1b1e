"""Pages of what several clients found together: clusters, maps and encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import Markup

from foveate.core.results import parse_result
from foveate.federated.results import (
    ClusterClient,
    ClusterResult,
    EmbedMethod,
    EmbedResult,
    FeaturesClient,
    FeaturesResult,
    GroupMap,
    PrivacyCost,
    Traffic,
)
from foveate.report import numbers
from foveate.report.blocks import (
    Block,
    Charts,
    Facts,
    Notes,
    Section,
    Table,
    Text,
    Warnings,
    block_page,
    columns_of,
    table_of,
)
from foveate.report.charts import Series, legend, line_chart, plot, ranked, scatter
from foveate.report.numbers import size_words
from foveate.report.page import Page

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
SUM_KINDS = {
    "secagg.setup": "keys of a masked sum",
    "secagg.share_keys": "keys and encrypted shares of a masked sum",
    "secagg.unmask": "shares that unmask a sum",
}


def draw_maps(positions: GroupMap, names: list[str]) -> list[Markup]:
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
        figures.append(_with_legend(plot(title, image), styles))
    return figures


def _with_legend(drawing: Markup, styles: dict[str, str]) -> Markup:
    return Markup("<div>{}{}</div>").format(drawing, legend(styles))


def cluster_maps(r: ClusterResult) -> list[Markup]:
    """Draw the joint map, and the points that the server received."""
    figures = draw_maps(r.map, [client.name for client in r.clients])
    if r.map.sent:
        kinds = ["sent by a client"] * len(r.map.sent) + ["center of a group"] * len(r.map.centers)
        styles = {"sent by a client": "g0", "center of a group": "g1"}
        image = scatter([*r.map.sent, *r.map.centers], kinds, styles, title="What the server saw")
        figures.append(_with_legend(plot("What the server saw", image), styles))
    return figures


def cluster_measures(r: ClusterResult) -> Table:
    """Return the table of the methods' quality."""
    rows = [
        (
            # A central baseline sends no messages: it was given all points.
            (method.method, _traffic(method.bytes_up + method.bytes_down, federated=method.federated),
             numbers.duration(method.seconds)),
            {key: _cell(key, value) for key, value in method.quality.items()},
        )
        for method in r.methods
    ]  # fmt: skip
    return table_of(("Method", "Exchanged", "Time"), CLUSTER_MEASURES, rows)


def _traffic(num_bytes: int, *, federated: bool) -> str:
    return size_words(num_bytes) if federated else "all points"


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    # The index is a count; distances have the scale of the data, so they need significant digits.
    return (
        f"{value:.0f}" if key == "centroid_index" else f"{value:.3g}" if key.startswith(("d", "c")) else f"{value:.3f}"
    )


def _exchanged(exchanged: list[Traffic], kinds: Mapping[str, str], *, nothing: str) -> list[Block]:
    """Return the table of what was exchanged: first messages from the clients, then those to them."""
    kinds = {**SUM_KINDS, **kinds}
    rows = []
    for row in sorted(exchanged, key=lambda row: not row.up):
        # Both the smallest and the largest: under one name, clients may send messages of different shapes.
        shapes = [" × ".join(map(str, shape)) for shape in (row.smallest, row.largest) if shape]
        shape = f"{' to '.join(dict.fromkeys(shapes))} {row.dtype}" if shapes else "single values"
        way = "from a client" if row.up else "to a client"
        counts = (numbers.count(row.messages), size_words(row.bytes))
        rows.append([way, kinds.get(row.kind, row.kind), row.name, shape, *counts])
    heads = ["Direction", "Purpose", "Content", "Shape", "Messages", "Bytes"]
    return [Table(heads, rows, left=(1, 2, 3))] if rows else [Text(nothing)]


def _account(rows: list[PrivacyCost]) -> list[Block]:
    """Return the account of a run's noise."""
    lines = [
        [
            cost.name,
            numbers.count(cost.messages),
            cost.unit,
            _describe_epsilon(cost),
            "" if cost.epsilon is None else f"{cost.delta:.0e}",
        ]
        for cost in rows
    ]
    heads = ["What a client sends", "Times", "Hidden", "epsilon", "delta"]
    return [Table(heads, lines, title="What noise hides", left=(2,))] if lines else []


def _describe_epsilon(cost: PrivacyCost) -> str:
    if cost.epsilon is not None:
        return f"{cost.epsilon:.3g}"
    return "none" if cost.unit == "nothing" else "counted by each client"


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


def _list_notes(notes: Iterable[str], suspects: Sequence[str]) -> list[str]:
    """Return the notes as sentences, without those that a warning above has said."""
    return [f"{note}." for note in notes if not any(sentence.startswith(note) for sentence in suspects)]


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
    columns = {
        "Client": lambda c: f"{c.name}{' (left out)' if c.excluded else ' (suspicious)' if c.suspect else ''}",
        "Points": lambda c: numbers.count(c.points),
        "Bytes sent": lambda c: numbers.count(c.bytes_up),
        "Centroids sent": lambda c: str(c.sent),
        "Trusted": lambda c: "–" if c.trusted is None else str(c.trusted),
        "Points of the smallest": lambda c: "not sent" if c.smallest is None else str(c.smallest),
        # A server over a network sees no points, so it knows no groups of a client, and distances only if it asked.
        **_measured_columns(r.clients, grouped=any(client.groups for client in r.clients), form=".3g"),
    }
    whole = "Every message of the run, counted. Nothing else left a client."
    part = (
        f"Every message of {r.method}, counted. Nothing else left a client for it; the table of methods has the bytes"
    )
    left = describe_privacy(r.options, federated=not r.methods or r.methods[0].federated)
    seen = (
        "Seen along the two directions in which the centers differ most, which a server knows without seeing a point."
    )
    pooled = "Nothing but the points themselves: this method pools them."
    return block_page(
        f"{r.clusters} groups at {len(r.clients)} clients",
        eyebrow="Federated",
        heading=Markup("<em>{}</em> groups at {} clients").format(r.clusters, len(r.clients)),
        top=[
            Warnings(r.suspects),
            Text(f"Found by {r.method}{f': {r.note}' if r.note else ''}. {left}"),
            Facts(facts),
            Notes(_list_notes(r.notes, r.suspects)),
        ],
        sections=[
            Section("map", "The joint map", [Charts(cluster_maps(r), "maps")], seen if r.map.projected else "", "Map"),
            Section("numbers", "How good the groups are", [cluster_measures(r)], link="Numbers"),
            Section(
                "clients",
                "The clients",
                [columns_of(r.clients, columns.items(), meanings=CLIENT_COLUMNS)],
                link="Clients",
            ),
            Section(
                "exchanged",
                "What was exchanged",
                [*_exchanged(r.exchanged, CLUSTER_KINDS, nothing=pooled), *_account(r.privacy)],
                whole if len(r.methods) < 2 else f"{part} of the others.",
                "Exchanged",
            ),
        ],
        command=r.command,
    )


CLIENT_COLUMNS = (
    ("Bytes sent", "all messages from this client to the server"),
    ("Trusted", "centroids that the client does not doubt; it doubts those that seem to lie between several groups"),
    ("Points of the smallest", "number of points behind the centroid with the fewest"),
)


Client = TypeVar("Client", ClusterClient, FeaturesClient)


def _measured_columns(clients: Sequence[Client], *, grouped: bool, form: str) -> dict[str, Callable[[Client], str]]:
    """Return the columns that need points, and those that need labels, where any client has them."""
    columns: dict[str, Callable[[Client], str]] = {}
    if grouped:
        columns["Groups"] = lambda client: str(client.groups)
    if clients and clients[0].classes is not None:
        columns["Labels"] = lambda client: str(client.classes)
        columns["NMI"] = lambda client: _or_dash(client.nmi, ".3f")
        columns["Purity"] = lambda client: _or_dash(client.purity, ".3f")
    if any(client.distance is not None for client in clients):
        columns["Distance"] = lambda client: _or_dash(client.distance, form)
    return columns


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


# Page of one map of several clients: the maps side by side, their quality, what was exchanged.


EMBED_TITLES = {
    "fedne": "FedNE",
    "fedavg": "Federated averaging",
    "fedprox": "FedProx",
    "local": "Each client alone",
    "global": "All data in one place",
    "fedne_exact": "Exact positions, not private",
}
EMBED_MEASURES = {
    "trustworthiness": ("Trust", "map neighbors are neighbors in the data; 1 is best"),
    "continuity": ("Continuity", "neighbors in the data are map neighbors; 1 is best"),
    "knn": ("Neighbors’ vote", "how often the vote of map neighbors is the label"),
    "hit": ("Same label", "share of map neighbors with the same label"),
    "foreign": ("Foreign", "share of map neighbors from another client; should be that of the data"),
    "foreign_in_space": ("Foreign in the data", "the same in the data themselves"),
    "distances": ("Distances", "correlation of distances on the map with those in the data"),
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


def embed_maps(r: EmbedResult) -> list[Block]:
    """Draw rows of maps: by label (where there are labels) and by client, one method next to the other."""
    names = list(r.clients)
    rows: list[Block] = []
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
        rows.append(Charts(figures, "maps", title, legend(styles)))
    return rows


def embed_measures(r: EmbedResult) -> Table:
    """Return the table of the maps' quality."""
    rows = [
        (
            (
                EMBED_TITLES.get(method.method, method.method),
                # Nothing is sent if clients train alone or all data is in one place.
                size_words(method.bytes_up + method.bytes_down) if method.bytes_up else "nothing",
                numbers.duration(method.seconds),
            ),
            {key: f"{value:.3f}" for key, value in method.quality.items()},
        )
        for method in r.maps
    ]
    return table_of(("Method", "Exchanged", "Time"), EMBED_MEASURES, rows)


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
    for name, title in (
        ("r2", "How well surrogates fit, R²"),
        ("gradient_cosine", "Direction of the surrogates’ gradients, cosine"),
        ("gradient_ratio", "Length of the surrogates’ gradients, true = 1"),
    ):
        fits = [(e.round, list(values.values())) for e in method.history if (values := getattr(e, name))]
        if not fits:
            continue
        # The worst client is shown beside the mean, where a single poor surrogate would be lost.
        worst = max if name == "gradient_ratio" else min
        lines = [
            Series("mean", [(float(number), sum(values) / len(values)) for number, values in fits], 0),
            Series("worst client", [(float(number), worst(values)) for number, values in fits], 1),
        ]
        figures.append(plot(title, line_chart(lines, title=title, x_label="round")))
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
    columns = {"Client": lambda c: c.name, "Points that trained": lambda c: numbers.count(c.points)}
    if main.clients and main.clients[0].classes is not None:
        columns["Labels"] = lambda c: str(c.classes)
    columns["Trust of its part"] = lambda c: (
        "too few points" if c.trustworthiness is None else f"{c.trustworthiness:.3f}"
    )
    held_out = "; trust, continuity, distances and votes on points that took no part in training" * bool(r.held_out)
    counted = {text: f"{text}{f' ({count} rounds)' if count > 1 else ''}" for text, count in main.notes.items()}
    notes = [f"{counted[text]}." for text in main.notes if f"{text}." in _list_notes(main.notes, r.suspects)]
    left = LEFT.get(str(r.options.get("method", main.method)), "")
    no_losses = main.history and all(entry.attraction is None for entry in main.history)
    hidden = [Text("Losses are hidden by the clients’ noise.")] if no_losses else []
    return block_page(
        "One map of several clients",
        eyebrow="Federated",
        heading=Markup("One map, <em>{}</em> clients").format(len(r.clients)),
        top=[
            Warnings(r.suspects),
            Text(f"Made by {EMBED_TITLES.get(main.method, main.method)}: {main.description}. {left}"),
            Facts(facts),
        ],
        sections=[
            Section("maps", "The map", embed_maps(r), link="Maps"),
            Section(
                "numbers",
                "How good it is",
                [embed_measures(r), *([Notes(notes)] if notes else [])],
                f"By {r.neighbors} neighbors{held_out}.",
                "Numbers",
            ),
            Section("clients", "The clients", [columns_of(main.clients, columns.items())], link="Clients"),
            Section(
                "exchanged",
                "What was exchanged",
                [
                    *_exchanged(main.exchanged, EMBED_KINDS, nothing="Nothing: this method exchanges nothing."),
                    *_account(main.privacy),
                ],
                "Every message of the run, counted. Nothing else left a client.",
                "Exchanged",
            ),
            Section("rounds", "Round by round", [*hidden, *_plots(embed_charts(main))], link="Rounds"),
        ],
        command=r.command,
    )


def _plots(drawings: list[Markup]) -> list[Block]:
    return [Charts(drawings)] if drawings else []


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


def features_measures(r: FeaturesResult) -> Table:
    """Return the table of the encoders' quality."""
    rows = [
        (
            (
                FEATURES_TITLES.get(method.method, method.method),
                str(method.rounds),
                _traffic(method.bytes_up + method.bytes_down, federated=method.federated),
                numbers.duration(method.seconds),
            ),
            {key: f"{value:.3f}" for key, value in method.quality.items()},
        )
        for method in r.methods
    ]
    return table_of(("Method", "Rounds", "Exchanged", "Time"), FEATURES_MEASURES, rows)


def features_charts(r: FeaturesResult) -> list[Markup]:
    """Draw the loss by round, and how far centers moved."""
    # Rounds count from 0 in the result, and from 1 on the page.
    loss = [(float(entry.round + 1), entry.loss) for entry in r.history if entry.loss is not None]
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
    measured = any(client.distance is not None for client in r.clients)
    columns = {
        "Client": lambda c: f"{c.name}{' (left out)' if c.excluded else ''}",
        "Points": lambda c: numbers.count(c.points),
        "Rounds": lambda c: str(c.rounds),
        **_measured_columns(r.clients, grouped=measured, form=".3f"),
    }
    table, maps = features_measures(r), draw_maps(r.map, [client.name for client in r.clients])
    # Unlike in plain clustering, weights of the encoder leave the clients, too.
    left = describe_privacy(r.options, federated=first.federated, weights=True)
    name = FEATURES_TITLES.get(r.method, r.method)
    unmeasured = "The server has no points to measure the encoder with; each client can do so itself."
    return block_page(
        f"One encoder of {len(r.clients)} clients",
        eyebrow="Federated",
        heading=Markup("One encoder of <em>{}</em> clients").format(len(r.clients)),
        top=[
            Warnings(r.suspects),
            Text(f"{name}: {r.description}. {r.clusters} groups by {r.clustering}. Labels took no part. {left}"),
            Facts(facts),
            Notes(_list_notes(r.notes, r.suspects)),
        ],
        sections=[
            Section(
                "numbers",
                "How good the encoder is" if table.meanings else "What it cost",
                [table],
                "" if table.meanings else unmeasured,
                "Numbers",
            ),
            Section(
                "map",
                "The embedding",
                [Charts(maps, "maps")] if maps else [],
                "Unit vectors of all clients, seen along the two directions in which the centers differ most.",
                "Map",
            ),
            Section(
                "rounds",
                "Round by round",
                _plots(features_charts(r)),
                "Centers are computed anew each round, so losses of different rounds have different targets; they show "
                "whether clients can follow the centers."
                + " Losses are hidden by the clients’ noise."
                * any(entry.loss is None for entry in r.history),
                "Rounds",
            ),
            Section("clients", "The clients", [columns_of(r.clients, columns.items())], link="Clients"),
            Section(
                "exchanged",
                "What was exchanged",
                _exchanged(
                    r.exchanged,
                    FEATURES_KINDS,
                    nothing="Nothing but the points themselves: this method pools them.",
                ),
                "Every message of the run, counted. Weights of a whole encoder may say more about a client’s points "
                "than centroids do.",
                "Exchanged",
            ),
        ],
        command=r.command,
    )


PAGES: Mapping[str, Callable[[Mapping[str, Any], Path], Page]] = {
    "federated_cluster": build_federated_cluster,
    "federated_embed": build_federated_embed,
    "federated_features": build_federated_features,
}
