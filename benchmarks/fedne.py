"""FedNE's step against that of a central parametric embedding, and what a map is worth per byte exchanged.

    pip install --no-deps contrastive-ne
    python -m benchmarks.fedne --out bench

The step: forward, loss, backward, clip, Adam on 448 edges of digits with 5 negatives and the encoder 64-100-100-100-2.
The peer is contrastive-ne's own training function with loss_mode "neg" on the same edges; its negatives come from the
batch, ours from all points of the client, so that the work differs: ours encodes each distinct point once. With others
to feel, the step has 4 or 19 surrogate networks, or one grid of 28 x 28 values. Times are of the processor.

--quality draws maps of digits over five clients (two digits each) by several ways of exchanging; it writes the held-out
votes beside the megabytes. contrastive-ne is read from its one file, without annoy and pykeops, which this needs not.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from benchmarks.common import compare, publish, ratio
from foveate.core.files import write_json_atomically
from foveate.federated.embedding.grids import interpolate, union_grid
from foveate.federated.embedding.job import fit_clients
from foveate.federated.embedding.networks import copy_weights, perceptron
from foveate.federated.embedding.options import read_options
from foveate.federated.embedding.quality import measure_quality, stack_clients
from foveate.federated.embedding.run import split_held_out
from foveate.federated.embedding.surrogates import ARCHITECTURES, SurrogateNetwork, SurrogateSum
from foveate.federated.embedding.training import Neighborhood, PassSettings, neighborhood, train_pass
from foveate.federated.sources import gather, read_points

WIDTHS, BATCH = (64, 100, 100, 100, 2), 448
# What is exchanged: changes of the options.
WAYS: dict[str, dict[str, Any]] = {
    "averaging": {"method": "fedavg"},
    "averaging, 2 local epochs, 30 rounds": {"method": "fedavg", "local_epochs": 2, "rounds": 30},
    "averaging, 2 of 5 clients a round": {"method": "fedavg", "participation": 0.4},
    "grid": {"surrogate": "grid"},
    "grid, anew every 5 rounds": {"surrogate": "grid", "refresh": 5},
    "grid, 2 of 5 clients a round": {"surrogate": "grid", "participation": 0.4},
    "networks, anew every 5 rounds": {"surrogate": "network", "refresh": 5},
}


def others(kind: str, count: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Repulsion of other clients: surrogate networks of random weights, or a grid of random values."""
    if kind == "grid":
        grid = union_grid(np.array([[[-6.0, -6.0], [6.0, 6.0]]]))
        field = torch.rand(len(grid.points_Gd), generator=torch.Generator().manual_seed(0))
        return lambda z: interpolate(field, grid, z)
    weights = [
        copy_weights(SurrogateNetwork(ARCHITECTURES["network"], 2, torch.Generator().manual_seed(n)))
        for n in range(count)
    ]
    boxes = np.tile(np.array([[-6.0, -6.0], [6.0, 6.0]]), (count, 1, 1))
    return SurrogateSum(weights, [1 / (count + 1)] * count, boxes_M2d=boxes)


def ours(around: Neighborhood, foreign: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
    """One pass over all edges."""
    network = perceptron(WIDTHS, torch.Generator().manual_seed(0))
    settings = PassSettings(rate=1e-3, batch=BATCH, share=0.2)
    train_pass(network, around, settings, np.random.default_rng(0), foreign=foreign)


def theirs(peer: Any, around: Neighborhood) -> None:
    """The same pass by contrastive-ne."""
    network = perceptron(WIDTHS, torch.Generator().manual_seed(0))
    points = torch.from_numpy(around.points_ND)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(around.heads_E)))
    heads, tails = torch.from_numpy(around.heads_E), torch.from_numpy(around.tails_E)
    batches = ((points[heads[rows]], points[tails[rows]]) for rows in order.split(BATCH))
    loss = peer.ContrastiveLoss(negative_samples=5, loss_mode="neg", spec_param=1.0, loss_aggregation="mean")
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    peer.train(batches, network, None, None, loss, optimizer, 0, force_resample=True)


def contrastive_ne() -> Any:
    """Load the peer's module; None if it is not installed."""
    package = importlib.util.find_spec("cne")
    if package is None or not package.submodule_search_locations:
        return None
    spec = importlib.util.spec_from_file_location("cne_file", Path(package.submodule_search_locations[0]) / "cne.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def steps(out: Path, *, repeats: int) -> None:
    points = read_points("digits").points_ND[:720].astype(np.float32)
    around = neighborhood(points, 7, None)
    count = -(-len(around.heads_E) // BATCH)
    candidates: dict[str, Callable[[], object]] = {
        "alone": partial(ours, around, None),
        "4 networks": partial(ours, around, others("network", 4)),
        "19 networks": partial(ours, around, others("network", 19)),
        "grid": partial(ours, around, others("grid", 0)),
    }
    peer = contrastive_ne()
    if peer is not None:
        candidates["contrastive-ne"] = partial(theirs, peer, around)
    timings = compare(candidates, repeats=repeats)
    pairs = {f"alone over {name}": ratio(timings, "alone", name, processor=True) for name in timings if name != "alone"}
    extra = {"points": len(points), "edges": len(around.heads_E), "steps": count, "peer": peer is not None}
    publish("fedne", timings, out=out, ratios=pairs, items=count, unit="steps", extra=extra)
    if peer is None:
        print("contrastive-ne is not installed: not compared")


def per_byte(out: Path, *, rounds: int, seeds: int) -> None:
    """Votes on held-out points beside megabytes, by ways of exchanging."""
    table = Table("exchanged", "MB up", "MB down", "vote, each seed", "trust")
    saved = []
    for name, changes in WAYS.items():
        found = [_measured({"rounds": rounds, **changes}, seed) for seed in range(seeds)]
        saved.append({"way": name, "options": changes, "seeds": found})
        mean = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
        votes = " ".join(f"{one['knn']:.3f}" for one in found)
        table.add_row(name, f"{mean['up']:.1f}", f"{mean['down']:.1f}", votes, f"{mean['trustworthiness']:.3f}")
    write_json_atomically(out / "fedne-per-byte.json", {"rounds": rounds, "ways": saved})
    Console(width=120).print(table)


def _measured(changes: dict[str, Any], seed: int) -> dict[str, float]:
    clients = gather(["digits"], split="shards:2", clients=5, seed=seed)
    parts = split_held_out(clients, 0.2, seed=seed)
    fitted = fit_clients(parts.fit, read_options({"seed": seed, **changes}))
    drawn = [
        stack_clients(side, [fitted.transform(one) for one in side], labels)
        for side, labels in ((parts.fit, parts.fit_labels), (parts.held_out, parts.held_out_labels))
    ]
    found = measure_quality(drawn[0], drawn[1], k=7)
    history = fitted.state.history
    up, down = (sum(entry[f"bytes_{way}"] for entry in history) / 1e6 for way in ("up", "down"))
    return {"knn": found["knn"], "trustworthiness": found["trustworthiness"], "up": up, "down": down}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for the JSON files")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quality", action="store_true", help="maps per byte, too: minutes")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        steps(arguments.out, repeats=arguments.repeats)
        if arguments.quality:
            per_byte(arguments.out, rounds=arguments.rounds, seeds=arguments.seeds)


if __name__ == "__main__":
    main()
