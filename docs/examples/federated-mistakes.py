"""Measure mistakes in one column of one client, and honest clients: `python federated-mistakes.py [--seeds 1]`.

For each partition, honest and with each mistake: the ratio that the server sees, whether a client is left out at the
default, and the ARI of the honest clients' groups with nothing done (`suspects="report"`), at the default, and where
every suspect is left out. Takes minutes on one core.
"""

import argparse
import itertools
import warnings
from collections import defaultdict

import numpy as np
from sklearn import datasets

from foveate import FederatedKMeans, UserError
from foveate.core import progress
from foveate.federated.clustering.suspects import CERTAIN, measure_scales
from foveate.federated.messages import Message
from foveate.federated.partition import dirichlet
from foveate.metrics import adjusted_rand_index

SPLITS = ("even", "dirichlet 0.5", "dirichlet 0.1", "shifted columns", "unequal sizes")
HONEST_SPLITS = (*SPLITS, "one class each", "places of their own")
SITES = (2, 3, 5, 10)
HONEST = {
    "defaults": {},
    "network": {"min_count": 10, "winsorize": 3.0, "refine_rounds": 0},
    "naive": {"method": "naive"},
}
"""Options under which honest runs are measured."""
MISTAKES = {
    "times 1000": lambda column: column * 1000,
    "times 100": lambda column: column * 100,
    "times 10": lambda column: column * 10,
    "divided by 1000": lambda column: column / 1000,
    "inches for cm": lambda column: column / 2.54,
    "Fahrenheit": lambda column: column * 1.8 + 32,
    "sign flipped": lambda column: -column,
    "constant added": lambda column: column + 10 * column.std(),
    "all zero": lambda column: column * 0,
    # Its neighbor takes the column's values, too; see `break_client`.
    "two swapped": None,
}


def make_sets() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Points and labels by name; z: columns in units of their deviation, around zero."""
    bunches = {
        "digits": datasets.load_digits(),
        "wine": datasets.load_wine(),
        "cancer": datasets.load_breast_cancer(),
        "iris": datasets.load_iris(),
    }
    sets = {name: (np.asarray(bunch.data, float), np.asarray(bunch.target)) for name, bunch in bunches.items()}
    for name in ("wine", "cancer"):
        points, labels = sets[name]
        sets[f"{name}, z"] = ((points - points.mean(0)) / points.std(0), labels)
    random = np.random.default_rng(7)
    middles, labels = random.uniform(10, 40, (7, 4)), random.integers(7, size=900)
    sets["mixture"] = (middles[labels] + random.normal(size=(900, 4)), labels)
    middles, labels = 6 * random.normal(size=(6, 8)), random.integers(6, size=900)
    sets["mixture around 0"] = (middles[labels] + random.normal(size=(900, 8)), labels)
    return sets


def split_rows(labels: np.ndarray, split: str, sites: int, random: np.random.Generator) -> list[np.ndarray]:
    """Rows of each site."""
    if split.startswith("dirichlet"):
        return dirichlet(labels, sites, random, alpha=float(split.split()[1]), min_points=5).rows
    if split == "unequal sizes":
        # At least 8 rows each: fewer are no client for as many clusters.
        sizes = 8 + random.multinomial(len(labels) - 8 * sites, random.dirichlet(np.full(sites, 0.7)))
        return np.split(random.permutation(len(labels)), np.cumsum(sizes)[:-1])
    if split == "one class each":
        classes = random.permutation(np.unique(labels))
        return [np.flatnonzero(np.isin(labels, part)) for part in np.array_split(classes, sites) if len(part)]
    return np.array_split(random.permutation(len(labels)), sites)


def make_clients(
    points: np.ndarray, labels: np.ndarray, split: str, sites: int, random: np.random.Generator
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Points and labels of each honest site."""
    rows = split_rows(labels, split, sites, random)
    parts = [points[row] for row in rows]
    width = points.shape[1]
    if split == "places of their own":
        parts = [part + points.std(0) * random.uniform(0, 20, width) for part in parts]
    if split == "shifted columns":
        # Another device at each site: every column up to 1.4 times as large, moved by half a deviation.
        parts = [
            part * random.uniform(0.7, 1.4, width) + 0.5 * points.std(0) * random.normal(size=width) for part in parts
        ]
    return parts, [labels[row] for row in rows]


def break_client(part: np.ndarray, column: int, mistake: str) -> np.ndarray:
    """The points with a mistake in one column."""
    broken = part.copy()
    if mistake == "two swapped":
        pair = [column, (column + 1) % part.shape[1]]
        broken[:, pair] = part[:, pair[::-1]]
    else:
        broken[:, column] = MISTAKES[mistake](part[:, column])
    return broken


def largest_factor(model: FederatedKMeans, site: int | None = None) -> float:
    """The largest factor that the server sees, of one site or of all."""
    names = ("centers", "counts", "spreads")
    answers = {
        client: Message("query.centroids", 0, {name: report[name] for name in names if name in report})
        for client, report in model.client_reports_.items()
    }
    scales = measure_scales(answers)
    return max(float(scales[client].unit_D.max()) for client in scales if site in (None, client))


def fit(
    parts: list[np.ndarray], labels: list[np.ndarray], broken: int, seed: int, **options: object
) -> tuple[float, FederatedKMeans | None]:
    """ARI of the unbroken sites' groups with the labels, and the model; None where the run stopped."""
    clusters = len(np.unique(np.concatenate(labels)))
    try:
        model = FederatedKMeans(clusters, random_state=seed, **options).fit(parts)
    except UserError:
        return float("nan"), None
    sites = [site for site in range(len(parts)) if site != broken]
    truth, groups = (np.concatenate([rows[site] for site in sites]) for rows in (labels, model.labels_))
    return adjusted_rand_index(truth, groups), model


def pick_column(points: np.ndarray, random: np.random.Generator) -> int:
    """A column that varies: in others a mistake changes nothing."""
    spread = points.std(0)
    return int(random.choice(np.flatnonzero(spread > 0.3 * spread.max())))


def measure_honest(sets: dict[str, tuple[np.ndarray, np.ndarray]], seeds: int) -> None:
    """Print for each number of sites the largest factors of honest runs, and how many clients were left out."""
    factors, wrong = defaultdict(list), defaultdict(int)
    for (name, (points, labels)), split, sites, seed in itertools.product(
        sets.items(), HONEST_SPLITS, SITES, range(seeds)
    ):
        parts, truth = make_clients(points, labels, split, sites, np.random.default_rng([seed, sites]))
        for setting, options in HONEST.items():
            _, model = fit(parts, truth, -1, seed, suspects="report", **options)
            if model is None:
                continue
            factors[len(parts)].append((largest_factor(model), name, split, setting))
            stopped = fit(parts, truth, -1, seed, **options)[1]
            wrong[len(parts)] += (
                1 if stopped is None else sum("unit" in reason for reason in stopped.excluded_.values())
            )
    for sites, found in sorted(factors.items()):
        top = ", ".join(f"{factor:.2f} ({', '.join(where)})" for factor, *where in sorted(found, reverse=True)[:3])
        print(f"honest, {sites} sites, {len(found)} runs: {wrong[sites]} left out or stopped; largest factors {top}")


def measure_mistakes(sets: dict[str, tuple[np.ndarray, np.ndarray]], seeds: int) -> None:
    """Print a row of the table for each mistake, with three sites or more and with two."""
    rows = defaultdict(list)
    for (points, labels), split, sites, seed in itertools.product(sets.values(), SPLITS, SITES, range(seeds)):
        random = np.random.default_rng([seed, sites])
        parts, truth = make_clients(points, labels, split, sites, random)
        site, column = int(random.integers(sites)), pick_column(points, random)
        clean, _ = fit(parts, truth, site, seed)
        for mistake in MISTAKES:
            broken = [break_client(part, column, mistake) if n == site else part for n, part in enumerate(parts)]
            kept, model = fit(broken, truth, site, seed, suspects="report")
            if model is None:
                continue
            default, model_default = fit(broken, truth, site, seed)
            excluded, model_excluded = fit(broken, truth, site, seed, suspects="exclude")
            out = {} if model_default is None else model_default.excluded_
            caught = model_default is None or site in out
            rows[mistake, sites > 2].append(
                (
                    largest_factor(model, site),
                    caught,
                    sum(client != site for client in out),
                    site in model.suspects_,
                    clean,
                    kept,
                    kept if model_default is None else default,
                    kept if model_excluded is None else excluded,
                )
            )
    for (mistake, several), values in sorted(rows.items(), key=lambda row: row[0][1]):
        found = np.array(values, dtype=float)
        # Harm: the honest sites' groups lose more than .05 of the ARI that they have without the mistake.
        harmed = found[:, 4] - found[:, 5] > 0.05
        means = " ".join(f"{value:.3f}" for value in found[:, 4:].mean(0))
        hurt = " ".join(f"{value:.3f}" for value in found[harmed, 4:].mean(0)) if harmed.any() else "-"
        sites = "3 to 10" if several else "2"
        print(
            f"{mistake}, {sites} sites, {len(found)} runs: median factor {np.median(found[:, 0]):.3g}; "
            f"left out (or stopped) {found[:, 1].mean():.0%}, reported {found[:, 3].mean():.0%}, honest sites left out "
            f"{found[:, 2].sum():.0f}; ARI clean, kept, default, exclude {means}; harmed {harmed.sum()}, of them left "
            f"out {found[harmed, 1].mean() if harmed.any() else 0:.0%}, ARI {hurt}"
        )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=1, help="of mistakes; honest runs have three times as many")
    parser.add_argument("--sets", default="", help="names, with semicolons between; all by default")
    options = parser.parse_args()
    progress.configure(quiet=True)
    warnings.simplefilter("ignore")
    sets = {name: value for name, value in make_sets().items() if not options.sets or name in options.sets.split(";")}
    print(f"threshold {CERTAIN:g}")
    measure_honest(sets, 3 * options.seeds)
    measure_mistakes(sets, options.seeds)


if __name__ == "__main__":
    main()
