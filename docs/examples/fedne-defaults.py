"""Compare FedNE's settings with federated averaging on digits: `python fedne-defaults.py [PARTITIONS]`."""

import sys
import time

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from foveate import FederatedNeighborEmbedding
from foveate.federated.partition import dirichlet, shards

ROUNDS = 40
SETTINGS = {
    "averaging": {"method": "fedavg"},
    "FedNE, networks": {"surrogate": "network"},
    "FedNE, grid (default)": {},
    "averaging, mixing": {"method": "fedavg", "mixing": True},
    "FedNE, mixing": {"mixing": True},
    "averaging, decay at 0.9": {"method": "fedavg", "options": {"decay_at": (0.9,)}},
    "FedNE, decay at 0.9": {"options": {"decay_at": (0.9,)}},
    "averaging, 3 local epochs": {"method": "fedavg", "options": {"local_epochs": 3}},
    "FedNE, 3 local epochs": {"options": {"local_epochs": 3}},
}


def measure(split: str, partition: int, settings: dict) -> tuple[float, float, float]:
    """Accuracy of 7 map neighbors on 360 held-out digits, processor seconds, and megabytes exchanged."""
    data = load_digits()
    points, labels = (data.data / 16).astype(np.float32), data.target
    order = np.random.default_rng(partition).permutation(len(points))
    held_out, fit = order[:360], order[360:]
    random = np.random.default_rng(100 + partition)
    parts = (
        dirichlet(labels[fit], 10, random, alpha=0.3)
        if split == "dirichlet"
        else shards(labels[fit], 5, random, classes=2)
    )
    began = time.process_time()
    model = FederatedNeighborEmbedding(n_rounds=ROUNDS, random_state=partition, **settings)
    model.fit([points[fit[rows]] for rows in parts.rows])
    seconds = time.process_time() - began
    votes = KNeighborsClassifier(7).fit(
        np.concatenate(model.embedding_), np.concatenate([labels[fit[rows]] for rows in parts.rows])
    )
    sent = sum(entry["bytes_up"] + entry["bytes_down"] for entry in model.history_)
    return votes.score(model.transform(points[held_out]), labels[held_out]), seconds, sent / 1e6


def main() -> None:
    """Print a line for each split and setting: means over partitions, and the difference from averaging."""
    partitions = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    for split in ("dirichlet", "shards"):
        plain = None
        for name, settings in SETTINGS.items():
            scores, seconds, sent = np.array([measure(split, n, settings) for n in range(partitions)]).T
            plain = scores if plain is None else plain
            print(
                f"{split:10} {name:26} {scores.mean():.3f} ({(scores - plain).mean():+.3f}, above averaging in "
                f"{int((scores > plain).sum())} of {partitions}), {seconds.mean():.1f} s, {sent.mean():.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
