"""Messages of a clustering: requests, answers, and the checks that an answer must pass.

| kind | down | up |
|---|---|---|
| `query.centroids` | options | `centers`, and where asked `counts`, `spreads`, `trusted`, `radius` |
| `query.lloyd` | `centers` | `sums`, `counts` |
| `query.assign` | `centers` | two numbers: points and inertia |

The mean or sum of one point is that point. With `min_count` a client reports nothing about fewer points than that:
small clusters are merged, small cells are withheld. This holds for each message alone: where two partitions of the same
points differ in one point, their difference is that point. Over a network a client therefore answers about one
partition (`foveate.federated.limits`), or with noise (`foveate.federated.clustering.noise`).
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike

from foveate.core.errors import UserError
from foveate.federated.clustering.distances import Floats, nearest, sums
from foveate.federated.clustering.local import (
    Local,
    eliminate,
    fuse,
    half_smallest_distance,
    local_kmeans,
    merge_small,
    withheld,
)
from foveate.federated.clustering.methods import load_method
from foveate.federated.clustering.noise import clip_to_grid, from_grid, noisy_inertia, noisy_kmeans, noisy_sums
from foveate.federated.clustering.options import ClusteringOptions
from foveate.federated.messages import MAX_WHOLE, ArrayRule, Message, MessageError, MessageRule, Value
from foveate.federated.points import MAX_COORDINATE, as_points
from foveate.federated.rounds import Handler, stream
from foveate.federated.scaling import MOMENTS, answer_moments, need_points, scale_points, winsorize
from foveate.federated.secure_sums import COUNTS, SUMS, SumFormat

CENTROIDS, LLOYD, ASSIGN = "query.centroids", "query.lloyd", "query.assign"
_ROUNDING = 8 * np.finfo(np.float64).eps
"""Rounding error of a sum, relative to its largest term, per term."""


def unit_rows(points_ND: Floats, *, allow_zeros: bool = False) -> Floats:
    """Scale rows to length 1, for spherical clustering.

    Args:
        allow_zeros: leave a row of zeros as it is.

    Raises:
        UserError: a row of zeros, which has no direction.
    """
    norm_N = np.linalg.norm(points_ND, axis=1)
    if allow_zeros:
        norm_N = np.where(norm_N > 0, norm_N, 1.0)
    elif not (norm_N > 0).all():
        raise UserError(
            f"row {int(np.flatnonzero(norm_N == 0)[0])} has length 0; spherical clustering needs a direction"
        )
    return points_ND / norm_N[:, None]


def _prepare(data: ArrayLike, request: Message) -> Floats:
    """Points as a request wants them: checked, winsorized, in a common scale, scaled to length 1.

    With noise no value makes this fail: a failure has no noise, and would tell what the noise hides.

    Raises:
        MessageError: settings that no options allow, such as percentiles, which have no noise, beside noise.
    """
    for name in ("winsorize", "noise", "clip"):
        value = request.number(name) if name in request.values else 1.0
        if not 0 < value < MAX_COORDINATE:
            raise MessageError(f"value '{name}' must be above 0 (got {value:g})")
    if "noise" in request.values and (
        "winsorize" in request.values or request.values.get("eliminate", "none") != "none"
    ):
        raise MessageError("asks for noise beside 'winsorize' or 'eliminate', which have none")
    points = as_points(data)
    if "winsorize" in request.values:
        points = winsorize(points, request.number("winsorize"))
    noisy = "noise" in request.values
    points = scale_points(points, request, clip=noisy)
    return unit_rows(points, allow_zeros=noisy) if request.values.get("spherical") else points


def optional_parts(options: ClusteringOptions) -> dict[str, bool]:
    """Return which optional parts a client's answer has: counts, trusted, radius.

    Nothing is asked for that the method does not use: what is not sent cannot leak.
    """
    method = load_method(options.method)
    grouping = method.name == "paper_reconstruction"
    by_count = grouping and (options.seeds == "most_mass" or options.radius == "k_aware")
    counts = method.counts or by_count
    return {
        "counts": counts,
        # Sums of squares of single groups have no noise.
        "spreads": counts and not options.noise,
        "trusted": options.eliminate == "flags",
        "radius": grouping and isinstance(options.radius, str) and options.radius != "k_aware",
    }


def centroids_request(options: ClusteringOptions, client: int) -> Message:
    """Request of the first round. All that decides the answer, besides the client's data, is in it."""
    values = {
        "clusters": options.count_local(client),
        "client_init": options.client_init,
        "n_init": options.n_init,
        "eliminate": options.eliminate,
        "fused": options.radius == "fused",
        "min_count": options.min_count,
        "spherical": options.spherical,
        "seed": options.seed,
        **_robust_values(options),
        **{f"send_{name}": is_sent for name, is_sent in optional_parts(options).items()},
    }
    return Message(CENTROIDS, 0, values=values)


def centroids_rule(options: ClusteringOptions) -> MessageRule:
    """Rule of the answers to `centroids_request`."""
    parts = optional_parts(options)
    arrays = {
        "centers": ArrayRule("float64", ("k", None)),
        # A smaller count comes from a client that ignores `min_count`; its centroid may be a single row.
        "counts": ArrayRule("float64", ("k",), low=float(options.min_count), high=float(MAX_WHOLE)),
        "spreads": ArrayRule("float64", ("k",), low=0.0, high=2 * MAX_COORDINATE),
        "trusted": ArrayRule("bool", ("k",)),
        # NaN: a client with a single working center has no smallest distance.
        "radius": ArrayRule("float64", (1,), nan=True, low=0.0, high=MAX_COORDINATE),
    }
    return MessageRule(
        CENTROIDS,
        {name: rule for name, rule in arrays.items() if parts.get(name, True)},
        {"points": int} if parts["counts"] else {},
        # 256 MiB, refused before anything is computed from it.
        max_bytes=1 << 28,
    )


def check_centroids(options: ClusteringOptions, client: int, answer: Message) -> None:
    """Raise MessageError for what the rule cannot express.

    That is: too many centroids or none, huge ones, none trusted, counts that do not add up.
    """
    centers = answer.array("centers")
    # More than requested would give the client more weight in the pool than the others.
    max_centers = options.count_local(client)
    if not 1 <= len(centers) <= max_centers or centers.shape[1] == 0:
        raise MessageError(f"array 'centers' must have 1 to {max_centers} centroids (got shape {list(centers.shape)})")
    # The rule only refuses infinities; squares and products of these would become some.
    if np.abs(centers).max() > MAX_COORDINATE:
        raise MessageError("array 'centers' has values too large to square")
    if "counts" in answer.arrays:
        counts = answer.array("counts")
        if not (counts == np.floor(counts)).all() or counts.sum() != answer.number("points"):
            raise MessageError(
                f"counts add up to {counts.sum():g}; the client reports {answer.number('points'):g} points"
            )
    # The elimination always leaves a center, so no honest client doubts all of its own.
    if "trusted" in answer.arrays and not answer.array("trusted").any():
        raise MessageError("trusts none of its centroids")


def answer_centroids(data: ArrayLike, request: Message, client: int) -> Message:
    """Answer of the first round: local k-means, small clusters merged, doubted centroids marked or left out."""
    values = request.values
    # Prepare before the k-means: centroids then are means of directions, and `describe` measures among the same rows.
    points = _prepare(data, request)
    seed, clusters = int(request.number("seed")), int(request.number("clusters"))
    # Seed, round and client come with the request: a client that is asked again answers the same.
    rng = stream(seed, round=request.round, client=client, purpose="local k-means")
    if values.get("noise"):
        return _describe_with_noise(points, clusters, rng, request)
    local = local_kmeans(
        points,
        clusters,
        rng,
        start=str(values["client_init"]),
        tries=int(request.number("n_init")),
        spherical=bool(values["spherical"]),
    )
    warn_of_few_points(points, local, clusters, client)
    return describe(points, local, request)


def distinct_points(points_ND: Floats, groups: int, clusters: int) -> int | None:
    """Number of distinct points if it is the reason for fewer groups than clusters; else None."""
    if groups >= clusters:
        return None
    distinct = len(np.unique(points_ND, axis=0))
    return distinct if distinct < clusters else None


def warn_of_few_points(points_ND: Floats, local: Local, clusters: int, client: int) -> None:
    """Warn if a client has fewer distinct points than clusters: it then sends one centroid per distinct point."""
    if (distinct := distinct_points(points_ND, len(local.centers), clusters)) is not None:
        warnings.warn(
            f"client {client} has {distinct} distinct points for {clusters} clusters: it sends {len(local.centers)}",
            UserWarning,
            stacklevel=2,
        )


def describe(points_ND: Floats, local: Local, request: Message) -> Message:
    """Answer about a client's clusters, with the parts that the request asks for.

    Raises:
        UserError: fewer points than `min_count`.
    """
    values, min_count = request.values, int(request.number("min_count"))
    need_points(points_ND, min_count)
    # Merged before the elimination, so that nothing that is sent was computed from a small cluster.
    if min_count > 1:
        local = merge_small(points_ND, local, min_count)
    trusted, working = np.ones(len(local.centers), dtype=bool), local.centers
    if values["eliminate"] != "none":
        elimination = eliminate(local)
        trusted, working = elimination.trusted, elimination.working
    # A doubted centroid lies between clusters; "drop" leaves it at the client, "flags" sends it marked.
    sent = trusted if values["eliminate"] == "drop" else np.ones_like(trusted)
    arrays: dict[str, ArrayLike] = {"centers": local.centers[sent]}
    totals: dict[str, int] = {}
    if values["send_counts"]:
        arrays["counts"] = local.counts[sent]
        totals["points"] = int(local.counts[sent].sum())
    if values["send_spreads"]:
        arrays["spreads"] = np.sqrt(local.squares / local.counts)[sent]
    if values["send_trusted"]:
        arrays["trusted"] = trusted
    if values["send_radius"]:
        arrays["radius"] = [half_smallest_distance(fuse(points_ND, local).centers if values["fused"] else working)]
    return request.answer(arrays=arrays, **totals)


def _describe_with_noise(points_ND: Floats, clusters: int, rng: np.random.Generator, request: Message) -> Message:
    """Answer with noise about a client's clusters: centers and noisy counts, from starts that no point decides."""
    values, min_count = request.values, int(request.number("min_count"))
    need_points(points_ND, min_count)
    centers, counts = noisy_kmeans(
        points_ND,
        clusters,
        rng,
        clip=float(request.number("clip")),
        noise=float(request.number("noise")),
        steps=int(request.number("noise_steps")),
        min_count=min_count,
    )
    if not len(centers):
        raise UserError(f"the noise leaves no group of min_count {min_count}: fewer clusters or less noise helps")
    # No flags and no spreads: they depend on single points and have no noise.
    arrays: dict[str, ArrayLike] = {"centers": centers}
    totals: dict[str, int] = {}
    if values["send_counts"]:
        arrays["counts"] = counts
        totals["points"] = int(counts.sum())
    if values["send_radius"]:
        # The radius is computed from the noisy centers, so it reveals no more than they do.
        arrays["radius"] = [half_smallest_distance(centers)]
    return request.answer(arrays=arrays, **totals)


def lloyd_request(centers_KD: Floats, options: ClusteringOptions, round: int) -> Message:
    """Request of one step of Lloyd on the clients' points."""
    return Message(LLOYD, round, {"centers": centers_KD}, _round_values(options))


def _round_values(options: ClusteringOptions) -> dict[str, Value]:
    # Sent with every request: clients keep nothing between rounds, `min_count` included.
    return {"spherical": options.spherical, "min_count": options.min_count, **_robust_values(options)}


def _robust_values(options: ClusteringOptions) -> dict[str, Value]:
    """Fields of a request that ask for noise or for clipped columns; none by default."""
    values: dict[str, Value] = {}
    if options.winsorize is not None:
        values["winsorize"] = options.winsorize
    if options.noise:
        assert options.clip is not None
        values |= {"noise": options.noise, "clip": options.clip, "noise_steps": options.noise_steps}
    return values


LLOYD_SUMS = SumFormat({"sums": SUMS, "counts": COUNTS})
"""Format in which the answers to `lloyd_request` are added up."""


def lloyd_rule(centers_KD: Floats) -> MessageRule:
    """Rule of the answers to `lloyd_request`: sums and counts of each center."""
    shape = centers_KD.shape
    counts = ArrayRule("float64", shape[:1], low=0.0, high=float(MAX_WHOLE))
    arrays = {"sums": ArrayRule("float64", shape), "counts": counts}
    return MessageRule(LLOYD, arrays)


def check_lloyd(options: ClusteringOptions, centers_KD: Floats, points: float | None, answer: Message) -> None:
    """Raise MessageError for what the rule cannot express.

    That is: sums where there is no point, huge sums, fractions of points, cells of fewer points than `min_count`, more
    points than before, means that lie in another center's cell. All of it is checked before the sums of all clients are
    added, because one absurd sum would move the common centers anywhere.

    Args:
        points: number of points that the client reported before; None if it did not.
    """
    total, counts = answer.array("sums"), answer.array("counts")
    if not (counts == np.floor(counts)).all():
        raise MessageError("array 'counts' must hold whole numbers")
    if ((counts > 0) & (counts < options.min_count)).any():
        smallest = counts[counts > 0].min()
        raise MessageError(f"array 'counts' has a cell of {smallest:g} points; min_count is {options.min_count}")
    # Also refuses a sum where there is no point, whose bound is 0.
    if (np.abs(total) > MAX_COORDINATE * counts[:, None]).any():
        raise MessageError("array 'sums' does not fit its counts")
    if options.noise:
        return  # noisy counts may add up to more than before, and noisy means may lie anywhere
    # Fewer are right: small cells are withheld.
    if points is not None and counts.sum() > points:
        raise MessageError(f"counts add up to {counts.sum():g}; the client reported {points:g} points before")
    _check_cells(total, counts, centers_KD, spherical=options.spherical)


def _check_cells(total_KD: Floats, count_K: Floats, centers_KD: Floats, *, spherical: bool) -> None:
    """Raise MessageError for a mean in another center's cell, or with `spherical` outside the unit sphere.

    Cells of the nearest center are convex, so the mean of points of a cell lies in it; a sum that breaks this was not
    computed from points of that cell. Rounding is allowed for.
    """
    filled = np.flatnonzero(count_K > 0)
    mean_FD = total_KD[filled] / count_K[filled, None]
    # Sums of n terms are rounded n times; 8 more for the division and the centers.
    slack_F = _ROUNDING * (count_K[filled] + 8)
    if spherical and ((mean_FD**2).sum(1) > 1 + slack_F).any():
        raise MessageError("array 'sums' has sums of unit vectors that are longer than their counts")
    nearest_F, best_F = nearest(mean_FD, centers_KD)
    distance_F = np.sqrt(((mean_FD - centers_KD[filled]) ** 2).sum(1))
    size_F = np.sqrt((mean_FD**2).sum(1)) + np.sqrt((centers_KD**2).sum(1)).max()
    strange = (nearest_F != filled) & (distance_F > np.sqrt(best_F) + slack_F * size_F)
    if strange.any():
        first = int(np.flatnonzero(strange)[0])
        raise MessageError(f"array 'sums': the mean at center {filled[first]} is nearer to center {nearest_F[first]}")


def _points_and_centers(data: ArrayLike, request: Message) -> tuple[Floats, Floats]:
    points, centers = _prepare(data, request), request.array("centers")
    if points.shape[1] != centers.shape[1]:
        raise UserError(f"the data have {points.shape[1]} features; the centers have {centers.shape[1]}")
    # Against the whole client: with fewer points than `min_count` even one joint cell would be too small.
    need_points(points, int(request.number("min_count")))
    return points, centers


def answer_lloyd(data: ArrayLike, request: Message, client: int) -> Message:
    """Sums and counts of a client's points by nearest center; zero where they are withheld (`min_count`)."""
    points, centers = _points_and_centers(data, request)
    if request.values.get("noise"):
        clip, noise = float(request.number("clip")), float(request.number("noise"))
        steps_ND = clip_to_grid(points, clip)
        labels_N = nearest(from_grid(steps_ND, clip), centers)[0]
        min_count = int(request.number("min_count"))
        total_KD, count_K = noisy_sums(steps_ND, labels_N, len(centers), clip=clip, noise=noise, min_count=min_count)
        return request.answer(arrays={"sums": total_KD, "counts": count_K})
    total_KD, count_K = sums(points, nearest(points, centers)[0], len(centers))
    # Zeros, not gaps: an empty cell and a withheld one look the same to the server.
    silent_K = withheld(count_K, int(request.number("min_count")))
    total_KD[silent_K], count_K[silent_K] = 0.0, 0.0
    return request.answer(arrays={"sums": total_KD, "counts": count_K})


ASSIGN_RULE = MessageRule(ASSIGN, {}, {"points": int, "inertia": float})


def assign_request(centers_KD: Floats, options: ClusteringOptions, round: int) -> Message:
    """Request of how well centers fit."""
    return Message(ASSIGN, round, {"centers": centers_KD}, _round_values(options))


def answer_assign(data: ArrayLike, request: Message, client: int) -> Message:
    """Number of points, and their summed squared distance to the nearest center; without the cells that are withheld.

    A cell of one point would say how far that point is from a center of the server's choice, and a few such distances
    are its coordinates.
    """
    points, centers = _points_and_centers(data, request)
    if request.values.get("noise"):
        clip, noise = float(request.number("clip")), float(request.number("noise"))
        inertia = noisy_inertia(points, centers, clip=clip, noise=noise)
        return request.answer(points=len(points), inertia=inertia)
    label_N, square_N = nearest(points, centers)
    count_K = np.bincount(label_N, minlength=len(centers)).astype(np.float64)
    open_N = ~withheld(count_K, int(request.number("min_count")))[label_N]
    return request.answer(points=int(open_N.sum()), inertia=float(square_N[open_N].sum()))


HANDLERS: dict[str, Handler] = {
    MOMENTS: answer_moments,
    CENTROIDS: answer_centroids,
    LLOYD: answer_lloyd,
    ASSIGN: answer_assign,
}
