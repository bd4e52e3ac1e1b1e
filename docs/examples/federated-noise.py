"""Measure what noise costs: maps, encoders and clusterings of digits at several epsilons.

python federated-noise.py [--results noise.jsonl] [--only embed]

Five clients answer as over a network, with a noise multiplier that spends a given epsilon (delta 1e-5) of each client's
account in the run. Eight partitions: two digits a client, and Dirichlet(0.3), with four seeds each. Controls: the
initial weights, which no data have seen; labels that are shuffled; one group of all points. Last, values of the
client's `noise_multiplier` and `update_clip` are compared. Takes some 20 minutes on one core; every finished
measurement is a line of the results, and the same command resumes.
"""

import argparse
import itertools
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from foveate import FederatedKMeans
from foveate.core import progress
from foveate.federated.clustering.methods import resolve
from foveate.federated.costs import answer_cost
from foveate.federated.deep import options as features_kinds
from foveate.federated.deep import remote as features_client
from foveate.federated.deep.job import DeepJob
from foveate.federated.deep.options import DeepOptions
from foveate.federated.embedding import client as map_client
from foveate.federated.embedding import options as map_kinds
from foveate.federated.embedding.job import MapJob
from foveate.federated.embedding.networks import frozen_rows
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.embedding.quality import measure_quality, stack_clients
from foveate.federated.embedding.run import HeldOutSplit, split_held_out
from foveate.federated.job import TrainingJob, run_rounds
from foveate.federated.limits import ClientLimits
from foveate.federated.messages import Message
from foveate.federated.plan import DataSize, plan_run
from foveate.federated.privacy import epsilon, max_rho
from foveate.federated.rounds import Client, InProcess
from foveate.federated.run_options import RunOptions
from foveate.federated.sources import Clients, gather
from foveate.metrics.clustering import normalized_mutual_information
from foveate.metrics.intervals import Interval, seed_interval

CLIENTS, CLUSTERS, FEATURES, MIN_COUNT = 5, 10, 64, 10
PARTITIONS = list(itertools.product(("shards:2", "dirichlet:0.3"), range(4)))
EPSILONS = (1, 3, 10, None)
TABLES = ("cluster", "untrained", "features", "embed")
_ALL_CLIPS = (0.1, 0.3, 1.0)
CLIPS = {
    "embed-clip": [*itertools.product((15.0, 0.0), _ALL_CLIPS), (0.1, 0.1), (0.1, 1.0)],
    "features-clip": [*itertools.product((0.0,), _ALL_CLIPS), *itertools.product((3.0, 15.0), (0.1, 1.0))],
}
"""Noise multipliers and norms of an update that are compared, on two of the partitions."""
LONG = {"embed-long": (15.0, 1e5, 0.0)}
"""Noise multipliers of maps of 60 rounds, on the same two; in the second no data are left."""
# Far fewer rounds than the defaults of 150 and 20, for each takes its share of the same epsilon.
MAP, DEEP = {"rounds": 10}, {"rounds": 5, "clusters": CLUSTERS, "min_count": MIN_COUNT}
# Pixels are between 0 and 1, so that no row is longer than this once 1/2 is taken off: known without the data.
CLIP = 0.5 * FEATURES**0.5
GROUPS = {"refine_rounds": 0, "min_count": MIN_COUNT}


@cache
def load(split: str, seed: int) -> Clients:
    """Digits over five clients."""
    return gather(["digits"], split=split, clients=CLIENTS, seed=seed)


def limits_of(noise: float, clip: float = ClientLimits().update_clip) -> ClientLimits:
    """A client's own limits."""
    return ClientLimits(min_count=MIN_COUNT, jobs=("embed", "features"), noise_multiplier=noise, update_clip=clip)


def noise_of(job: str, options: Any, target: float | None) -> float:
    """Noise multiplier with which a whole run of these options spends an epsilon; 0 for none."""
    if target is None:
        return 0.0
    run = RunOptions(job=job, clients=CLIENTS, clusters=CLUSTERS, out="unused")
    # Noise of 1; the cost falls with its square.
    rho = plan_run(run, options, DataSize(FEATURES, 360), limits_of(1.0))["rho"]
    return (rho / max_rho(target)) ** 0.5


def fit(job: TrainingJob, parts: list[np.ndarray], limits: ClientLimits) -> tuple[Any, float]:
    """A training whose clients answer as over a network, and the epsilon that it costs the first of them."""
    kinds, module = (map_kinds, map_client) if isinstance(job, MapJob) else (features_kinds, features_client)
    spent = 0.0

    def answer(points: np.ndarray, request: Message, client: int) -> Message:
        nonlocal spent
        spent += answer_cost(request, limits).rho if client == 0 else 0.0
        return module.answer_remote(points, request, client, limits)

    handlers = dict.fromkeys(kinds.REMOTE_KINDS, answer)
    transport = InProcess([Client(number, part, handlers) for number, part in enumerate(parts)])
    state = job.begin(transport)
    run_rounds(job, job.remote_transport(transport, state), state)
    return job.finished(state), epsilon(spent)


def vote(split: HeldOutSplit, transform: Callable[[np.ndarray], np.ndarray]) -> float:
    """Accuracy of the vote of 7 neighbors on the map for held-out points."""
    fitted, held_out = (
        stack_clients(points, [transform(part) for part in points], labels)
        for points, labels in ((split.fit, split.fit_labels), (split.held_out, split.held_out_labels))
    )
    return measure_quality(fitted, held_out, k=7)["knn"]


def measure_map(partition: tuple[str, int], limits: ClientLimits, **changes: int) -> dict[str, float]:
    """FedNE: the vote on its map, on that of the initial weights, and for shuffled labels."""
    split = split_held_out(load(*partition), 0.2, seed=partition[1])
    options = EmbeddingOptions(**MAP | changes, seed=partition[1])
    fitted, spent = fit(MapJob(options), split.fit, limits)
    start = map_client.build_encoder(options, FEATURES)

    def untrained(points: np.ndarray) -> np.ndarray:
        weight = next(start.parameters())
        return frozen_rows(start, weight.new_tensor(points)).numpy()

    # Over all clients: where one holds two digits only, its own labels in another order would still be mostly right.
    mixed = np.random.default_rng(partition[1]).permutation(np.concatenate(split.fit_labels))
    shuffled = replace(split, fit_labels=np.split(mixed, np.cumsum([len(part) for part in split.fit])[:-1]))
    return {
        "epsilon": spent,
        "k-NN": vote(split, fitted.transform),
        "untrained": vote(split, untrained),
        "shuffled": vote(shuffled, fitted.transform),
    }


def measure_features(partition: tuple[str, int], limits: ClientLimits, method: str) -> dict[str, float]:
    """DeepFeCA: NMI of its groups with the labels, and with shuffled ones."""
    parts = load(*partition)
    options = DeepOptions(**DEEP, seed=partition[1], method=method)
    fitted, spent = fit(DeepJob(options), parts.points, limits)
    groups, labels = np.concatenate([fitted.predict(part) for part in parts.points]), np.concatenate(parts.labels)
    return {"epsilon": spent} | compare_groups(groups, labels, partition[1])


def compare_groups(groups: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, float]:
    """NMI with labels, and with shuffled ones."""
    shuffled = np.random.default_rng(seed).permutation(labels)
    return {
        "NMI": normalized_mutual_information(labels, groups),
        "shuffled": normalized_mutual_information(shuffled, groups),
    }


def measure_groups(partition: tuple[str, int], noise: float) -> dict[str, float]:
    """A clustering in one shot: NMI, and mean squared distance to the nearest center relative to pooled k-means."""
    from sklearn.cluster import KMeans

    parts = load(*partition)
    points = [part - 0.5 for part in parts.points]
    own = {"noise": noise, "clip": CLIP, "eliminate": "none"} if noise else {}
    model = FederatedKMeans(CLUSTERS, random_state=partition[1], **GROUPS, **own).fit(points)
    together, labels = np.concatenate(points), np.concatenate(parts.labels)
    pooled = KMeans(CLUSTERS, n_init=10, random_state=partition[1]).fit(together)

    def cost(centers: np.ndarray) -> float:
        return float(((together[:, None] - centers) ** 2).sum(2).min(1).mean())

    reference = cost(pooled.cluster_centers_)
    return {
        "epsilon": epsilon(5 * 2 / noise**2) if noise else 0.0,
        "cost": cost(model.cluster_centers_) / reference,
        "one group": cost(together.mean(0)[None]) / reference,
    } | compare_groups(np.concatenate(model.labels_), labels, partition[1])


class Results:
    """Measurements by name of the setting and partition, a line of JSON each.

    Args:
        path: of the file; None = in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.measured = path, {}
        if path is not None and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self.measured[entry["setting"], entry["partition"]] = entry["measured"]

    def measure(
        self, setting: str, partitions: list[tuple[str, int]], work: Callable[[tuple[str, int]], dict[str, float]]
    ) -> None:
        """Measure what is missing; print means and 95 % intervals over the partitions."""
        rows = []
        for partition in partitions:
            key = setting, f"{partition[0]} {partition[1]}"
            if key not in self.measured:
                self.measured[key] = work(partition)
                if self.path is not None:
                    entry = {"setting": key[0], "partition": key[1], "measured": self.measured[key]}
                    with self.path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(entry) + "\n")
            rows.append(self.measured[key])
        texts = [f"{name} {_format(seed_interval([row[name] for row in rows]))}" for name in rows[0]]
        print(f"{setting}: {'; '.join(texts)}", flush=True)


def _format(interval: Interval) -> str:
    return f"{interval.value:.3f} +- {interval.high - interval.value:.3f}" if interval.high is not None else "?"


def measure_costs(results: Results, name: str) -> None:
    """Print a line for each epsilon of a job, or of the encoder's initial weights."""
    options: Any
    work: Callable[[tuple[str, int], float], dict[str, float]]
    if name == "cluster":
        options, work = resolve(CLUSTERS, **GROUPS, noise=1.0, clip=CLIP, eliminate="none"), measure_groups
    elif name == "embed":
        options = EmbeddingOptions(**MAP)

        def work(partition: tuple[str, int], noise: float) -> dict[str, float]:
            return measure_map(partition, limits_of(noise))
    else:
        method = "deepfeca" if name == "features" else name
        options = DeepOptions(**DEEP, method=method)

        def work(partition: tuple[str, int], noise: float) -> dict[str, float]:
            return measure_features(partition, limits_of(noise), method)

    for target in EPSILONS:
        noise = noise_of("features" if name == "untrained" else name, options, target)
        title = f"{name}, epsilon {target}, noise {noise:.2f}"
        results.measure(title, PARTITIONS, lambda partition, noise=noise: work(partition, noise))


def measure_clips(results: Results, name: str) -> None:
    """Print a line for each noise multiplier and clip of a job."""
    for noise, clip in CLIPS[name]:
        title = f"{name.removesuffix('-clip')}, noise {noise:g}, clip {clip:g}"
        results.measure(
            title,
            [PARTITIONS[0], PARTITIONS[4]],
            lambda partition, own=(noise, clip): (
                measure_map(partition, limits_of(*own))
                if name == "embed-clip"
                else measure_features(partition, limits_of(*own), "deepfeca")
            ),
        )


def measure_long(results: Results, name: str) -> None:
    """Print a line for each noise multiplier of a long run."""
    for noise in LONG[name]:
        results.measure(
            f"embed, 60 rounds, noise {noise:g}",
            [PARTITIONS[0], PARTITIONS[4]],
            lambda partition, noise=noise: measure_map(partition, limits_of(noise), rounds=60),
        )


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", type=Path, help="file of finished measurements")
    parser.add_argument("--only", choices=[*TABLES, *CLIPS, *LONG], help="one of the tables")
    options = parser.parse_args()
    progress.configure(quiet=True)
    warnings.simplefilter("ignore")
    results = Results(options.results)
    for name in TABLES:
        if options.only in (None, name):
            measure_costs(results, name)
    for name in CLIPS:
        if options.only in (None, name):
            measure_clips(results, name)
    for name in LONG:
        if options.only in (None, name):
            measure_long(results, name)


if __name__ == "__main__":
    main()
