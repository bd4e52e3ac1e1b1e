"""`foveate federated cluster`: groups of clients' points, compared methods, measures, and what was exchanged."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from foveate.core.errors import UserError
from foveate.core.files import FolderLock, atomic_file, write_json_atomically
from foveate.core.progress import say
from foveate.core.reference import refuse_reference
from foveate.core.runs import RunFolder
from foveate.core.yaml_text import read_yaml
from foveate.federated.anomaly import EXCLUDE, KEEP, note_suspect
from foveate.federated.clustering import protocol
from foveate.federated.clustering.distances import Labels, nearest
from foveate.federated.clustering.fit import Clustered, cluster, cluster_pooled
from foveate.federated.clustering.methods import describe_method, load_method, method_names, resolve
from foveate.federated.clustering.noise import request_cost
from foveate.federated.clustering.options import ClusteringOptions
from foveate.federated.clustering.protocol import HANDLERS, distinct_points, optional_parts
from foveate.federated.privacy import DELTA, cost_row
from foveate.federated.reporting import (
    compare_with_labels,
    describe_run,
    infer_clusters,
    list_methods,
    project,
    projection_axes,
    row_columns,
    sample_map,
    warnings_as_progress,
    write_table,
)
from foveate.federated.results import ClusterClient, ClusterMethod, ClusterResult, GroupMap, PrivacyCost, Traffic
from foveate.federated.rounds import Client, InProcess, Log
from foveate.federated.run_options import ClusterRun
from foveate.federated.sources import Clients
from foveate.metrics import clustering as metrics

UNIT = "one point of any client"


def account(options: ClusteringOptions, *, evaluated: bool, delta: float = DELTA) -> list[PrivacyCost]:
    """List for each kind of message about the points the unit that noise hides and how well, or none.

    The unit is one point of a client, replaced by any other; the number of points and of features is sent as it is. A
    client that was left out answered fewer messages, so that the sum holds for it, too.

    Args:
        evaluated: clients were also asked how well the centers fit.
    """
    # The cost of a request does not depend on its centers, so any will do.
    centers = np.zeros((1, 1))
    sent = [
        ("centroids", protocol.centroids_request(options, 0), 1),
        ("sums and counts", protocol.lloyd_request(centers, options, 1), options.refine_rounds),
        ("fit", protocol.assign_request(centers, options, 1), int(evaluated)),
    ]
    rows, total = [], 0.0
    for name, request, messages in sent:
        if messages:
            rho = request_cost(request) * messages
            total += rho
            rows.append(cost_row(name, UNIT, rho or None, messages, delta))
    if total:
        rows.append(cost_row("together", UNIT, total, sum(row.messages for row in rows), delta))
    return rows


def read_options(clients: Clients, clusters: int | None, options: Mapping[str, Any], *, seed: int) -> ClusteringOptions:
    """Resolve options; K is the number of distinct labels where it is not passed.

    Raises:
        UserError: an option that is not allowed, or no K and no labels.
    """
    # Check K before the other options, so that its error is reported first.
    clusters = infer_clusters(clients, clusters)
    content = dict(options)
    for name in ("seed", "clusters"):
        if name in content:
            raise UserError(f"--set {name}: pass it as --{name}")
    refuse_reference(ClusteringOptions, content, where="foveate federated cluster")
    method = str(content.pop("method", "consensus"))
    with warnings_as_progress():
        return resolve(clusters, method=method, seed=seed, where="foveate federated cluster", **content)


def plan(clients: Clients, options: ClusteringOptions) -> dict[str, Any]:
    """Upper bound of what a run would exchange: bytes up and down per client."""
    # Use the first client's width: in one process all clients must have the same width.
    width = clients.points[0].shape[1]
    local = max(options.count_local(number) for number in range(len(clients.points)))
    parts = optional_parts(options)
    per_centroid = 8 * width + 8 * parts["counts"] + 8 * parts["spreads"] + parts["trusted"]
    first = local * per_centroid + 8 * (parts["radius"] + parts["counts"])
    rounds, scaling = options.refine_rounds, int(options.scale != "none")
    return {
        "kind": "plan",
        "method": describe_method(options),
        "clusters": options.clusters,
        "clients": clients.sizes(),
        "features": width,
        # Each refinement sends K sums and counts in float64; the last message is two numbers, points and inertia. A
        # common scale costs two sums up, and a center and then an offset and a scale with every request down.
        "bytes_up_per_client": first + rounds * 8 * options.clusters * (width + 1) + 16 + scaling * 16 * (width + 1),
        "bytes_down_per_client": (rounds + 1) * 8 * options.clusters * width + scaling * 8 * width * (2 * rounds + 5),
        "options": options.model_dump(mode="json"),
    }


def _keep_default(options: ClusteringOptions, path: Path) -> ClusteringOptions:
    """Resume a run that began when `suspects` was "report" by default as it began."""
    recipe = path / "recipe.yaml"
    begun = read_yaml(recipe.read_text(encoding="utf-8"), where=str(recipe)) if recipe.is_file() else None
    stated = begun.get("options") if isinstance(begun, dict) else None
    if options.suspects != "auto" or not isinstance(stated, dict) or stated.get("suspects") != "report":
        return options
    say(f"{path} was begun with suspects=report, and goes on with it")
    return options.model_copy(update={"suspects": "report"})


def run_clustering(
    clients: Clients,
    options: ClusteringOptions,
    path: Path,
    settings: ClusterRun | None = None,
    *,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Find the groups, and those of baselines; write result.json, centers.npz and groups.parquet; return the result.

    A run that was stopped resumes: clients that answered are not asked again.

    Raises:
        UserError: an unknown method, too few clients or groups, or a run folder of other options.
    """
    settings, options = settings or ClusterRun(), _keep_default(options, path)
    methods = list_methods(options.method, settings.compare, method_names())
    recipe = describe_run(clients, methods[1:], options)
    run = RunFolder.create(path, command=command, recipe=yaml.safe_dump(recipe, sort_keys=False))
    with FolderLock(path, purpose="federated cluster"):
        clustered, log, seconds = _run(clients, options, path / "answers", settings)
        groups = _assign(clients, clustered)
        rows = [_measure(clients, clustered, groups, log, seconds)]
        for name in methods[1:]:
            # Baselines keep their own defaults, and return fewer groups where they must: one that fails should not end
            # the run.
            other = resolve(
                options.clusters, method=name, seed=options.seed, scale=options.scale, on_few_groups="return"
            )
            say(f"baseline: {name}")
            baseline, baseline_log, baseline_seconds = _run(clients, other, path / "answers", settings)
            assigned = _assign(clients, baseline)
            rows.append(_measure(clients, baseline, assigned, baseline_log, baseline_seconds))
        result = ClusterResult(
            **_common_fields(clustered, log),
            split=clients.about,
            points=sum(clients.sizes().values()),
            clients=_client_rows(clients, clustered, groups, log),
            methods=rows,
            seconds=round(seconds, 3),
            suspects=clustered.warnings(
                lambda client: clients.names[client], len(clients.names), remedy=EXCLUDE, keep=KEEP
            ),
            notes=_notes(clients, clustered),
            map=sample_map(
                clients,
                clients.points,
                groups,
                clustered.centers,
                seed=options.seed,
                prepare=clustered.prepare,
                sent=[np.asarray(report["centers"]) for report in clustered.client_reports.values()],
            ),
            command=command or [],
        ).to_json()
        _write_centers(path, clustered)
        write_table(path / "groups.parquet", row_columns(clients) | {"group": np.concatenate(groups)})
        run.write_result(result)
    return result


def _common_fields(clustered: Clustered, log: Log) -> dict[str, Any]:
    """Fields that a run in one process and a server over a network know alike."""
    return {
        "method": clustered.title,
        "note": load_method(clustered.options.method).note,
        "clusters": len(clustered.centers),
        "features": clustered.centers.shape[1],
        "exchanged": [Traffic(**row) for row in log.table()],
        "bytes_up": log.bytes(up=True),
        "bytes_down": log.bytes(up=False),
        # Row numbers of every group would make result.json as large as the data.
        "server": {name: value for name, value in clustered.server.items() if name not in ("members", "radii")},
        "privacy": account(clustered.options, evaluated=bool(clustered.inertia)) if clustered.options.noise else [],
        "options": clustered.options.model_dump(mode="json"),
    }


def _run(
    clients: Clients, options: ClusteringOptions, answers_folder: Path, settings: ClusterRun
) -> tuple[Clustered, Log, float]:
    """Run one method; the log is empty where data are pooled."""
    # A log per method: each row of the table shows its own traffic.
    started, log = time.monotonic(), Log()
    if not load_method(options.method).federated:
        clustered = cluster_pooled(np.concatenate(clients.points), options)
        return clustered, log, time.monotonic() - started
    members = [
        Client(number, points, HANDLERS, name)
        for number, (name, points) in enumerate(zip(clients.names, clients.points, strict=True))
    ]
    transport = InProcess(members, timeout=settings.timeout, answers_folder=answers_folder, log=log)
    with warnings_as_progress():
        clustered = cluster(transport, options, min_clients=settings.min_clients, evaluate=True)
    return clustered, log, time.monotonic() - started


def _assign(clients: Clients, clustered: Clustered) -> list[Labels]:
    """Group of each point, per client."""
    return [nearest(clustered.prepare(points), clustered.centers)[0] for points in clients.points]


def _measure(clients: Clients, clustered: Clustered, groups: list[Labels], log: Log, seconds: float) -> ClusterMethod:
    """Compactness of one method's groups, agreement with labels, and cost."""
    points, group_N = np.concatenate(clients.points), np.concatenate(groups)
    points = clustered.prepare(points)
    # Root mean square, in the units of the data; a sum of squares would grow with the number of points.
    quality = {"distance": float(np.sqrt(((points - clustered.centers[group_N]) ** 2).sum(1).mean()))}
    truth = clients.all_labels()
    if truth is not None:
        quality |= compare_with_labels(truth, group_N)
        # True centers are the means of the classes in these very data, not those of whatever drew them.
        means = metrics.class_means(points, truth)
        quality["centroid_index"] = float(metrics.centroid_index(means, clustered.centers))
        # The error is that of a one-to-one matching, which needs as many classes as centers.
        if len(means) == len(clustered.centers):
            quality["center_error"] = metrics.center_error(means, clustered.centers).mean
    return ClusterMethod(
        method=clustered.title,
        federated=load_method(clustered.options.method).federated,
        clusters=len(clustered.centers),
        quality=quality,
        bytes_up=log.bytes(up=True),
        bytes_down=log.bytes(up=False),
        seconds=round(seconds, 3),
    )


def _report_fields(clustered: Clustered, client: int) -> dict[str, Any]:
    """Facts about one client that its server knows."""
    report = clustered.client_reports.get(client, {})
    points, inertia = clustered.inertia.get(client, (0, 0.0))
    return {
        "sent": len(report["centers"]) if report else 0,
        "trusted": int(report["trusted"].sum()) if "trusted" in report else None,
        "smallest": int(report["counts"].min()) if "counts" in report else None,
        "distance": float(np.sqrt(inertia / points)) if points else None,
        "excluded": clustered.excluded.get(client, ""),
        "suspect": clustered.suspects.get(client, ""),
    }


def _client_rows(clients: Clients, clustered: Clustered, groups: list[Labels], log: Log) -> list[ClusterClient]:
    rows, sent = [], log.sent()
    for number, (name, points) in enumerate(zip(clients.names, clients.points, strict=True)):
        fields: dict[str, Any] = {"groups": len(np.unique(groups[number])), "bytes_up": sent.get(number, 0)}
        if clients.labels is not None:
            labels = clients.labels[number].astype(str)
            fields |= {"classes": len(np.unique(labels)), **compare_with_labels(labels, groups[number])}
        rows.append(ClusterClient(name=name, points=len(points), **fields, **_report_fields(clustered, number)))
    return rows


def _notes(clients: Clients, clustered: Clustered) -> list[str]:
    notes = _exclusion_notes(clustered, dict(enumerate(clients.names)))
    for client, report in clustered.client_reports.items():
        clusters = clustered.options.count_local(client)
        if (distinct := distinct_points(clients.points[client], len(report["centers"]), clusters)) is not None:
            notes.append(f"{clients.names[client]} has {distinct} distinct points for {clusters} clusters")
    counts = [report["counts"] for report in clustered.client_reports.values() if "counts" in report]
    single = sum(counts_k.min() < 2 for counts_k in counts)
    if single:
        notes.append(
            f"{single} clients sent centroids of a single point, which are that point; min_count=10 merges them"
        )
    return notes


def _exclusion_notes(clustered: Clustered, names: Mapping[int, str]) -> list[str]:
    notes = [f"{names[client]} was left out: {reason}" for client, reason in clustered.excluded.items()]
    # The others have lines of their own, which come first.
    left_out = {
        client: reason
        for client, reason in clustered.suspects.items()
        if client in clustered.excluded and client not in clustered.in_other_units
    }
    return notes + [note_suspect(names[client], reason) for client, reason in left_out.items()]


def write_server_result(
    path: Path,
    clustered: Clustered,
    log: Log,
    names: Mapping[int, str],
    *,
    seconds: float,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write result.json and centers.npz of a server, which sees no points; return the result.

    Args:
        seconds: wall time of the clustering, waiting for clients included; of this session only if it was resumed.
        notes: sentences for its page.
    """
    sent = log.sent()
    rows = [
        ClusterClient(
            name=name,
            # As the client reported it, with its fit or with its centroids; 0 if it did not.
            points=clustered.inertia[client][0]
            if client in clustered.inertia
            else int(clustered.client_reports.get(client, {}).get("points", 0)),
            bytes_up=sent.get(client, 0),
            **_report_fields(clustered, client),
        )
        for client, name in names.items()
    ]
    # Covers only clients that reported their fit, without the cells that they withheld.
    total = sum(points for points, _ in clustered.inertia.values())
    inertia = sum(value for _, value in clustered.inertia.values())
    method = ClusterMethod(
        method=clustered.title,
        clusters=len(clustered.centers),
        quality={"distance": float(np.sqrt(inertia / total))} if total else {},
        bytes_up=log.bytes(up=True),
        bytes_down=log.bytes(up=False),
        seconds=round(seconds, 3),
    )
    # A server has no points to project; the centers' own axes show how they lie.
    axes = projection_axes(clustered.centers)
    centroids = [np.asarray(report["centers"]) for report in clustered.client_reports.values()]
    result = ClusterResult(
        **_common_fields(clustered, log),
        points=sum(row.points for row in rows),
        clients=rows,
        methods=[method],
        seconds=round(seconds, 3),
        suspects=clustered.warnings(lambda client: names[client], len(names), remedy=EXCLUDE, keep=KEEP),
        notes=[*notes, *_exclusion_notes(clustered, names)],
        map=GroupMap(
            centers=project(clustered.centers, axes),
            sent=project(np.concatenate(centroids), axes),
            projected=clustered.centers.shape[1] > 2,
        ),
    ).to_json()
    _write_centers(path, clustered)
    write_json_atomically(path / "result.json", result)
    return result


def _write_centers(path: Path, clustered: Clustered) -> None:
    scaling = clustered.scaling
    arrays = {"centers": clustered.original_centers}
    if scaling is not None:
        arrays |= {"offset": scaling.offset_D, "scale": scaling.scale_D}
    with atomic_file(path / "centers.npz") as handle:
        # Not `allow_pickle=False`: NumPy 1.26 would store it as an array of that name.
        np.savez(handle, **arrays)  # pyrefly: ignore[bad-argument-type]
