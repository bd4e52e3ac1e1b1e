"""The tour's federated part: emoji of eight clients, clustered from centroids, and mapped by FedNE and FedAvg.

Both run as the verbs `foveate federated cluster` and `embed` run them; here their results are put together. The split
is that of the study `fedne`: one category per client. Features are those that the tour has cached already; all clients
are in this process, and the bytes that each would send are counted.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from foveate.core.progress import silent
from foveate.core.results import parse_result
from foveate.core.runs import RunFolder
from foveate.federated.clustering.distances import distances, nearest
from foveate.federated.clustering.fit import merge_pooled
from foveate.federated.clustering.methods import resolve
from foveate.federated.clustering.run import run_clustering
from foveate.federated.embedding.options import FEDAVG, FEDNE, read_options
from foveate.federated.embedding.quality import sample_rows
from foveate.federated.embedding.run import run_embedding
from foveate.federated.reporting import compare_with_labels
from foveate.federated.results import ClusterResult, EmbedMethod, EmbedResult
from foveate.federated.run_options import ClusterRun, EmbedRun
from foveate.federated.sources import Clients, split_labels
from foveate.metrics.embedding import knn_right
from foveate.metrics.intervals import Interval, paired_difference
from foveate.records.collection import Collection
from foveate.records.images import save_thumbnail
from foveate_labs.studies.image_features import LENGTH

# Eight clients for seven categories: the largest one is split over two.
CLIENTS, SPLIT, STYLE = 8, "shards:1", "noto"
ROUNDS, HELD_OUT = 40, 0.2
MAX_POINTS, IMAGES = 1200, 6
FOLDER = "federated"
POOLED = "central"
TITLES = {FEDNE: "FedNE", FEDAVG: "Federated averaging"}


@dataclass(frozen=True)
class Emoji:
    """Emoji of eight clients: points and categories by client, and the collection's row of each image."""

    clients: Clients
    rows: list[NDArray[np.int64]]

    @property
    def labels(self) -> list[NDArray[Any]]:
        assert self.clients.labels is not None
        return self.clients.labels

    @property
    def owners(self) -> NDArray[np.int64]:
        """Number of the client of each image."""
        return np.repeat(np.arange(len(self.rows)), [len(rows) for rows in self.rows])


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread: matrices this small gain nothing from a second, and wait for it on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def tour_federated(
    collection: Collection, run: RunFolder, *, features: Path, seed: int, rounds: int | None = None
) -> dict[str, Any]:
    """Cluster and map; return the result for the tour's page, read from disk where it is finished.

    Args:
        features: npz file with `features` [N, D], `style` and `row`, as the tour's calibration writes it.
        rounds: of both maps; `ROUNDS` by default.
    """
    about = {"clients": CLIENTS, "split": SPLIT, "style": STYLE, "rounds": rounds or ROUNDS, "seed": seed}
    folder = RunFolder.create(run.path / f"{FOLDER}-seed{seed}", recipe=yaml.safe_dump(about))
    if (folder.path / "result.json").is_file():
        return folder.read_result()
    with one_thread():
        result = _cluster_and_map(collection, folder, features, seed=seed, rounds=rounds or ROUNDS)
    folder.write_result(result)
    return result


def _cluster_and_map(
    collection: Collection, run: RunFolder, features: Path, *, seed: int, rounds: int
) -> dict[str, Any]:
    emoji = read_emoji(features, collection, seed=seed)
    grouping = cluster_emoji(emoji, run.path / "groups", seed=seed)
    maps = {name: map_emoji(emoji, name, run.path / name, seed=seed, rounds=rounds) for name in TITLES}
    groupings = _groupings(emoji, grouping, seed=seed)
    gain = _gain(maps, seed=seed)
    # The same emoji on both maps, so that they can be compared point by point.
    drawn = sample_rows(len(grouping.groups), MAX_POINTS, seed=seed)
    return {
        "images": grouping.result.points,
        "features": grouping.result.features,
        "clusters": grouping.result.clusters,
        "method": grouping.result.method,
        "rounds": rounds,
        "held_out": gain.n,
        "sentence": sentence(groupings, [emoji_map.method.quality for emoji_map in maps.values()], gain),
        "groupings": groupings,
        "maps": [
            {
                "title": TITLES[name],
                "quality": emoji_map.method.quality,
                "bytes_up": emoji_map.method.bytes_up,
                "bytes_down": emoji_map.method.bytes_down,
                "notes": emoji_map.method.notes,
                "positions": np.round(emoji_map.positions_N2[drawn].astype(float), 3).tolist(),
            }
            for name, emoji_map in maps.items()
        ],
        "owners": emoji.owners[drawn].tolist(),
        "labels": np.concatenate(emoji.labels)[drawn].tolist(),
        "groups": grouping.groups[drawn].tolist(),
        "clients": _by_client(emoji, grouping, maps),
        "examples": _examples(collection, run.path.parent, emoji, grouping),
    }


def read_emoji(features: Path, collection: Collection, *, seed: int) -> Emoji:
    """Split the emoji of one style over eight clients, a category each; the largest category over two."""
    with np.load(features, allow_pickle=False) as file:
        in_style = file["style"] == STYLE
        points, rows = file["features"][in_style].astype(np.float64), file["row"][in_style]
    # The length is a constant, not a statistic of all clients' data, which no client has.
    points *= LENGTH / np.linalg.norm(points, axis=1, keepdims=True)
    labels = collection.label_values("category")[rows].astype(str)
    parts = split_labels(labels, len(points), SPLIT, CLIENTS, seed=seed)
    clients = Clients(
        parts.names,
        [points[rows_of_client] for rows_of_client in parts.rows],
        [labels[rows_of_client] for rows_of_client in parts.rows],
        f"{SPLIT}, seed {seed}",
    )
    return Emoji(clients, [rows[rows_of_client] for rows_of_client in parts.rows])


@dataclass(frozen=True)
class Grouping:
    """The run of `foveate federated cluster`: its result, its centers, and the group of each emoji."""

    result: ClusterResult
    centers: NDArray[np.float64]
    groups: NDArray[np.int64]


def cluster_emoji(emoji: Emoji, folder: Path, *, seed: int) -> Grouping:
    """Cluster into as many groups as there are categories, by the default method, beside k-means of pooled images."""
    options = resolve(len(np.unique(np.concatenate(emoji.labels))), seed=seed)
    with silent():
        result = run_clustering(emoji.clients, options, folder, ClusterRun(compare=(POOLED,)))
    with np.load(folder / "centers.npz", allow_pickle=False) as file:
        centers = file["centers"]
    # Rows are those of the clients, one client after another.
    groups = pq.read_table(folder / "groups.parquet", columns=["group"])["group"].to_numpy()
    return Grouping(parse_result(ClusterResult, result), centers, groups)


def _groupings(emoji: Emoji, grouping: Grouping, *, seed: int) -> list[dict[str, Any]]:
    """Compare groups with categories: of all clients, of all images in one place, of the largest client."""
    points, labels = np.concatenate(emoji.clients.points), np.concatenate(emoji.labels)
    federated, pooled = (method.quality for method in grouping.result.methods)
    # A client that clusters for itself is no method of the verb: it has centers for its own kinds only.
    central = resolve(grouping.result.clusters, method=POOLED, seed=seed)
    alone = nearest(points, merge_pooled(max(emoji.clients.points, key=len), central).centers)[0]
    qualities = {
        "all clients, centroids only": federated,
        "all images in one place": pooled,
        "the largest client alone": compare_with_labels(labels, alone),
    }
    return [
        {"title": title, "nmi": quality["nmi"], "purity": quality["purity"]} for title, quality in qualities.items()
    ]


@dataclass(frozen=True)
class EmojiMap:
    """A run of `foveate federated embed`: its result, and positions of all emoji as the clients hold them.

    Attributes:
        positions_N2: on the map. held_out, labels: of each emoji, the first where it was only measured.
    """

    result: EmbedResult
    positions_N2: NDArray[np.floating]
    held_out: NDArray[np.bool_]
    labels: NDArray[np.str_]

    @property
    def method(self) -> EmbedMethod:
        return self.result.maps[0]


def map_emoji(emoji: Emoji, method: str, folder: Path, *, seed: int, rounds: int) -> EmojiMap:
    """Fit a map to four fifths of each client's images, measured with the rest."""
    options = read_options({"method": method, "surrogate": "grid", "rounds": rounds, "seed": seed})
    with silent():
        result = run_embedding(emoji.clients, options, folder, EmbedRun(compare=(), held_out=HELD_OUT))
    table = pq.read_table(folder / "positions.parquet")
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    # The run writes fitted points first, then those held out; here each client's stand as it holds them.
    clients = {name: number for number, name in enumerate(emoji.clients.names)}
    order = np.lexsort((columns["row"], [clients[name] for name in columns["client"]]))
    return EmojiMap(
        parse_result(EmbedResult, result),
        np.stack([columns["x"], columns["y"]], axis=1)[order],
        columns["held_out"][order].astype(bool),
        columns["label"][order].astype(str),
    )


def _gain(maps: dict[str, EmojiMap], *, seed: int) -> Interval:
    """Return FedNE's right votes minus averaging's over held-out images, with a paired interval."""
    # `TITLES` has FedNE first, so that the difference below is its gain over averaging.
    right = [
        knn_right(
            emoji_map.positions_N2[~emoji_map.held_out],
            emoji_map.labels[~emoji_map.held_out],
            k=emoji_map.result.neighbors,
            test_map_Md=emoji_map.positions_N2[emoji_map.held_out],
            test_labels_M=emoji_map.labels[emoji_map.held_out],
        ).astype(float)
        for emoji_map in maps.values()
    ]
    # Paired: both maps name the same held-out images.
    return paired_difference(right[0], right[1], seed=("tour federated", seed))


def sentence(groupings: list[dict[str, Any]], qualities: list[dict[str, float]], gain: Interval) -> str:
    """Summarize the results in one sentence, without a claim that the interval does not support."""
    clients, central = groupings[0]["nmi"], groupings[1]["nmi"]
    # The margin of the study `feca`.
    as_good = "no worse than" if clients >= central - 0.02 else "worse than"
    # Two groupings may agree and both be poor, so an NMI below .5 is called little.
    little = ", which is little: such features lie by look more than by kind" if max(clients, central) < 0.5 else ""
    votes = [quality["knn"] for quality in qualities]
    low, high = 100 * (gain.low or 0.0), 100 * (gain.high or 0.0)
    if low <= 0 <= high:
        verdict = "no difference is shown"
    else:
        verdict = "FedNE’s map tells kinds better apart" if low > 0 else "averaging’s map tells kinds better apart"
    return (
        f"Groups made of centroids match the kinds {as_good} k-means of all images in one place (NMI {clients:.2f} and "
        f"{central:.2f}){little}. The neighbors on FedNE’s map name {votes[0]:.0%} of the held-out images, on "
        f"averaging’s {votes[1]:.0%}: {verdict} ({_points(100 * gain.value)} points, 95% interval {_points(low)} to "
        f"{_points(high)})."
    )


def _points(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _by_client(emoji: Emoji, grouping: Grouping, maps: dict[str, EmojiMap]) -> list[dict[str, Any]]:
    """Return what each client holds and the bytes that it sent, for the groups and for each map."""
    return [
        {
            "name": client.name,
            "images": client.points,
            "kinds": sorted(set(emoji.labels[number].tolist())),
            "groups": client.bytes_up,
            "maps": {TITLES[name]: emoji_map.method.clients[number].bytes_up for name, emoji_map in maps.items()},
        }
        for number, client in enumerate(grouping.result.clients)
    ]


def _examples(collection: Collection, run: Path, emoji: Emoji, grouping: Grouping) -> list[dict[str, Any]]:
    """Return the images nearest to each center, with the most frequent category of the group."""
    points, rows = np.concatenate(emoji.clients.points), np.concatenate(emoji.rows)
    labels, assigned, owners = np.concatenate(emoji.labels), grouping.groups, emoji.owners
    examples = []
    for number, gap_N in enumerate(distances(grouping.centers, points)):
        members = np.flatnonzero(assigned == number)
        if not len(members):
            continue
        kind, count = Counter(labels[members].tolist()).most_common(1)[0]
        images = []
        for position in members[np.argsort(gap_N[members], kind="stable")][:IMAGES]:
            path = run / "images" / f"federated-{int(rows[position]):06d}.webp"
            save_thumbnail(collection.image_bytes(int(rows[position])), path, longest_side=96)
            images.append({"image": path.relative_to(run).as_posix(), "kind": str(labels[position])})
        examples.append(
            {
                "group": number,
                "size": len(members),
                "clients": len(np.unique(owners[members])),
                "kind": kind,
                "share": count / len(members),
                "images": images,
            }
        )
    return examples
