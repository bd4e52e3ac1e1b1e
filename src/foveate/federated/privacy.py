"""Noise on what is sent, and what it buys: the Gaussian mechanism, its composition, epsilon by a stated formula.

A release whose value moves by at most `sensitivity` (Euclidean) when the protected thing changes, plus Gaussian noise
of standard deviation sigma, is (sensitivity^2 / (2 sigma^2))-zCDP; costs of releases add up; rho-zCDP is
(rho + 2 sqrt(rho ln(1 / delta)), delta)-differential privacy (Bun and Steinke 2016, arXiv 1605.02065, propositions
1.6, 1.7 and 1.3). Tighter accounts exist; this one is short enough to be checked by hand.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError

DELTA = 1e-5


def private_noise() -> np.random.Generator:
    """Random numbers from the operating system: noise from a run's seed could be subtracted by whoever knows it."""
    return np.random.default_rng()


def clipped(vector: NDArray[np.floating], length: float) -> NDArray[np.floating]:
    """The vector, shortened to the length where it is longer."""
    own = float(np.linalg.norm(vector.astype(np.float64)))
    return vector if own <= length else (vector * (length / own)).astype(vector.dtype)


def noisy(array: NDArray[np.floating], sigma: float, generator: np.random.Generator) -> NDArray[np.floating]:
    """The array with Gaussian noise on every number."""
    return (array + sigma * generator.standard_normal(array.shape)).astype(array.dtype)


def gaussian_cost(sensitivity: float, sigma: float) -> float:
    """rho of one release.

    Raises:
        UserError: without noise.
    """
    if not sigma > 0:
        raise UserError("without noise there is no privacy to account for")
    return sensitivity**2 / (2 * sigma**2)


def epsilon(rho: float, *, delta: float = DELTA) -> float:
    """epsilon of rho-zCDP at a delta.

    >>> round(epsilon(0.5), 2)
    5.3
    """
    if not 0 < delta < 1:
        raise UserError(f"delta {delta}: allowed is above 0 and below 1")
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))
