"""Behind `foveate federated features`: clients, one encoder, baselines beside it, measures, and what was exchanged."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from foveate.core.errors import UserError, choose
from foveate.core.files import FolderLock, atomic_file
from foveate.core.progress import Meter, say
from foveate.core.runs import RunFolder
from foveate.core.seeds import generator
from foveate.federated.clustering.protocol import sends
from foveate.federated.clustering.run import axes
from foveate.federated.deep.checkpoint import TrainingSnapshot, load_stand, save_stand, sent
from foveate.federated.deep.encoder import weights_of
from foveate.federated.deep.fitting import Fitted, fit_clients, network_of
from foveate.federated.deep.folder import save_model
from foveate.federated.deep.message_kinds import RESULT
from foveate.federated.deep.options import METHODS, POOLED, UNTRAINED, DeepOptions
from foveate.federated.deep.quality import against, quality
from foveate.federated.sources import Clients

MOST_POINTS = 4000
"""Points on a map; of more, a random sample of each client in proportion."""


def clusters_of(clients: Clients, clusters: int | None) -> int:
    """K: as given, else the number of different labels.

    Raises:
        UserError: neither is there.
    """
    if clusters is not None:
        return clusters
    if clients.labels is None:
        raise UserError("how many clusters? give --clusters, or --label, whose different values are then counted")
    return len(np.unique(np.concatenate([one.astype(str) for one in clients.labels])))


def plan(clients: Clients, options: DeepOptions) -> dict[str, Any]:
    """What a run would train and exchange, at most: bytes up and down of each client, over all rounds."""
    width = clients.points[0].shape[1]
    weights = len(weights_of(network_of(options, width)))
    wanted = sends(options.plan())
    first = options.clusters * (8 * options.width + 8 * wanted["counts"] + wanted["kept"])
    first += 8 * (wanted["radius"] + wanted["counts"])
    rounds = 0 if options.method == UNTRAINED else options.rounds
    moved = options.method != POOLED
    return {
        "kind": "plan",
        "method": options.method,
        "clusters": options.clusters,
        "clients": {name: len(one) for name, one in zip(clients.names, clients.points, strict=True)},
        "features": width,
        "weights": weights,
        "bytes_up_per_client": moved * ((rounds + 1) * first + rounds * (4 * weights + 16)),
        "options": options.model_dump(mode="json"),
    }


@dataclass(frozen=True)
class Looked:
    """What one method makes of all points, by client: unit vectors, the encoder's output, groups."""

    fitted: Fitted
    vectors: list[NDArray[np.float64]]
    outputs: list[NDArray[np.float64]]
    groups: list[NDArray[np.int64]]


def run_features(
    clients: Clients,
    options: DeepOptions,
    path: Path,
    *,
    beside: Sequence[str] = (),
    at_least: int = 1,
    device: str = "cpu",
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Trains the encoder, and those of other methods beside it; writes result.json, features, groups and the model.

    Stopped and repeated, it goes on where it was: after the last finished round, and within a round without asking
    again the clients that answered.

    Raises:
        UserError: an unknown method, points that do not fit, too few clients or groups, or a folder of other settings.
    """
    for one in beside:
        choose(one, METHODS, "method beside")
    names = [options.method, *(one for one in dict.fromkeys(beside) if one != options.method)]
    about = {
        "clients": {name: len(points) for name, points in zip(clients.names, clients.points, strict=True)},
        "data": clients.digests(),
        "split": clients.about,
        "beside": names[1:],
        "options": options.model_dump(mode="json"),
    }
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        clustering = options.plan()
    for one in told:
        say(str(one.message))
    run = RunFolder.create(path, command=command, recipe=yaml.safe_dump(about, sort_keys=False))
    with FolderLock(path, purpose="federated features"):
        rows: list[dict[str, Any]] = []
        first: Looked | None = None
        for name in names:
            chosen = options.model_copy(update={"method": name})
            looked = _look(clients, _fit(clients, chosen, path, at_least, device))
            rows.append(_measured(clients, looked))
            first = first or looked
        assert first is not None
        stand = first.fitted.stand
        result = {
            "kind": RESULT,
            "method": options.method,
            "what": METHODS[options.method],
            "clustering": clustering.title,
            "encoder": options.encoder,
            "clusters": len(first.fitted.centers),
            "features": first.fitted.features,
            "width": options.width,
            "split": clients.about,
            "points": sum(about["clients"].values()),
            "clients": _by_client(clients, first),
            "methods": rows,
            "exchanged": stand.exchanged,
            "history": stand.state.history,
            "notes": _notes(clients, stand),
            "map": _map(clients, first, seed=options.seed),
            "options": about["options"],
            "command": command or [],
        }
        _write(path, clients, first, rows[0]["quality"])
        run.write_result(result)
    return result


def _notes(clients: Clients, stand: TrainingSnapshot) -> list[str]:
    """What a careful reader should know."""
    notes = [f"{clients.names[client]} was left out: {reason}" for client, reason in stand.state.excluded.items()]
    return notes + [f"{clients.names[client]} is odd: {reason}" for client, reason in stand.state.odd().items()]


def _fit(clients: Clients, options: DeepOptions, path: Path, at_least: int, device: str) -> Fitted:
    kept = path / "states" / f"{options.method}.safetensors"
    stand = load_stand(kept, options)
    rounds = 0 if options.method == UNTRAINED else options.rounds
    with Meter(f"rounds of {options.method}", rounds) as meter:
        meter.advance(0 if stand is None else stand.state.round)

        def after(now: TrainingSnapshot) -> None:
            save_stand(now, options, kept)
            meter.advance(1, note=f"loss {now.state.history[-1]['loss']:.3f}")

        return fit_clients(
            clients.points,
            options,
            names=clients.names,
            device=device,
            stand=stand,
            after=after,
            keep=path / "answers" / options.method,
            at_least=at_least,
        )


def _look(clients: Clients, fitted: Fitted) -> Looked:
    vectors = [fitted.transform(one) for one in clients.points]
    outputs = [fitted.outputs(one) for one in clients.points] if fitted.options.reads_images else vectors
    return Looked(fitted, vectors, outputs, [fitted.predict(one) for one in clients.points])


def _measured(clients: Clients, looked: Looked) -> dict[str, Any]:
    """One method's line: what its encoder is worth, and its cost."""
    fitted = looked.fitted
    labels = None if clients.labels is None else np.concatenate([one.astype(str) for one in clients.labels])
    vectors, outputs = np.concatenate(looked.vectors), np.concatenate(looked.outputs)
    worth = quality(vectors, outputs, np.concatenate(looked.groups), fitted.centers, labels, seed=fitted.options.seed)
    return {
        "method": fitted.options.method,
        "what": METHODS[fitted.options.method],
        "federated": fitted.options.method != POOLED,
        "rounds": fitted.stand.state.round,
        "quality": worth,
        "bytes_up": sent(fitted.stand.exchanged, up=True),
        "bytes_down": sent(fitted.stand.exchanged, up=False),
        "seconds": round(fitted.stand.seconds, 3),
    }


def _by_client(clients: Clients, looked: Looked) -> list[dict[str, Any]]:
    rows = []
    centers = looked.fitted.centers
    for number, (name, vectors, groups) in enumerate(zip(clients.names, looked.vectors, looked.groups, strict=True)):
        row: dict[str, Any] = {
            "name": name,
            "points": len(vectors),
            "groups": len(np.unique(groups)),
            "distance": float(np.sqrt(((vectors - centers[groups]) ** 2).sum(1).mean())),
            "rounds": sum(number in entry["clients"] for entry in looked.fitted.stand.state.history),
            "excluded": looked.fitted.stand.state.excluded.get(number, ""),
        }
        if clients.labels is not None:
            own = clients.labels[number].astype(str)
            row |= {"classes": len(np.unique(own)), **against(own, groups)}
        rows.append(row)
    return rows


def _map(clients: Clients, looked: Looked, *, seed: int) -> dict[str, Any]:
    """Places, owners, groups and labels of a sample of points, along the directions in which centers differ most."""
    origin_D, two_D2 = axes(looked.fitted.centers)
    share = min(1.0, MOST_POINTS / sum(len(one) for one in clients.points))
    places, owners, groups, classes = [], [], [], []
    for number, vectors in enumerate(looked.vectors):
        count = max(1, round(share * len(vectors)))
        rows = np.sort(generator("map", seed, number).permutation(len(vectors))[:count])
        places += np.round((vectors[rows] - origin_D) @ two_D2, 4).tolist()
        owners += [number] * len(rows)
        groups += looked.groups[number][rows].tolist()
        classes += clients.labels[number][rows].astype(str).tolist() if clients.labels is not None else []
    centers = np.round((looked.fitted.centers - origin_D) @ two_D2, 4).tolist()
    return {"places": places, "owners": owners, "groups": groups, "labels": classes or None, "centers": centers}


def _write(path: Path, clients: Clients, looked: Looked, metrics: dict[str, float]) -> None:
    """`features.parquet`, `groups.parquet` and the model folder."""
    names = np.repeat(np.array(clients.names, dtype=object), [len(one) for one in looked.groups]).tolist()
    rows = np.concatenate([np.arange(len(one)) for one in looked.groups])
    shared: dict[str, Any] = {"client": names, "row": rows}
    if clients.labels is not None:
        shared["label"] = np.concatenate([one.astype(str) for one in clients.labels]).tolist()
    features = {"embedding": _lists(looked.vectors)}
    if looked.fitted.options.reads_images:
        features["output"] = _lists(looked.outputs)
    groups = {"group": np.concatenate(looked.groups)}
    for name, columns in (("features", shared | features), ("groups", shared | groups)):
        with atomic_file(path / f"{name}.parquet") as handle:
            pq.write_table(pa.table({key: pa.array(values) for key, values in columns.items()}), handle)
    save_model(looked.fitted, path / "model", clients=len(clients.names), metrics=metrics)


def _lists(parts: list[NDArray[np.float64]]) -> list[NDArray[np.float32]]:
    return list(np.concatenate(parts).astype(np.float32))
