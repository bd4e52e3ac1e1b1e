"""Measure on digits what a curious server can infer from federated messages: `python federated-leaks.py`."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from foveate.federated.attacks import positions_from_field, unused_features
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.methods import resolve
from foveate.federated.clustering.protocol import HANDLERS
from foveate.federated.embedding.client import build_encoder
from foveate.federated.embedding.grids import targets, union_grid
from foveate.federated.embedding.job import fit_clients
from foveate.federated.embedding.networks import flatten_weights
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.messages import Message
from foveate.federated.privacy import add_noise
from foveate.federated.rounds import Client, InProcess, Log
from foveate.federated.sources import gather

SEEDS = range(5)


def features(noise: dict) -> tuple[float, float]:
    """Recall and precision of the pixels that are blank in every image of a client."""
    hits, named, true = 0, 0, 0
    for seed in SEEDS:
        clients = gather(["digits"], split="shards:2", clients=5, seed=seed)
        options = EmbeddingOptions(method="fedavg", rounds=1, seed=seed, **noise)
        before = flatten_weights(build_encoder(options, 64))
        for points in clients.points:
            after = fit_clients([points], options).state.encoder
            unused, blank = unused_features(before, after, options, 64), (points == 0).all(axis=0)
            hits, named, true = hits + (unused & blank).sum(), named + unused.sum(), true + blank.sum()
    return hits / true, hits / max(named, 1)


def locate(points: int, sigma: float) -> tuple[float, float]:
    """Mean error of map positions as a share of the map's width: of the attack, and of as many random positions."""
    errors = []
    for seed in SEEDS:
        client = gather(["digits"], split="shards:2", clients=5, seed=seed).points[0][:points]
        whole = gather(["digits"], split="shards:2", clients=5, seed=seed).points
        fitted = fit_clients(whole, EmbeddingOptions(method="fedavg", rounds=5, seed=seed))
        z = fitted.transform(client).astype(np.float64)
        every = fitted.transform(np.concatenate(whole))
        grid = union_grid(np.stack([[every.min(axis=0), every.max(axis=0)]]))
        sent = targets(torch.from_numpy(grid.points_Gd), torch.from_numpy(z)).numpy()
        random = np.random.default_rng(seed)
        sent = add_noise(sent, sigma, random)
        width = np.ptp(every, axis=0).max()
        guessed = every[random.choice(len(every), points, replace=False)]
        for answer in (positions_from_field(sent, grid, points, random), guessed):
            distances = np.linalg.norm(z[:, None] - answer[None], axis=2)
            errors.append(distances[linear_sum_assignment(distances)].mean() / width)
    return float(np.mean(errors[::2])), float(np.mean(errors[1::2]))


def recover_rows(rounds: int) -> tuple[int, int]:
    """Count points that a k-means server recovers exactly from two messages with cells that differ by one; and all."""
    read, points = 0, 0
    for seed in SEEDS:
        clients = gather(["digits"], split="dirichlet:0.3", clients=8, seed=seed).points
        log = Log(record=True)
        members = [Client(number, part, HANDLERS) for number, part in enumerate(clients)]
        cluster(InProcess(members, log=log), resolve(10, seed=seed, min_count=10, refine_rounds=rounds))
        for number, rows in enumerate(clients):
            messages = [read_sums(message) for client, up, message in log.messages if up and client == number]
            recovered = set()
            for (first, n), (second, m) in zip(messages, messages[1:], strict=False):
                for i, j in np.argwhere((abs(n[:, None] - m) == 1) & (n[:, None] > 0) & (m > 0)):
                    distance = np.abs(rows - (first[i] - second[j]) * (n[i] - m[j])).max(axis=1)
                    recovered |= {int(distance.argmin())} if distance.min() < 1e-9 else set()
            read, points = read + len(recovered), points + len(rows)
    return read, points


def read_sums(message: Message) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts of the clusters, or cells, in a message."""
    counts = message.array("counts")
    return message.arrays.get("sums", message.arrays.get("centers", 0) * counts[:, None]), counts


if __name__ == "__main__":
    for name, noise in (("no noise", {}), ("noise", {"update_clip": 1.0, "update_noise": 0.001})):
        recall, precision = features(noise)
        print(f"blank pixels from weights after one round, {name}: recall {recall:.3f}, precision {precision:.3f}")
    for sigma in (0.0, 0.01, 0.1):
        for points in (1, 3, 10, 30):
            attack, guess = locate(points, sigma)
            print(
                f"positions from a field, {points} points, noise {sigma:g}: error {attack:.3f}, "
                f"random positions {guess:.3f}"
            )
    for rounds in range(4):
        print("points read from differences, {} rounds of refinement: {} of {:,}".format(rounds, *recover_rows(rounds)))
