"""Random numbers as pure functions of names: the same parts give the same numbers on every machine and worker."""

from __future__ import annotations

import hashlib

import numpy as np

_BELOW_ONE = 1 - 2**-53


def _digest(parts: tuple[object, ...]) -> bytes:
    return hashlib.blake2b("|".join(str(part) for part in parts).encode("utf-8")).digest()


def uniform(*parts: object) -> float:
    """A number in [0, 1): the first 8 bytes of BLAKE2b("part|part|...") as an integer, divided by 2**64."""
    # The quotient of the largest integers rounds to 1.0.
    return min(int.from_bytes(_digest(parts)[:8], "big") / 2**64, _BELOW_ONE)


def integer(*parts: object) -> int:
    """An integer in [0, 2**63): for libraries that want a seed of that size."""
    return int.from_bytes(_digest(parts)[:8], "big") >> 1


def generator(*parts: object) -> np.random.Generator:
    """A generator of its own for these parts, independent of every other one."""
    return np.random.default_rng(int.from_bytes(_digest(parts)[:16], "big"))
