"""Behind `foveate federated cluster`: clients, groups, other methods beside them, measures, and what was exchanged."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.files import FolderLock, atomic_file, write_json_atomically
from foveate.core.progress import say
from foveate.core.runs import RunFolder
from foveate.core.seeds import generator
from foveate.federated.clients import Client
from foveate.federated.clustering.distances import Floats, Labels, nearest
from foveate.federated.clustering.fit import Clustered, cluster, pooled
from foveate.federated.clustering.options import Settings, method, resolve
from foveate.federated.clustering.protocol import HANDLERS, distinct_points, sends, unit_rows
from foveate.federated.rounds import InProcess, Log
from foveate.federated.sources import Clients
from foveate.metrics import clustering as metrics

KIND = "federated_cluster"
MOST_POINTS = 4000
"""Points on a map; of more, a random sample of each client in proportion."""


def settings_of(clients: Clients, clusters: int | None, options: Mapping[str, Any], *, seed: int) -> Settings:
    """The resolved settings; K is the number of different labels where it is not given.

    Raises:
        UserError: an option that is not allowed, or no K and no labels.
    """
    if clusters is None:
        if clients.labels is None:
            raise UserError("how many clusters? give --clusters, or --label, whose different values are then counted")
        clusters = len(np.unique(np.concatenate([one.astype(str) for one in clients.labels])))
    given = dict(options)
    for name, instead in (("seed", "--seed"), ("clusters", "--clusters")):
        if name in given:
            raise UserError(f"--set {name}: give it as {instead}")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        settings = resolve(clusters, method_name=str(given.pop("method", "consensus")), seed=seed, **given)
    for one in told:
        say(str(one.message))
    return settings


def plan(clients: Clients, settings: Settings) -> dict[str, Any]:
    """What a run would exchange, at most: bytes up and down of each client."""
    width = clients.points[0].shape[1]
    local = max(settings.local(number) for number in range(len(clients.points)))
    wanted = sends(settings)
    first = local * (8 * width + 8 * wanted["counts"] + wanted["kept"]) + 8 * (wanted["radius"] + wanted["counts"])
    rounds = settings.refine_rounds
    return {
        "kind": "plan",
        "method": settings.title,
        "clusters": settings.clusters,
        "clients": {name: len(one) for name, one in zip(clients.names, clients.points, strict=True)},
        "features": width,
        "bytes_up_per_client": first + rounds * 8 * settings.clusters * (width + 1) + 16,
        "bytes_down_per_client": (rounds + 1) * 8 * settings.clusters * width,
        "options": _plain(settings),
    }


def run_clustering(
    clients: Clients,
    settings: Settings,
    path: Path,
    *,
    beside: Sequence[str] = (),
    at_least: int = 1,
    timeout: float | None = None,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Finds the groups, and those of other methods beside them; writes result.json, centers and assignments.

    Stopped and repeated, clients that answered are not asked again.

    Raises:
        UserError: an unknown method, too few clients or groups, or a run folder of other settings.
    """
    others = [one for one in dict.fromkeys(beside) if one != settings.method]
    for one in others:
        method(one)
    about = {
        "clients": {name: len(points) for name, points in zip(clients.names, clients.points, strict=True)},
        "data": clients.digests(),
        "split": clients.about,
        "beside": others,
        "options": _plain(settings),
    }
    run = RunFolder.create(path, command=command, recipe=yaml.safe_dump(about, sort_keys=False))
    with FolderLock(path, purpose="federated cluster"):
        found, log, seconds = _run(clients, settings, path / "answers", at_least, timeout)
        labels = _labels(clients, found)
        rows = [_measured(clients, found, labels, log, seconds)]
        for name in others:
            other = resolve(settings.clusters, method_name=name, seed=settings.seed, on_few_groups="return")
            say(f"beside it: {name}")
            result = _run(clients, other, path / "answers", at_least, timeout)
            rows.append(_measured(clients, result[0], _labels(clients, result[0]), *result[1:]))
        result = {
            "kind": KIND,
            "method": found.title,
            "note": method(settings.method).note,
            "clusters": len(found.centers),
            "features": found.centers.shape[1],
            "split": clients.about,
            "points": sum(about["clients"].values()),
            "clients": _by_client(clients, found, labels),
            "methods": rows,
            "exchanged": log.table(),
            "bytes_up": log.bytes(up=True),
            "bytes_down": log.bytes(up=False),
            "seconds": round(seconds, 3),
            "server": {name: value for name, value in found.server.items() if name not in ("members", "radii")},
            "notes": _notes(clients, found),
            "map": _map(clients, found, labels),
            "options": about["options"],
            "command": command or [],
        }
        _write(path, clients, found, labels)
        run.write_result(result)
    return result


def _plain(settings: Settings) -> dict[str, Any]:
    options = {one.name: getattr(settings, one.name) for one in dataclasses.fields(settings) if one.name != "changed"}
    local = options["local_clusters"]
    if local is not None and not isinstance(local, int):
        options["local_clusters"] = [int(one) for one in local]
    return options


def _run(
    clients: Clients, settings: Settings, keep: Path, at_least: int, timeout: float | None
) -> tuple[Clustered, Log, float]:
    """One method; the log is empty where data are pooled."""
    started, log = time.monotonic(), Log()
    if not method(settings.method).federated:
        points = np.concatenate(clients.points)
        merged = pooled(unit_rows(points) if settings.spherical else points, settings)
        found = Clustered(merged.centers, settings, {}, merged.report, {}, {}, {})
        return found, log, time.monotonic() - started
    members = [
        Client(number, points, HANDLERS, name)
        for number, (name, points) in enumerate(zip(clients.names, clients.points, strict=True))
    ]
    exchange = InProcess(members, timeout=timeout, keep=keep, log=log)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        found = cluster(exchange, settings, at_least=at_least, evaluate=True)
    for words in dict.fromkeys(str(one.message) for one in told):
        say(words)
    return found, log, time.monotonic() - started


def _labels(clients: Clients, found: Clustered) -> list[Labels]:
    prepare = unit_rows if found.settings.spherical else np.asarray
    return [nearest(prepare(points), found.centers)[0] for points in clients.points]


def _measured(clients: Clients, found: Clustered, labels: list[Labels], log: Log, seconds: float) -> dict[str, Any]:
    """One method's line: how compact its groups are, how they match labels, and its cost."""
    points, label_N = np.concatenate(clients.points), np.concatenate(labels)
    points = unit_rows(points) if found.settings.spherical else points
    quality = {"distance": float(np.sqrt(((points - found.centers[label_N]) ** 2).sum(1).mean()))}
    if clients.labels is not None:
        truth = np.concatenate([one.astype(str) for one in clients.labels])
        quality |= _against(truth, label_N)
        means = metrics.class_means(points, truth)
        quality["centroid_index"] = float(metrics.centroid_index(means, found.centers))
        if len(means) == len(found.centers):
            quality["center_error"] = metrics.center_error(means, found.centers).mean
    return {
        "method": found.title,
        "federated": method(found.settings.method).federated,
        "clusters": len(found.centers),
        "quality": quality,
        "bytes_up": log.bytes(up=True),
        "bytes_down": log.bytes(up=False),
        "seconds": round(seconds, 3),
    }


def _against(truth: NDArray[Any], found: Labels) -> dict[str, float]:
    return {
        "nmi": metrics.normalized_mutual_information(truth, found),
        "ari": metrics.adjusted_rand_index(truth, found),
        "purity": metrics.purity(truth, found),
    }


def _by_client(clients: Clients, found: Clustered, labels: list[Labels]) -> list[dict[str, Any]]:
    rows = []
    for number, (name, points) in enumerate(zip(clients.names, clients.points, strict=True)):
        sent = found.client_reports.get(number, {})
        counts = sent.get("counts")
        row: dict[str, Any] = {
            "name": name,
            "points": len(points),
            "sent": len(sent["centers"]) if sent else 0,
            "trusted": int(sent["kept"].sum()) if "kept" in sent else None,
            "smallest": int(counts.min()) if counts is not None else None,
            "groups": len(np.unique(labels[number])),
            "excluded": found.excluded.get(number, ""),
            "suspect": found.suspects.get(number, ""),
        }
        if number in found.inertia:
            count, inertia = found.inertia[number]
            row["distance"] = float(np.sqrt(inertia / count))
        if clients.labels is not None:
            own = clients.labels[number].astype(str)
            row |= {"classes": len(np.unique(own)), **_against(own, labels[number])}
        rows.append(row)
    return rows


def _notes(clients: Clients, found: Clustered) -> list[str]:
    """What a careful reader should know."""
    notes = [f"{clients.names[client]} was left out: {reason}" for client, reason in found.excluded.items()]
    notes += [f"{clients.names[client]} is odd: {reason}" for client, reason in found.suspects.items()]
    for client, sent in found.client_reports.items():
        wanted = found.settings.local(client)
        if (distinct := distinct_points(clients.points[client], len(sent["centers"]), wanted)) is not None:
            notes.append(f"{clients.names[client]} has {distinct} different points for {wanted} clusters")
    single = [client for client, sent in found.client_reports.items() if "counts" in sent and sent["counts"].min() < 2]
    if single:
        notes.append(
            f"{len(single)} clients sent centroids of a single point, which are that point; min_count=10 merges them"
        )
    return notes


def write_server_result(path: Path, found: Clustered, log: Log, names: Mapping[int, str]) -> dict[str, Any]:
    """result.json and centers.npz of a server, which sees no points: what clients sent, and what they said of the fit."""
    origin_D, two_D2 = axes(found.centers)
    rows = []
    for client, name in names.items():
        sent = found.client_reports.get(client, {})
        points, inertia = found.inertia.get(client, (0, 0.0))
        rows.append(
            {
                "name": name,
                "points": points,
                "sent": len(sent["centers"]) if sent else 0,
                "trusted": int(sent["kept"].sum()) if "kept" in sent else None,
                "smallest": int(sent["counts"].min()) if "counts" in sent else None,
                "distance": float(np.sqrt(inertia / points)) if points else None,
                "excluded": found.excluded.get(client, ""),
                "suspect": found.suspects.get(client, ""),
            }
        )
    total = sum(points for points, _ in found.inertia.values())
    distance = float(np.sqrt(sum(one for _, one in found.inertia.values()) / total)) if total else 0.0
    traffic = {"bytes_up": log.bytes(up=True), "bytes_down": log.bytes(up=False)}
    sent = [np.asarray(one["centers"]) for one in found.client_reports.values()]
    result = {
        "kind": KIND,
        "method": found.title,
        "note": method(found.settings.method).note,
        "clusters": len(found.centers),
        "features": found.centers.shape[1],
        "points": total,
        "clients": rows,
        "methods": [
            {"method": found.title, "clusters": len(found.centers), "quality": {"distance": distance}, **traffic}
        ],
        "exchanged": log.table(),
        **traffic,
        "server": {name: value for name, value in found.server.items() if name not in ("members", "radii")},
        "notes": [f"{names[client]} was left out: {reason}" for client, reason in found.excluded.items()]
        + [f"{names[client]} is odd: {reason}" for client, reason in found.suspects.items()],
        "map": {
            "places": [],
            "owners": [],
            "groups": [],
            "centers": np.round((found.centers - origin_D) @ two_D2, 4).tolist(),
            "sent": np.round((np.concatenate(sent) - origin_D) @ two_D2, 4).tolist(),
            "projected": found.centers.shape[1] > 2,
        },
        "options": _plain(found.settings),
    }
    with atomic_file(path / "centers.npz") as handle:
        np.savez(handle, centers=found.centers)
    write_json_atomically(path / "result.json", result)
    return result


def _map(clients: Clients, found: Clustered, labels: list[Labels]) -> dict[str, Any]:
    """Places, owners, groups and labels of a sample of points; places of all centers and of what clients sent."""
    origin_D, two_D2 = axes(found.centers)

    def placed(points: Floats) -> list[list[float]]:
        return np.round((points - origin_D) @ two_D2, 4).tolist()

    total = sum(len(one) for one in clients.points)
    share = min(1.0, MOST_POINTS / total)
    places, owners, groups, classes = [], [], [], []
    for number, points in enumerate(clients.points):
        count = max(1, round(share * len(points)))
        rows = np.sort(generator("map", found.settings.seed, number).permutation(len(points))[:count])
        shown = points[rows]
        places += placed(unit_rows(shown) if found.settings.spherical else shown)
        owners += [number] * len(rows)
        groups += labels[number][rows].tolist()
        classes += clients.labels[number][rows].astype(str).tolist() if clients.labels is not None else []
    sent = [np.asarray(one["centers"]) for one in found.client_reports.values()]
    return {
        "places": places,
        "owners": owners,
        "groups": groups,
        "labels": classes or None,
        "centers": placed(found.centers),
        "sent": placed(np.concatenate(sent)) if sent else [],
        "projected": found.centers.shape[1] > 2,
    }


def _write(path: Path, clients: Clients, found: Clustered, labels: list[Labels]) -> None:
    """`centers.npz` and `groups.parquet`: which group every row of every client belongs to."""
    with atomic_file(path / "centers.npz") as handle:
        np.savez(handle, centers=found.centers)
    columns: dict[str, Any] = {
        "client": np.repeat(np.array(clients.names, dtype=object), [len(one) for one in labels]).tolist(),
        "row": np.concatenate([np.arange(len(one)) for one in labels]),
        "group": np.concatenate(labels),
    }
    if clients.labels is not None:
        columns["label"] = np.concatenate([one.astype(str) for one in clients.labels]).tolist()
    with atomic_file(path / "groups.parquet") as handle:
        pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), handle)


def axes(centers_KD: Floats) -> tuple[Floats, Floats]:
    """Origin [D] and two directions [D, 2] of the map: the data's own where there are two features or one, else the
    principal ones of the centers, which a server may draw without seeing a point.
    """
    width = centers_KD.shape[1]
    if width <= 2:
        return np.zeros(width), np.eye(width, 2)
    middle = centers_KD.mean(0)
    _, _, directions = np.linalg.svd(centers_KD - middle, full_matrices=False)
    two_D2 = np.zeros((width, 2))
    two_D2[:, : min(2, len(directions))] = directions[:2].T
    return middle, two_D2
