"""Compare what clients send of their repulsion on 3-D maps: `python fedne-three.py [PARTITIONS] [SPLITS] [SETTINGS]`.

Two negative controls train with FedNE's weights and a field that knows nothing of the other clients' points: a constant
one, whose gradient is 0, and one whose values are shuffled over the grid.
"""

import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
from scipy.stats import t
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from foveate import FederatedNeighborEmbedding
from foveate.federated.embedding import client as at_client
from foveate.federated.partition import dirichlet, shards
from foveate.metrics.embedding import foreign_share, trustworthiness

ROUNDS = 40
# With one local epoch, 40 rounds are too few for any method (docs/methods/fedne.md).
COMMON = {"local_epochs": 3}
SETTINGS = {
    "averaging": {"method": "fedavg"},
    "networks": {"surrogate": "network"},
    "grid": {"surrogate": "grid"},
    "grid of 20": {"surrogate": "grid", "options": {"max_axis_points": 20}},
    "exact positions": {"method": "fedne_exact"},
    "constant field": {"surrogate": "grid"},
    "shuffled field": {"surrogate": "grid"},
}
SPOILED = {
    "constant field": lambda field: np.full_like(field, field.mean()),
    "shuffled field": lambda field: np.random.default_rng(0).permutation(field),
}


@contextmanager
def spoil_fields(name: str) -> Iterator[None]:
    """Let clients train with spoiled fields, where the setting is a control; what they send stays exact."""
    if name not in SPOILED:
        yield
        return
    build = at_client._foreign

    def build_spoiled(request, *more):
        if "field" in request.arrays:
            field = SPOILED[name](request.array("field"))
            request = dataclasses.replace(request, arrays={**request.arrays, "field": field})
        return build(request, *more)

    with mock.patch.object(at_client, "_foreign", build_spoiled):
        yield


def measure(split: str, partition: int, name: str) -> dict[str, float]:
    """Return the map's measures on 360 held-out digits, the mean R2 and cosine of surrogates, seconds, megabytes."""
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
    settings = {**SETTINGS[name], "options": COMMON | SETTINGS[name].get("options", {})}
    model = FederatedNeighborEmbedding(n_components=3, n_rounds=ROUNDS, random_state=partition, **settings)
    with spoil_fields(name):
        model.fit([points[fit[rows]] for rows in parts.rows])
    seconds = time.process_time() - began
    places = np.concatenate(model.embedding_)
    owners = np.repeat(np.arange(len(parts.rows)), [len(rows) for rows in parts.rows])
    votes = KNeighborsClassifier(7).fit(places, np.concatenate([labels[fit[rows]] for rows in parts.rows]))
    unseen = model.transform(points[held_out])
    active = [entry for entry in model.history_ if entry["usable"] is not None]
    fits = [value for entry in active for value in entry["r2"].values()]
    cosines = [value for entry in active for value in entry.get("gradient_cosine", {}).values()]
    return {
        "vote": votes.score(unseen, labels[held_out]),
        "foreign": foreign_share(places, owners, k=7),
        "trust": trustworthiness(points[held_out], unseen, k=7),
        "width": float(np.ptp(places, axis=0).max()),
        "r2": float(np.mean(fits)) if fits else np.nan,
        "cosine": float(np.mean(cosines)) if cosines else np.nan,
        "used": float(np.mean([len(entry["usable"]) for entry in active])) / len(parts.rows) if active else np.nan,
        "seconds": seconds,
        "MB": sum(entry["bytes_up"] + entry["bytes_down"] for entry in model.history_) / 1e6,
    }


def main() -> None:
    """Print a line per split and setting: means over partitions, and gains with half their 95 % t-intervals."""
    partitions = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    splits = sys.argv[2].split(",") if len(sys.argv) > 2 else ["shards", "dirichlet"]
    names = sys.argv[3].split(",") if len(sys.argv) > 3 else list(SETTINGS)
    for split in splits:
        plain = None
        for name in names:
            rows = [measure(split, partition, name) for partition in range(partitions)]
            columns = {key: np.array([row[key] for row in rows]) for key in rows[0]}
            plain = columns if plain is None else plain
            reach = t.ppf(0.975, partitions - 1) / np.sqrt(partitions)
            print(f"{split:10} {name:18}", end="")
            for key, values in columns.items():
                print(f" {key} {values.mean():.3f}", end="")
                if key in ("vote", "foreign", "trust") and plain is not columns:
                    gains = values - plain[key]
                    print(f" ({gains.mean():+.3f} ± {reach * gains.std(ddof=1):.3f})", end="")
            print(" votes", columns["vote"].round(3).tolist(), flush=True)


if __name__ == "__main__":
    main()
