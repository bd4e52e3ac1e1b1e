"""Stop a training before its last step: on a signal, or when evaluations no longer improve (early stopping)."""

from __future__ import annotations

import math
import signal
import threading
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from foveate.training.settings import TrainingSettings

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Note SIGTERM and the first Ctrl-C within a `with` block; a second Ctrl-C interrupts at once.

    Attributes:
        signal_name: "SIGTERM" or "SIGINT" once one has come, else None.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        # Python delivers signals to the main thread only; elsewhere the caller has its own way of stopping.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


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
