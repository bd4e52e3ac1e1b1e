"""What a clustering asks of clients, what they answer, and what an answer must be.

| kind | down | up |
|---|---|---|
| `query.centroids` | options | `centers`, and where asked `counts`, `kept`, `radius` |
| `query.lloyd` | `centers` | `sums`, `counts` |
| `query.assign` | `centers` | two numbers: points and inertia |

A mean or a sum of one point is that point. With `min_count` a client says nothing of fewer points than that: small
clusters are merged, small cells of the refinement are withheld. It holds for each message: where two partitions of the
same points differ in one point, their difference is that point.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike

from foveate.core.errors import UserError
from foveate.federated.clients import Handler, stream
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
from foveate.federated.clustering.options import Settings, method
from foveate.federated.messages import LARGEST_WHOLE, ArrayRule, Message, MessageError, MessageRule

CENTROIDS, LLOYD, ASSIGN = "query.centroids", "query.lloyd", "query.assign"
LARGEST = 1e100
"""Sums of squares of larger coordinates, times counts, may be infinite."""
_ROUNDING = 8 * np.finfo(np.float64).eps
"""Of a sum, relative to its largest term and for each term."""


def as_points(data: ArrayLike) -> Floats:
    """A client's data as float64 points [N, D].

    Raises:
        UserError: no point, another shape, not numbers, NaN, or numbers too large to square.
    """
    array = np.asarray(data)
    if array.dtype.kind not in "biuf":
        raise UserError(f"the data have type {array.dtype}; numbers are wanted")
    if array.ndim != 2:
        raise UserError(f"the data have shape {list(array.shape)}; [points, features] is wanted")
    if array.size == 0:
        raise UserError(f"the data are empty (shape {list(array.shape)})")
    points = np.ascontiguousarray(array, dtype=np.float64)
    largest = np.abs(points).max()
    if not largest <= LARGEST:  # NaN too
        row = int(np.flatnonzero(~(np.abs(points) <= LARGEST).all(1))[0])
        raise UserError(f"the data have NaN, infinite or huge values, the first in row {row}")
    return points


def unit_rows(points_ND: Floats) -> Floats:
    """Rows of length 1, for spherical clustering.

    Raises:
        UserError: a row of zeros, which has no direction.
    """
    norm_N = np.linalg.norm(points_ND, axis=1)
    if not (norm_N > 0).all():
        raise UserError(f"row {int(np.flatnonzero(norm_N == 0)[0])} is zero: spherical clustering needs a direction")
    return points_ND / norm_N[:, None]


def sends(settings: Settings) -> dict[str, bool]:
    """Which optional parts a client's answer has: counts, kept, radius."""
    chosen = method(settings.method)
    grouping = chosen.name == "paper_reconstruction"
    by_count = grouping and (settings.seeds == "most_mass" or settings.radius == "k_aware")
    return {
        "counts": chosen.counts or by_count,
        "kept": settings.eliminate == "flags",
        "radius": grouping and isinstance(settings.radius, str) and settings.radius != "k_aware",
    }


def centroids_request(settings: Settings, client: int) -> Message:
    """What a client is asked first."""
    values = {
        "clusters": settings.local(client),
        "client_init": settings.client_init,
        "n_init": settings.n_init,
        "eliminate": settings.eliminate,
        "fused": settings.radius == "fused",
        "min_count": settings.min_count,
        "spherical": settings.spherical,
        "seed": settings.seed,
        **{f"send_{name}": wanted for name, wanted in sends(settings).items()},
    }
    return Message(CENTROIDS, 0, values=values)


def centroids_rule(settings: Settings) -> MessageRule:
    """What the answer must be."""
    wanted = sends(settings)
    arrays = {
        "centers": ArrayRule("float64", ("k", None)),
        "counts": ArrayRule("float64", ("k",), low=float(settings.min_count), high=float(LARGEST_WHOLE)),
        "kept": ArrayRule("bool", ("k",)),
        "radius": ArrayRule("float64", (1,), nan=True, low=0.0, high=LARGEST),
    }
    return MessageRule(
        CENTROIDS,
        {name: rule for name, rule in arrays.items() if wanted.get(name, True)},
        {"points": int} if wanted["counts"] else {},
        most_bytes=1 << 28,
    )


def check_centroids(settings: Settings, client: int, answer: Message) -> None:
    """What the rule cannot say.

    Raises:
        MessageError: too many centroids or none, huge ones, none trusted, counts that do not add up.
    """
    centers = answer.array("centers")
    most = settings.local(client)
    if not 1 <= len(centers) <= most or centers.shape[1] == 0:
        raise MessageError(f"array 'centers' has shape {list(centers.shape)}; 1 to {most} centroids are wanted")
    if np.abs(centers).max() > LARGEST:
        raise MessageError("array 'centers' has values too large to square")
    if "counts" in answer.arrays:
        counts = answer.array("counts")
        if not (counts == np.floor(counts)).all() or counts.sum() != answer.number("points"):
            raise MessageError(f"counts add up to {counts.sum():g} where the client says {answer.number('points'):g}")
    if "kept" in answer.arrays and not answer.array("kept").any():
        raise MessageError("trusts none of its centroids")


def answer_centroids(data: ArrayLike, request: Message, client: int) -> Message:
    """A client's first answer: local k-means, small clusters merged, doubted centroids marked or left out."""
    asked = request.values
    points = as_points(data)
    if asked["spherical"]:
        points = unit_rows(points)
    seed, clusters = int(request.number("seed")), int(request.number("clusters"))
    rng = stream(seed, round=request.round, client=client, purpose="local k-means")
    local = local_kmeans(
        points,
        clusters,
        rng,
        start=str(asked["client_init"]),
        tries=int(request.number("n_init")),
        spherical=bool(asked["spherical"]),
    )
    warn_of_few_points(points, local, clusters, client)
    return describe(points, local, request)


def distinct_points(points_ND: Floats, found: int, clusters: int) -> int | None:
    """How many different points there are, where k-means found fewer clusters than asked for that reason; else None."""
    if found >= clusters:
        return None
    distinct = len(np.unique(points_ND, axis=0))
    return distinct if distinct < clusters else None


def warn_of_few_points(points_ND: Floats, local: Local, clusters: int, client: int) -> None:
    """Warns where a client has fewer different points than it was asked for clusters: it sends as many centroids."""
    if (distinct := distinct_points(points_ND, len(local.centers), clusters)) is not None:
        warnings.warn(
            f"client {client} has {distinct} different points for {clusters} clusters: it makes {len(local.centers)}",
            UserWarning,
            stacklevel=2,
        )


def _enough(points_ND: Floats, least: int) -> None:
    if len(points_ND) < least:
        raise UserError(f"{len(points_ND)} points are fewer than min_count {least}: nothing is sent")


def describe(points_ND: Floats, local: Local, request: Message) -> Message:
    """What of a client's clusters is sent, as the request says.

    Raises:
        UserError: fewer points than `min_count`.
    """
    asked, least = request.values, int(request.number("min_count"))
    _enough(points_ND, least)
    if least > 1:
        local = merge_small(points_ND, local, least)
    kept, working = np.ones(len(local.centers), dtype=bool), local.centers
    if asked["eliminate"] != "none":
        found = eliminate(local)
        kept, working = found.kept, found.working
    sent = kept if asked["eliminate"] == "drop" else np.ones_like(kept)
    arrays: dict[str, ArrayLike] = {"centers": local.centers[sent]}
    values: dict[str, int] = {}
    if asked["send_counts"]:
        arrays["counts"] = local.counts[sent]
        values["points"] = int(local.counts[sent].sum())
    if asked["send_kept"]:
        arrays["kept"] = kept
    if asked["send_radius"]:
        arrays["radius"] = [half_smallest_distance(fuse(points_ND, local).centers if asked["fused"] else working)]
    return request.answer(arrays=arrays, **values)


def lloyd_request(centers_KD: Floats, settings: Settings, round: int) -> Message:
    """The centers, for one step on the clients' own points."""
    return Message(LLOYD, round, {"centers": centers_KD}, _of_round(settings))


def _of_round(settings: Settings) -> dict[str, bool | int]:
    return {"spherical": settings.spherical, "min_count": settings.min_count}


def lloyd_rule(centers_KD: Floats) -> MessageRule:
    """Sums and counts of each center."""
    shape = centers_KD.shape
    counts = ArrayRule("float64", shape[:1], low=0.0, high=float(LARGEST_WHOLE))
    arrays = {"sums": ArrayRule("float64", shape), "counts": counts}
    return MessageRule(LLOYD, arrays)


def check_lloyd(settings: Settings, centers_KD: Floats, points: float | None, answer: Message) -> None:
    """What the rule cannot say.

    Args:
        points: how many the client has, where it said so before.

    Raises:
        MessageError: sums where there is no point, huge sums, parts of points, cells of fewer points than `min_count`,
            more points than before, means that lie in another center's cell.
    """
    total, counts = answer.array("sums"), answer.array("counts")
    if not (counts == np.floor(counts)).all():
        raise MessageError("array 'counts' has parts of points")
    if ((counts > 0) & (counts < settings.min_count)).any():
        least = counts[counts > 0].min()
        raise MessageError(f"array 'counts' has a cell of {least:g} points; min_count is {settings.min_count}")
    if (np.abs(total) > LARGEST * counts[:, None]).any():
        raise MessageError("array 'sums' does not fit its counts")
    if points is not None and counts.sum() > points:
        raise MessageError(f"counts add up to {counts.sum():g} where the client said {points:g} before")
    _check_cells(total, counts, centers_KD, spherical=settings.spherical)


def _check_cells(total_KD: Floats, count_K: Floats, centers_KD: Floats, *, spherical: bool) -> None:
    """The mean of points that are nearest to a center is nearest to it, too: cells are convex. Rounding is allowed for.

    Raises:
        MessageError: a mean in another cell, or with `spherical` outside of the sphere.
    """
    filled = np.flatnonzero(count_K > 0)
    mean_FD = total_KD[filled] / count_K[filled, None]
    slack_F = _ROUNDING * (count_K[filled] + 8)
    if spherical and ((mean_FD**2).sum(1) > 1 + slack_F).any():
        raise MessageError("array 'sums' has sums of unit vectors that are longer than their counts")
    nearest_F, best_F = nearest(mean_FD, centers_KD)
    own_F = np.sqrt(((mean_FD - centers_KD[filled]) ** 2).sum(1))
    size_F = np.sqrt((mean_FD**2).sum(1)) + np.sqrt((centers_KD**2).sum(1)).max()
    strange = (nearest_F != filled) & (own_F > np.sqrt(best_F) + slack_F * size_F)
    if strange.any():
        first = int(np.flatnonzero(strange)[0])
        raise MessageError(
            f"array 'sums' has at center {filled[first]} a mean that is nearer to center {nearest_F[first]}"
        )


def _against_centers(data: ArrayLike, request: Message) -> tuple[Floats, Floats]:
    points, centers = as_points(data), request.array("centers")
    if points.shape[1] != centers.shape[1]:
        raise UserError(f"the data have {points.shape[1]} features; the centers have {centers.shape[1]}")
    _enough(points, int(request.number("min_count")))
    return (unit_rows(points) if request.values.get("spherical") else points), centers


def answer_lloyd(data: ArrayLike, request: Message, client: int) -> Message:
    """Sums and counts of a client's points by their nearest center; zero where they are withheld (`min_count`)."""
    points, centers = _against_centers(data, request)
    total_KD, count_K = sums(points, nearest(points, centers)[0], len(centers))
    silent_K = withheld(count_K, int(request.number("min_count")))
    total_KD[silent_K], count_K[silent_K] = 0.0, 0.0
    return request.answer(arrays={"sums": total_KD, "counts": count_K})


ASSIGN_RULE = MessageRule(ASSIGN, {}, {"points": int, "inertia": float})


def assign_request(centers_KD: Floats, settings: Settings, round: int) -> Message:
    """The centers, to learn how well they fit."""
    return Message(ASSIGN, round, {"centers": centers_KD}, _of_round(settings))


def answer_assign(data: ArrayLike, request: Message, client: int) -> Message:
    """How many points, and their summed squared distance to the nearest center."""
    points, centers = _against_centers(data, request)
    return request.answer(points=len(points), inertia=float(nearest(points, centers)[1].sum()))


HANDLERS: dict[str, Handler] = {CENTROIDS: answer_centroids, LLOYD: answer_lloyd, ASSIGN: answer_assign}
