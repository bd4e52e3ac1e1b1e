"""What is left of FedNE's map with noise on what clients send, measured on digits: `python federated-noise.py`."""

import numpy as np

from foveate.federated.embedding.account import account
from foveate.federated.embedding.job import fit_clients
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.embedding.quality import measure_quality, stack_clients
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


def measured(setting: dict, seed: int) -> tuple[float, float, float, float]:
    """Clients felt; held-out vote of neighbors; share of map neighbors of another client; epsilon of the fields."""
    split = split_held_out(gather(["digits"], split="shards:2", clients=5, seed=seed), 0.2, seed=seed)
    options = EmbeddingOptions(**{"rounds": 60, "surrogate": "grid", "seed": seed} | setting)
    fitted = fit_clients(split.fit, options)
    apart = stack_clients(split.held_out, [fitted.transform(one) for one in split.held_out], split.held_out_labels)
    trained = stack_clients(split.fit, [fitted.transform(one) for one in split.fit], split.fit_labels)
    found = measure_quality(trained, apart, k=7)
    felt = [len(entry["felt"]) for entry in fitted.state.history if entry["felt"] is not None]
    hidden = {line["what"]: line["epsilon"] for line in account(options, fitted.state)}
    epsilon = hidden.get("field")
    return float(np.mean(felt or [0])), found["knn"], found["foreign"], np.inf if epsilon is None else epsilon


if __name__ == "__main__":
    for name, setting in SETTINGS.items():
        for seed in SEEDS:
            felt, knn, foreign, epsilon = measured(setting, seed)
            words = f"{felt:.1f} clients felt, knn {knn:.3f}, foreign {foreign:.3f}, epsilon {epsilon:.0f}"
            print(f"{name}, seed {seed}: {words}")
