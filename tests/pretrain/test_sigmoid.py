"""The sigmoid losses: open_clip's value and gradients, in blocks, over two processes, without duplicate phrases."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from batches import build_task, make_batch
from processes import run_processes
from safetensors.torch import load_file
from sigmoid_ranks import inputs

from foveate.core.errors import UserError
from foveate.pretrain.losses import sigmoid_loss, sigmoid_region_loss
from foveate.training.distributed import check_shardable
from foveate.training.optimizer import parameter_table
from naming import raises_naming


def leaves() -> dict[str, torch.Tensor]:
    made = {name: value.requires_grad_() for name, value in inputs().items()}
    made["scale"] = torch.tensor([10.0], dtype=torch.float64, requires_grad=True)
    made["bias"] = torch.tensor([-10.0], dtype=torch.float64, requires_grad=True)
    return made


def gradients(made: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in made.items() if value.grad is not None}


def open_clips(made: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    from open_clip.loss import SigLipLoss

    loss = SigLipLoss()(
        F.normalize(made["image"], dim=-1), F.normalize(made["text"], dim=-1), made["scale"], made["bias"]
    )
    loss.backward()
    return loss.detach(), gradients(made)


@pytest.mark.parametrize("row_chunk", [None, 1, 3, 8, 100])
def test_value_and_gradients_are_open_clips(row_chunk: int | None) -> None:
    expected, theirs = open_clips(leaves())
    made = leaves()
    loss = sigmoid_loss(
        F.normalize(made["image"], dim=-1),
        F.normalize(made["text"], dim=-1),
        made["scale"],
        made["bias"],
        row_chunk=row_chunk,
    )
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    ours = gradients(made)
    assert set(ours) == {"image", "text", "scale", "bias"}
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-12, rtol=0)


def test_the_papers_start_makes_almost_only_the_positives_count() -> None:
    """x = 0 everywhere: N - 1 negatives of log(1 + e^-10) and one positive of log(1 + e^10) an image."""
    zeros = torch.zeros(4, 3)
    expected = 3 * math.log1p(math.exp(-10)) + math.log1p(math.exp(10))
    assert sigmoid_loss(zeros, zeros, 10.0, -10.0).item() == pytest.approx(expected, rel=1e-6)
    with raises_naming(UserError, "row_chunk", "0"):
        sigmoid_loss(zeros, zeros, 10.0, -10.0, row_chunk=0)


@pytest.mark.parametrize("row_chunk", [None, 2])
@pytest.mark.parametrize("filter_name", ["none", "exact", "embedding"])
def test_duplicate_phrases_are_left_out(filter_name: str, row_chunk: int | None) -> None:
    made = leaves()
    with torch.no_grad():
        made["t"][3] = 1.5 * made["t"][0]
    phrases = torch.tensor([7, 1, 2, 7, 4])
    found = sigmoid_region_loss(
        made["z"],
        made["t"],
        made["scale"],
        logit_bias=made["bias"],
        filter=filter_name,
        phrase_ids=phrases,
        row_chunk=row_chunk,
    )
    z, t = F.normalize(made["z"], dim=-1), F.normalize(made["t"], dim=-1)
    signs = 2 * torch.eye(5, dtype=torch.float64) - 1
    terms = -F.logsigmoid(signs * (made["scale"] * z @ t.T + made["bias"]))
    keep = torch.ones(5, 5, dtype=torch.bool)
    if filter_name != "none":
        keep[0, 3] = keep[3, 0] = False
    expected = terms[keep].sum() / 5
    torch.testing.assert_close(found.loss.sum(), expected, atol=1e-10, rtol=0)
    assert found.masked_fraction.item() == pytest.approx(0.1 if filter_name != "none" else 0.0)
    theirs = torch.autograd.grad(expected, [made["z"], made["t"]], retain_graph=True)
    ours = torch.autograd.grad(found.loss.sum(), [made["z"], made["t"]])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_no_region_and_the_fixed_divisor() -> None:
    made = leaves()
    nothing = sigmoid_region_loss(made["z"][:0], made["t"][:0], made["scale"], logit_bias=made["bias"])
    assert nothing.loss == 0
    nothing.loss.backward()
    assert not made["scale"].grad.any()
    options = {"logit_bias": made["bias"], "filter": "none"}
    by_regions = sigmoid_region_loss(made["z"], made["t"], made["scale"], **options)
    fixed = sigmoid_region_loss(made["z"], made["t"], made["scale"], **options, normalize="fixed", M=4, N=8)
    torch.testing.assert_close(by_regions.loss * 5, fixed.loss * 32)
    with raises_naming(UserError, "duplicate filter", "exakt", "exact"):
        sigmoid_region_loss(made["z"], made["t"], 10.0, logit_bias=-10.0, filter="exakt")


def test_two_processes_equal_one(tmp_path: Path) -> None:
    run_processes(Path(__file__).resolve().parent / "sigmoid_ranks.py", tmp_path, world_size=2)
    expected, _ = open_clips(leaves())
    made = leaves()
    pairs = sigmoid_loss(
        F.normalize(made["image"], dim=-1), F.normalize(made["text"], dim=-1), made["scale"], made["bias"]
    )
    boxed = sigmoid_region_loss(made["z"], made["t"], made["scale"], logit_bias=made["bias"], filter="none").loss
    (pairs + boxed).sum().backward()
    single = gradients(made)
    for rank in range(2):
        found = load_file(tmp_path / f"rank-{rank}.safetensors")
        assert found["pairs"].item() == pytest.approx(expected.item(), abs=1e-10)
        assert found["boxed"].item() == pytest.approx(boxed.item(), abs=1e-10)
        half = slice(4 * rank, 4 * rank + 4)
        for name in ("image", "text"):
            torch.testing.assert_close(found[f"grad/{name}"], single[name][half], atol=1e-10, rtol=0)
        for name in ("scale", "bias"):
            torch.testing.assert_close(found[f"grad/{name}"], single[name], atol=1e-10, rtol=0)
        if rank == 0:
            torch.testing.assert_close(found["grad/z"], single["z"], atol=1e-10, rtol=0)


@pytest.mark.parametrize("own", [False, True])
def test_the_task_trains_scale_and_bias(own: bool) -> None:
    task = build_task(loss="sigmoid", regions={"loss": "sigmoid", "own_temperature": own, "row_chunk": 2})
    check_shardable(task)
    assert task.model.recipe.logit_scale_init is None
    losses, report = task(make_batch(task.model))
    assert losses["clip_loss"].shape == losses["loss"].shape == losses["region_loss"].shape == ()
    losses["loss"].backward()
    assert not [name for name, one in task.named_parameters() if one.grad is None]
    assert "model.bias" in dict(task.named_parameters())
    assert ("model.region_bias" in dict(task.named_parameters())) == own
    table = parameter_table(task, rules=task.parameter_groups(), settings=task.recipe.training)
    assert {row.weight_decay for row in table if row.name.endswith(("log_scale", "model.bias", "region_bias"))} == {0.0}
    assert 8 < float(report["logit_scale"]) < 12


def test_one_loss_each(recwarn: pytest.WarningsRecorder) -> None:
    mixed = build_task(regions={"loss": "sigmoid"})
    losses, _ = mixed(make_batch(mixed.model))
    losses["loss"].backward()
    assert mixed.model.bias is not None
    assert mixed.model.bias.grad is not None
    assert build_task(regions={"method": "none", "loss": "sigmoid"}).model.bias is None
    assert not [one for one in recwarn if "no effect" in str(one.message)]
    with pytest.warns(UserWarning, match="logit_bias_init has no effect"):
        build_task(logit_bias_init=-3.0)
