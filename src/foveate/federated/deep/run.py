"""`foveate federated features`: one encoder of several clients, baselines, measures, and what was exchanged."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.files import FolderLock
from foveate.core.progress import say
from foveate.core.runs import RunFolder
from foveate.core.seeds import generator
from foveate.federated.clustering.protocol import optional_parts
from foveate.federated.deep.encoder import build_network, flatten_weights
from foveate.federated.deep.job import DeepClusteringFit, DeepJob, measure_cost, result_fields, save_model
from foveate.federated.deep.options import METHODS, POOLED, UNTRAINED, DeepOptions
from foveate.federated.estimators import FederatedKMeans
from foveate.federated.job import fit_in_run
from foveate.federated.reporting import (
    compare_with_labels,
    describe_run,
    list_methods,
    row_columns,
    sample_map,
    warnings_as_progress,
    write_table,
)
from foveate.federated.results import FeaturesClient, FeaturesMethod, FeaturesResult
from foveate.federated.run_options import FeaturesRun
from foveate.federated.sources import Clients
from foveate.metrics import embedding

# The vote needs all pairwise distances; a sample bounds them.
MAX_POINTS = 3000
NEIGHBORS = 7
HELD_OUT = 0.2
"""Share of the points that a probe is tested on."""

Floats = NDArray[np.floating]


def measure_quality(
    vectors_ND: Floats,
    outputs_NE: Floats,
    groups_N: NDArray[np.int64],
    centers_KD: Floats,
    labels_N: NDArray[Any] | None,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Compute measures by name; with labels: nmi, ari, purity of groups, and knn and probe of the encoder's output.

    distance is the root mean square from a unit vector to its center, from 0 to 2; it cannot compare encoders.
    The probe is logistic regression on four fifths of at most `MAX_POINTS` points, tested on the others; knn leaves
    one out.
    """
    gaps_N = ((vectors_ND - centers_KD[groups_N]) ** 2).sum(1)
    measures = {"distance": float(np.sqrt(gaps_N.mean()))}
    if labels_N is None:
        return measures
    measures |= compare_with_labels(labels_N, groups_N)
    order = generator("deep quality", seed, len(labels_N)).permutation(len(labels_N))[:MAX_POINTS]
    sample, labels = outputs_NE[order], labels_N[order]
    if len(sample) > 2 * NEIGHBORS + 2:
        classes = np.unique(labels, return_inverse=True)[1]
        measures["knn"] = embedding.knn_accuracy(sample, classes, k=NEIGHBORS)
    accuracy = probe(sample, labels)
    return measures if accuracy is None else measures | {"probe": accuracy}


def probe(outputs_NE: Floats, labels_N: NDArray[Any]) -> float | None:
    """Accuracy of logistic regression on standardized features; None where the training part has one label only.

    The first points train and the last `HELD_OUT` of them test: pass them in a random order.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    cut = len(labels_N) - int(HELD_OUT * len(labels_N))
    if cut == len(labels_N) or len(np.unique(labels_N[:cut])) < 2:
        return None
    # Standardize with statistics of the training part only, so that the test part stays unseen.
    scaler = StandardScaler().fit(outputs_NE[:cut])
    model = LogisticRegression(C=0.1, max_iter=300).fit(scaler.transform(outputs_NE[:cut]), labels_N[:cut])
    return float((model.predict(scaler.transform(outputs_NE[cut:])) == labels_N[cut:]).mean())


PLAIN = "plain"
"""Name of the row of federated clustering without an encoder; it is no method of its own."""


def plan(clients: Clients, options: DeepOptions) -> dict[str, Any]:
    """Upper bound of what a run would train and exchange: bytes up per client, over all rounds."""
    width = clients.points[0].shape[1]
    weights = len(flatten_weights(build_network(options, width)))
    parts = optional_parts(options.clustering_options())
    first = options.clusters * (8 * options.width + 8 * parts["counts"] + parts["trusted"])
    # The radius is one number, and the number of points another: 8 bytes each.
    first += 8 * (parts["radius"] + parts["counts"])
    rounds = 0 if options.method == UNTRAINED else options.rounds
    is_exchanging = options.method != POOLED
    return {
        "kind": "plan",
        "method": options.method,
        "clusters": options.clusters,
        "clients": clients.sizes(),
        "features": width,
        "weights": weights,
        # One clustering more than trainings: the centers of the last round are computed anew at the end.
        # A training sends weights in float32 and two numbers, points and loss.
        "bytes_up_per_client": is_exchanging
        * ((rounds + 1) * first + rounds * (4 * weights + 16) + (options.scale != "none") * 16 * (width + 1)),
        "options": options.model_dump(mode="json"),
    }


@dataclass(frozen=True)
class Encoded:
    """All points under one method's encoder, by client: unit vectors, the encoder's output, groups."""

    fitted: DeepClusteringFit
    vectors: list[NDArray[np.float64]]
    outputs: list[NDArray[np.float64]]
    groups: list[NDArray[np.int64]]


def run_features(
    clients: Clients,
    options: DeepOptions,
    path: Path,
    settings: FeaturesRun | None = None,
    *,
    device: str = "cpu",
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Train the encoder, and those of baselines; write result.json, features, groups and the model; return the result.

    A run that was stopped resumes after the last finished round, and within a round without asking again the clients
    that answered.

    Raises:
        UserError: an unknown method, points that do not fit, too few clients or groups, or a folder of other options.
    """
    settings = settings or FeaturesRun()
    methods = list_methods(options.method, settings.compare, METHODS)
    recipe = describe_run(clients, methods[1:], options)
    with warnings_as_progress():
        options.clustering_options()  # warns about options that have no effect, before hours of training
    run = RunFolder.create(path, command=command, recipe=yaml.safe_dump(recipe, sort_keys=False))
    with FolderLock(path, purpose="federated features"):
        rows: list[FeaturesMethod] = []
        first: Encoded | None = None
        for name in methods:
            # Baselines differ only in the method.
            job = DeepJob(options.model_copy(update={"method": name}))
            state = fit_in_run(
                job, clients.points, path, names=clients.names, device=device, min_clients=settings.min_clients
            )
            encoded = _encode(clients, job.finished(state))
            rows.append(_measure(clients, encoded))
            first = first or encoded
        assert first is not None
        rows += _cluster_plainly(clients, options)
        result = FeaturesResult(
            **result_fields(first.fitted),
            split=clients.about,
            points=sum(clients.sizes().values()),
            clients=_client_rows(clients, first),
            methods=rows,
            suspects=first.fitted.state.warnings(lambda client: clients.names[client], len(clients.names)),
            notes=first.fitted.state.notes(lambda client: clients.names[client]),
            map=sample_map(clients, first.vectors, first.groups, first.fitted.centers, seed=options.seed),
            command=command or [],
        ).to_json()
        _write(path, clients, first, rows[0].quality)
        run.write_result(result)
    return result


def _encode(clients: Clients, fitted: DeepClusteringFit) -> Encoded:
    vectors = [fitted.transform(points) for points in clients.points]
    # Without an encoder the head's unit vectors are all there is; a second pass over the points would give the same.
    outputs = [fitted.outputs(points) for points in clients.points] if fitted.options.reads_images else vectors
    return Encoded(fitted, vectors, outputs, [fitted.predict(points) for points in clients.points])


def _measure(clients: Clients, encoded: Encoded) -> FeaturesMethod:
    fitted = encoded.fitted
    quality = measure_quality(
        np.concatenate(encoded.vectors),
        np.concatenate(encoded.outputs),
        np.concatenate(encoded.groups),
        fitted.centers,
        clients.all_labels(),
        seed=fitted.options.seed,
    )
    return measure_cost(fitted, quality)


def _cluster_plainly(clients: Clients, options: DeepOptions) -> list[FeaturesMethod]:
    """Measure the groups of federated clustering on the points as they are; nothing where there are no labels.

    The encoder has to beat it: on data that lie in groups already it often does not.
    """
    labels = clients.all_labels()
    if labels is None:
        return []
    began = time.monotonic()
    try:
        with warnings_as_progress():
            plain = FederatedKMeans(options.clusters, scale=options.scale, random_state=options.seed)
            plain.fit(clients.points)
    # A failed comparison must not end a run whose training is finished.
    except UserError as problem:
        say(f"groups of the points without an encoder: {problem}")
        return []
    return [
        FeaturesMethod(
            method=PLAIN,
            description="federated clustering of the points as they are, without an encoder",
            quality=compare_with_labels(labels, np.concatenate(plain.labels_)),
            bytes_up=plain.bytes_up_,
            bytes_down=plain.bytes_down_,
            seconds=round(time.monotonic() - began, 3),
        )
    ]


def _client_rows(clients: Clients, encoded: Encoded) -> list[FeaturesClient]:
    rows, state, centers = [], encoded.fitted.state, encoded.fitted.centers
    for number, (name, vectors, groups) in enumerate(zip(clients.names, encoded.vectors, encoded.groups, strict=True)):
        fields: dict[str, Any] = {}
        if clients.labels is not None:
            labels = clients.labels[number].astype(str)
            fields = {"classes": len(np.unique(labels)), **compare_with_labels(labels, groups)}
        rows.append(
            FeaturesClient(
                name=name,
                points=len(vectors),
                groups=len(np.unique(groups)),
                distance=float(np.sqrt(((vectors - centers[groups]) ** 2).sum(1).mean())),
                rounds=sum(number in entry["clients"] for entry in state.history),
                excluded=state.excluded.get(number, ""),
                **fields,
            )
        )
    return rows


def _write(path: Path, clients: Clients, encoded: Encoded, metrics: dict[str, float]) -> None:
    """Write features.parquet, groups.parquet and the model folder."""
    columns = row_columns(clients)
    features = {"embedding": _as_lists(encoded.vectors)}
    if encoded.fitted.options.reads_images:
        features["output"] = _as_lists(encoded.outputs)
    write_table(path / "features.parquet", columns | features)
    write_table(path / "groups.parquet", columns | {"group": np.concatenate(encoded.groups)})
    save_model(encoded.fitted, path / "model", clients=len(clients.names), metrics=metrics)


def _as_lists(parts: list[NDArray[np.float64]]) -> list[NDArray[np.float32]]:
    # Networks compute in float32: more digits would double the file and add no information.
    return list(np.concatenate(parts).astype(np.float32))
