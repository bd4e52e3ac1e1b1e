"""Two real gloo processes against one: the same weights, and really wrapped by what the recipe asks for."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from contrastive_toy import ContrastiveToy, toy_settings
from processes import run_processes
from safetensors.torch import load_file
from torch import nn

from foveate.training import distributed
from naming import raises_naming

HERE = Path(__file__).resolve().parent
SCRIPT = HERE / "contrastive_toy.py"
CASES = HERE / "distributed_cases.py"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("single")
    run_processes(SCRIPT, run / "five", "--steps", 5)
    run_processes(SCRIPT, run / "twelve", "--steps", 12)
    return run


def assert_close(run: Path, reference: Path, *, tolerance: float = 1e-5) -> None:
    for name in ("final.safetensors", "average.safetensors"):
        found, expected = load_file(run / name), load_file(reference / name)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=tolerance, msg=lambda m, key=key: f"{key}: {m}")


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("parallel", "wrapper", "parameter"),
    [("ddp", "DistributedDataParallel", "Parameter"), ("fsdp", "FSDPModule", "DTensor")],
)
def test_two_processes_equal_one_with_a_rank_that_has_no_regions(
    parallel: str, wrapper: str, parameter: str, single: Path, tmp_path: Path
) -> None:
    run_processes(SCRIPT, tmp_path, "--steps", 5, "--parallel", parallel, world_size=2)
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert wrapper in outcome["model"]
    assert outcome["parameter"] == parameter
    assert set(outcome["sharded"]) == {"DTensor" if parallel == "fsdp" else "Tensor"}
    assert_close(tmp_path, single / "five")
    for found, expected in zip(rows(tmp_path), rows(single / "five"), strict=True):
        for name in ("loss", "clip_loss", "region_loss", "regions", "gradient_norm", "learning_rate"):
            assert found[name] == pytest.approx(expected[name], abs=1e-5), (found["step"], name)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("fsdp", 2), ("ddp", 1)),
        pytest.param(("ddp", 2), ("fsdp", 2), marks=pytest.mark.slow),
        pytest.param(("ddp", 1), ("fsdp", 2), marks=pytest.mark.slow),
    ],
    ids=lambda layout: f"{layout[0]}-{layout[1]}",
)
def test_a_run_goes_on_in_another_layout_after_a_signal_to_one_rank(
    first: tuple[str, int], second: tuple[str, int], single: Path, tmp_path: Path
) -> None:
    parallel, world_size = first
    said = run_processes(
        SCRIPT, tmp_path, "--steps", 12, "--parallel", parallel, "--stop-in-step", 6, world_size=world_size
    )
    assert "stopped after step 7/12" in said[0]
    parallel, world_size = second
    said = run_processes(SCRIPT, tmp_path, "--steps", 12, "--parallel", parallel, world_size=world_size)
    assert "resumed from step 7/12" in said[0]
    assert_close(tmp_path, single / "twelve")
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 13))


def test_gathers_and_small_collectives(tmp_path: Path) -> None:
    run_processes(CASES, tmp_path, world_size=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-0-passed", "rank-1-passed"]


def test_everything_is_the_identity_in_one_process() -> None:
    features = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert distributed.gather_with_grad(features) is features
    assert distributed.gather_ragged_with_grad(features) is features
    assert distributed.all_sum(3.0).item() == 3
    assert distributed.mean_over_ranks({"a": 1.5}) == {"a": 1.5}
    assert distributed.any_rank(True, False) == (True, False)
    assert distributed.broadcast_json({"a": [1, None]}) == {"a": [1, None]}
    task = ContrastiveToy()
    assert distributed.wrap(task, toy_settings(parallel="fsdp")) is task


def test_scalar_parameters_are_named_before_sharding() -> None:
    module = nn.Linear(1, 1)
    module.log_scale = nn.Parameter(torch.tensor(1.0))
    with raises_naming(AssertionError, "1", "log_scale"):
        distributed.check_shardable(module)


def test_start_without_torchrun_is_one_process_and_ends_clean() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with distributed.start("cpu") as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert distributed.world() is world
    assert distributed.world().size == 1
    assert signal.getsignal(signal.SIGTERM) is before
