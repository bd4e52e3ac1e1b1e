"""Run as a script by two processes: AdaFactor on shards against PyTorch's on whole parameters, and its checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import fully_shard

from foveate.training import checkpoint, distributed
from foveate.training.adafactor import ShardedAdafactor
from foveate.training.optimizer import build_optimizer, parameter_table
from foveate.training.settings import TrainingSettings

SETTINGS = TrainingSettings(
    steps=9, batch_size=2, learning_rate=0.01, optimizer="adafactor", parallel="fsdp", weight_decay=0.1
)


def build() -> nn.Module:
    """Rows that two processes cannot share evenly, a matrix with one row, and a kernel of four dimensions."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(20, 7), nn.GELU(), nn.Linear(7, 1, bias=False)]
    return nn.Sequential(*layers)


def make_step(module: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    inputs = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    (10.0**step * module(inputs)).square().sum().backward()
    optimizer.step()


def build_both(world: distributed.World, *, shard: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    module = build()
    table = parameter_table(module, rules=(), settings=SETTINGS)
    if shard:
        fully_shard(module, mesh=init_device_mesh("cpu", (world.size,)))
    return module, build_optimizer(module, table=table, settings=SETTINGS)


def gather(module: nn.Module) -> dict[str, Tensor]:
    return {name: distributed.full_tensor(value) for name, value in module.named_parameters()}


def main() -> None:
    folder = Path(sys.argv[1])
    with distributed.start("cpu") as world:
        sharded, optimizer = build_both(world, shard=True)
        whole, plain = build_both(world, shard=False)
        assert type(optimizer) is ShardedAdafactor
        assert type(plain) is torch.optim.Adafactor
        for step in range(3):
            make_step(sharded, optimizer, step)
            make_step(whole, plain, step)
            for name, value in gather(sharded).items():
                torch.testing.assert_close(value, whole.get_parameter(name).detach(), atol=1e-6, rtol=1e-5)
        base = checkpoint.frozen_hash(sharded)
        checkpoint.save(folder, module=sharded, optimizer=optimizer, ema=None, state={"step": 3}, keep=1, base=base)
        distributed.barrier()
        loaded, moments = build_both(world, shard=True)
        checkpoint.load(folder / "step-00000003", module=loaded, optimizer=moments)
        for module, of_module in ((sharded, optimizer), (loaded, moments), (whole, plain)):
            make_step(module, of_module, 3)
        for name, value in gather(sharded).items():
            assert torch.equal(value, gather(loaded)[name]), name
        for name, value in gather(loaded).items():
            torch.testing.assert_close(value, whole.get_parameter(name).detach(), atol=1e-6, rtol=1e-5)
        (folder / f"rank-{world.rank}-passed").touch()


if __name__ == "__main__":
    main()
