"""Behind `foveate federated cluster`: sites, groups, other methods beside them, measures, and what was exchanged."""

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

from foveate.federated.clustering.distances import Floats, Labels, nearest
from foveate.federated.clustering.fit import Clustered, cluster, pooled
from foveate.federated.clustering.projection import axes
from foveate.federated.clustering.protocol import HANDLERS, distinct_points, sends, unit_rows
from foveate.federated.clustering.settings import Settings, method, resolve
from foveate.federated.rounds import InProcess, Log
from foveate.federated.sites import Site
from foveate.federated.sources import Sites
from foveate.metrics import clustering as metrics
from foveate.settings.errors import UserError
from foveate.settings.files import FolderLock, atomic_file, write_json_atomically
from foveate.settings.progress import say
from foveate.settings.runs import RunFolder
from foveate.settings.seeds import generator

KIND = "federated_cluster"
MOST_POINTS = 4000
"""Points on a map; of more, a random sample of each site in proportion."""


def settings_of(sites: Sites, clusters: int | None, options: Mapping[str, Any], *, seed: int) -> Settings:
    """The resolved settings; K is the number of different labels where it is not given.

    Raises:
        UserError: an option that is not allowed, or no K and no labels.
    """
    if clusters is None:
        if sites.labels is None:
            raise UserError("how many clusters? give --clusters, or --label, whose different values are then counted")
        clusters = len(np.unique(np.concatenate([one.astype(str) for one in sites.labels])))
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


def plan(sites: Sites, settings: Settings) -> dict[str, Any]:
    """What a run would exchange, at most: bytes up and down of each site."""
    width = sites.points[0].shape[1]
    local = max(settings.local(number) for number in range(len(sites.points)))
    wanted = sends(settings)
    first = local * (8 * width + 8 * wanted["counts"] + wanted["kept"]) + 8 * (wanted["radius"] + wanted["counts"])
    rounds = settings.refine_rounds
    return {
        "kind": "plan",
        "method": settings.title,
        "clusters": settings.clusters,
        "sites": {name: len(one) for name, one in zip(sites.names, sites.points, strict=True)},
        "features": width,
        "bytes_up_per_site": first + rounds * 8 * settings.clusters * (width + 1) + 16,
        "bytes_down_per_site": (rounds + 1) * 8 * settings.clusters * width,
        "options": _plain(settings),
    }


def run_clustering(
    sites: Sites,
    settings: Settings,
    path: Path,
    *,
    beside: Sequence[str] = (),
    at_least: int = 1,
    timeout: float | None = None,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Finds the groups, and those of other methods beside them; writes result.json, centres and assignments.

    Stopped and repeated, sites that answered are not asked again.

    Raises:
        UserError: an unknown method, too few sites or groups, or a run folder of other settings.
    """
    others = [one for one in dict.fromkeys(beside) if one != settings.method]
    for one in others:
        method(one)
    about = {
        "sites": {name: len(points) for name, points in zip(sites.names, sites.points, strict=True)},
        "data": sites.digests(),
        "split": sites.about,
        "beside": others,
        "options": _plain(settings),
    }
    run = RunFolder.create(path, command=command, recipe=yaml.safe_dump(about, sort_keys=False))
    with FolderLock(path, purpose="federated cluster"):
        found, log, seconds = _run(sites, settings, path / "answers", at_least, timeout)
        labels = _labels(sites, found)
        rows = [_measured(sites, found, labels, log, seconds)]
        for name in others:
            other = resolve(settings.clusters, method_name=name, seed=settings.seed, on_few_groups="return")
            say(f"beside it: {name}")
            result = _run(sites, other, path / "answers", at_least, timeout)
            rows.append(_measured(sites, result[0], _labels(sites, result[0]), *result[1:]))
        result = {
            "kind": KIND,
            "method": found.title,
            "note": method(settings.method).note,
            "clusters": len(found.centres),
            "features": found.centres.shape[1],
            "split": sites.about,
            "points": sum(about["sites"].values()),
            "sites": _by_site(sites, found, labels),
            "methods": rows,
            "exchanged": log.table(),
            "bytes_up": log.bytes(up=True),
            "bytes_down": log.bytes(up=False),
            "seconds": round(seconds, 3),
            "server": {name: value for name, value in found.server.items() if name not in ("members", "radii")},
            "notes": _notes(sites, found),
            "map": _map(sites, found, labels),
            "options": about["options"],
            "command": command or [],
        }
        _write(path, sites, found, labels)
        run.write_result(result)
    return result


def _plain(settings: Settings) -> dict[str, Any]:
    options = {one.name: getattr(settings, one.name) for one in dataclasses.fields(settings) if one.name != "changed"}
    local = options["local_clusters"]
    if local is not None and not isinstance(local, int):
        options["local_clusters"] = [int(one) for one in local]
    return options


def _run(
    sites: Sites, settings: Settings, keep: Path, at_least: int, timeout: float | None
) -> tuple[Clustered, Log, float]:
    """One method; the log is empty where data are pooled."""
    started, log = time.monotonic(), Log()
    if not method(settings.method).federated:
        points = np.concatenate(sites.points)
        merged = pooled(unit_rows(points) if settings.spherical else points, settings)
        found = Clustered(merged.centres, settings, {}, merged.report, {}, {}, {})
        return found, log, time.monotonic() - started
    members = [
        Site(number, points, HANDLERS, name)
        for number, (name, points) in enumerate(zip(sites.names, sites.points, strict=True))
    ]
    exchange = InProcess(members, timeout=timeout, keep=keep, log=log)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        found = cluster(exchange, settings, at_least=at_least, evaluate=True)
    for words in dict.fromkeys(str(one.message) for one in told):
        say(words)
    return found, log, time.monotonic() - started


def _labels(sites: Sites, found: Clustered) -> list[Labels]:
    prepare = unit_rows if found.settings.spherical else np.asarray
    return [nearest(prepare(points), found.centres)[0] for points in sites.points]


def _measured(sites: Sites, found: Clustered, labels: list[Labels], log: Log, seconds: float) -> dict[str, Any]:
    """One method's line: how compact its groups are, how they match labels, and its cost."""
    points, label_N = np.concatenate(sites.points), np.concatenate(labels)
    points = unit_rows(points) if found.settings.spherical else points
    quality = {"distance": float(np.sqrt(((points - found.centres[label_N]) ** 2).sum(1).mean()))}
    if sites.labels is not None:
        truth = np.concatenate([one.astype(str) for one in sites.labels])
        quality |= _against(truth, label_N)
        means = metrics.class_means(points, truth)
        quality["centroid_index"] = float(metrics.centroid_index(means, found.centres))
        if len(means) == len(found.centres):
            quality["centre_error"] = metrics.centre_error(means, found.centres).mean
    return {
        "method": found.title,
        "federated": method(found.settings.method).federated,
        "clusters": len(found.centres),
        "quality": quality,
        "bytes_up": log.bytes(up=True),
        "bytes_down": log.bytes(up=False),
        "seconds": round(seconds, 3),
    }


def _against(truth: NDArray[Any], found: Labels) -> dict[str, float]:
    return {
        "nmi": metrics.normalised_mutual_information(truth, found),
        "ari": metrics.adjusted_rand_index(truth, found),
        "purity": metrics.purity(truth, found),
    }


def _by_site(sites: Sites, found: Clustered, labels: list[Labels]) -> list[dict[str, Any]]:
    rows = []
    for number, (name, points) in enumerate(zip(sites.names, sites.points, strict=True)):
        sent = found.clients.get(number, {})
        counts = sent.get("counts")
        row: dict[str, Any] = {
            "name": name,
            "points": len(points),
            "sent": len(sent["centres"]) if sent else 0,
            "trusted": int(sent["kept"].sum()) if "kept" in sent else None,
            "smallest": int(counts.min()) if counts is not None else None,
            "groups": len(np.unique(labels[number])),
            "excluded": found.excluded.get(number, ""),
            "suspect": found.suspects.get(number, ""),
        }
        if number in found.inertia:
            count, inertia = found.inertia[number]
            row["distance"] = float(np.sqrt(inertia / count))
        if sites.labels is not None:
            own = sites.labels[number].astype(str)
            row |= {"classes": len(np.unique(own)), **_against(own, labels[number])}
        rows.append(row)
    return rows


def _notes(sites: Sites, found: Clustered) -> list[str]:
    """What a careful reader should know."""
    notes = [f"{sites.names[site]} was left out: {reason}" for site, reason in found.excluded.items()]
    notes += [f"{sites.names[site]} is odd: {reason}" for site, reason in found.suspects.items()]
    for site, sent in found.clients.items():
        wanted = found.settings.local(site)
        if (distinct := distinct_points(sites.points[site], len(sent["centres"]), wanted)) is not None:
            notes.append(f"{sites.names[site]} has {distinct} different points for {wanted} clusters")
    single = [site for site, sent in found.clients.items() if "counts" in sent and sent["counts"].min() < 2]
    if single:
        notes.append(
            f"{len(single)} sites sent centroids of a single point, which are that point; min_count=10 merges them"
        )
    return notes


def write_server_result(path: Path, found: Clustered, log: Log, names: Mapping[int, str]) -> dict[str, Any]:
    """result.json and centres.npz of a server, which sees no points: what sites sent, and what they said of the fit."""
    origin_D, two_D2 = axes(found.centres)
    rows = []
    for site, name in names.items():
        sent = found.clients.get(site, {})
        points, inertia = found.inertia.get(site, (0, 0.0))
        rows.append(
            {
                "name": name,
                "points": points,
                "sent": len(sent["centres"]) if sent else 0,
                "trusted": int(sent["kept"].sum()) if "kept" in sent else None,
                "smallest": int(sent["counts"].min()) if "counts" in sent else None,
                "distance": float(np.sqrt(inertia / points)) if points else None,
                "excluded": found.excluded.get(site, ""),
                "suspect": found.suspects.get(site, ""),
            }
        )
    total = sum(points for points, _ in found.inertia.values())
    distance = float(np.sqrt(sum(one for _, one in found.inertia.values()) / total)) if total else 0.0
    traffic = {"bytes_up": log.bytes(up=True), "bytes_down": log.bytes(up=False)}
    sent = [np.asarray(one["centres"]) for one in found.clients.values()]
    result = {
        "kind": KIND,
        "method": found.title,
        "note": method(found.settings.method).note,
        "clusters": len(found.centres),
        "features": found.centres.shape[1],
        "points": total,
        "sites": rows,
        "methods": [
            {"method": found.title, "clusters": len(found.centres), "quality": {"distance": distance}, **traffic}
        ],
        "exchanged": log.table(),
        **traffic,
        "server": {name: value for name, value in found.server.items() if name not in ("members", "radii")},
        "notes": [f"{names[site]} was left out: {reason}" for site, reason in found.excluded.items()]
        + [f"{names[site]} is odd: {reason}" for site, reason in found.suspects.items()],
        "map": {
            "places": [],
            "owners": [],
            "groups": [],
            "centres": np.round((found.centres - origin_D) @ two_D2, 4).tolist(),
            "sent": np.round((np.concatenate(sent) - origin_D) @ two_D2, 4).tolist(),
            "projected": found.centres.shape[1] > 2,
        },
        "options": _plain(found.settings),
    }
    with atomic_file(path / "centres.npz") as handle:
        np.savez(handle, centres=found.centres)
    write_json_atomically(path / "result.json", result)
    return result


def _map(sites: Sites, found: Clustered, labels: list[Labels]) -> dict[str, Any]:
    """Places, owners, groups and labels of a sample of points; places of all centres and of what clients sent."""
    origin_D, two_D2 = axes(found.centres)

    def placed(points: Floats) -> list[list[float]]:
        return np.round((points - origin_D) @ two_D2, 4).tolist()

    total = sum(len(one) for one in sites.points)
    share = min(1.0, MOST_POINTS / total)
    places, owners, groups, classes = [], [], [], []
    for number, points in enumerate(sites.points):
        count = max(1, round(share * len(points)))
        rows = np.sort(generator("map", found.settings.seed, number).permutation(len(points))[:count])
        shown = points[rows]
        places += placed(unit_rows(shown) if found.settings.spherical else shown)
        owners += [number] * len(rows)
        groups += labels[number][rows].tolist()
        classes += sites.labels[number][rows].astype(str).tolist() if sites.labels is not None else []
    sent = [np.asarray(one["centres"]) for one in found.clients.values()]
    return {
        "places": places,
        "owners": owners,
        "groups": groups,
        "labels": classes or None,
        "centres": placed(found.centres),
        "sent": placed(np.concatenate(sent)) if sent else [],
        "projected": found.centres.shape[1] > 2,
    }


def _write(path: Path, sites: Sites, found: Clustered, labels: list[Labels]) -> None:
    """`centres.npz` and `groups.parquet`: which group every row of every site belongs to."""
    with atomic_file(path / "centres.npz") as handle:
        np.savez(handle, centres=found.centres)
    columns: dict[str, Any] = {
        "site": np.repeat(np.array(sites.names, dtype=object), [len(one) for one in labels]).tolist(),
        "row": np.concatenate([np.arange(len(one)) for one in labels]),
        "group": np.concatenate(labels),
    }
    if sites.labels is not None:
        columns["label"] = np.concatenate([one.astype(str) for one in sites.labels]).tolist()
    with atomic_file(path / "groups.parquet") as handle:
        pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), handle)
