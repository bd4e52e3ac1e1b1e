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
from foveate.federated.clustering.suspects import SCALE_ALONE, find_unit_errors, measure_scales
from foveate.federated.messages import Message
from foveate.federated.partition import dirichlet
from foveate.metrics import adjusted_rand_index

SPLITS = ("even", "dirichlet 0.5", "dirichlet 0.1", "shifted columns", "unequal sizes")
HONEST_SPLITS = (*SPLITS, "one class each", "places of their own")
SITES = (2, 3, 5, 10)
HONEST = {
    "defaults": {},
    "network": {"min_count": 10, "winsorize": 3.0, "refine_rounds": 0},
    "weighted": {"method": "weighted_kmeans"},
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
    # Columns that are nearly zero but for one group: a site that alone has the group stands out by far.
    labels = random.integers(5, size=900)
    sets["groups on axes"] = (9 * np.eye(5)[labels] + 0.2 * random.normal(size=(900, 5)), labels)
    sets["skewed columns"] = (20 * np.eye(5)[labels] + random.lognormal(0, 1, (900, 5)), labels)
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


def read_answers(model: FederatedKMeans) -> dict[int, Message]:
    """The clients' centroids as the server had them."""
    names = ("centers", "counts", "spreads")
    return {
        client: Message("query.centroids", 0, {name: report[name] for name in names if name in report})
        for client, report in model.client_reports_.items()
    }


def largest_factor(model: FederatedKMeans, site: int | None = None) -> float:
    """The largest factor that the server sees, of one site or of all."""
    scales = measure_scales(read_answers(model))
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


def measure_honest(sets: dict[str, tuple[np.ndarray, np.ndarray]], seeds: int, scale: str) -> None:
    """Print for each number of sites the largest factors of honest runs, and how many clients were left out."""
    factors, wrong, doubted = defaultdict(list), defaultdict(int), defaultdict(int)
    runs = itertools.product(sets.items(), HONEST_SPLITS, SITES, range(seeds))
    for (name, (points, labels)), split, sites, seed in runs:
        parts, truth = make_clients(points, labels, split, sites, np.random.default_rng([seed, sites]))
        for setting, options in HONEST.items():
            _, model = fit(parts, truth, -1, seed, suspects="report", scale=scale, **options)
            if model is None:
                continue
            factors[len(parts)].append((largest_factor(model), name, split, setting))
            wrong[len(parts)] += len(find_unit_errors(read_answers(model)))
            doubted[len(parts)] += any("another unit?" in reason for reason in model.suspects_.values())
    for sites, found in sorted(factors.items()):
        top = ", ".join(f"{factor:.2f} ({', '.join(where)})" for factor, *where in sorted(found, reverse=True)[:3])
        print(
            f"honest, {sites} sites, {len(found)} runs: {wrong[sites]} clients left out, a client reported in "
            f"{doubted[sites]} runs; largest factors {top}"
        )


def measure_mistakes(sets: dict[str, tuple[np.ndarray, np.ndarray]], seeds: int, scale: str) -> None:
    """Print a row of the table for each mistake, with three sites or more and with two."""
    rows = defaultdict(list)
    for (points, labels), split, sites, seed in itertools.product(sets.values(), SPLITS, SITES, range(seeds)):
        random = np.random.default_rng([seed, sites])
        parts, truth = make_clients(points, labels, split, sites, random)
        site, column = int(random.integers(sites)), pick_column(points, random)
        clean, _ = fit(parts, truth, site, seed, scale=scale)
        for mistake in MISTAKES:
            broken = [break_client(part, column, mistake) if n == site else part for n, part in enumerate(parts)]
            kept, model = fit(broken, truth, site, seed, suspects="report", scale=scale)
            if model is None:
                continue
            out = find_unit_errors(read_answers(model))
            # With nobody to leave out it is the same run; one that stops has no result.
            default = fit(broken, truth, site, seed, scale=scale)[0] if out else kept
            exclude = fit(broken, truth, site, seed, scale=scale, suspects="exclude")[0] if model.suspects_ else kept
            honest_out = sum(client != site for client in out)
            rows[mistake, sites > 2].append(
                (largest_factor(model, site), site in out, honest_out, site in model.suspects_)
                + (clean, kept, default, exclude)
            )
    for (mistake, several), values in sorted(rows.items(), key=lambda row: row[0][1]):
        print(describe(f"{mistake}, {'3 to 10' if several else '2'} sites", np.array(values, dtype=float)))


def describe(name: str, found: np.ndarray) -> str:
    """One row: factors, who was named, and the ARI of all runs and of those that the mistake harmed by .05 or more."""
    harmed = found[:, 4] - found[:, 5] > 0.05
    scores = []
    for rows in (found, found[harmed]):
        left_out = f"{rows[:, 1].mean():.0%} left out or stopped" if len(rows) else ""
        means = [rows[~np.isnan(rows[:, column]), column] for column in range(4, 8)]
        texts = " ".join(f"{values.mean():.3f}" if len(values) else "-" for values in means)
        scores.append(f"{len(rows)} runs, {left_out}, ARI clean, kept, default, exclude {texts}")
    return (
        f"{name}: median factor {np.median(found[:, 0]):.3g}, reported {found[:, 3].mean():.0%}, honest sites left out "
        f"{found[:, 2].sum():.0f}; all {scores[0]}; harmed {scores[1]}"
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=1, help="of mistakes; honest runs have three times as many")
    parser.add_argument("--only", choices=["honest", "mistakes"], help="one of the two tables")
    parser.add_argument("--scale", choices=["none", "standard"], default="none")
    parser.add_argument("--sets", default="", help="names, with semicolons between; all by default")
    options = parser.parse_args()
    progress.configure(quiet=True)
    warnings.simplefilter("ignore")
    sets = {name: value for name, value in make_sets().items() if not options.sets or name in options.sets.split(";")}
    print(f"left out from a factor of {SCALE_ALONE:g}")
    if options.only != "mistakes":
        measure_honest(sets, 3 * options.seeds, options.scale)
    if options.only != "honest":
        measure_mistakes(sets, options.seeds, options.scale)


if __name__ == "__main__":
    main()
