"""Random numbers as pure functions of names: equal parts give equal numbers on every machine, worker and version.

Samplers name what they draw for (purpose, seed, epoch, key) instead of sharing a generator, so a draw does not depend
on the order of work, and a resumed run needs no generator state.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from foveate.core.errors import UserError

_LARGEST_BELOW_ONE = 1 - 2**-53


def _digest(parts: tuple[object, ...]) -> bytes:
    # Keys come from file names, and Python keeps bytes of these that are not UTF-8 as lone surrogates.
    return hashlib.blake2b("|".join(str(part) for part in parts).encode("utf-8", "surrogatepass")).digest()


def uniform(*parts: object) -> float:
    """Return a number in [0, 1): the first 8 bytes of BLAKE2b("part|part|...") as an integer, divided by 2**64."""
    # Quotients of the 1,024 largest integers would round to 1.0.
    return min(int.from_bytes(_digest(parts)[:8], "big") / 2**64, _LARGEST_BELOW_ONE)


def integer(*parts: object) -> int:
    """Return an integer in [0, 2**63), for libraries that take a signed 64-bit seed."""
    return int.from_bytes(_digest(parts)[:8], "big") >> 1


def generator(*parts: object) -> np.random.Generator:
    """Return a NumPy generator that is independent of those of all other parts."""
    return np.random.default_rng(int.from_bytes(_digest(parts)[:16], "big"))


def draw(ids: Sequence[str], limit: int | None, *parts: object, what: str) -> list[int]:
    """Draw at most `limit` positions of named things, in their order; all without a limit.

    Args:
        parts: purpose and seed of the draw.
        what: the things, for the error ("question").

    Raises:
        UserError: two of them have one id, by which results are found again.
    """
    counts = Counter(ids)
    if len(counts) < len(ids):
        ((name, count),) = counts.most_common(1)
        raise UserError(f"{what} '{name}': {count} {what}s have this id; expected an id of its own for each")
    if limit is None or limit >= len(ids):
        return list(range(len(ids)))
    # Sorting by a hash of each id makes the draw independent of their order, and a new id replaces at most one that
    # was drawn before.
    order = np.argsort([uniform(*parts, id) for id in ids], kind="stable")
    return sorted(order[:limit].tolist())


def pick(rng: np.random.Generator, texts: Sequence[str]) -> str:
    """Draw one of several texts."""
    return texts[int(rng.integers(len(texts)))]
