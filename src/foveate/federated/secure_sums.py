"""Sums over clients in fixed point: what secure aggregation carries, and what a server reads off the total.

A client's values become whole numbers of a fixed step, each split into balanced digits of 29 bits. Digits of several
clients can be added up under masks, and Flower's quantization returns them unchanged. The total differs from the sum of
the values by half a step per client at most, and by the rounding of float64. Every client sends its digits as one
vector, so that nothing but its length shows what it holds.

| kind | arrays | step | largest value |
|---|---|---|---|
| `query.moments` | sums or squares of columns | 2^-100 | 2^131 |
| `query.lloyd` | sums; counts | 2^-64; 1 | 2^51; 2^57 |
| `train`, `train.prototypes` | weights times the client's points | 2^-26 | 2^31 |

The largest weight leaves room for a million points with the noise of 150 rounds; a noisy value beyond it is clipped.

Nothing here knows a network; `foveate.federated.flower` masks the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.federated.messages import Message, MessageError

Digits = NDArray[np.int64]
Shapes = Mapping[str, tuple[int | None, ...]]

MIN_CLIENTS = 3
"""Smallest number of clients in a sum: of two, each could subtract its own part and see the other's."""
DIGIT_BITS = 29
"""Bits of a digit. Flower quantizes to whole numbers of 31 bits, and a digit with its sign takes 30."""
MAX_DIGIT = 1 << (DIGIT_BITS - 1)
"""Largest digit; balanced digits go from minus this to this."""


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Grid of the values of one array.

    Attributes:
        digits: number of digits of a value.
        exponent: the step is 2 to this power.
    """

    digits: int
    exponent: int

    @property
    def step(self) -> float:
        """Distance of two values on the grid."""
        return 2.0**self.exponent

    @property
    def bound(self) -> float:
        """Largest value that is sent."""
        return 2.0 ** (self.exponent + DIGIT_BITS * self.digits - 1)

    def split(self, values: NDArray[Any], *, clip: bool = False) -> Digits:
        """Digits of values, [digits, N], the lowest first.

        Args:
            clip: values beyond the bound become the bound.

        Raises:
            UserError: a value beyond the bound, or NaN.
        """
        values = np.clip(values, -self.bound, self.bound) if clip else values
        # Written with `not`, so that NaN is refused, too.
        if not (np.abs(values) <= self.bound).all():
            raise UserError(f"values beyond {self.bound:.3g} cannot be added up under secure aggregation")
        rest_N = np.rint(np.ldexp(np.asarray(values, dtype=np.float64).ravel(), -self.exponent))
        digits_DN = np.empty((self.digits, rest_N.size), dtype=np.int64)
        # From the highest digit down: quotients by powers of two and their remainders are exact in float64.
        for position in reversed(range(self.digits)):
            digit_N = np.rint(np.ldexp(rest_N, -DIGIT_BITS * position))
            rest_N -= np.ldexp(digit_N, DIGIT_BITS * position)
            digits_DN[position] = digit_N
        return digits_DN

    def join(self, digits_DN: Digits) -> NDArray[np.float64]:
        """Values of digits, or of sums of digits, [N]."""
        total_N = np.zeros(digits_DN.shape[1])
        for position in reversed(range(self.digits)):
            total_N += np.ldexp(digits_DN[position].astype(np.float64), DIGIT_BITS * position + self.exponent)
        return total_N


SUMS, MOMENT_SUMS, WEIGHTS = FixedPoint(4, -64), FixedPoint(8, -100), FixedPoint(2, -26)
COUNTS = FixedPoint(2, 0)
_MEANS = FixedPoint(4, -64)


@dataclass(frozen=True)
class SumFormat:
    """Which parts of the answers to a request are added up.

    Attributes:
        arrays: their grids by name.
        numbers: whole numbers of the answer that are added up.
        is_weighted: arrays are multiplied by the client's number of points, which is added up, too; the total then is
            a mean.
        means: numbers of the answer whose mean over all points is wanted; None where a client left one out.
    """

    arrays: Mapping[str, FixedPoint]
    numbers: tuple[str, ...] = ()
    is_weighted: bool = False
    means: tuple[str, ...] = ()

    def encode(self, answer: Message, points: int, *, clip: bool = False) -> Digits:
        """Vector of a client's answer, [L].

        Args:
            points: number of the client's points.
            clip: arrays are clipped to the bounds of their grids, as an answer with noise never fails because of a
                value.

        Raises:
            UserError: a value beyond the bound of its grid, or a part that the answer lacks.
        """
        factor = float(points) if self.is_weighted else 1.0
        parts = [
            grid.split(answer.array(name).astype(np.float64) * factor, clip=clip) for name, grid in self.arrays.items()
        ]
        counts = [answer.number(name) for name in self.numbers]
        for name in self.means:
            is_sent = name in answer.values
            counts.append(points if is_sent else 0)
            parts.append(_MEANS.split(np.array([points * answer.number(name) if is_sent else 0.0])))
        if self.is_weighted:
            counts.append(points)
        parts.append(COUNTS.split(np.array(counts, dtype=np.float64)))
        return np.concatenate([part.ravel() for part in parts])

    def length(self, sizes: Mapping[str, int]) -> int:
        """Number of digits of a vector, L, by the sizes of its arrays."""
        counts = COUNTS.digits * (len(self.numbers) + len(self.means) + self.is_weighted)
        arrays = sum(grid.digits * sizes[name] for name, grid in self.arrays.items())
        return arrays + counts + _MEANS.digits * len(self.means)

    def decode(self, total_L: Digits, shapes: Shapes, clients: int) -> tuple[dict[str, NDArray[np.float64]], Totals]:
        """Arrays and numbers of the total of several vectors.

        Args:
            shapes: of the arrays; a length of None, in one array of one dimension, follows from the vector's.

        Raises:
            MessageError: another length than the shapes say, or digits that no vectors of this format add up to.
        """
        num_counts = len(self.numbers) + len(self.means) + self.is_weighted
        rest = len(total_L) - self.length(dict.fromkeys(self.arrays, 0))
        sizes = {name: _size(shapes[name], rest, grid) for name, grid in self.arrays.items()}
        if rest != sum(sizes[name] * grid.digits for name, grid in self.arrays.items()):
            raise MessageError(f"the clients' vectors have {len(total_L):,} digits, which do not fit the question")
        # Garbage under a mask is uniform over the whole range, so some digit of it is out of what digits add up to.
        if (np.abs(total_L) > clients * MAX_DIGIT).any():
            raise MessageError("the total is out of range: a client sent something else than its masked vector")
        arrays: dict[str, NDArray[np.float64]] = {}
        position = 0

        def take(size: int, grid: FixedPoint) -> NDArray[np.float64]:
            nonlocal position
            digits = total_L[position : position + size * grid.digits].reshape(grid.digits, size)
            position += size * grid.digits
            return grid.join(digits)

        for name, grid in self.arrays.items():
            values = take(sizes[name], grid)
            arrays[name] = values if None in shapes[name] else values.reshape([int(n or 0) for n in shapes[name]])
        sums = [float(take(1, _MEANS)[0]) for _ in self.means]
        counts = [round(count) for count in take(num_counts, COUNTS)]
        numbers = dict(zip(self.numbers, counts, strict=False))
        points = counts[-1] if self.is_weighted else numbers.get("points", 0)
        if min(counts, default=1) < 0 or (self.is_weighted and points < 1):
            raise MessageError("the total has a number below its smallest: a client sent something else than its sums")
        if self.is_weighted:
            numbers["points"] = points
            arrays = {name: array / points for name, array in arrays.items()}
        sent = counts[len(self.numbers) :]
        # A mean over some of the clients would look like one over all of them.
        means = {
            name: total / count if count == points else None
            for name, total, count in zip(self.means, sums, sent, strict=False)
        }
        return arrays, Totals(numbers, means)


@dataclass(frozen=True)
class Totals:
    """Numbers of a total.

    Attributes:
        numbers: whole numbers added up.
        means: over all points; None where a client left one out.
    """

    numbers: dict[str, int] = field(default_factory=dict)
    means: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class SumRound:
    """Result of one sum.

    Attributes:
        arrays: sums by name, or means over points where the format says so.
        totals: its numbers.
        clients: in the sum, ascending.
        excluded: for each client that is not, the reason.
    """

    arrays: dict[str, NDArray[np.float64]]
    totals: Totals
    clients: list[int]
    excluded: dict[int, str]


def _size(shape: tuple[int | None, ...], rest: int, grid: FixedPoint) -> int:
    return rest // grid.digits if None in shape else prod(int(length or 0) for length in shape)


SETUP, SHARE_KEYS, UNMASK = STAGES = ("secagg.setup", "secagg.share_keys", "secagg.unmask")
"""Kinds in a log of the messages of a sum beside the request and its answer."""
MASKED = "masked"
"""Array in a log of an answer under masks."""
_SETTINGS = ("clipping_range", "max_weight", "mod_range", "sample_num", "share_num", "target_range", "threshold")
# Flower 1.42: two public keys of a client, its encrypted shares for another one, and one share of a secret.
_KEYS_BYTES, _SHARES_BYTES, _SECRET_BYTES = 430, 612, 52


def list_stages(request: Message, digits: int, clients: int) -> list[tuple[bool, Message]]:
    """Messages of one client in a sum, up or down, as large as those under Flower's SecAgg+, for a plan.

    Args:
        digits: length of the vector. clients: in the sum.
    """
    key, keys = np.zeros(_KEYS_BYTES, np.uint8), np.zeros(clients * _KEYS_BYTES, np.uint8)
    shares = np.zeros((clients - 1) * _SHARES_BYTES, np.uint8)
    parts: list[tuple[bool, str, dict[str, NDArray[Any]], dict[str, int]]] = [
        (False, SETUP, {}, dict.fromkeys(_SETTINGS, 0)),
        (True, SETUP, {"keys": key}, {}),
        (False, SHARE_KEYS, {"keys": keys}, {}),
        (True, SHARE_KEYS, {"shares": shares}, {}),
        (False, SHARE_KEYS, {"shares": shares}, {}),
        (True, request.kind, {MASKED: np.zeros(digits, np.int64)}, {}),
        (False, UNMASK, {"active": np.zeros(clients, np.int64), "lost": np.zeros(0, np.int64)}, {}),
        (True, UNMASK, {"shares": np.zeros(clients * _SECRET_BYTES, np.uint8)}, {}),
    ]
    return [(up, Message(kind, request.round, arrays, values)) for up, kind, arrays, values in parts]


NOTES = {
    "cluster": "the server saw moments, and sums and counts of the refinement, as sums over clients only; the "
    "centroids of each client were sent as they are",
    "embed": "the server saw the clients' weights as a sum only; their numbers of points, boxes and fields or "
    "surrogates were sent as they are, and nobody could compare the weights of single clients",
    "features": "the server saw the clients' weights as a sum only; their centroids and numbers of points were sent as "
    "they are, and nobody could compare the weights of single clients",
}
"""By the name of the job: what secure aggregation hid from the server, and what not, for the page of a run."""


def describe_sums(job: str) -> str:
    """Sentence for the page of a run under secure aggregation."""
    return f"secure aggregation: {NOTES[job]}"


def refuse_individual(**options: object) -> None:
    """Raise UserError for an option that needs each client's answer, which no server has under secure aggregation.

    Args:
        options: `suspects` and `aggregation` of the job, where it has them.
    """
    for name, value in options.items():
        if (name, value) in _INDIVIDUAL:
            raise UserError(
                f"secure aggregation: {name}={value} needs what each client sent, and only sums are known; "
                f"leave {name} out, or run without secure aggregation"
            )


_INDIVIDUAL = {("suspects", "exclude"), ("aggregation", "median"), ("aggregation", "trimmed_mean")}
"""Options that look at the answers of single clients."""
