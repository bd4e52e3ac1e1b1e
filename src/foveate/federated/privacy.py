"""Noise on what is sent, from the operating system's cryptographic generator; its composition, and epsilon.

A release whose value moves by at most `sensitivity` (Euclidean) when the protected unit changes, plus Gaussian noise
of standard deviation sigma, is (sensitivity^2 / (2 sigma^2))-zCDP; costs of releases add up (Bun and Steinke 2016,
arXiv 1605.02065, propositions 1.6 and 1.7). rho-zCDP is (epsilon, delta)-differential privacy with, for any alpha > 1,
epsilon = alpha rho + ln(1 - 1 / alpha) - ln(alpha delta) / (alpha - 1) (Canonne, Kamath, Steinke 2020, arXiv
2004.00010, corollary 13), below the rho + 2 sqrt(rho ln(1 / delta)) of proposition 1.3. Distributions of the privacy
loss (PLD) are tighter still for normal values, but not for vectors of whole numbers with noise, which clients send.

Two generators. `SystemNoise` draws floating-point normals, for long vectors (weights, fields). The last bits of a
floating-point sum may give away which noise values were possible (Mironov 2012), and no account covers that.
`discrete_gaussian` draws whole numbers exactly, without a floating-point operation, for values on a grid (sums,
counts); its account is the same (Canonne, Kamath, Steinke 2020, arXiv 2004.00010, theorem 14 and algorithms 1 to 3).
"""

from __future__ import annotations

import math
import secrets
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.federated.results import PrivacyCost

DELTA = 1e-5
"""Customary value; it should be well below one over the number of people in the data."""


class NormalSource(Protocol):
    """Draws standard normal values: NumPy's generators in tests, `SystemNoise` at clients."""

    def standard_normal(self, size: tuple[int, ...]) -> NDArray[np.float64]:
        """Values of this shape."""
        ...


class SystemNoise:
    """Standard normal values from the operating system's cryptographic generator, by Box and Muller's method."""

    def standard_normal(self, size: tuple[int, ...]) -> NDArray[np.float64]:
        """Values of this shape."""
        count = math.prod(size)
        # A float64 holds 53 bits exactly, so the lower 11 are dropped.
        integers = np.frombuffer(secrets.token_bytes(16 * count), dtype=np.uint64).reshape(2, count) >> np.uint64(11)
        # The first is never 0, whose logarithm is infinite.
        radius = np.sqrt(-2.0 * np.log((integers[0] + 1.0) * 2.0**-53))
        return (radius * np.cos(2.0 * np.pi * (integers[1] * 2.0**-53))).reshape(size)


def private_noise() -> NormalSource:
    """Source of noise that cannot be reproduced: the operating system's generator, without a seed."""
    # Noise never comes from the run's seed: whoever knows the seed (the server does) could compute the noise and
    # subtract it. Nor from a statistical generator, whose state can be computed from enough of its values.
    return SystemNoise()


def _bernoulli_exp(numerator: int, denominator: int) -> bool:
    """True with probability exp(-numerator / denominator), exactly."""
    while numerator > denominator:
        if not _bernoulli_exp(1, 1):
            return False
        numerator -= denominator
    trials = 1
    # The number of trials is odd with exactly this probability (algorithm 1 of the paper).
    while secrets.randbelow(denominator * trials) < numerator:
        trials += 1
    return trials % 2 == 1


def _discrete_laplace(scale: int) -> int:
    """Whole number x with probability proportional to exp(-|x| / scale)."""
    while True:
        remainder = secrets.randbelow(scale)
        if not _bernoulli_exp(remainder, scale):
            continue
        quotient = 0
        while _bernoulli_exp(1, 1):
            quotient += 1
        size = remainder + scale * quotient
        negative = bool(secrets.randbits(1))
        # Zero has no sign: counted with both it would come twice as often.
        if not (negative and size == 0):
            return -size if negative else size


def discrete_gaussian(sigma: Fraction, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Whole numbers x with probability proportional to exp(-x^2 / (2 sigma^2)), exactly.

    Args:
        sigma: above 0; that of the normal distribution of the same form.

    Source: Canonne, Kamath, Steinke 2020, arXiv 2004.00010, algorithm 3.
    """
    if not sigma > 0:
        raise UserError(f"noise must be above 0 to account for privacy (got {float(sigma):g})")
    variance = sigma * sigma
    scale = math.floor(sigma) + 1

    def draw() -> int:
        while True:
            value = _discrete_laplace(scale)
            distance = (abs(value) - variance / scale) ** 2 / (2 * variance)
            if _bernoulli_exp(distance.numerator, distance.denominator):
                return value

    return np.array([draw() for _ in range(math.prod(shape))], dtype=np.int64).reshape(shape)


def clip_norm(vector: NDArray[np.floating], max_norm: float) -> NDArray[np.floating]:
    """Scale a vector down to `max_norm` if it is longer: only then its sensitivity is bounded."""
    # Use float64: a norm rounded down in float32 would let a vector through that is longer than the bound.
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    return vector if norm <= max_norm else (vector * (max_norm / norm)).astype(vector.dtype)


def add_noise(array: NDArray[np.floating], sigma: float, generator: NormalSource) -> NDArray[np.floating]:
    """Add Gaussian noise of standard deviation sigma to every value."""
    return (array + sigma * generator.standard_normal(array.shape)).astype(array.dtype)


def send_change(
    before_P: NDArray[np.floating],
    after_P: NDArray[np.floating],
    *,
    clip: float,
    sigma: float = 0.0,
    source: NormalSource | None = None,
) -> NDArray[np.floating]:
    """Weights that a client over a network sends: their change clipped to norm `clip`, with noise, and clipped again.

    Args:
        sigma: standard deviation of the noise on each value; 0 = none.
        source: of the noise, by default the operating system's.
    """
    # In float64: a change that float32 rounds up would be longer than the clip.
    change_P = after_P.astype(np.float64) - before_P
    # A training that ends in NaN is no change: an error would say without noise that it did.
    change_P = clip_norm(change_P if np.isfinite(change_P).all() else np.zeros_like(change_P), clip)
    if sigma:
        # Noise is much longer than any change. Left at that, it would end a network in one round. What is done to noisy
        # values hides as much as they do.
        change_P = clip_norm(add_noise(change_P, sigma, source or private_noise()), clip)
    return (before_P + change_P).astype(after_P.dtype)


def gaussian_cost(sensitivity: float, sigma: float) -> float:
    """rho of one release: sensitivity^2 / (2 sigma^2).

    Raises:
        UserError: without noise, or with so much that the cost would be 0, as if the release were free.
    """
    if not sigma > 0:
        raise UserError(f"noise must be above 0 to account for privacy (got {sigma:g})")
    # A product, unlike a power, is infinite where it overflows, and no budget has room for that.
    ratio = sensitivity / sigma
    if not ratio * ratio > 0:
        raise UserError(f"noise must be small enough to have a cost (got {sigma:g})")
    return ratio * ratio / 2


def epsilon(rho: float, *, delta: float = DELTA) -> float:
    """Convert rho-zCDP to the smallest epsilon at a delta that follows from it.

    >>> round(epsilon(0.5), 2)
    4.73
    """
    # Loaded here: a client without noise needs no optimizer.
    from scipy.optimize import minimize_scalar

    if not 0 < delta < 1:
        raise UserError(f"delta must be above 0 and below 1 (got {delta})")
    if not 0 < rho < math.inf:
        return rho

    def bound(log_order: float) -> float:
        """Epsilon by the Renyi divergence of one order alpha = 1 + exp(log_order); that of any order holds."""
        above = math.exp(log_order)
        return rho * (1 + above) - math.log1p(1 / above) - (math.log(delta) + math.log1p(above)) / above

    # Proposition 1.3 is this bound without its two logarithms of alpha, at this order, so that the result is below it.
    start = 0.5 * (math.log(-math.log(delta)) - math.log(rho))
    best = minimize_scalar(bound, bounds=(start - 3, start + 3), method="bounded", options={"xatol": 1e-6})
    return max(0.0, min(float(best.fun), bound(start)))


def max_rho(epsilon: float, *, delta: float = DELTA) -> float:
    """Largest rho whose `epsilon` is at most this one.

    >>> round(max_rho(epsilon(0.5)), 6)
    0.5
    """
    from scipy.optimize import root_scalar

    # Proposition 1.3 gives too small a rho; epsilon grows without bound in rho, so that some multiple of it is enough.
    root = math.sqrt(-math.log(delta))
    low = high = (math.sqrt(root**2 + epsilon) - root) ** 2
    # Nothing, no bound, or less than floating-point numbers can tell from nothing.
    if not 0 < low < math.inf:
        return low
    while _epsilon(high, delta=delta) < epsilon:
        high *= 2
    if high == low:
        return low
    return root_scalar(lambda rho: _epsilon(rho, delta=delta) - epsilon, bracket=(low, high), xtol=low * 1e-12).root


# `max_rho` has an argument of that name.
_epsilon = epsilon


def cost_row(name: str, unit: str, rho: float | None, messages: int, delta: float = DELTA) -> PrivacyCost:
    """Row of an account: what the noise on one kind of message hides; None in `rho` = it was sent without noise."""
    if rho is None:
        return PrivacyCost(name=name, unit="nothing", messages=messages, delta=delta)
    cost = epsilon(rho, delta=delta)
    return PrivacyCost(name=name, unit=unit, messages=messages, delta=delta, rho=rho, epsilon=cost)
