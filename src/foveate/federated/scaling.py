"""A common scale of all clients' columns, from sums: no row moves, and every client scales its own points.

Two questions: sums and number of points give the common mean; sums of squared differences from that mean give the
common standard deviation. In one question, as sums of squares about zero, a large mean would leave no digit of it.

| kind | down | up |
|---|---|---|
| `query.moments` | `min_count`, then `center` | `sums` of all points, then `squares` about the center; their number |

Every later request brings the common offset and divisor (`Scaling.add_to`): a client keeps nothing between requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError
from foveate.federated import reasons
from foveate.federated.messages import ArrayRule, Message, MessageError, MessageRule, Value
from foveate.federated.points import MAX_COORDINATE, as_points
from foveate.federated.reasons import Refusal
from foveate.federated.rounds import TooFewClientsError, Transport, find_other_widths
from foveate.federated.secure_sums import MOMENT_SUMS, SumFormat

Floats = NDArray[np.float64]
MOMENTS = "query.moments"
MAX_DEVIATIONS = 100.0
"""Bound of a client's columns in units of a common scale, as root mean squares.

A client's share of the common variance is at most all of it, so a client of a share w of all points is at most
1 / sqrt(w) out: 100 for one of ten thousand.
"""
_OFFSET, _SCALE = "offset", "scale"


@dataclass(frozen=True)
class Scaling:
    """Offset and divisor of each column, [D]."""

    offset_D: Floats
    scale_D: Floats

    @classmethod
    def of_points(cls, points_ND: Floats) -> Scaling:
        """Mean and standard deviation of points in one place; a constant column keeps its unit."""
        return cls._of_moments(points_ND.mean(0), ((points_ND - points_ND.mean(0)) ** 2).mean(0))

    @classmethod
    def _of_moments(cls, mean_D: Floats, variance_D: Floats) -> Scaling:
        # A constant column has no deviation to divide by.
        return cls(mean_D, np.where(variance_D > 0, np.sqrt(variance_D), 1.0))

    def apply(self, points_ND: Floats) -> Floats:
        """Points in units of the common deviation."""
        return (points_ND - self.offset_D) / self.scale_D

    def undo(self, centers_KD: Floats) -> Floats:
        """Centers in the units of the data."""
        return centers_KD * self.scale_D + self.offset_D

    def add_to(self, request: Message) -> Message:
        """Return the request with offset and scale: a client keeps nothing between two requests."""
        return replace(request, arrays={**request.arrays, _OFFSET: self.offset_D, _SCALE: self.scale_D})

    def to_json(self) -> dict[str, list[float]]:
        """Offset and divisor as lists, for the config of a model folder."""
        return {_OFFSET: self.offset_D.tolist(), _SCALE: self.scale_D.tolist()}

    @classmethod
    def read(cls, content: Any, features: int, *, where: str) -> Scaling | None:
        """Read what `to_json` returned; None where a config has none.

        Raises:
            UserError: not two lists of as many finite numbers as features, or a divisor that is not above 0.
        """
        if content is None:
            return None
        try:
            offset_D, scale_D = (np.array(content[name], dtype=np.float64) for name in (_OFFSET, _SCALE))
        except (TypeError, KeyError, ValueError):
            raise UserError(f"{where}: field 'scaling' must have lists '{_OFFSET}' and '{_SCALE}'") from None
        finite = np.isfinite(offset_D).all() and np.isfinite(scale_D).all() and (scale_D > 0).all()
        if offset_D.shape != (features,) or scale_D.shape != (features,) or not finite:
            raise UserError(f"{where}: field 'scaling' must have {features} finite numbers each, divisors above 0")
        return cls(offset_D, scale_D)


def ask_scaling(
    transport: Transport,
    *,
    min_count: int,
    winsorize: float | None = None,
    min_clients: int = 1,
    excluded: dict[int, str] | None = None,
) -> Scaling:
    """Ask the clients for sums and return the common scale.

    Args:
        min_count: a client of fewer points does not answer.
        winsorize: as in the clustering: one typing error would shift the scale of all.
        excluded: clients that do not answer, or have another number of columns than most, are added with the reason.

    Raises:
        TooFewClientsError: fewer than `min_clients` answered.
    """
    excluded = {} if excluded is None else excluded
    request = moments_request(min_count, winsorize=winsorize)
    if transport.is_secure:
        return _sum_scaling(transport, request, min_clients, excluded)
    result = transport.ask(request, moments_rule("sums"), min_clients=min_clients)
    excluded |= result.excluded
    answers = result.answers
    if not answers:
        raise TooFewClientsError("no client answered")
    usual, _, others = find_other_widths({client: len(answer.array("sums")) for client, answer in answers.items()})
    excluded |= others
    answers = {client: answer for client, answer in answers.items() if client not in others}
    mean_D = _total(answers, "sums")
    request = moments_request(min_count, winsorize=winsorize, center_D=mean_D)
    # Only those whose sums are in the mean: squares of others would be about a center that is not theirs.
    result = transport.ask(dict.fromkeys(answers, request), moments_rule("squares", usual), min_clients=min_clients)
    excluded |= result.excluded
    return Scaling._of_moments(mean_D, _total(result.answers, "squares"))


def moments_format(request: Message) -> SumFormat:
    """Format in which the answers to this request are added up."""
    return SumFormat({"squares" if "center" in request.arrays else "sums": MOMENT_SUMS}, numbers=("points",))


def _sum_scaling(transport: Transport, request: Message, min_clients: int, excluded: dict[int, str]) -> Scaling:
    """Common scale from sums over clients alone; clients of another number of columns than most are left out."""
    clients = [client for client in transport.clients if client not in excluded]
    first = transport.ask_sum(
        dict.fromkeys(clients, request), moments_format(request), {"sums": (None,)}, min_clients=min_clients
    )
    excluded |= first.excluded
    mean_D = first.arrays["sums"] / _count(first.totals.numbers)
    request = replace(request, arrays={"center": mean_D})
    second = transport.ask_sum(
        dict.fromkeys(first.clients, request),
        moments_format(request),
        {"squares": mean_D.shape},
        min_clients=min_clients,
    )
    excluded |= second.excluded
    squares_D = second.arrays["squares"]
    if (squares_D < 0).any():
        raise MessageError("the clients' squares add up to less than 0: one of them sent a false sum")
    return Scaling._of_moments(mean_D, squares_D / _count(second.totals.numbers))


def _count(numbers: Mapping[str, int]) -> int:
    if numbers["points"] < 1:
        raise MessageError("the clients' numbers of points add up to none: one of them sent a false number")
    return numbers["points"]


def _total(answers: Mapping[int, Message], name: str) -> Floats:
    """Mean of a sum over the points of all clients."""
    points = sum(answer.number("points") for answer in answers.values())
    return np.sum([answer.array(name) for answer in answers.values()], axis=0) / points


def moments_request(min_count: int, *, winsorize: float | None = None, center_D: Floats | None = None) -> Message:
    """Request of column sums, or of sums of squares about a center [D]."""
    arrays = {} if center_D is None else {"center": center_D}
    # One cell, of all points: this is what a client's own limit of clusters is compared with.
    values: dict[str, Value] = {"clusters": 1, "min_count": min_count}
    if winsorize is not None:
        values["winsorize"] = winsorize
    return Message(MOMENTS, 0, arrays, values)


def moments_rule(name: str, width: int | None = None) -> MessageRule:
    """Rule of the answers to `moments_request`.

    Args:
        name: "sums" or "squares". width: number of columns, where it is known.
    """
    # No sum of squares is negative: such an answer is damaged or false.
    low = 0.0 if name == "squares" else None
    return MessageRule(MOMENTS, {name: ArrayRule("float64", (width,), low=low)}, {"points": int})


def answer_moments(data: ArrayLike, request: Message, client: int) -> Message:
    """Sums of all points by column, or sums of squared differences from a center: one cell, of all points.

    Raises:
        UserError: fewer points than `min_count`.
    """
    points = as_points(data)
    need_points(points, int(request.number("min_count")))
    if "winsorize" in request.values:
        reach = request.number("winsorize")
        if not 0 < reach < MAX_COORDINATE:
            raise MessageError(f"value 'winsorize' must be above 0 (got {reach:g})")
        points = winsorize(points, reach)
    if "center" not in request.arrays:
        return request.answer(arrays={"sums": points.sum(0)}, points=len(points))
    center_D = request.array("center")
    if points.shape[1:] != center_D.shape:
        raise UserError(f"the data have {points.shape[1]} features; the center has {center_D.shape}")
    return request.answer(arrays={"squares": ((points - center_D) ** 2).sum(0)}, points=len(points))


def need_points(points_ND: Floats, min_count: int) -> None:
    """Raise UserError for fewer points than a request's `min_count`."""
    if len(points_ND) < min_count:
        raise UserError(f"{len(points_ND)} points are fewer than min_count {min_count}: nothing is sent")


def winsorize(points_ND: Floats, reach: float) -> Floats:
    """Clip each column to its 5th and 95th percentile, widened by `reach` times the distance between them.

    A typing error of 1e8 in one row then moves a mean by as much as an ordinary outlier. A column whose percentiles are
    equal stays as it is, as they define no usual range.
    """
    low_D, high_D = np.percentile(points_ND, (5, 95), axis=0)
    width_D = high_D - low_D
    # Infinite bounds clip nothing.
    wide_D = np.where(width_D > 0, reach * width_D, np.inf)
    return np.clip(points_ND, low_D - wide_D, high_D + wide_D)


def scale_points(points_ND: Floats, request: Message, *, clip: bool = False) -> Floats:
    """Points in the common scale that a request brings, or as they are.

    Args:
        clip: bound what becomes too large instead of raising, which would tell that it is.

    Raises:
        UserError: a scale of another width, or one that makes values infinite.
    """
    if "offset" not in request.arrays:
        return points_ND
    offset_D, scale_D = request.array("offset"), request.array("scale")
    if offset_D.shape != points_ND.shape[1:] or scale_D.shape != points_ND.shape[1:]:
        raise UserError(f"the data have {points_ND.shape[1]} features; the scale has {len(offset_D)}")
    # A scale of a hostile server may overflow; `as_points` refuses what comes out, with the row.
    with np.errstate(all="ignore"):
        scaled_ND = (points_ND - offset_D) / scale_D
    return np.clip(np.nan_to_num(scaled_ND), -MAX_COORDINATE, MAX_COORDINATE) if clip else as_points(scaled_ND)


def check_scale(data: ArrayLike, request: Message) -> None:
    """Raise Refusal if the scale that a request brings cannot be a common one of this client and others."""
    if not {_OFFSET, _SCALE} & set(request.arrays):
        return
    points = as_points(data)
    if "winsorize" in request.values:
        points = winsorize(points, request.number("winsorize"))
    offset_D, scale_D = request.array(_OFFSET), request.array(_SCALE)
    if offset_D.shape != points.shape[1:] or scale_D.shape != points.shape[1:]:
        return  # `scale_points` raises the error about widths
    with np.errstate(all="ignore"):
        out_D = np.sqrt((((points - offset_D) / scale_D) ** 2).mean(0))
    # Written with `not`, so that NaN is refused, too.
    if not ((scale_D > 0).all() and (out_D <= MAX_DEVIATIONS).all()):
        raise Refusal(
            reasons.DATA_UNUSABLE,
            "brings a scale in which this client's columns are more than "
            f"{MAX_DEVIATIONS:g} deviations out: no common scale of its data",
        )


def take_scale(data: ArrayLike, request: Message, *, clip: bool = False) -> tuple[Floats, Message]:
    """Return points in the common scale that a request brings, and the request without it.

    Args:
        clip: as in `scale_points`.
    """
    points = as_points(data)
    arrays = {name: array for name, array in request.arrays.items() if name not in (_OFFSET, _SCALE)}
    return scale_points(points, request, clip=clip), replace(request, arrays=arrays)
