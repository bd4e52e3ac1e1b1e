"""`foveate federated embed`: one map of several clients, baselines, measures, and what was exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from foveate.core.files import FolderLock
from foveate.core.runs import RunFolder
from foveate.core.seeds import generator
from foveate.federated.anomaly import EXCLUDE, warn_of_suspects
from foveate.federated.embedding.job import EmbeddingFit, MapJob
from foveate.federated.embedding.networks import encoder_config, save_encoder
from foveate.federated.embedding.options import FEDAVG, FEDNE, METHODS, EmbeddingOptions
from foveate.federated.embedding.quality import (
    MAX_POINTS,
    MapPoints,
    describe_missing,
    measure_clients,
    measure_method,
    measure_quality,
    sample_rows,
    stack_clients,
)
from foveate.federated.job import fit_in_run
from foveate.federated.reporting import describe_run, list_methods, write_table
from foveate.federated.results import EmbedMap, EmbedMethod, EmbedResult
from foveate.federated.run_options import EmbedRun
from foveate.federated.sources import Clients

# Differences of a share below this are smaller than those between two seeds (docs/studies/fedne.md).
MIN_GAIN = 0.01


@dataclass(frozen=True)
class HeldOutSplit:
    """Points, labels and row numbers by client: of those that train, and of those held out for measuring."""

    fit: list[NDArray[np.float64]]
    held_out: list[NDArray[np.float64]]
    fit_labels: list[NDArray[Any]] | None
    held_out_labels: list[NDArray[Any]] | None
    fit_rows: list[NDArray[np.int64]]
    held_out_rows: list[NDArray[np.int64]]


def split_held_out(clients: Clients, share: float, *, seed: int) -> HeldOutSplit:
    """Hold out a share of every client's points; clients of fewer than ten points hold out none."""
    rows: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for number, points in enumerate(clients.points):
        # Per client, so that adding a client does not change the split of the others.
        order = generator("held out", seed, number).permutation(len(points))
        # A fifth of fewer than ten points is one or none, too few to measure on.
        count = int(share * len(points)) if len(points) >= 10 else 0
        rows.append((np.sort(order[count:]), np.sort(order[:count])))
    labels = clients.labels

    def select(values: Sequence[NDArray[Any]], half: int) -> list[NDArray[Any]]:
        return [array[pair[half]] for array, pair in zip(values, rows, strict=True)]

    return HeldOutSplit(
        select(clients.points, 0),
        select(clients.points, 1),
        None if labels is None else select(labels, 0),
        None if labels is None else select(labels, 1),
        [pair[0] for pair in rows],
        [pair[1] for pair in rows],
    )


def run_embedding(
    clients: Clients,
    options: EmbeddingOptions,
    path: Path,
    settings: EmbedRun | None = None,
    *,
    device: str = "cpu",
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Train the map, and those of baselines; write result.json, positions.parquet and the model; return the result.

    A run that was stopped resumes after the last finished round.

    Raises:
        UserError: an unknown method, points that do not fit, or a run folder of other options.
    """
    settings = settings or EmbedRun()
    methods = list_methods(options.method, settings.compare, METHODS)
    recipe = describe_run(clients, methods[1:], options, held_out=settings.held_out)
    text = yaml.safe_dump(recipe, sort_keys=False)
    # Runs begun before gradients were measured have no such field, and go on.
    run = RunFolder.create(path, command=command, recipe=text, free=("options.min_gradient_cosine",))
    with FolderLock(path, purpose="federated embed"):
        split = split_held_out(clients, settings.held_out, seed=options.seed)
        maps: list[EmbedMethod] = []
        first: EmbeddingFit | None = None
        for method in methods:
            # Baselines differ only in the method; schedules, seeds and graphs are the same.
            job = MapJob(options.model_copy(update={"method": method}))
            fitted = job.finished(fit_in_run(job, split.fit, path, names=clients.names, device=device))
            maps.append(_measure(fitted, split, clients.names))
            first = first or fitted
        assert first is not None
        result = EmbedResult(
            method=options.method,
            split=clients.about,
            features=first.state.features,
            clients=clients.sizes(),
            held_out=sum(len(points) for points in split.held_out),
            neighbors=options.neighbors,
            maps=maps,
            suspects=warn_of_suspects(first.state.notes, len(clients.names), remedy=EXCLUDE),
            payoff=judge_surrogates(maps),
            options=options.model_dump(mode="json"),
            command=command or [],
        ).to_json()
        _write(path, first, split, clients.names, maps[0].quality)
        run.write_result(result)
    return result


def judge_surrogates(maps: Sequence[EmbedMethod]) -> str:
    """Say whether FedNE's map is better than federated averaging's, and at which cost; "" where one of them is missing.

    By the vote of map neighbors on labels where there are any, else by trustworthiness: both are shares of points.
    """
    by_method = {entry.method: entry for entry in maps}
    ours, plain = by_method.get(FEDNE), by_method.get(FEDAVG)
    if ours is None or plain is None:
        return ""
    measure = "knn" if "knn" in ours.quality else "trustworthiness"
    # A map of too few points has neither of them.
    if measure not in ours.quality or measure not in plain.quality:
        return ""
    gain = ours.quality[measure] - plain.quality[measure]
    cost = (
        f"at {ours.seconds / max(plain.seconds, 1e-9):.1f} times its seconds and "
        f"{(ours.bytes_up + ours.bytes_down) / max(plain.bytes_up + plain.bytes_down, 1):.1f} times its bytes"
    )
    compared = f"{measure} {ours.quality[measure]:.3f} against {plain.quality[measure]:.3f} of federated averaging"
    if abs(gain) < MIN_GAIN:
        return f"surrogates make no difference here ({compared}) {cost}: --method fedavg does as well"
    verdict = "pay" if gain > 0 else "do not pay"
    advice = "" if gain > 0 else ": use --method fedavg"
    return f"surrogates {verdict} here ({compared}) {cost}{advice}"


def _measure(fitted: EmbeddingFit, split: HeldOutSplit, names: Sequence[str]) -> EmbedMethod:
    """One method's map, quality, rounds and cost."""
    trained = _map_points(fitted, split.fit, split.fit_labels)
    unseen = _map_points(fitted, split.held_out, split.held_out_labels)
    k = fitted.options.neighbors
    sample = trained.rows(sample_rows(len(trained.points_ND), MAX_POINTS))
    positions = EmbedMap(
        # Rounded to a thousandth: enough to draw, and result.json stays small.
        positions=np.round(sample.positions_Nd.astype(float), 3).tolist(),
        owners=sample.owners_N.tolist(),
        labels=None if sample.labels_N is None else sample.labels_N.astype(str).tolist(),
    )
    quality = measure_quality(trained, unseen if len(unseen.points_ND) else None, k=k)
    clients = [
        client.model_copy(update={"bytes_up": fitted.state.sent.get(str(number), 0)})
        for number, client in enumerate(measure_clients(trained, names, k=k))
    ]
    method = measure_method(fitted.options, fitted.state, clients, positions, quality)
    missing = describe_missing(quality, trained, k=k)
    return method.model_copy(update={"notes": method.notes | {missing: 1}}) if missing else method


def _map_points(fitted: EmbeddingFit, points: list[NDArray[Any]], labels: list[NDArray[Any]] | None) -> MapPoints:
    positions = [
        fitted.transform(part, client=number) if len(part) else np.zeros((0, fitted.options.dimensions))
        for number, part in enumerate(points)
    ]
    # Neighbors are compared in the scale that the map was made of.
    scaling = fitted.state.scaling
    return stack_clients(points if scaling is None else [scaling.apply(part) for part in points], positions, labels)


def _write(
    path: Path, fitted: EmbeddingFit, split: HeldOutSplit, names: Sequence[str], metrics: dict[str, float]
) -> None:
    """Write positions.parquet with every point's map position, and the model folder."""
    rows: dict[str, list[Any]] = {"client": [], "row": [], "held_out": [], "label": []}
    positions = []
    for is_held_out, points, labels, client_rows in (
        (False, split.fit, split.fit_labels, split.fit_rows),
        (True, split.held_out, split.held_out_labels, split.held_out_rows),
    ):
        for number, part in enumerate(points):
            if len(part):
                positions.append(fitted.transform(part, client=number))
                rows["client"] += [names[number]] * len(part)
                # The row in the client's own data: without it a position could not be matched with its point.
                rows["row"] += client_rows[number].tolist()
                rows["held_out"] += [is_held_out] * len(part)
                rows["label"] += [None] * len(part) if labels is None else labels[number].astype(str).tolist()
    stacked = np.concatenate(positions)
    columns: dict[str, Any] = {name: pa.array(values) for name, values in rows.items()}
    columns |= {axis: stacked[:, number] for number, axis in enumerate("xyz"[: stacked.shape[1]])}
    write_table(path / "positions.parquet", columns)
    config = encoder_config(fitted.options, fitted.state.features, len(names), fitted.state.scaling)
    save_encoder(fitted.encoder, path / "model", config, metrics=metrics)
