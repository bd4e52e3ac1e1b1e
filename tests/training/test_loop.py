from __future__ import annotations

import json
import math
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from contrastive_toy import (
    BATCH,
    ROWS,
    SEED,
    ContrastiveSamples,
    ContrastiveToy,
    Interrupted,
    toy_loader,
    toy_settings,
)
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.files import FolderLock
from foveate.core.runs import RunFolder
from foveate.core.stopping import StopRequest
from foveate.training import checkpoint
from foveate.training.ema import ExponentialAverage, ema_decay
from foveate.training.loader import BadSample, Loader
from foveate.training.loop import TrainingError, TrainingOutcome, train
from foveate.training.task import Task
from naming import raises_naming

TIMES = ("seconds", "samples_per_second")


def sit(path: Path, *, loader: Any = None, dropout: float = 0.2, **changes: Any) -> tuple[Any, TrainingOutcome]:
    """One call of `train` on the contrastive toy."""
    task = ContrastiveToy(dropout=dropout)
    loader = toy_loader() if loader is None else loader
    return task, train(task, loader, toy_settings(**changes), RunFolder.create(path))


def interrupted(step: int, number: signal.Signals = signal.SIGTERM) -> Interrupted:
    return Interrupted(toy_loader(), step=step, number=number)


def rows(path: Path) -> list[dict[str, Any]]:
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, TrainingOutcome]:
    path = tmp_path_factory.mktemp("runs") / "straight"
    return path, *sit(path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_and_going_on_equals_not_stopping_bit_for_bit(
    number: signal.Signals, tmp_path: Path, straight: Any
) -> None:
    before = signal.getsignal(number)
    _, stopped = sit(tmp_path, loader=interrupted(6, number))
    assert (stopped.status, stopped.step) == ("stopped", 7)
    assert signal.getsignal(number) is before
    task, outcome = sit(tmp_path)
    assert (outcome.status, outcome.step) == ("finished", 12)
    path, reference, reference_outcome = straight
    assert_same_state(task, reference)
    for name, average in reference_outcome.ema.averages.items():
        assert torch.equal(average, outcome.ema.averages[name])
    assert rows(tmp_path) == rows(path)
    assert outcome.seconds > stopped.seconds


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_goes_on_bit_for_bit_too(momentum: float, tmp_path: Path) -> None:
    changes = {"optimizer": "sgd", "momentum": momentum}
    task, _ = sit(tmp_path / "straight", **changes)
    _, outcome = sit(tmp_path / "broken", loader=interrupted(7), **changes)
    assert (outcome.status, outcome.step) == ("stopped", 8)
    again, outcome = sit(tmp_path / "broken", **changes)
    assert outcome.status == "finished"
    assert_same_state(task, again)
    if momentum:
        with raises_naming(UserError, "optimizer"):
            sit(tmp_path / "broken", steps=13)


def test_the_rate_counts_the_samples_that_were_drawn(tmp_path: Path) -> None:
    class Empty(Interrupted):
        drawn = 0

    sit(tmp_path / "none", steps=3, loader=Empty(toy_loader(), step=99, number=signal.SIGTERM))
    sit(tmp_path / "all", steps=3)
    rates = {
        name: [json.loads(line)["samples_per_second"] for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("none", "all")
    }
    assert set(rates["none"]) == {0.0}
    assert min(rates["all"]) > 0


def test_rows_beyond_the_checkpoint_are_written_once(tmp_path: Path, straight: Any) -> None:
    class Breaks(Interrupted):
        def batches(self, start_step: int, stop_step: int) -> Iterator[dict[str, Any]]:
            for step, batch in enumerate(self.loader.batches(start_step, stop_step), start=start_step):
                if step == self.step:
                    raise OSError("the disk is gone")
                yield batch

    with pytest.raises(OSError, match="disk"):
        sit(tmp_path, loader=Breaks(toy_loader(), step=8, number=signal.SIGTERM))
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 9))
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 9, "lo')
    task, _ = sit(tmp_path)
    assert rows(tmp_path) == rows(straight[0])
    assert_same_state(task, straight[1])


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    task, _ = sit(tmp_path, steps=4)
    again, outcome = sit(tmp_path, steps=4)
    assert (outcome.status, outcome.step, outcome.last_row) == ("finished", 4, {})
    assert_same_state(task, again)


def test_the_result_does_not_depend_on_logging_saving_or_workers(tmp_path: Path, straight: Any) -> None:
    task, _ = sit(tmp_path, loader=toy_loader(workers=0), log_every=5, checkpoint_every=4, keep_checkpoints=1)
    assert_same_state(task, straight[1])
    assert [row["step"] for row in rows(tmp_path)] == [1, 5, 10, 12]
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000012"]


def test_parts_of_a_batch_train_like_the_whole(tmp_path: Path, straight: Any) -> None:
    task, outcome = sit(tmp_path, accumulate=3)
    weights = dict(straight[1].named_parameters())
    for name, parameter in task.named_parameters():
        torch.testing.assert_close(parameter, weights[name], rtol=1e-4, atol=1e-5)
    for name, average in straight[2].ema.averages.items():
        torch.testing.assert_close(outcome.ema.averages[name], average, rtol=1e-4, atol=1e-5)
    assert outcome.last_row["loss"] == pytest.approx(straight[2].last_row["loss"], rel=1e-4)
    assert task.seen == straight[1].seen, "the loss is taken once a step"


def test_parts_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with raises_naming(UserError, "9", "8", "1"):
        sit(tmp_path, accumulate=9)


def test_the_global_generator_is_left_as_it_was(tmp_path: Path) -> None:
    task = ContrastiveToy(dropout=0.2)
    before = torch.get_rng_state()
    train(task, toy_loader(), toy_settings(steps=3), RunFolder.create(tmp_path))
    assert torch.equal(before, torch.get_rng_state())


def test_starting_over_removes_the_old_run(tmp_path: Path) -> None:
    sit(tmp_path, steps=6)
    task = ContrastiveToy()
    outcome = train(task, toy_loader(), toy_settings(steps=3, seed=3), RunFolder.create(tmp_path), resume=False)
    assert outcome.step == 3
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000003"]


def test_what_would_change_the_order_is_refused_on_resuming(tmp_path: Path) -> None:
    sit(tmp_path, steps=4)
    with raises_naming(UserError, "3", "4"):
        sit(tmp_path, steps=8, seed=4)
    other = toy_loader()
    other.rows = other.rows[::-1]
    with raises_naming(UserError, "rows_hash"):
        sit(tmp_path, steps=8, loader=other)
    with raises_naming(UserError, "4", "3"):
        sit(tmp_path, steps=3)


def test_other_frozen_weights_and_another_architecture_are_refused(tmp_path: Path) -> None:
    sit(tmp_path, steps=4)
    task = ContrastiveToy()
    with torch.no_grad():
        task.frozen.weight.add_(1)
    with raises_naming(UserError, tmp_path, "frozen weights"):
        train(task, toy_loader(), toy_settings(steps=8), RunFolder.create(tmp_path))
    task = ContrastiveToy()
    task.prompter = nn.Linear(4, 9)
    with raises_naming(UserError, "prompter.bias", "[8]", "[9]"):
        train(task, toy_loader(), toy_settings(steps=8), RunFolder.create(tmp_path))


def test_longer_training_goes_on_and_says_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sit(tmp_path, steps=4)
    _, outcome = sit(tmp_path, steps=6, learning_rate=0.02)
    said = capsys.readouterr().err
    assert outcome.step == 6
    assert "resumed with learning_rate 0.02 (was 0.01 until step 4)" in said
    assert "resumed from step 4/6" in said


class Exploding(Task):
    """Its loss turns into `value` at update `at` (from 0)."""

    def __init__(self, *, at: int, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.at = at
        self.value = value
        self.calls = 0

    def losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float | Tensor]]:
        loss = self.weight.square().sum()
        if self.calls == self.at:
            loss = loss * self.value
        self.calls += 1
        return {"loss": loss, "part_loss": loss / 2}, {"share": math.nan}

    def export(self, folder: Path) -> None:
        raise AssertionError("never exported")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_training_with_the_step_and_the_last_values(value: float, tmp_path: Path) -> None:
    task = Exploding(at=3, value=value)
    with pytest.raises(TrainingError, match=r"step 4: .*loss 2\.\d+, part_loss"):
        train(task, toy_loader(), toy_settings(ema_decay=None), RunFolder.create(tmp_path))
    assert torch.isfinite(task.weight).all()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    assert rows(tmp_path)[0]["share"] is None


def test_clipping_bounds_the_update_and_the_log_has_the_norm_before(tmp_path: Path) -> None:
    task = Exploding(at=-1, value=1.0)
    settings = toy_settings(steps=1, warmup_steps=0, gradient_clip_norm=0.5, ema_decay=None)
    outcome = train(task, toy_loader(), settings, RunFolder.create(tmp_path))
    assert outcome.last_row["gradient_norm"] == pytest.approx(2 * math.sqrt(3))
    saved = checkpoint.newest(tmp_path / "checkpoints")
    assert saved is not None
    from safetensors.torch import load_file

    moment = load_file(saved / "optimizer.safetensors")["weight/exp_avg"] / (1 - settings.betas[0])
    assert moment.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_bf16_trains_fp32_weights(tmp_path: Path, straight: Any) -> None:
    task, outcome = sit(tmp_path, precision="bf16")
    assert all(parameter.dtype == torch.float32 for parameter in task.parameters())
    expected = straight[2].last_row["loss"]
    assert outcome.last_row["loss"] != expected
    assert outcome.last_row["loss"] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_bf16_on_processors_that_have_it(
    fast: bool, tmp_path: Path, straight: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx512_bf16": fast}, raising=False
    )
    _, outcome = sit(tmp_path / "auto", precision="auto")
    assert "bf16" not in capsys.readouterr().err
    _, half = sit(tmp_path / "half", precision="bf16")
    assert ("no instructions for bfloat16" in capsys.readouterr().err) == (not fast)
    expected = half if fast else straight[2]
    assert outcome.last_row["loss"] == expected.last_row["loss"]
    assert half.last_row["loss"] != straight[2].last_row["loss"]


def test_average_follows_its_formula_and_can_be_put_in_place(tmp_path: Path) -> None:
    module = nn.Linear(2, 1, bias=False)
    average = ExponentialAverage(module, decay=0.6)
    expected = module.weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            module.weight.add_(1.0)
        average.update(module, step=step)
        decay = min(0.6, (1 + step) / (10 + step))
        assert ema_decay(step, decay=0.6) == decay
        expected = decay * expected + (1 - decay) * module.weight.detach()
    torch.testing.assert_close(average.averages["weight"], expected)
    own = module.weight.detach().clone()
    with average.applied(module):
        torch.testing.assert_close(module.weight.detach(), expected)
    assert torch.equal(module.weight.detach(), own)


def test_frozen_parameters_stay_and_are_not_in_the_checkpoint(tmp_path: Path) -> None:
    task, outcome = sit(tmp_path)
    assert torch.equal(task.frozen.weight, ContrastiveToy().frozen.weight)
    assert not any(name.startswith("frozen") for name in outcome.ema.averages)
    saved = checkpoint.newest(tmp_path / "checkpoints")
    assert "frozen.weight" not in checkpoint._header(saved / "weights.safetensors")["shapes"]
    assert "frozen.weight" in checkpoint.gather_weights(task)


class WithBad(ContrastiveSamples):
    def __init__(self, *bad: int) -> None:
        super().__init__()
        self.bad = bad

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        if row in self.bad:
            raise BadSample(f"image-{row}", "cut off")
        return super().sample(row, epoch, seed)


def test_samples_that_cannot_be_used_are_counted_over_all_sittings(tmp_path: Path) -> None:
    def loader() -> Loader:
        return Loader(WithBad(2, 9), rows=range(ROWS), batch_size=BATCH, seed=SEED)

    _, stopped = sit(tmp_path, loader=Interrupted(loader(), step=5, number=signal.SIGTERM))
    _, outcome = sit(tmp_path, loader=loader())
    assert json.loads((tmp_path / "bad-samples-0.json").read_text()) == {
        "image-2": "cut off",
        "image-9": "cut off",
    }
    _, straight = sit(tmp_path / "straight", loader=loader())
    assert stopped.bad_draws < outcome.bad_draws == straight.bad_draws
    assert straight.bad_draws >= 8


def test_samples_that_cannot_be_used_are_listed_where_training_fails(tmp_path: Path) -> None:
    loader = Loader(WithBad(*range(12)), rows=range(ROWS), batch_size=BATCH, seed=SEED)
    with raises_naming(UserError, "10%", "image-"):
        sit(tmp_path, loader=loader)
    assert len(loader.bad_samples) > 5
    assert json.loads((tmp_path / "bad-samples-0.json").read_text()) == loader.bad_samples
    assert not (tmp_path / "checkpoints" / "step-00000005").exists()


def test_samples_that_cannot_be_used_are_listed_with_each_checkpoint_and_anew_without_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed: list[list[str]] = []

    class Watched(Interrupted):
        def batches(self, start_step: int, stop_step: int) -> Iterator[dict[str, Any]]:
            for batch in self.loader.batches(start_step, stop_step):
                listed.append(sorted(path.name for path in tmp_path.glob("bad-samples-*")))
                yield batch

    stale = [tmp_path / f"bad-samples-{rank}.json" for rank in (0, 1)]
    for path in stale:
        path.write_text('{"image-99": "of the run before"}')
    loader = Loader(WithBad(2), rows=range(ROWS), batch_size=BATCH, seed=SEED)
    watched = Watched(loader, step=99, number=signal.SIGTERM)
    train(ContrastiveToy(), watched, toy_settings(steps=7), RunFolder.create(tmp_path), resume=False)
    assert listed == [[]] * 5 + [["bad-samples-0.json"]] * 2
    assert json.loads(stale[0].read_text()) == {"image-2": "cut off"}
    assert capsys.readouterr().err.count("bad-samples-0.json") == 1


def test_two_trainings_in_one_folder_are_refused(tmp_path: Path) -> None:
    with (
        FolderLock(tmp_path / "checkpoints", purpose="training"),
        raises_naming(UserError, tmp_path),
    ):
        sit(tmp_path)


def test_fsdp_with_one_process_says_that_it_has_no_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sit(tmp_path, steps=3, parallel="fsdp")
    assert "parallel 'fsdp' has no effect with one process" in capsys.readouterr().err


def test_second_interrupt_aborts() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal_name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    found: list[object] = []

    def enter() -> None:
        with StopRequest() as stop:
            found.append(stop.signal_name)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [None]


def test_no_warning_comes_from_a_plain_run(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        # Every warning becomes an error, which would end the run before its last step.
        warnings.simplefilter("error")
        assert sit(tmp_path, steps=3)[1].step == 3
