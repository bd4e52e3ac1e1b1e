"""A frozen base: in bfloat16 while training, exact afterwards, and never exchanged for another one."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from contrastive_toy import ContrastiveToy, Interrupted, toy_loader, toy_settings
from processes import run_processes
from safetensors.torch import load_file

from foveate.core.errors import UserError
from foveate.core.runs import RunFolder
from foveate.training import checkpoint
from foveate.training.loop import TrainingError, TrainingOutcome, train
from foveate.training.settings import TrainingSettings
from naming import raises_naming

SCRIPT = Path(__file__).resolve().parent / "contrastive_toy.py"
HALF = {"precision": "bf16", "frozen_precision": "bf16"}


class Watching(ContrastiveToy):
    """Notes the types of its parameters while it trains."""

    def losses(self, batch: dict[str, Any]) -> Any:
        self.types = {name: parameter.dtype for name, parameter in self.named_parameters()}
        return super().losses(batch)


def run_half(path: Path, *, loader: Any = None, **changes: Any) -> tuple[Watching, TrainingOutcome]:
    task = Watching(dropout=0.2)
    return task, train(task, loader or toy_loader(), toy_settings(**(HALF | changes)), RunFolder.create(path))


def test_frozen_parts_are_bf16_while_training_and_exact_afterwards(tmp_path: Path) -> None:
    task, _ = run_half(tmp_path)
    frozen = {name for name in task.types if name.startswith("frozen")}
    assert {task.types[name] for name in frozen} == {torch.bfloat16}
    assert {task.types[name] for name in task.types.keys() - frozen} == {torch.float32}
    original = ContrastiveToy()
    assert torch.equal(task.frozen.weight, original.frozen.weight)
    assert not torch.equal(task.image[0].weight, original.image[0].weight)
    gathered = checkpoint.gather_weights(task)
    assert torch.equal(gathered["frozen.weight"], original.frozen.weight)


def test_frozen_parts_stay_whole_where_auto_is_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    task, _ = run_half(tmp_path, precision="auto")
    assert set(task.types.values()) == {torch.float32}


def test_a_run_that_moves_tells_of_its_other_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    run_half(tmp_path, loader=Interrupted(toy_loader(), step=6, number=signal.SIGTERM), precision="auto")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    run_half(tmp_path, precision="auto")
    assert "resumed with precision fp32 (was bf16 until step" in capsys.readouterr().err


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, _ = run_half(tmp_path / "whole")
    loader = Interrupted(toy_loader(), step=6, number=signal.SIGTERM)
    task, outcome = run_half(tmp_path / "parts", loader=loader)
    assert outcome.status == "stopped"
    assert task.frozen.weight.dtype == torch.float32
    task, _ = run_half(tmp_path / "parts")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, task.state_dict()[name]), name


def test_an_error_gives_the_base_back(tmp_path: Path) -> None:
    task = Watching()
    with torch.no_grad():
        task.image[0].weight.fill_(torch.nan)
    with pytest.raises(TrainingError):
        train(task, toy_loader(), toy_settings(**HALF), RunFolder.create(tmp_path))
    assert task.frozen.weight.dtype == torch.float32


@pytest.mark.parametrize("parallel", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_two_processes_keep_the_base_exact(parallel: str, tmp_path: Path) -> None:
    run_processes(SCRIPT, tmp_path, "--steps", 3, "--frozen-bf16", "--parallel", parallel, world_size=2)
    weights, original = load_file(tmp_path / "final.safetensors"), ContrastiveToy()
    assert torch.equal(weights["frozen.weight"], original.frozen.weight)
    assert not torch.equal(weights["image.0.weight"], original.image[0].weight)


def test_trained_parts_alone_are_saved_and_know_their_base(tmp_path: Path) -> None:
    task, _ = run_half(tmp_path)
    saved = checkpoint.newest(tmp_path / "checkpoints")
    assert saved is not None
    weights = load_file(saved / "weights.safetensors")
    assert weights.keys() == checkpoint.gather_weights(task, only_trained=True).keys()
    assert not any(name.startswith("frozen") for name in weights)
    other = ContrastiveToy()
    other.frozen.requires_grad_(False)
    with torch.no_grad():
        other.frozen.weight[0, 0] += 1e-3
    with raises_naming(UserError, saved):
        checkpoint.load(saved, module=other)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    run_half(tmp_path, steps=3)
    saved = checkpoint.newest(tmp_path / "checkpoints")
    assert saved is not None
    complete = saved / "complete.json"
    complete.write_text(json.dumps(json.loads(complete.read_text()) | {"format": 1}))
    with raises_naming(UserError, saved, "1", "2"):
        run_half(tmp_path)


def test_a_base_in_bf16_needs_autocast() -> None:
    with raises_naming(ValueError, "frozen_precision", "precision"):
        TrainingSettings(steps=2, batch_size=2, learning_rate=0.1, frozen_precision="bf16")
