"""Federated clustering against k-FED and k-means in one place: time, bytes and error from 10^4 to 10^7 points.

    python -m benchmarks.federated --points 10000 100000 --clients 10 100 1000 --dimensions 2 32 --out bench

Points are a mixture of 15 Gaussians whose means are at least 6 standard deviations apart, float32, spread evenly
over the clients. Each method of each cell runs in a process of its own, whose peak memory is measured and whose data
segment is limited to --memory GB. Seconds are those of one processor: of all clients together, of the slowest client
(what a network waits for), and of the server. The error is the mean distance of the classes' means to the matched
centers, in standard deviations. k-means in one place is scikit-learn's, one k-means++ start; it reads every point.
Repeated with more cells, the command goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from benchmarks.common import machine
from foveate.core.devices import peak_gigabytes
from foveate.core.files import write_json_atomically
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.methods import resolve
from foveate.federated.clustering.protocol import HANDLERS
from foveate.federated.messages import Message
from foveate.federated.rounds import Client, InProcess, Log
from foveate.metrics.clustering import center_error, centroid_index

CLUSTERS = 15
APART = 6.0
METHODS: dict[str, dict[str, Any]] = {
    "consensus": {},
    "consensus, one shot": {"refine_rounds": 0},
    "paper_reconstruction": {"method": "paper_reconstruction", "on_few_groups": "return"},
    "weighted_kmeans": {"method": "weighted_kmeans"},
    "kfed": {"method": "kfed"},
    "central": {},
}


def mixture(points: int, dimensions: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, D] float32 in random order, and the means of the 15 classes as drawn [15, D]."""
    random = np.random.default_rng([seed, points, dimensions])
    side = APART * CLUSTERS ** (1 / dimensions) * (2.5 if dimensions == 2 else 1.5)
    means: list[np.ndarray] = []
    while len(means) < CLUSTERS:
        tried = random.uniform(0, side, dimensions)
        if all(np.linalg.norm(tried - one) >= APART for one in means):
            means.append(tried)
    found = np.empty((points, dimensions), np.float32)
    labels = random.integers(0, CLUSTERS, points)
    totals, counts = np.zeros((CLUSTERS, dimensions)), np.bincount(labels, minlength=CLUSTERS)
    for start in range(0, points, 1 << 18):
        part = labels[start : start + (1 << 18)]
        drawn = random.standard_normal((len(part), dimensions), dtype=np.float32) + np.array(means, np.float32)[part]
        found[start : start + len(part)] = drawn
        for column in range(dimensions):
            totals[:, column] += np.bincount(part, weights=drawn[:, column], minlength=CLUSTERS)
    return found, totals / counts[:, None]


class Watch:
    """Handlers that count the processor's seconds of each client."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}

    def over(self, handler: Callable[[Any, Message, int], Message]) -> Callable[[Any, Message, int], Message]:
        def timed(data: Any, request: Message, client: int) -> Message:
            began = time.process_time()
            try:
                return handler(data, request, client)
            finally:
                self.seconds[client] = self.seconds.get(client, 0.0) + time.process_time() - began

        return timed


def measure(name: str, points: int, clients: int, dimensions: int, seed: int) -> dict[str, Any]:
    """One method on one cell, in this process."""
    data, truth = mixture(points, dimensions, seed=seed)
    from sklearn.cluster import KMeans  # before the clock starts

    row: dict[str, Any] = {"method": name, "points": points, "clients": clients, "dimensions": dimensions, "seed": seed}
    began = time.process_time()
    if name == "central":
        centers = KMeans(CLUSTERS, n_init=1, random_state=seed, copy_x=False).fit(data).cluster_centers_
        row |= {"server_s": time.process_time() - began, "clients_s": 0.0, "slowest_client_s": 0.0}
        row |= {"bytes_up": data.nbytes, "bytes_down": 0}
    else:
        watch, log = Watch(), Log()
        handlers = {kind: watch.over(handler) for kind, handler in HANDLERS.items()}
        members = [Client(number, part, handlers) for number, part in enumerate(np.array_split(data, clients))]
        settings = resolve(CLUSTERS, seed=seed, **METHODS[name])
        centers = cluster(InProcess(members, log=log), settings).centers
        total = sum(watch.seconds.values())
        row |= {"server_s": time.process_time() - began - total, "clients_s": total}
        row |= {"slowest_client_s": max(watch.seconds.values())}
        row |= {"bytes_up": log.bytes(up=True), "bytes_down": log.bytes(up=False)}
    row["clusters"] = len(centers)
    row["error"] = center_error(truth, centers).mean if len(centers) == CLUSTERS else None
    row["centroid_index"] = centroid_index(truth, centers)
    row["memory_gb"] = peak_gigabytes() * 2**30 / 1e9
    return row


def in_its_own_process(cell: tuple[str, int, int, int, int], memory: float) -> dict[str, Any]:
    """Measure a cell in a process of its own; if it fails, return a row with its last line."""
    limit = int(memory * 1e9)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.federated", "--cell", json.dumps(cell), "--memory", str(memory)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last_line = (done.stderr.strip().splitlines() or ["no output"])[-1]
    named = dict(zip(("method", "points", "clients", "dimensions", "seed"), cell, strict=True))
    return {**named, "failure": f"exit {done.returncode}: {last_line[:200]}"}


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    table = Table(title="federated")
    for column in ("points", "clients", "D", "method", "clients s", "slowest s", "server s", "up", "error", "CI", "GB"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        cell = [f"{row['points']:,}", f"{row['clients']:,}", str(row["dimensions"]), row["method"]]
        if "failure" in row:
            table.add_row(*cell, row["failure"])
            continue
        error = "-" if row["error"] is None else f"{row['error']:.4f}"
        seconds = [f"{row[name]:.2f}" for name in ("clients_s", "slowest_client_s", "server_s")]
        rest = [f"{row['bytes_up']:,}", error, str(row["centroid_index"]), f"{row['memory_gb']:.2f}"]
        table.add_row(*cell, *seconds, *rest)
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for the JSON file")
    parser.add_argument("--points", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1_000])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 32])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--memory", type=float, default=4.0, help="GB that a process may have")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        with threadpool_limits(1):
            print(json.dumps(measure(*json.loads(arguments.cell))))
        return
    path = arguments.out / "federated.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    done = {tuple(row[n] for n in ("method", "points", "clients", "dimensions", "seed")) for row in rows}
    cells = itertools.product(
        arguments.points, arguments.clients, arguments.dimensions, arguments.methods, range(arguments.seeds)
    )
    for points, clients, dimensions, name, seed in cells:
        # k-means in one place does not know of clients: once for each size is enough.
        if points < 10 * clients or (name == "central" and clients != min(arguments.clients)):
            continue
        cell = (name, points, clients, dimensions, seed)
        if cell not in done:
            rows.append(in_its_own_process(cell, arguments.memory))
            write_json_atomically(path, {"machine": machine(), "rows": rows})
            print(f"{len(rows)} rows, the last in {rows[-1].get('clients_s', 0) + rows[-1].get('server_s', 0):.1f} s")
    show(rows)
    print(path)


if __name__ == "__main__":
    main()
