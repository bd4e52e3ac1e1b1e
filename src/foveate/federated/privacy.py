"""The Gaussian mechanism: noise on what is sent, its composition, and epsilon by a stated formula.

A release whose value moves by at most `sensitivity` (Euclidean) when the protected unit changes, plus Gaussian noise
of standard deviation sigma, is (sensitivity^2 / (2 sigma^2))-zCDP; costs of releases add up; rho-zCDP is
(rho + 2 sqrt(rho ln(1 / delta)), delta)-differential privacy (Bun and Steinke 2016, arXiv 1605.02065, propositions
1.6, 1.7 and 1.3). Tighter accounts exist; this one is short enough to check by hand.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError

DELTA = 1e-5
"""Customary value; it should be well below one over the number of people in the data."""


def private_noise() -> np.random.Generator:
    """Generator seeded by the operating system."""
    # Never from the run's seed: whoever knows the seed (the server does) could compute the noise and subtract it.
    return np.random.default_rng()


def clip_norm(vector: NDArray[np.floating], max_norm: float) -> NDArray[np.floating]:
    """Scale a vector down to `max_norm` if it is longer: only then its sensitivity is bounded."""
    # In float64: a norm rounded down in float32 would let a vector through that is longer than the bound.
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    return vector if norm <= max_norm else (vector * (max_norm / norm)).astype(vector.dtype)


def add_noise(array: NDArray[np.floating], sigma: float, generator: np.random.Generator) -> NDArray[np.floating]:
    """Add Gaussian noise of standard deviation sigma to every value."""
    return (array + sigma * generator.standard_normal(array.shape)).astype(array.dtype)


def gaussian_cost(sensitivity: float, sigma: float) -> float:
    """rho of one release: sensitivity^2 / (2 sigma^2).

    Raises:
        UserError: without noise.
    """
    if not sigma > 0:
        raise UserError(f"noise must be above 0 to account for privacy (got {sigma:g})")
    return sensitivity**2 / (2 * sigma**2)


def epsilon(rho: float, *, delta: float = DELTA) -> float:
    """Convert rho-zCDP to epsilon at a delta.

    >>> round(epsilon(0.5), 2)
    5.3
    """
    if not 0 < delta < 1:
        raise UserError(f"delta must be above 0 and below 1 (got {delta})")
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))
