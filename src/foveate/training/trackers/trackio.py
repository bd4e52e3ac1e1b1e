"""Trackio: a database on this machine, shown by `trackio show`; project `foveate` or TRACKIO_PROJECT."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.training.trackers import PROJECT, TrackedRun

NEEDS = "trackio"


class _Trackio:
    def __init__(self, run: TrackedRun) -> None:
        import trackio  # pyrefly: ignore[missing-import]

        self._trackio: Any = trackio
        # Its runs are known by their names alone, and two folders may have the same one.
        name = f"{run.name}-{run.id[:8]}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        trackio.init(project=project, name=name, config=run.flat_config(), resume="allow", embed=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def log_image(self, name: str, path: Path) -> None:
        self._trackio.log({name: self._trackio.Image(str(path))})

    def finish(self) -> None:
        self._trackio.finish()


def open_tracker(run: TrackedRun) -> _Trackio:
    """Begin a run of trackio, or go on with it."""
    return _Trackio(run)
