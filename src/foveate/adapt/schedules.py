"""Learning rates of the study's released code (arXiv 2409.16434): constant within an epoch, and one epoch late.

Its scheduler is stepped behind an epoch with that epoch's own number, so that the first two epochs both have the rate
of the first, and every later one that of the epoch before it.
"""

from __future__ import annotations

import math


def rate_of_epoch(epoch: int, *, peak: float, epochs: int, warmup_epochs: int, final: float, first: float) -> float:
    """The rate meant for an epoch (from 0): linear from `first` towards `peak`, then half a cosine to `final`.

    The cosine counts from epoch 0, not from the end of the warm-up, so that `peak` itself is never reached.
    """
    if epoch < warmup_epochs:
        return first + epoch * (peak - first) / warmup_epochs
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * epoch / epochs))


def released_rate(epoch: int, *, peak: float, epochs: int, warmup_epochs: int, final: float, first: float) -> float:
    """The rate with which the released code trains in an epoch (from 0)."""
    late = max(0, epoch - 1)
    return rate_of_epoch(late, peak=peak, epochs=epochs, warmup_epochs=warmup_epochs, final=final, first=first)
