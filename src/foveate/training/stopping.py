"""Stop a training before its last step: on a signal, or when evaluations no longer improve (early stopping)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from foveate.core.stopping import StopRequest
from foveate.training.settings import TrainingSettings

__all__ = ["BestEvaluation", "StopRequest"]


@dataclass
class BestEvaluation:
    """The best evaluation so far, and how many have followed it without improvement.

    It is stored in every checkpoint: a resumed run stops at the same step as an uninterrupted one.

    Attributes:
        step: of the best evaluation; 0 while there is none.
        value: of the monitored metric at that step.
        since: evaluations after the best one.
    """

    step: int = 0
    value: float | None = None
    since: int = 0

    def update(self, value: float, *, step: int, settings: TrainingSettings) -> bool:
        """Take in the metric of an evaluation; return whether it is the best so far.

        A metric that is not a number never improves, so a diverged run uses up its patience.
        """
        if self.value is None:
            improved = not math.isnan(value)
        elif value == self.value:
            improved = settings.ties == "later"
        else:
            improved = value > self.value if settings.monitor_mode == "max" else value < self.value
        if improved:
            self.step, self.value, self.since = step, value, 0
        else:
            self.since += 1
        return improved

    def is_exhausted(self, settings: TrainingSettings) -> bool:
        """Whether `settings.patience` evaluations have passed without improvement."""
        return settings.patience is not None and self.since >= settings.patience
