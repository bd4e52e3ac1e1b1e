"""Parts of a batch train like the whole: weighted by targets, over parts and over ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from contrastive_toy import ContrastiveSamples
from language_toy import BATCH, LanguageSamples, LanguageToy, language_loader, language_settings
from processes import run_processes
from safetensors.torch import load_file
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.runs import RunFolder
from foveate.training.accumulation import forward_and_backward
from foveate.training.loop import train
from foveate.training.task import Task
from naming import raises_naming

SCRIPT = Path(__file__).resolve().parent / "language_toy.py"
NUMBERS = ("loss", "token_loss", "class_loss", "token_accuracy", "gradient_norm")


def whole_batch() -> dict[str, Any]:
    samples = LanguageSamples()
    return samples.collate([samples.sample(row, 0, 0) for row in range(BATCH)])


def gradients(parts: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    task = LanguageToy()
    losses, report = forward_and_backward(task, task, whole_batch(), parts=parts, precision=None)
    values = {name: float(value) for name, value in {**losses, **report}.items()}
    return {name: parameter.grad for name, parameter in task.named_parameters()}, values


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_parts_give_the_gradient_of_the_whole_batch(parts: int) -> None:
    batch = whole_batch()
    tokens = [piece["target"][:, 1:].sum().item() for piece in LanguageToy().split(batch, parts)]
    assert len(set(tokens)) > 1, "the parts have unequal numbers of target tokens"
    expected, values = gradients(1)
    found, in_parts = gradients(parts)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6)
    assert in_parts == pytest.approx(values, rel=1e-6)


def test_the_whole_batch_is_not_weighted() -> None:
    """One part in one process must give the very bits of a plain backward pass."""
    task = LanguageToy()
    losses, _ = task.losses(whole_batch())
    losses["loss"].backward()
    found, values = gradients(1)
    assert values["loss"] == losses["loss"].item()
    for name, parameter in task.named_parameters():
        assert torch.equal(parameter.grad, found[name])


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LanguageToy]:
    path, task = tmp_path_factory.mktemp("single") / "run", LanguageToy()
    train(task, language_loader(), language_settings(), RunFolder.create(path))
    return path, task


@pytest.mark.parametrize(
    ("parallel", "parts"), [pytest.param("ddp", 1, marks=pytest.mark.slow), ("ddp", 3), ("fsdp", 3)]
)
def test_two_processes_with_unequal_tokens_equal_one(
    parallel: str, parts: int, single: tuple[Path, LanguageToy], tmp_path: Path
) -> None:
    run_processes(SCRIPT, tmp_path, "--accumulate", parts, "--parallel", parallel, world_size=2)
    weights = load_file(tmp_path / "final.safetensors")
    for name, tensor in single[1].state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-6)
    for found, expected in zip(read_rows(tmp_path), read_rows(single[0]), strict=True):
        assert [found[name] for name in NUMBERS] == pytest.approx([expected[name] for name in NUMBERS], rel=1e-6)


class Rows(Task):
    """Mean squared error over rows: no counts, no split of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 1)

    def losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float | Tensor]]:
        assert len(batch["names"]) == len(batch["image"])
        return {"loss": self.linear(batch["image"]).square().mean()}, {"rows": float(len(batch["image"]))}

    def export(self, folder: Path) -> None:
        raise AssertionError("never exported")


def test_rows_are_the_targets_of_a_task_that_says_nothing_else() -> None:
    torch.manual_seed(0)
    batch = {"image": torch.randn(7, 6), "names": list("abcdefg"), "scale": torch.tensor(2.0)}
    found = []
    for parts in (1, 3):
        torch.manual_seed(1)
        task = Rows()
        forward_and_backward(task, task, batch, parts=parts, precision=None)
        found.append(task.linear.weight.grad)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def test_ragged_batches_need_a_split_of_their_own() -> None:
    samples = ContrastiveSamples()
    batch = samples.collate([samples.sample(row, 0, 0) for row in range(8)])
    with raises_naming(UserError, "Rows", "image", "boxes", "split"):
        forward_and_backward(Rows(), Rows(), batch, parts=2, precision=None)
