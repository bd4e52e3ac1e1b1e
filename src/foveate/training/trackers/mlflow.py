"""MLflow: the server or folder of MLFLOW_TRACKING_URI, experiment `foveate` or MLFLOW_EXPERIMENT_NAME."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from foveate.training.trackers import PROJECT, TrackedRun

NEEDS = "mlflow"
_MAX_PARAMETER = 500  # characters of a value that every store takes


class _Mlflow:
    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient  # pyrefly: ignore[missing-import]

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        # MLflow chooses the ids of its runs, so ours is a tag.
        earlier = self._client.search_runs([number], f"tags.foveate_run = '{run.id}'")
        tags = {"foveate_run": run.id}
        began = earlier[0] if earlier else self._client.create_run(number, run_name=run.name, tags=tags)
        self._id = began.info.run_id
        if not earlier:
            for field, value in run.flat_config().items():
                self._client.log_param(self._id, field, str(value)[:_MAX_PARAMETER])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, re.sub(r"[^\w./ -]", "_", name), value, step=step)

    def log_image(self, name: str, path: Path) -> None:
        folder = str(Path("images", name).parent)
        self._client.log_artifact(self._id, str(path), folder)

    def finish(self) -> None:
        self._client.set_terminated(self._id)


def open_tracker(run: TrackedRun) -> _Mlflow:
    """Begin a run of MLflow, or go on with it."""
    return _Mlflow(run)
