"""Times of a training: its own steps, which leave no trace."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from contrastive_toy import ContrastiveToy, toy_loader, toy_settings

from foveate.core.runs import RunFolder
from foveate.training import loop
from foveate.training.loop import train
from foveate.training.settings import TrainingSettings
from foveate.training.timing import MAX_STEPS, StepTimes, time_steps


def test_the_total_counts_steps_and_evaluations() -> None:
    times = StepTimes(step=2.0, evaluation=5.0)
    settings = TrainingSettings(steps=7, batch_size=1, learning_rate=1.0)
    assert times.total(settings) == 14
    assert times.total(settings, evaluations=2) == 24
    # After steps 3, 6 and 7: the last step is evaluated, too.
    assert times.total(settings.model_copy(update={"evaluate_every": 3})) == 29


def test_timed_steps_are_whole_and_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, float]] = []
    take = loop.Session.take_step

    def take_step(self: Any, step: int, *arguments: Any) -> Any:
        result = take(self, step, *arguments)
        change = sum(float((a.detach() - b).abs().sum()) for a, b in zip(self.task.parameters(), initial, strict=True))
        taken.append((step, change))
        return result

    task = ContrastiveToy(dropout=0.2)
    initial = [parameter.detach().clone() for parameter in task.parameters()]
    states = torch.get_rng_state(), random.getstate()
    monkeypatch.setattr(loop.Session, "take_step", take_step)
    times = time_steps(task, toy_loader(), toy_settings())
    monkeypatch.undo()
    assert [step for step, _ in taken] == list(range(MAX_STEPS))
    # The optimizer moved the weights, each step further; the learning rate of the first may be 0.
    assert all(change > 0 for _, change in taken[1:])
    assert times.step > 0 == times.evaluation
    assert all(torch.equal(a, b) for a, b in zip(task.parameters(), initial, strict=True))
    assert all(parameter.grad is None for parameter in task.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]

    other = ContrastiveToy(dropout=0.2)
    for name, of_task in (("timed", task), ("not", other)):
        train(of_task, toy_loader(), toy_settings(), RunFolder.create(tmp_path / name))
    first, second = task.state_dict(), other.state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
