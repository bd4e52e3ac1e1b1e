"""Run as a script by two processes: losses and gradients of towers of other libraries, one rank without regions.

    python tower_ranks.py OUT FOLDER KIND-PARALLEL ...

Writes loss terms and the gradients after the mean over ranks to OUT/CASE-rank-R.safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from batches import make_batch, reordered

import tiny
from foveate.core.recipes import validate
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.task import PretrainTask
from foveate.pretrain.train import build_model
from foveate.training import distributed
from foveate.training.settings import TrainingSettings


def task_of(kind: str, folder: Path) -> PretrainTask:
    """The tiny recipe with both towers of `folder / kind`; SigLIP's with the sigmoid losses."""
    towers = {name: {"kind": kind, "source": str(folder / kind)} for name in ("image_encoder", "text_encoder")}
    loss = {"loss": "sigmoid"} if kind == "siglip" else {}
    regions = {**tiny.RECIPE["regions"], **loss}
    width = {"siglip": 32}.get(kind, 24)
    content = {**tiny.RECIPE, **towers, **loss, "regions": regions, "embed_dim": width}
    return PretrainTask(build_model(validate(PretrainRecipe, content, where="towers"))).train()


def main() -> None:
    out, folder, *cases = sys.argv[1:]
    with distributed.start("cpu") as world:
        for case in cases:
            kind, parallel = case.split("-")
            task = task_of(kind, Path(folder))
            whole = make_batch(task.model)
            half = len(whole["image"]) // world.size
            mine = reordered(whole, list(range(world.rank * half, (world.rank + 1) * half)))
            assert bool(len(mine["boxes_R4"])) == (world.rank == 0)
            settings = TrainingSettings(steps=1, batch_size=8, learning_rate=0.1, parallel=parallel)
            model = distributed.wrap(task, settings)
            assert isinstance(model, DistributedDataParallel if parallel == "ddp" else FSDPModule), type(model)
            assert len(task.shard_units()) == 4
            losses, _ = model(task.prepare_batch(mine, world.device))
            losses["loss"].backward()
            found: dict[str, torch.Tensor] = {f"loss/{name}": one.detach().reshape(1) for name, one in losses.items()}
            for name, parameter in task.named_parameters():
                assert parameter.grad is not None, name
                found[f"grad/{name}"] = distributed.full_tensor(parameter.grad)
            save_file(found, Path(out) / f"{case}-rank-{world.rank}.safetensors")


if __name__ == "__main__":
    main()
