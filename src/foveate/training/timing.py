"""Time of a training before it starts: some of its own steps are taken, and undone."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from foveate.core.runs import RunFolder
from foveate.core.stopping import StopRequest
from foveate.training.checkpoint import trained_tensors
from foveate.training.loader import BatchSource
from foveate.training.loop import open_session
from foveate.training.settings import TrainingSettings
from foveate.training.task import Task

# Steps differ in their padding and in what the loader's threads take of the processor: a mean over a few of them.
MAX_STEPS = 7
# Large models are timed by one step behind the first, which pays for what is set up once.
_MAX_SECONDS = 10.0


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one step, with the wait for its batch, and of one evaluation; 0 where a training has none."""

    step: float
    evaluation: float = 0.0

    def total(self, settings: TrainingSettings, *, evaluations: int = 0) -> float:
        """Return the seconds of all steps and evaluations; early stopping would end sooner.

        Args:
            evaluations: beside those of the settings.
        """
        if settings.evaluate_every is not None:
            evaluations += -(-settings.steps // settings.evaluate_every)
        return settings.steps * self.step + evaluations * self.evaluation


def time_steps(task: Task, loader: BatchSource, settings: TrainingSettings, *, evaluate: bool = False) -> StepTimes:
    """Time the first steps of a training as `foveate.training.loop.train` takes them, all but its checkpoints.

    Weights, buffers and the states of generators are afterwards as they were; no file is written.

    Args:
        evaluate: time an evaluation, too.

    Raises:
        TrainingError: see `train`.
    """
    steps, times = min(MAX_STEPS, settings.steps), [time.monotonic()]
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_session(task, loader, settings, RunFolder(Path(scratch))) as session,
        _restored(task),
    ):
        session.start(resume=False)
        with contextlib.closing(loader.batches(0, steps)) as batches:
            for step in range(steps):
                session.take_step(step, batches, StopRequest())
                times.append(time.monotonic())
                if len(times) > 2 and times[-1] - times[0] > _MAX_SECONDS:
                    break
        # The first step is left out where there are others: it waits for its batch and warms up.
        seconds = times[-1] - times[1] if len(times) > 2 else times[-1] - times[0]
        started = time.monotonic()
        if evaluate:
            session.evaluate()
        return StepTimes(seconds / max(1, len(times) - 2), time.monotonic() - started if evaluate else 0.0)


@contextlib.contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Put back what a training changes in a module."""
    before = {name: tensor.detach().clone() for name, tensor in trained_tensors(module).items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in trained_tensors(module).items():
                tensor.copy_(before[name])
