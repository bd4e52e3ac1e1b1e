"""Server methods: each makes K centers of a pool of centroids. `METHODS` is the table of all.

`consensus`, the default, is Foveate's own server step, not that of the FeCA paper. Candidates come from radii that fit
the number of clusters, on all centroids and on those that clients trust, and from weighted k-means++; weighted Lloyd
improves each on all centroids, the smallest weighted sum of squares wins, and one last step looks at trusted centroids
only.

`paper_reconstruction` is what can be known of FeCA (arXiv 2407.12764), and its variants by options. The paper's body
was not available and no code was published: the rules for radii and elimination are reconstructed, and nothing here
reproduces the paper's numbers.

`kfed` is k-FED: Dennis, Li, Smith, "Heterogeneity for the win: one-shot federated clustering" (arXiv 2103.00697). Its
theory asks for at most sqrt(K) clusters per client; with as many as K, all seeds come from the first client.

Baselines: `weighted_kmeans`, plain and strong; `naive`, which is what not to do; and `central`, which is not federated
and shows what moving the data would have brought.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foveate.core.errors import UserError, choose
from foveate.core.recipes import validate
from foveate.federated.clustering.distances import Floats, Labels, nearest, squared, sums
from foveate.federated.clustering.grouping import (
    BEST,
    CentroidPool,
    Groups,
    TooFewGroupsError,
    group,
    group_means,
    need_groups,
    radius_of_centroids,
    search,
)
from foveate.federated.clustering.lloyd import MAX_STEPS, lloyd, plus_plus, random_rows, weighted_kmeans
from foveate.federated.clustering.local import local_kmeans
from foveate.federated.clustering.options import ClusteringOptions


@dataclass(frozen=True)
class Merged:
    """Centers that a server merged from a pool.

    Attributes:
        centers: [K, D].
        report: how they were obtained, as plain values for result.json.

    Raises:
        UserError: a center that is not finite.
    """

    centers: Floats
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not np.isfinite(self.centers).all():
            raise UserError("the clients' centroids have no finite means: their values are too large to be merged")


@dataclass(frozen=True)
class Method:
    """One way to make K centers of what clients send.

    Attributes:
        name, note: for lists and reports.
        merge: the server step: pool, options, generator, radius by client -> centers.
        defaults: of options that differ from those of `ClusteringOptions`.
        uses: options that have an effect.
        counts: clients send how many points their centroids have.
        federated: False where raw points are pooled.
    """

    name: str
    note: str
    merge: Callable[[CentroidPool, ClusteringOptions, np.random.Generator, dict[int, float]], Merged]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    uses: frozenset[str] = frozenset()
    counts: bool = True
    federated: bool = True


# Every federated method sends these options to its clients, so they always have an effect.
CLIENT_OPTIONS = frozenset(
    {
        "client_init",
        "n_init",
        "scale",
        "spherical",
        "min_count",
        "local_clusters",
        "refine_rounds",
        "winsorize",
        "noise",
        "clip",
        "noise_steps",
    }
)

_CONSENSUS_STEPS = 100
# Relative: far above the rounding of a weighted sum of squares, far below any difference that matters.
_TIE = 1e-12


def consensus(pool: CentroidPool, clusters: int, rng: np.random.Generator, *, restarts: int) -> Merged:
    """Merge a pool into K centers; the order of its rows does not matter.

    Args:
        restarts: weighted k-means++ starts, from `rng`; 0 makes the server deterministic.

    Raises:
        TooFewGroupsError: fewer distinct centroids than clusters.
    """
    pool.need(clusters)
    # Sorted, so that the random starts do not depend on the order of clients.
    pool = pool.sorted()
    candidates: list[tuple[str, float, float, Floats]] = []
    parts: dict[str, CentroidPool] = {}
    for name, part in (("all centroids", pool), ("trusted centroids", pool.take(pool.trusted))):
        parts[name] = part
        tried = search(part, clusters) if len(part) else []
        # Try several radii: the score of a radius does not predict the sum of squares that Lloyd reaches from it.
        candidates += [(name, groups.radius, groups.score, groups.centers(part)) for groups in tried[:BEST]]
    if not candidates:
        candidates.append(("coinciding centroids", 0.0, 0.0, coinciding_centers(pool, clusters)[0]))
    best_start: tuple[float, Floats] | None = None
    for _ in range(restarts):
        start = plus_plus(pool.centers, clusters, rng, weight_N=pool.counts)
        run = lloyd(pool.centers, start, weight_N=pool.counts, max_steps=_CONSENSUS_STEPS)
        if best_start is None or run.inertia < best_start[0]:
            best_start = (run.inertia, start)
    if best_start is not None:
        # Only the best start joins the candidates: the others cannot win from the same sum of squares.
        candidates.append(("weighted k-means++", float("nan"), float("nan"), best_start[1]))
    best, winner = None, 0
    errors = []
    for number, (_, _, _, start) in enumerate(candidates):
        # Every candidate ends in the same refinement on all centroids, so that their sums of squares can be compared.
        run = lloyd(pool.centers, start, weight_N=pool.counts, max_steps=_CONSENSUS_STEPS)
        errors.append(run.inertia)
        # A candidate must be better by more than rounding; else an earlier one stays, and the result is the same on
        # every machine.
        if best is None or run.inertia < best.inertia * (1 - _TIE):
            best, winner = run, number
    assert best is not None
    source, radius, score, _ = candidates[winner]
    report = {
        "candidates": [
            {"from": name, "radius": _plain(r), "score": _plain(s), "weighted_sse": error}
            for (name, r, s, _), error in zip(candidates, errors, strict=True)
        ],
        "chosen": source,
        "radius": _plain(radius),
        "score": _plain(score),
        "weighted_sse": best.inertia,
        **_describe_groups(parts.get(source), radius, clusters),
    }
    # The step onto trusted centroids comes last: the candidates are compared on what all clients sent.
    return Merged(onto_trusted(pool, best.centers), report)


def _describe_groups(part: CentroidPool | None, radius: float, clusters: int) -> dict[str, Any]:
    """Summarize the groups that the winning candidate began with: number, points in the K heaviest and in the others.

    None if it did not come from a radius: k-means++ has no groups, and rejects none.
    """
    if part is None:
        return {"groups": None, "supports": None, "rejected_supports": None}
    # Grouped again, because the search stops at K + 1 groups and the report counts all.
    groups = group(part.centers, np.full(len(part), radius), part.counts, seeds="most_mass")
    supports = groups.supports.tolist()
    return {"groups": len(supports), "supports": supports[:clusters], "rejected_supports": supports[clusters:]}


def _plain(value: float) -> float | None:
    # NaN is not JSON; candidates without a radius have no value here.
    return None if np.isnan(value) else value


def coinciding_centers(pool: CentroidPool, clusters: int) -> tuple[Floats, Floats]:
    """Return the K centers on which most points coincide, and their masses: the groups of radius 0.

    For pools in which no radius of `search` gives enough groups.
    """
    rows, group_Q = np.unique(pool.centers, axis=0, return_inverse=True)
    mass = np.bincount(group_Q.ravel(), weights=pool.counts).astype(np.float64)
    # Stable: of equally heavy centers the first in coordinate order, on every machine.
    heaviest = np.argsort(-mass, kind="stable")[:clusters]
    return rows[heaviest], mass[heaviest]


def onto_trusted(pool: CentroidPool, centers_KD: Floats) -> Floats:
    """Move each center to the weighted mean of the trusted centroids nearest to it.

    A center without any takes all centroids nearest to it, and stays where it is if there are none either.
    """
    label_Q, _ = nearest(pool.centers, centers_KD)
    centers = centers_KD.copy()
    # Trusted centroids only, where there are any: a doubted one lies between groups and would pull a center off.
    for rows in (np.arange(len(pool)), np.flatnonzero(pool.trusted)):  # the second overrides the first
        total_KD, weight_K = sums(pool.centers[rows], label_Q[rows], len(centers), pool.counts[rows])
        centers[weight_K > 0] = total_KD[weight_K > 0] / weight_K[weight_K > 0, None]
    return centers


def _merge_by_consensus(
    pool: CentroidPool, options: ClusteringOptions, rng: np.random.Generator, radii: dict[int, float]
) -> Merged:
    """K centers by the best of several candidates."""
    return consensus(pool, options.clusters, rng, restarts=options.restarts)


def farthest_seeds(centers_QD: Floats, first: int, clusters: int) -> Floats:
    """Select the first rows, then repeatedly the row farthest from all selected ones (ties: the lower row)."""
    seeds = list(range(min(first, clusters)))
    gap_Q = squared(centers_QD, centers_QD[seeds]).min(0)
    while len(seeds) < clusters:
        seeds.append(int(gap_Q.argmax()))
        gap_Q = np.minimum(gap_Q, squared(centers_QD, centers_QD[seeds[-1:]])[0])
    return centers_QD[seeds]


def kfed_server(centers_QD: Floats, first: int, clusters: int, *, one_step: bool = False) -> tuple[Floats, Labels]:
    """Global centers [K, D] and the group of every local center [Q].

    Args:
        centers_QD: local centers, clients in order. first: how many of them are the first client's.
        one_step: a single step of Lloyd, as in the public code of MUFC; k-FED's own runs until nothing changes.
    """
    seeds = farthest_seeds(centers_QD, first, clusters)
    run = lloyd(centers_QD, seeds, max_steps=1 if one_step else MAX_STEPS)
    return run.centers, run.labels


def _merge_by_kfed(
    pool: CentroidPool, options: ClusteringOptions, rng: np.random.Generator, radii: dict[int, float]
) -> Merged:
    """Farthest-first seeds from the first client on, then Lloyd. Clients are taken in the order of their numbers."""
    pool.need(options.clusters)
    # `all` is k-FED's own rule. With K centers per client, all seeds are the first client's; one seed does better.
    first = int((pool.client == pool.client[0]).sum()) if options.kfed_seeds == "all" else 1
    centers, _ = kfed_server(pool.centers, first, options.clusters, one_step=options.kfed_steps == "one")
    return Merged(centers, {"seeds_of_first_client": min(first, options.clusters)})


def _merge_by_radius(
    pool: CentroidPool, options: ClusteringOptions, rng: np.random.Generator, radii: dict[int, float]
) -> Merged:
    """Groups within a radius; the K of largest support become centers. A single group has all centroids."""
    # Counts weigh only where clients send them: the reconstruction itself asks for none.
    weighted = options.seeds == "most_mass" or options.radius == "k_aware"
    if options.clusters == 1:
        # A radius would leave out what lies farther away; one group is all there is.
        support = pool.counts.sum() if weighted else float(len(pool))
        everything = Groups([np.arange(len(pool))], np.array([support]))
        centers = group_means(pool.centers, pool.counts, everything, 1, weighted=weighted)
        return Merged(centers, _report(everything, 1))
    if options.radius == "k_aware":
        # The search breaks ties by the row, so the pool must not depend on the order of clients.
        return _k_aware(pool.sorted(), options)
    if isinstance(options.radius, str):
        radius_Q = radius_of_centroids(pool, radii, options.radius, quantile=options.quantile)
    else:
        radius_Q = np.full(len(pool), float(options.radius))
    groups = group(pool.centers, radius_Q, pool.counts, seeds=options.seeds)
    if options.on_few_groups == "raise":
        need_groups(groups, options.clusters, str(options.radius))
    centers = group_means(pool.centers, pool.counts, groups, options.clusters, weighted=weighted)
    return Merged(centers, {"radii": radius_Q.tolist()} | _report(groups, options.clusters))


def _report(groups: Groups, clusters: int) -> dict[str, object]:
    return {
        "groups": len(groups.members),
        "supports": groups.supports[:clusters].tolist(),
        "rejected_supports": groups.supports[clusters:].tolist(),
        "members": [rows.tolist() for rows in groups.members[:clusters]],
    }


def _k_aware(pool: CentroidPool, options: ClusteringOptions) -> Merged:
    pool.need(options.clusters)
    tried = search(pool, options.clusters)
    if not tried:
        # If there are few centroids, far apart, even the smallest radius on the list may join two of them.
        centers, supports = coinciding_centers(pool, options.clusters)
        return Merged(centers, {"radius": 0.0, "score": 0.0, "supports": supports.tolist()})
    best = tried[0]
    report = {"radius": best.radius, "score": best.score, "supports": best.supports.tolist()}
    return Merged(best.centers(pool), report)


def _merge_by_weight(
    pool: CentroidPool, options: ClusteringOptions, rng: np.random.Generator, radii: dict[int, float]
) -> Merged:
    """Return the best of several starts by the weighted sum of squares.

    Raises:
        UserError: no restarts, without which no center would be left; `consensus` has other candidates.
    """
    if not options.restarts:
        raise UserError("restarts: method 'weighted_kmeans' needs at least one start (got 0); expected 1 or more")
    pool.need(options.clusters)
    pool = pool.sorted()
    run = weighted_kmeans(pool.centers, options.clusters, rng, restarts=options.restarts, weight_N=pool.counts)
    assert run is not None
    return Merged(run.centers, {"weighted_sse": run.inertia, "restarts": options.restarts})


def _merge_naively(
    pool: CentroidPool, options: ClusteringOptions, rng: np.random.Generator, radii: dict[int, float]
) -> Merged:
    """Run k-means once from random rows."""
    pool.need(options.clusters)
    pool = pool.sorted()
    run = lloyd(pool.centers, random_rows(pool.centers, options.clusters, rng))
    return Merged(run.centers, {"sse": run.inertia})


def _merge_pooled(
    pool: CentroidPool, options: ClusteringOptions, rng: np.random.Generator, radii: dict[int, float]
) -> Merged:
    """k-means of the pooled points; `pool` holds points here, not centroids."""
    clusters = local_kmeans(
        pool.centers,
        options.clusters,
        rng,
        start=options.client_init,
        tries=options.n_init,
        spherical=options.spherical,
    )
    if len(clusters.centers) < options.clusters and options.on_few_groups == "raise":
        raise TooFewGroupsError(
            f"clusters must be at most {len(clusters.centers)}, the number of distinct points (got {options.clusters})",
            groups=len(clusters.centers),
        )
    return Merged(clusters.centers, {"sse": clusters.inertia, "runs": options.n_init})


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="central",
            note="all points in one place, k-means++ 20 times: not federated",
            merge=_merge_pooled,
            defaults={"n_init": 20, "refine_rounds": 0, "eliminate": "none"},
            uses=frozenset({"client_init", "n_init", "scale", "spherical"}),
            federated=False,
        ),
        Method(
            name="consensus",
            note="candidates from fitting radii and from weighted k-means++; the best weighted sum of squares wins",
            merge=_merge_by_consensus,
            uses=CLIENT_OPTIONS | {"eliminate", "restarts"},
        ),
        Method(
            name="kfed",
            note="k-FED: seeds are the first client's centroids, then the farthest ones; Lloyd on centroids without "
            "weights",
            merge=_merge_by_kfed,
            defaults={"client_init": "awasthi_sheffet", "n_init": 1, "eliminate": "none", "refine_rounds": 0},
            uses=CLIENT_OPTIONS | {"kfed_seeds", "kfed_steps"},
            counts=False,
        ),
        Method(
            name="naive",
            note="one k-means from random rows on all centroids, without weights",
            merge=_merge_naively,
            defaults={"client_init": "random", "n_init": 1, "eliminate": "none", "refine_rounds": 0},
            uses=CLIENT_OPTIONS,
            counts=False,
        ),
        Method(
            name="paper_reconstruction",
            note="a reconstruction of FeCA: doubted centroids stay at home, groups within half the smallest distance",
            merge=_merge_by_radius,
            defaults={
                "client_init": "random",
                "n_init": 1,
                "eliminate": "drop",
                "radius": "half_min_distance",
                "seeds": "largest_radius",
                "refine_rounds": 0,
            },
            uses=CLIENT_OPTIONS | {"eliminate", "radius", "quantile", "seeds"},
            counts=False,
        ),
        Method(
            name="weighted_kmeans",
            note="weighted k-means++ with restarts on all centroids",
            merge=_merge_by_weight,
            defaults={"eliminate": "none", "restarts": 20, "refine_rounds": 0},
            uses=CLIENT_OPTIONS | {"restarts"},
        ),
    )
}
"""All server methods by name."""

METHOD_OPTIONS = frozenset(name for method in METHODS.values() for name in method.defaults)
"""Options whose defaults depend on the method."""


COMMON_OPTIONS = frozenset({"clusters", "method", "seed", "on_few_groups", "suspects"})


def method_names() -> list[str]:
    """Names of all server methods."""
    return sorted(METHODS)


def load_method(name: str) -> Method:
    """Load a server method; raise UserError with all names if there is none of that name."""
    return METHODS[choose(name, METHODS, "method")]


def resolve(
    clusters: int, *, method: str = "consensus", seed: int = 0, where: str = "clustering", **options: Any
) -> ClusteringOptions:
    """Options of a method with some of them changed; None means not given.

    Warns about options that have no effect on the method.

    Args:
        where: what names the options, for errors.

    Raises:
        UserError: an unknown method or option, or a value that is not allowed.
    """
    plugin = load_method(method)
    given_options = {name: value for name, value in options.items() if value is not None}
    for name in given_options:
        choose(name, ClusteringOptions.model_fields.keys() - {"changed"}, "option")
        if name not in plugin.uses | COMMON_OPTIONS:
            warnings.warn(f"option '{name}' has no effect on the method '{method}'", UserWarning, stacklevel=2)
    # The user's options last: a method's defaults are only its own starting point.
    content = {"clusters": clusters, "method": method, "seed": seed, **plugin.defaults, **given_options}
    if given_options.get("noise"):
        # Doubt depends on single points and has no noise; asking for noise asks for no doubt.
        content["eliminate"] = given_options.get("eliminate", "none")
    # `changed` compares checked values, so that 5 and 5.0, or a list and a tuple, are not a change.
    checked = validate(ClusteringOptions, content, where=where)
    defaults = {name: info.default for name, info in ClusteringOptions.model_fields.items()} | dict(plugin.defaults)
    changed = {
        name: getattr(checked, name)
        for name in given_options
        if name in plugin.uses and getattr(checked, name) != defaults[name]
    }
    return checked.model_copy(update={"changed": changed})


def describe_method(options: ClusteringOptions) -> str:
    """Return the display name: the method, what was changed of it, and the rounds; "one shot" only without any."""
    rounds = options.refine_rounds
    if not load_method(options.method).federated:
        return f"{options.method_title}, not federated"
    suffix = "one shot" if not rounds else f"{rounds} round{'s' * (rounds > 1)} of refinement"
    return f"{options.method_title}, {suffix}"
