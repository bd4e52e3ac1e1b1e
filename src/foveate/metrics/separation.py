"""How well a score separates what is there from what is not, and the threshold between the two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from foveate.core.errors import UserError


@dataclass(frozen=True, slots=True)
class Separation:
    """A threshold on scores and how well it separates.

    Attributes:
        threshold: a score from it on counts as present.
        auc: probability that a present item scores above an absent one, ties counted half.
        hit_rate: share of present items from the threshold on. false_alarm_rate: of absent ones.
    """

    threshold: float
    auc: float
    hit_rate: float
    false_alarm_rate: float


def separate(present_P: ArrayLike, absent_A: ArrayLike) -> Separation:
    """Find the threshold at which as large a share of present items is missed as of absent ones is let through.

    This equal error rate varies less between samples than the best sum of both rates (Youden's J), which is the peak of
    a flat curve. The threshold lies midway between two neighboring scores; of several the lowest, which rejects least.

    Args:
        present_P, absent_A: scores of present and of absent items, at least one of each, finite.

    Raises:
        UserError: there are no scores of a kind, or one is not finite.

    Source: the AUC is the statistic of Mann & Whitney 1947 divided by the number of pairs.

    Example:
        >>> separate([3.0, 4.0], [1.0, 2.0])
        Separation(threshold=2.5, auc=1.0, hit_rate=1.0, false_alarm_rate=0.0)
    """
    present, absent = (np.sort(np.asarray(scores, dtype=np.float64).ravel()) for scores in (present_P, absent_A))
    for name, scores in (("present", present), ("absent", absent)):
        if not len(scores) or not np.isfinite(scores).all():
            raise UserError(f"{name}: not a list of scores (got {len(scores)}); expected finite numbers, at least one")
    levels = np.unique(np.concatenate([present, absent]))
    # Below all scores, where nothing is rejected, and midway between neighbors.
    thresholds = np.concatenate([levels[:1], (levels[:-1] + levels[1:]) / 2])
    hits = (len(present) - np.searchsorted(present, thresholds)) / len(present)
    alarms = (len(absent) - np.searchsorted(absent, thresholds)) / len(absent)
    best = int(np.argmin(np.abs(1 - hits - alarms)))
    # The sum of both counts a tied absent score once and every lower one twice, hence the division by 2 below.
    below = np.searchsorted(absent, present, side="left") + np.searchsorted(absent, present, side="right")
    auc = float(below.mean() / 2 / len(absent))
    return Separation(float(thresholds[best]), auc, float(hits[best]), float(alarms[best]))
