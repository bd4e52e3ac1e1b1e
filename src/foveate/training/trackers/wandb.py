"""Weights & Biases: project `foveate` or WANDB_PROJECT; WANDB_MODE=offline writes files that `wandb sync` sends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.training.trackers import PROJECT, TrackedRun

NEEDS = "wandb"


class _Wandb:
    def __init__(self, run: TrackedRun) -> None:
        import wandb  # pyrefly: ignore[missing-import]

        self._wandb: Any = wandb
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._run = wandb.init(
            project=project, name=run.name, id=run.id, resume="allow", config=dict(run.config), dir=str(run.folder)
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        # Steps that it has already are dropped, with the same numbers in them.
        self._run.log(dict(values), step=step)

    def log_image(self, name: str, path: Path) -> None:
        self._run.log({name: self._wandb.Image(str(path))})

    def finish(self) -> None:
        self._run.finish()


def open_tracker(run: TrackedRun) -> _Wandb:
    """Begin a run of wandb, or go on with it."""
    return _Wandb(run)
