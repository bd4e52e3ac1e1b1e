"""Measure FedNE's map on digits with noise on what clients send: `python federated-noise.py`."""

import numpy as np

from foveate.federated.embedding.job import fit_clients
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.embedding.quality import account, measure_quality, stack_clients
from foveate.federated.embedding.run import split_held_out
from foveate.federated.sources import gather

SEEDS = range(2)
FEW = {"max_axis_points": 12, "min_r2": 0.3}
SETTINGS = {
    "averaging": {"method": "fedavg"},
    "no noise": {},
    "target_noise 0.05, max_axis_points 12, min_r2 0.3": FEW | {"target_noise": 0.05},
    "update_clip 0.5, update_noise 4, target_noise 0.05": {
        "update_clip": 0.5,
        "update_noise": 4.0,
        "target_noise": 0.05,
    },
}


def measure(setting: dict, seed: int) -> tuple[float, float, float, float]:
    """Return clients with repulsion, held-out vote of neighbors, share of foreign neighbors, epsilon of the fields."""
    split = split_held_out(gather(["digits"], split="shards:2", clients=5, seed=seed), 0.2, seed=seed)
    options = EmbeddingOptions(**{"rounds": 60, "surrogate": "grid", "seed": seed} | setting)
    fitted = fit_clients(split.fit, options)
    held_out = stack_clients(split.held_out, [fitted.transform(part) for part in split.held_out], split.held_out_labels)
    trained = stack_clients(split.fit, [fitted.transform(part) for part in split.fit], split.fit_labels)
    quality = measure_quality(trained, held_out, k=7)
    usable = [len(entry["usable"]) for entry in fitted.state.history if entry["usable"] is not None]
    epsilon = next((row.epsilon for row in account(options, fitted.state) if row.name == "field"), None)
    return float(np.mean(usable or [0])), quality["knn"], quality["foreign"], np.inf if epsilon is None else epsilon


if __name__ == "__main__":
    for name, setting in SETTINGS.items():
        for seed in SEEDS:
            usable, knn, foreign, epsilon = measure(setting, seed)
            values = f"{usable:.1f} clients with repulsion, knn {knn:.3f}, foreign {foreign:.3f}, epsilon {epsilon:.0f}"
            print(f"{name}, seed {seed}: {values}")
