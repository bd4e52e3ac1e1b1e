"""A training that is also measured after every epoch: how much would choosing an epoch by test images flatter?

The study's printed numbers are those of the best epoch on the test images. Nothing here chooses anything by them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from foveate.adapt.training import AdaptTask
from foveate.core.files import read_json, write_json_atomically
from foveate.training.settings import TrainingSettings


class WatchedTask(AdaptTask):
    """Measures itself before the first update of every epoch but the first, which is behind the epoch before.

    Args:
        measure: the accuracy of the model as it is. images: of an epoch. notes: file of what was measured, so that a
            training that goes on has it.
    """

    def __init__(self, *arguments: Any, measure: Callable[[], float], images: int, notes: Path, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.measure, self.images, self.notes = measure, images, notes
        self.measured: dict[str, float] = read_json(notes) if notes.is_file() else {}

    def learning_rate_factor(self, step: int, *, settings: TrainingSettings) -> float:
        """See `Task`; the loop asks once an update."""
        epoch = step * settings.batch_size // self.images
        first = step > 0 and (step - 1) * settings.batch_size // self.images < epoch
        if first and str(epoch) not in self.measured:
            self.measured[str(epoch)] = self.measure()
            write_json_atomically(self.notes, self.measured)
        return super().learning_rate_factor(step, settings=settings)
