"""The tour's federated part: emoji of eight clients, clustered from centroids sent once, and mapped by FedNE and FedAvg.

The split is that of the study `fedne`: one category per client. Features are those that the tour has cached already; all
clients are in this process, and the bytes that each would send are counted.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from foveate.core.progress import silent
from foveate.core.runs import RunFolder
from foveate.federated.clients import Client
from foveate.federated.clustering.distances import distances, nearest
from foveate.federated.clustering.fit import Clustered, cluster, merge_pooled
from foveate.federated.clustering.options import resolve
from foveate.federated.clustering.protocol import HANDLERS
from foveate.federated.embedding.job import Fitted, fit_clients
from foveate.federated.embedding.options import FEDAVG, FEDNE, read_options
from foveate.federated.embedding.quality import measure_quality, sample_rows, stack_clients
from foveate.federated.embedding.run import split_held_out
from foveate.federated.rounds import InProcess, Log
from foveate.federated.sources import Clients, split_labels
from foveate.metrics import clustering as metrics
from foveate.metrics.embedding import knn_right
from foveate.metrics.intervals import Interval, paired_difference
from foveate.records.collection import Collection
from foveate.records.images import save_thumbnail
from foveate.studies.image_features import LENGTH

CLIENTS, SPLIT, STYLE = 8, "shards:1", "noto"
ROUNDS, HELD_OUT = 40, 0.2
MAX_POINTS, IMAGES = 1200, 6
FOLDER = "federated"
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
        result = _cluster_and_map(collection, run.path, features, seed=seed, rounds=rounds or ROUNDS)
    folder.write_result(result)
    return result


def _cluster_and_map(collection: Collection, run: Path, features: Path, *, seed: int, rounds: int) -> dict[str, Any]:
    emoji = read_emoji(features, collection, seed=seed)
    clustered, log = _grouped(emoji, seed=seed)
    groups = [nearest(points, clustered.centers)[0] for points in emoji.clients.points]
    maps, fits = _mapped(emoji, seed=seed, rounds=rounds)
    groupings = _groupings(emoji, clustered, groups, seed=seed)
    gain = _gain(emoji, fits, seed=seed)
    points = np.concatenate(emoji.clients.points)
    drawn = sample_rows(len(points), MAX_POINTS, seed=seed)
    owners = np.repeat(np.arange(CLIENTS), [len(entry) for entry in emoji.clients.points])
    for entry, fitted in zip(maps, fits, strict=True):
        entry["positions"] = np.round(fitted.transform(points)[drawn].astype(float), 3).tolist()
    return {
        "images": len(points),
        "features": points.shape[1],
        "clusters": len(clustered.centers),
        "method": clustered.title,
        "rounds": rounds,
        "held_out": gain.n,
        "sentence": sentence(groupings, maps, gain),
        "groupings": groupings,
        "maps": maps,
        "owners": owners[drawn].tolist(),
        "labels": np.concatenate(emoji.labels)[drawn].tolist(),
        "groups": np.concatenate(groups)[drawn].tolist(),
        "clients": _by_client(emoji, log, {name: fit.log for name, fit in zip(TITLES, fits, strict=True)}),
        "examples": _examples(collection, run, emoji, clustered, groups),
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


def _grouped(emoji: Emoji, *, seed: int) -> tuple[Clustered, Log]:
    """Cluster into as many groups as there are categories, by the default method."""
    log = Log()
    clusters = len(np.unique(np.concatenate(emoji.labels)))
    members = [Client(number, points, HANDLERS) for number, points in enumerate(emoji.clients.points)]
    return cluster(InProcess(members, log=log), resolve(clusters, seed=seed)), log


def _groupings(
    emoji: Emoji, clustered: Clustered, groups: list[NDArray[np.int64]], *, seed: int
) -> list[dict[str, Any]]:
    """Compare groups with categories: of all clients, of all images in one place, of the largest client."""
    points, labels = np.concatenate(emoji.clients.points), np.concatenate(emoji.labels)
    central = resolve(clustered.options.clusters, method="central", seed=seed)
    largest = max(emoji.clients.points, key=len)
    answers = {
        "all clients, centroids only": np.concatenate(groups),
        "all images in one place": nearest(points, merge_pooled(points, central).centers)[0],
        "the largest client alone": nearest(points, merge_pooled(largest, central).centers)[0],
    }
    return [
        {
            "title": title,
            "nmi": metrics.normalized_mutual_information(labels, assigned),
            "purity": metrics.purity(labels, assigned),
        }
        for title, assigned in answers.items()
    ]


def _mapped(emoji: Emoji, *, seed: int, rounds: int) -> tuple[list[dict[str, Any]], list[Fitted]]:
    """Fit both maps to four fifths of each client's images; measure them with the rest."""
    parts = split_held_out(emoji.clients, HELD_OUT, seed=seed)
    maps, fits = [], []
    for name in TITLES:
        options = read_options({"method": name, "surrogate": "grid", "rounds": rounds, "seed": seed})
        with silent():
            fitted = fit_clients(parts.fit, options)
        drawn = [
            stack_clients(side, [fitted.transform(side_points) for side_points in side], labels)
            for side, labels in ((parts.fit, parts.fit_labels), (parts.held_out, parts.held_out_labels))
        ]
        maps.append(
            {
                "title": TITLES[name],
                "quality": measure_quality(drawn[0], drawn[1], k=options.neighbors),
                "bytes_up": fitted.log.bytes(up=True),
                "bytes_down": fitted.log.bytes(up=False),
                "notes": fitted.state.notes,
            }
        )
        fits.append(fitted)
    return maps, fits


def _gain(emoji: Emoji, fits: list[Fitted], *, seed: int) -> Interval:
    """Return FedNE's right votes minus averaging's over held-out images, with a paired interval."""
    parts = split_held_out(emoji.clients, HELD_OUT, seed=seed)
    assert parts.fit_labels is not None
    assert parts.held_out_labels is not None
    fitted, apart = np.concatenate(parts.fit), np.concatenate(parts.held_out)
    right = [
        knn_right(
            fit.transform(fitted),
            np.concatenate(parts.fit_labels),
            k=fit.options.neighbors,
            test_map_Md=fit.transform(apart),
            test_labels_M=np.concatenate(parts.held_out_labels),
        ).astype(float)
        for fit in fits
    ]
    # Paired: both maps name the same held-out images.
    return paired_difference(right[0], right[1], seed=("tour federated", seed))


def sentence(groupings: list[dict[str, Any]], maps: list[dict[str, Any]], gain: Interval) -> str:
    """Summarize the results in one sentence, without a claim that the interval does not support."""
    clients, central = groupings[0]["nmi"], groupings[1]["nmi"]
    # The margin of the study `feca`.
    as_good = "no worse than" if clients >= central - 0.02 else "worse than"
    little = ", which is little: such features lie by look more than by kind" if max(clients, central) < 0.5 else ""
    votes = [entry["quality"]["knn"] for entry in maps]
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


def _by_client(emoji: Emoji, log: Log, maps: dict[str, Log]) -> list[dict[str, Any]]:
    """Return what each client holds and the bytes that it sent, for the groups and for each map."""

    def sent(log_: Log, client: int) -> int:
        return sum(entry.size for entry in log_.entries if entry.up and entry.client == client)

    return [
        {
            "name": name,
            "images": len(labels_of_client),
            "kinds": sorted(set(labels_of_client.tolist())),
            "groups": sent(log, number),
            "maps": {TITLES[key]: sent(log_, number) for key, log_ in maps.items()},
        }
        for number, (name, labels_of_client) in enumerate(zip(emoji.clients.names, emoji.labels, strict=True))
    ]


def _examples(
    collection: Collection, run: Path, emoji: Emoji, clustered: Clustered, groups: list[NDArray[np.int64]]
) -> list[dict[str, Any]]:
    """Return the images nearest to each center, with the most frequent category of the group."""
    points, rows = np.concatenate(emoji.clients.points), np.concatenate(emoji.rows)
    labels, assigned = np.concatenate(emoji.labels), np.concatenate(groups)
    owners = np.repeat(np.arange(CLIENTS), [len(rows_of_client) for rows_of_client in emoji.rows])
    examples = []
    for number, gap_N in enumerate(distances(clustered.centers, points)):
        members = np.flatnonzero(assigned == number)
        if not len(members):
            continue
        kind, count = Counter(labels[members].tolist()).most_common(1)[0]
        images = []
        for position in members[np.argsort(gap_N[members], kind="stable")][:IMAGES]:
            path = run / "images" / f"federated-{int(rows[position]):06d}.webp"
            save_thumbnail(collection.image_bytes(int(rows[position])), path, longest_side=96)
            images.append({"image": str(path.relative_to(run)), "kind": str(labels[position])})
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
