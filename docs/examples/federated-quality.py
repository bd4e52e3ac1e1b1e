"""Compare federated k-means with scikit-learn's on the pooled points, by data set and partition.

python federated-quality.py [--sets digits,mnist] [--partitions 8]
"""

import argparse

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from foveate import FederatedKMeans
from foveate.federated.sources import gather

SPLITS = {"even": 10, "dirichlet:0.3": 10, "shards:2": 10}
METHODS = {
    "consensus": {},
    "consensus, one shot, min_count 10": {"refine_rounds": 0, "min_count": 10},
    "weighted_kmeans": {"method": "weighted_kmeans"},
    "weighted_kmeans, one round": {"method": "weighted_kmeans", "refine_rounds": 1},
}
CLUSTERS = 10  # as many as both sets have classes


def cost(points: np.ndarray, centers: np.ndarray) -> float:
    """Mean squared distance of all points to their nearest center."""
    squares = (points**2).sum(1)[:, None] - 2 * points @ centers.T + (centers**2).sum(1)
    return float(squares.min(1).mean())


def measure(source: str, split: str, partition: int) -> dict[str, tuple[float, float]]:
    """Cost relative to the pooled k-means, and ARI with the labels, by method."""
    parts = gather([source], split=split, clients=SPLITS[split], seed=partition)
    points, labels = np.concatenate(parts.points), np.concatenate(parts.labels)
    pooled = KMeans(CLUSTERS, n_init=10, random_state=partition).fit(points)
    reference = cost(points, pooled.cluster_centers_)
    rows = {"scikit-learn, pooled": (1.0, adjusted_rand_score(labels, pooled.labels_))}
    for name, options in METHODS.items():
        model = FederatedKMeans(CLUSTERS, random_state=partition, **options).fit(parts.points)
        groups = np.concatenate(model.labels_)
        rows[name] = cost(points, model.cluster_centers_) / reference, adjusted_rand_score(labels, groups)
    return rows


def main() -> None:
    """Print one table for each data set and split."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", default="digits")
    parser.add_argument("--partitions", type=int, default=8)
    options = parser.parse_args()
    for source in options.sets.split(","):
        for split in SPLITS:
            runs = [measure(source, split, partition) for partition in range(options.partitions)]
            print(f"{source}, {split}, {SPLITS[split]} clients, {options.partitions} partitions")
            base = np.array([run["consensus"][1] for run in runs])
            for name in runs[0]:
                costs, scores = np.array([run[name] for run in runs]).T
                better = int((scores > base).sum())
                print(
                    f"  {name:35} cost {costs.mean():.3f} (worst {costs.max():.3f})  ARI {scores.mean():.3f}  "
                    f"above consensus in {better} of {len(runs)}"
                )


if __name__ == "__main__":
    main()
