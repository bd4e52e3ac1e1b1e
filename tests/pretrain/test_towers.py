"""Towers of other libraries in training: two processes, one without regions, equal one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from batches import make_batch
from processes import run_processes
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vision"))

from foreign import save_clip, save_siglip
from tower_ranks import task_of

# Two processes that import torch and transformers: 20 s on a free core.
pytestmark = pytest.mark.slow
CASES = ("clip-ddp", "clip-fsdp", "siglip-ddp", "siglip-fsdp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("towers")
    save_clip(made / "clip")
    save_siglip(made / "siglip")
    return made


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> Path:
    run_processes(Path(__file__).resolve().parent / "tower_ranks.py", folder, folder, *CASES, world_size=2)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_one_without_regions_equal_one_process(case: str, two_ranks: Path) -> None:
    task = task_of(case.split("-")[0], two_ranks)
    losses, _ = task(make_batch(task.model))
    losses["loss"].backward()
    single = {f"loss/{name}": one.detach().reshape(1) for name, one in losses.items()}
    single |= {f"grad/{name}": one.grad for name, one in task.named_parameters() if one.grad is not None}
    for rank in range(2):
        found = load_file(two_ranks / f"{case}-rank-{rank}.safetensors")
        assert set(found) == set(single)
        for name, value in single.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
