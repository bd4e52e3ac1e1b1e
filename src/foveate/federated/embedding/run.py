"""Behind `foveate federated embed`: clients, one map, baselines beside it, measures, and what was exchanged."""

from __future__ import annotations

import time
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
from foveate.core.progress import Meter
from foveate.core.runs import RunFolder
from foveate.core.seeds import generator
from foveate.federated.embedding.account import account
from foveate.federated.embedding.checkpoint import load_state, save_state
from foveate.federated.embedding.fitting import Fitted, fit_clients
from foveate.federated.embedding.folder import save_encoder
from foveate.federated.embedding.options import METHODS, EmbeddingOptions
from foveate.federated.embedding.quality import MOST_POINTS, Mapped, by_client, quality, sample, stacked
from foveate.federated.embedding.server import State
from foveate.federated.rounds import Log
from foveate.federated.sources import Clients

KIND = "federated_embed"


@dataclass(frozen=True)
class Halves:
    """Points and labels by client that train, and those that are kept apart for measuring."""

    fitted: list[NDArray[np.float64]]
    apart: list[NDArray[np.float64]]
    fitted_labels: list[NDArray[Any]] | None
    apart_labels: list[NDArray[Any]] | None


def halves(clients: Clients, share: float, *, seed: int) -> Halves:
    """Keeps a share of every client's points apart; clients of fewer than ten points keep none."""
    rows: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for number, one in enumerate(clients.points):
        order = generator("held out", seed, number).permutation(len(one))
        count = int(share * len(one)) if len(one) >= 10 else 0
        rows.append((np.sort(order[count:]), np.sort(order[:count])))
    labels = clients.labels

    def chosen(values: Sequence[NDArray[Any]], half: int) -> list[NDArray[Any]]:
        return [one[pair[half]] for one, pair in zip(values, rows, strict=True)]

    return Halves(
        chosen(clients.points, 0),
        chosen(clients.points, 1),
        None if labels is None else chosen(labels, 0),
        None if labels is None else chosen(labels, 1),
    )


def run_embedding(
    clients: Clients,
    options: EmbeddingOptions,
    path: Path,
    *,
    beside: Sequence[str] = ("fedavg",),
    held_out: float = 0.2,
    device: str = "cpu",
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Draws the map, and those of other methods beside it; writes result.json, places, the model; returns the result.

    Stopped and repeated, it goes on after the last finished round.

    Raises:
        UserError: for an unknown method, points that do not fit, or a run folder of other settings.
    """
    for one in beside:
        choose(one, METHODS, "method beside")
    if not 0 <= held_out < 1:
        raise UserError(f"held-out share {held_out}: allowed is 0 to less than 1")
    methods = [options.method, *(one for one in dict.fromkeys(beside) if one != options.method)]
    about = {
        "clients": {name: len(points) for name, points in zip(clients.names, clients.points, strict=True)},
        "data": clients.digests(),
        "split": clients.about,
        "held_out": held_out,
        "beside": methods[1:],
        "options": options.model_dump(mode="json"),
    }
    run = RunFolder.create(path, command=command, recipe=yaml.safe_dump(about, sort_keys=False))
    with FolderLock(path, purpose="federated embed"):
        split = halves(clients, held_out, seed=options.seed)
        drawn, results = {}, []
        for method in methods:
            chosen = options.model_copy(update={"method": method})
            started = time.monotonic()
            fitted = _fit(split, chosen, clients.names, path / "states" / f"{method}.safetensors", device)
            drawn[method] = fitted
            results.append(_measured(fitted, split, clients.names, time.monotonic() - started))
        result = {
            "kind": KIND,
            "method": options.method,
            "data": {"split": clients.about, "features": drawn[options.method].state.features},
            "clients": about["clients"],
            "held_out": sum(len(one) for one in split.apart),
            "neighbors": options.neighbors,
            "maps": results,
            "options": about["options"],
            "command": command or [],
        }
        _write(path, drawn[options.method], split, clients.names, results[0])
        run.write_result(result)
    return result


def _fit(split: Halves, options: EmbeddingOptions, names: Sequence[str], kept: Path, device: str) -> Fitted:
    state = load_state(kept, options)
    done = 0 if state is None else state.round
    with Meter(f"rounds of {options.method}", options.rounds) as meter:
        meter.advance(done)

        def after(now: State) -> None:
            save_state(now, options, kept)
            last = now.history[-1]
            told = last["attraction"] is not None
            note = f"attraction {last['attraction']:.3f}, repulsion {last['repulsion']:.3f}" if told else ""
            meter.advance(1, note=note)

        return fit_clients(split.fitted, options, names=names, device=device, state=state, after=after, log=Log())


def _measured(fitted: Fitted, split: Halves, names: Sequence[str], seconds: float) -> dict[str, Any]:
    """One method's map, numbers, curves and traffic, as JSON."""
    trained = _mapped(fitted, split.fitted, split.fitted_labels)
    apart = _mapped(fitted, split.apart, split.apart_labels)
    k = fitted.options.neighbors
    numbers = quality(trained, apart if len(apart.points_ND) else None, k=k)
    shown = trained.rows(sample(len(trained.points_ND), MOST_POINTS))
    history = fitted.state.history
    return {
        "method": fitted.options.method,
        "what": METHODS[fitted.options.method],
        "quality": numbers,
        "clients": by_client(trained, names, k=k),
        "notes": fitted.state.notes,
        "exchanged": fitted.log.table(),
        "hidden": account(fitted.options, fitted.state) if fitted.log.entries else [],
        "bytes_up": sum(entry["bytes_up"] for entry in history),
        "bytes_down": sum(entry["bytes_down"] for entry in history),
        "seconds": round(sum(entry["seconds"] for entry in history), 2),
        "wall_seconds": round(seconds, 2),
        "history": [
            {name: entry[name] for name in ("round", "rate", "attraction", "repulsion", "foreign", "outside", "r2")}
            for entry in history
        ],
        "map": {
            "places": np.round(shown.places_Nd.astype(float), 3).tolist(),
            "owners": shown.owners_N.tolist(),
            "labels": None if shown.labels_N is None else shown.labels_N.astype(str).tolist(),
        },
    }


def _mapped(fitted: Fitted, points: list[NDArray[Any]], labels: list[NDArray[Any]] | None) -> Mapped:
    places = [
        fitted.transform(one, client=number) if len(one) else np.zeros((0, fitted.options.dimensions))
        for number, one in enumerate(points)
    ]
    return stacked(points, places, labels)


def _write(path: Path, fitted: Fitted, split: Halves, names: Sequence[str], measured: dict[str, Any]) -> None:
    """`places.parquet` with every point's place, and the model folder."""
    rows: dict[str, list[Any]] = {"client": [], "held_out": [], "label": []}
    places = []
    for held, points, labels in (
        (False, split.fitted, split.fitted_labels),
        (True, split.apart, split.apart_labels),
    ):
        for number, one in enumerate(points):
            if len(one):
                places.append(fitted.transform(one, client=number))
                rows["client"] += [names[number]] * len(one)
                rows["held_out"] += [held] * len(one)
                rows["label"] += [None] * len(one) if labels is None else labels[number].astype(str).tolist()
    whole = np.concatenate(places)
    columns = {name: pa.array(values) for name, values in rows.items()}
    columns |= {axis: pa.array(whole[:, number]) for number, axis in enumerate("xyz"[: whole.shape[1]])}
    with atomic_file(path / "places.parquet") as handle:
        pq.write_table(pa.table(columns), handle)
    options = fitted.options
    about = {
        "widths": [fitted.state.features, *options.hidden, options.dimensions],
        "precision": options.precision,
        "method": options.method,
        "rounds": options.rounds,
        "clients": len(names),
        "options": options.model_dump(mode="json"),
    }
    save_encoder(fitted.encoder, path / "model", about=about, metrics=measured["quality"])
