"""Evaluation inside the loop: the best checkpoint, early stopping, and resuming both."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from contrastive_toy import ContrastiveToy, Interrupted, toy_loader, toy_settings
from processes import run_processes

from foveate.core.errors import UserError
from foveate.core.runs import RunFolder
from foveate.training import checkpoint
from foveate.training.loop import BestEvaluation, TrainingOutcome, train
from foveate.training.settings import TrainingSettings
from foveate.training.task import Task
from naming import raises_naming

SCRIPT = Path(__file__).resolve().parent / "contrastive_toy.py"


class Scripted(ContrastiveToy):
    """Its evaluation number n gives `values[n]`, under the name accuracy."""

    def __init__(self, values: Sequence[float], *, every: int) -> None:
        super().__init__(dropout=0.2)
        self.values, self.every = values, every
        self.evaluated: list[int] = []

    def evaluate(self, step: int) -> dict[str, float]:
        self.evaluated.append(step)
        return {"accuracy": self.values[step // self.every - 1]}


def run_scripted(
    path: Path, values: Sequence[float], *, loader: Any = None, every: int = 2, **changes: Any
) -> tuple[Scripted, TrainingOutcome]:
    task = Scripted(values, every=every)
    fields = {"evaluate_every": every, "monitor": "accuracy", "monitor_mode": "max", "checkpoint_every": 100}
    settings = toy_settings(**(fields | changes))
    return task, train(task, loader or toy_loader(), settings, RunFolder.create(path))


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def saved_steps(path: Path) -> list[int]:
    return sorted(int(folder.name.removeprefix("step-")) for folder in (path / "checkpoints").glob("step-*"))


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_evaluations_are_logged_and_the_best_checkpoint_is_kept(tmp_path: Path) -> None:
    values = [0.3, 0.7, 0.5, 0.6, 0.6, 0.1]
    task, outcome = run_scripted(tmp_path, values, keep_checkpoints=1, log_every=5)
    assert task.evaluated == [2, 4, 6, 8, 10, 12]
    assert outcome.best == BestEvaluation(step=4, value=0.7, since=4)
    assert not outcome.stopped_early
    assert saved_steps(tmp_path) == [4, 12]
    measured = {row["step"]: row["eval_accuracy"] for row in read_rows(tmp_path) if "eval_accuracy" in row}
    assert measured == dict(zip(task.evaluated, values, strict=True))
    assert all("loss" in row for row in read_rows(tmp_path)), "an evaluation is part of a whole row"


def test_evaluating_changes_neither_weights_nor_random_numbers(tmp_path: Path) -> None:
    class Drawing(ContrastiveToy):
        def evaluate(self, step: int) -> dict[str, float]:
            return {"draw": torch.rand(()).item()}

    settings = toy_settings(evaluate_every=3)
    watched, plain = Drawing(dropout=0.2), ContrastiveToy(dropout=0.2)
    train(watched, toy_loader(), settings, RunFolder.create(tmp_path / "watched"))
    train(plain, toy_loader(), toy_settings(), RunFolder.create(tmp_path / "plain"))
    assert_same_weights(plain, watched)
    assert watched.training
    draws = [row["eval_draw"] for row in read_rows(tmp_path / "watched") if "eval_draw" in row]
    assert len(set(draws)) == 4


def test_the_average_is_what_is_evaluated(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Looking(ContrastiveToy):
        def evaluate(self, step: int) -> dict[str, float]:
            seen.append(self.log_scale.detach().clone())
            return {"loss": 0.0}

    task = Looking()
    outcome = train(task, toy_loader(), toy_settings(evaluate_every=12), RunFolder.create(tmp_path))
    assert outcome.ema is not None
    assert torch.equal(seen[0], outcome.ema.averages["log_scale"])
    assert not torch.equal(seen[0], task.log_scale)


@pytest.mark.parametrize(
    ("ties", "patience", "values", "stop", "best"),
    [
        ("later", 3, [0.5, 0.6, 0.6, 0.55, 0.5, 0.4, 0.3, 0.2], 6, 3),
        ("later", 2, [0.5, 0.5, 0.5, 0.5], None, 4),
        ("later", 5, [0.7, 0.6, 0.65, 0.69, 0.71, 0.7, 0.7, 0.7, 0.7, 0.7], 10, 5),
        ("earlier", 3, [0.5, 0.6, 0.6, 0.55, 0.5, 0.4], 5, 2),
        ("earlier", 2, [0.5, 0.5, 0.5, 0.5], 3, 1),
        ("earlier", 2, [math.nan, math.nan, 0.9], 2, 0),
        ("earlier", None, [0.5, 0.4, 0.3, 0.2], None, 1),
    ],
)
def test_patience_and_ties(
    ties: str, patience: int | None, values: list[float], stop: int | None, best: int, tmp_path: Path
) -> None:
    changes = {"ties": ties, "patience": patience, "steps": len(values)}
    task, outcome = run_scripted(tmp_path, values, every=1, **changes)
    assert task.evaluated[-1] == outcome.step == (stop or len(values))
    assert outcome.stopped_early == (stop is not None)
    assert (outcome.status, outcome.best.step) == ("finished", best)
    again, later = run_scripted(tmp_path, values, every=1, **changes)
    assert again.evaluated == []
    assert (later.step, later.stopped_early, later.best) == (outcome.step, outcome.stopped_early, outcome.best)
    assert_same_weights(task, again)


@pytest.mark.parametrize("stop_in", [1, 3, 4, 6, 7])
def test_a_stopped_run_remembers_its_patience(stop_in: int, tmp_path: Path) -> None:
    values = [0.3, 0.7, 0.5, 0.7, 0.6, 0.1]
    whole, expected = run_scripted(tmp_path / "whole", values, patience=2)
    assert (expected.step, expected.best) == (8, BestEvaluation(step=4, value=0.7, since=2))
    loader = Interrupted(toy_loader(), step=stop_in, number=signal.SIGTERM)
    _, first = run_scripted(tmp_path / "parts", values, patience=2, loader=loader)
    assert first.status == ("stopped" if stop_in < 7 else "finished")
    task, outcome = run_scripted(tmp_path / "parts", values, patience=2)
    assert (outcome.step, outcome.best, outcome.stopped_early) == (8, expected.best, True)
    assert_same_weights(whole, task)
    rows = [{k: v for k, v in row.items() if "second" not in k} for row in read_rows(tmp_path / "parts")]
    assert rows == [{k: v for k, v in row.items() if "second" not in k} for row in read_rows(tmp_path / "whole")]


def test_a_killed_run_evaluates_again_what_was_not_saved(tmp_path: Path) -> None:
    class Fails(Interrupted):
        def batches(self, start_step: int, stop_step: int) -> Any:
            for step, batch in enumerate(self.loader.batches(start_step, stop_step), start=start_step):
                if step == self.step:
                    raise OSError("the disk is gone")
                yield batch

    values = [0.3, 0.7, 0.5, 0.6, 0.4, 0.1]
    loader = Fails(toy_loader(), step=7, number=signal.SIGTERM)
    with pytest.raises(OSError, match="disk"):
        run_scripted(tmp_path, values, patience=3, loader=loader)
    assert saved_steps(tmp_path) == [2, 4], "each improvement is saved at once"
    task, outcome = run_scripted(tmp_path, values, patience=3)
    assert task.evaluated == [6, 8, 10]
    assert (outcome.step, outcome.best.step) == (10, 4)


def test_more_patience_goes_on(tmp_path: Path) -> None:
    values = [0.7, 0.6, 0.5, 0.8, 0.1, 0.1]
    _, outcome = run_scripted(tmp_path, values, patience=2)
    assert outcome.step == 6
    task, outcome = run_scripted(tmp_path, values, patience=3)
    assert task.evaluated == [8, 10, 12]
    assert outcome.best.step == 8


def test_the_best_weights_can_be_restored(tmp_path: Path) -> None:
    values = [0.3, 0.7, 0.5, 0.6, 0.6, 0.1]
    expected, _ = run_scripted(tmp_path / "short", values[:2], steps=4, warmup_steps=0, schedule="constant")
    changes = {"warmup_steps": 0, "schedule": "constant", "restore_best": True, "keep_checkpoints": 1}
    for _ in range(2):  # a finished run that is called again gives the same
        task, outcome = run_scripted(tmp_path / "whole", values, **changes)
        assert (outcome.step, outcome.best.step) == (12, 4)
        assert_same_weights(expected, task)


def test_another_metric_or_a_damaged_best_checkpoint_starts_a_new_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [0.7, 0.6, 0.5, 0.8, 0.1, 0.1]
    run_scripted(tmp_path, values, steps=6, keep_checkpoints=1)
    assert saved_steps(tmp_path) == [2, 6]
    shutil.copytree(tmp_path, tmp_path / "copy")
    _, outcome = run_scripted(tmp_path / "copy", values, steps=8, monitor_mode="min")
    assert outcome.best == BestEvaluation(step=8, value=0.8, since=0)
    (checkpoint.folder_of_step(tmp_path / "checkpoints", 2) / "weights.safetensors").unlink()
    _, outcome = run_scripted(tmp_path, values, steps=10)
    assert outcome.best == BestEvaluation(step=8, value=0.8, since=1)
    assert "weights.safetensors is missing" in capsys.readouterr().err


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path) -> None:
    class Without(ContrastiveToy):
        evaluate = Task.evaluate

    with raises_naming(UserError, "training.evaluate_every", "3", "Without"):
        train(Without(), toy_loader(), toy_settings(evaluate_every=3), RunFolder.create(tmp_path))
    with raises_naming(UserError, "training.monitor", "accuracy", "training.evaluate_every"):
        run_scripted(tmp_path, [0.1], evaluate_every=None)
    with raises_naming(UserError, "training.monitor", "acuracy", "accuracy"):
        run_scripted(tmp_path, [0.1], monitor="acuracy")
    for name, value in (("patience", 2), ("restore_best", True), ("ties", "later"), ("monitor_mode", "max")):
        with raises_naming(ValueError, name, "monitor"):
            TrainingSettings(steps=2, batch_size=2, learning_rate=0.1, **{name: value})


def test_a_task_may_evaluate_at_steps_of_its_own(tmp_path: Path) -> None:
    class Epochs(Scripted):
        def should_evaluate(self, step: int, *, settings: TrainingSettings) -> bool:
            return step in (3, 7)

        def evaluate(self, step: int) -> Mapping[str, float]:
            self.evaluated.append(step)
            return {"accuracy": step / 10}

    task = Epochs([], every=1)
    train(task, toy_loader(), toy_settings(), RunFolder.create(tmp_path))
    assert task.evaluated == [3, 7]


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_evaluate_as_one(parallel: str, tmp_path: Path) -> None:
    arguments = ("--steps", 5, "--evaluate-every", 2)
    run_processes(SCRIPT, tmp_path / "one", *arguments)
    run_processes(SCRIPT, tmp_path / "two", *arguments, "--parallel", parallel, world_size=2)
    one, two = read_rows(tmp_path / "one"), read_rows(tmp_path / "two")
    for first, second in zip(one, two, strict=True):
        assert ("eval_loss" in first) == (first["step"] in (2, 4, 5))
        assert first.keys() == second.keys()
        assert second["loss"] == pytest.approx(first["loss"], abs=1e-5)
        assert second.get("eval_loss") == pytest.approx(first.get("eval_loss"), abs=1e-5)
        assert second.get("eval_draw") == first.get("eval_draw")
