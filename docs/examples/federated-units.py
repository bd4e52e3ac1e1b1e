"""Measure what a wrong client or value does to a clustering, and what helps: `python federated-units.py`; `--plain`."""

import sys
import warnings

import numpy as np

from foveate import FederatedKMeans, UserError
from foveate.core import progress
from foveate.metrics import adjusted_rand_index

GROUPS, SEEDS = 7, range(5)


def make_clients(clients: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Seven groups in four columns, spread evenly over the clients: points and labels of each."""
    random = np.random.default_rng(seed)
    middles = random.uniform(10, 40, (GROUPS, 4))
    labels = random.integers(GROUPS, size=900)
    points = middles[labels] + random.normal(size=(900, 4))
    parts = np.array_split(random.permutation(900), clients)
    return [points[part] for part in parts], [labels[part] for part in parts]


def break_client(points: np.ndarray, fault: str) -> np.ndarray:
    """The points of the first client with a fault."""
    points = points.copy()
    if fault == "another unit in one column":
        points[:, 2] *= 1000
    elif fault == "another unit in all columns":
        points *= 50
    elif fault == "1e90 everywhere":
        points[:] = 1e90
    elif fault == "one value of 1e8":
        points[3, 1] = 1e8
    return points


def report(clients: int, fault: str, **options: object) -> str:
    """Mean agreement of the honest clients' groups with their labels, and in how many seeds the client was named."""
    scores, named = [], 0
    for seed in SEEDS:
        points, labels = make_clients(clients, seed)
        points[0] = break_client(points[0], fault)
        try:
            model = FederatedKMeans(GROUPS, random_state=seed, **options).fit(points)
        except UserError:
            named += 1
            continue
        named += 0 in model.suspects_ or 0 in model.excluded_
        first = 0 if fault in ("none", "one value of 1e8") else 1
        scores.append(adjusted_rand_index(np.concatenate(labels[first:]), np.concatenate(model.labels_[first:])))
    return f"{np.mean(scores):.3f} ({len(scores)} fits), named in {named}" if scores else f"refused, named in {named}"


if __name__ == "__main__":
    progress.configure(quiet=True)
    warnings.simplefilter("ignore")
    faults = (
        "none",
        "another unit in one column",
        "another unit in all columns",
        "1e90 everywhere",
        "one value of 1e8",
    )
    settings: dict[str, dict[str, object]] = {"defaults": {}}
    if "--plain" not in sys.argv:
        settings |= {"suspects=report": {"suspects": "report"}, "suspects=exclude": {"suspects": "exclude"}}
        settings |= {"winsorize, report": {"winsorize": 3.0, "suspects": "report"}}
        settings["as over a network"] = {"winsorize": 3.0, "min_count": 10, "refine_rounds": 0}
    for clients in (2, 3, 5):
        for fault in faults:
            for name, options in settings.items():
                print(f"{clients} clients, {fault}, {name}: {report(clients, fault, **options)}")
