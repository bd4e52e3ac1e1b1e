"""Run as a script by two processes: losses and gradients of a rank's half of the fixed batch.

    python task_ranks.py OUT METHOD-FILTER-PARALLEL-PARTS ...

Rank 1 has no region. Writes loss terms and the gradients after the mean over ranks to OUT/CASE-rank-R.safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from batches import build_task, make_batch, reordered

from foveate.training import distributed
from foveate.training.accumulation import forward_and_backward
from foveate.training.settings import TrainingSettings


def main() -> None:
    out, *cases = sys.argv[1:]
    with distributed.start("cpu") as world:
        for case in cases:
            save_file(one_case(case, world), Path(out) / f"{case}-rank-{world.rank}.safetensors")


def one_case(case: str, world: distributed.World) -> dict[str, torch.Tensor]:
    method, filter_name, parallel, parts = case.split("-")
    task = build_task(regions={"method": method, "filter": filter_name})
    whole = make_batch(task.model)
    half = len(whole["image"]) // world.size
    mine = reordered(whole, list(range(world.rank * half, (world.rank + 1) * half)))
    assert bool(len(mine["boxes_R4"])) == (world.rank == 0)
    settings = TrainingSettings(steps=1, batch_size=8, learning_rate=0.1, parallel=parallel)
    model = distributed.wrap(task, settings)
    assert isinstance(model, DistributedDataParallel if parallel == "ddp" else FSDPModule), type(model)
    assert parallel == "ddp" or all(isinstance(unit, FSDPModule) for unit in task.shard_units())
    assert len(task.shard_units()) == 2
    batch = task.prepare_batch(mine, world.device)
    losses, _ = forward_and_backward(model, task, batch, parts=int(parts), precision=None)
    found = {f"loss/{name}": value.detach().reshape(1) for name, value in losses.items()}
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        found[f"grad/{name}"] = distributed.full_tensor(parameter.grad)
    return found


if __name__ == "__main__":
    main()
