"""TensorBoard: event files in the run folder, `tensorboard --logdir RUN/trackers/tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from foveate.training.trackers import TrackedRun

NEEDS = "tensorboard"


class _TensorBoard:
    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Rows that a killed session wrote from here on are written again: the reader drops the first ones.
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.first_step)
        self._writer.add_text("recipe", f"```yaml\n{yaml.safe_dump(dict(run.config), sort_keys=False)}```", 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_image(self, name: str, path: Path) -> None:
        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), dataformats="HWC")

    def finish(self) -> None:
        self._writer.close()


def open_tracker(run: TrackedRun) -> _TensorBoard:
    """Open the event files of a run."""
    return _TensorBoard(run)
