"""What happens in which round: learning rate, when surrogates come in, when they are made anew, who takes part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def decay_rounds(rounds: int, shares: Sequence[float]) -> list[int]:
    """Rounds at which the rate falls: int(share * rounds); those that fall together are one."""
    return sorted({int(share * rounds) for share in shares})


def rate_of(round_: int, *, rounds: int, base: float, shares: Sequence[float], factor: float = 0.1) -> float:
    """The learning rate of a round."""
    return base * factor ** sum(boundary <= round_ for boundary in decay_rounds(rounds, shares))


def surrogate_start(rounds: int, share: float) -> int:
    """The first round in which clients feel one another."""
    return int(share * rounds)


def is_refreshed(round_: int, *, start: int, refresh: int) -> bool:
    """Whether surrogates are made anew in this round."""
    return round_ >= start and (round_ - start) % refresh == 0


def participants(clients: Sequence[int], share: float, generator: np.random.Generator) -> list[int]:
    """The clients that train in a round: at least one, drawn without replacement, ascending."""
    if share >= 1:
        return list(clients)
    count = max(1, round(share * len(clients)))
    return sorted(generator.choice(np.asarray(clients), size=count, replace=False).tolist())
