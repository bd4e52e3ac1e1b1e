from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from contrastive_toy import ContrastiveToy, toy_loader, toy_settings
from safetensors import safe_open
from torch import nn

from foveate.core.errors import UserError
from foveate.core.runs import RunFolder
from foveate.training import checkpoint
from foveate.training.loop import train
from naming import raises_naming


def cut(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def flip(folder: Path) -> None:
    path = folder / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def lose(folder: Path) -> None:
    (folder / "average.safetensors").unlink()


def unfinished(folder: Path) -> None:
    (folder / "complete.json").unlink()


def no_json(folder: Path) -> None:
    (folder / "complete.json").write_text('{"files": {"sta')


def wrong_json(folder: Path) -> None:
    (folder / "complete.json").write_text("[]")


DAMAGES = [cut, flip, lose, unfinished, no_json, wrong_json]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ContrastiveToy]:
    path = tmp_path_factory.mktemp("checkpoints") / "run"
    task = ContrastiveToy()
    train(task, toy_loader(), toy_settings(), RunFolder.create(path))
    return path, task


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda function: function.__name__)
def test_a_damaged_newest_one_is_named_and_the_one_before_leads_to_the_same_weights(
    damage: Callable[[Path], None],
    trained: tuple[Path, ContrastiveToy],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    damage(run / "checkpoints" / "step-00000012")
    task = ContrastiveToy()
    outcome = train(task, toy_loader(), toy_settings(), RunFolder.create(run))
    said = capsys.readouterr().err
    assert "step-00000012 is damaged" in said
    assert "resumed from step 10/12" in said
    assert outcome.step == 12
    assert checkpoint.damage(run / "checkpoints" / "step-00000012") == ""
    for name, tensor in trained[1].state_dict().items():
        assert torch.equal(tensor, task.state_dict()[name])


def test_a_damaged_later_one_takes_no_place(trained: tuple[Path, ContrastiveToy], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    cut(run / "checkpoints" / "step-00000012")
    train(ContrastiveToy(), toy_loader(), toy_settings(steps=11, keep_checkpoints=1), RunFolder.create(run))
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == ["step-00000011"]
    assert checkpoint.damage(run / "checkpoints" / "step-00000011") == ""


def test_when_all_are_damaged_training_starts_over(trained: tuple[Path, ContrastiveToy], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    for folder in (run / "checkpoints").glob("step-*"):
        cut(folder)
    assert checkpoint.newest(run / "checkpoints") is None
    task = ContrastiveToy()
    train(task, toy_loader(), toy_settings(), RunFolder.create(run))
    assert torch.equal(task.prompter.weight, trained[1].prompter.weight)


def test_leftovers_of_a_cut_off_save_are_ignored_and_cleared(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".step-00000002.tmp"
    left.mkdir(parents=True)
    (left / "weights.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path / "checkpoints") is None
    train(ContrastiveToy(), toy_loader(), toy_settings(steps=3), RunFolder.create(tmp_path))
    assert not left.exists()


def test_files_are_plain_safetensors_and_json(trained: tuple[Path, ContrastiveToy]) -> None:
    newest = checkpoint.newest(trained[0] / "checkpoints")
    assert newest is not None
    assert sorted(path.name for path in newest.iterdir()) == [
        "average.safetensors",
        "complete.json",
        "optimizer.safetensors",
        "state.json",
        "weights.safetensors",
    ]
    assert json.loads((newest / "state.json").read_text())["step"] == 12
    assert len(list((trained[0] / "checkpoints").glob("step-*"))) == 2


def test_weights_alone_can_be_loaded(trained: tuple[Path, ContrastiveToy]) -> None:
    newest = checkpoint.newest(trained[0] / "checkpoints")
    assert newest is not None
    fresh = ContrastiveToy()
    fresh.frozen.requires_grad_(False)
    checkpoint.load(newest, module=fresh)
    for name, tensor in trained[1].state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name])
    fresh.extra = nn.Linear(1, 1)
    with raises_naming(UserError, "extra.bias"):
        checkpoint.load(newest, module=fresh)


def test_an_average_that_was_not_kept_is_missed(tmp_path: Path) -> None:
    train(ContrastiveToy(), toy_loader(), toy_settings(steps=3, ema_decay=None), RunFolder.create(tmp_path))
    with raises_naming(UserError, "average.safetensors"):
        train(ContrastiveToy(), toy_loader(), toy_settings(steps=5), RunFolder.create(tmp_path))


def test_tied_and_untouched_parameters_survive(tmp_path: Path) -> None:
    class Tied(ContrastiveToy):
        def __init__(self) -> None:
            super().__init__()
            self.tied = self.image[0]
            self.idle = nn.Parameter(torch.ones(2, 2))

    first = Tied()
    train(first, toy_loader(), toy_settings(steps=4), RunFolder.create(tmp_path))
    second = Tied()
    train(second, toy_loader(), toy_settings(steps=6), RunFolder.create(tmp_path))
    reference = Tied()
    (tmp_path / "other").mkdir()
    train(reference, toy_loader(), toy_settings(steps=4), RunFolder.create(tmp_path / "other"))
    assert torch.equal(first.tied.weight, reference.image[0].weight)
    assert torch.equal(second.idle, torch.ones(2, 2))


@pytest.mark.parametrize("optimizer", ["adafactor", "sgd"])
def test_other_optimizers_resume_exactly(optimizer: str, tmp_path: Path) -> None:
    def run(folder: Path, *, steps: int) -> ContrastiveToy:
        settings = {"optimizer": optimizer, "schedule": "constant", "warmup_steps": 0, "steps": steps}
        task = ContrastiveToy()
        train(task, toy_loader(), toy_settings(**settings), RunFolder.create(tmp_path / folder))
        return task

    run(Path("stopped"), steps=3)
    resumed, straight = run(Path("stopped"), steps=6), run(Path("straight"), steps=6)
    for (name, ours), theirs in zip(resumed.named_parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    (newest,) = (tmp_path / "stopped").rglob("step-*6/optimizer.safetensors")
    with safe_open(newest, framework="pt") as file:
        moments = {name.rpartition("/")[2] for name in file.keys()}
    assert moments == ({"step", "row_var", "col_var", "variance"} if optimizer == "adafactor" else {"momentum_buffer"})
