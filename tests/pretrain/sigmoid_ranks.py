"""Run as a script by two processes: the sigmoid losses of a rank's part of a batch.

    python sigmoid_ranks.py OUT

Rank 1 has no region. Writes losses and the gradients after the mean over ranks to OUT/rank-R.safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from foveate.pretrain.losses import sigmoid_loss, sigmoid_region_loss
from foveate.training import distributed


def inputs() -> dict[str, torch.Tensor]:
    """Eight images and texts, five regions, float64."""
    random = torch.Generator().manual_seed(3)
    made = {name: torch.randn(8, 6, generator=random, dtype=torch.float64) for name in ("image", "text")}
    made |= {name: torch.randn(5, 6, generator=random, dtype=torch.float64) for name in ("z", "t")}
    return made


def main() -> None:
    out = Path(sys.argv[1])
    with distributed.start("cpu") as world:
        whole = inputs()
        half = slice(4 * world.rank, 4 * world.rank + 4)
        mine = slice(0, 5) if world.rank == 0 else slice(0, 0)
        leaves = {name: whole[name][half if name in ("image", "text") else mine].clone() for name in whole}
        scale, bias = torch.tensor([10.0]).double(), torch.tensor([-10.0]).double()
        for leaf in (*leaves.values(), scale, bias):
            leaf.requires_grad_()
        images, texts = (F.normalize(leaves[name], dim=-1) for name in ("image", "text"))
        pairs = sigmoid_loss(images, texts, scale, bias, row_chunk=3)
        boxed = sigmoid_region_loss(leaves["z"], leaves["t"], scale, logit_bias=bias, filter="none").loss
        (pairs + boxed).sum().backward()
        found = {"pairs": pairs.detach().reshape(1), "boxed": boxed.detach().reshape(1)}
        # DDP's mean over ranks, which touches the parameters; of the inputs each rank has its own rows.
        for name, leaf in {**leaves, "scale": scale, "bias": bias}.items():
            assert leaf.grad is not None, name
            shared = name in ("scale", "bias")
            found[f"grad/{name}"] = distributed.all_sum(leaf.grad) / world.size if shared else leaf.grad / world.size
        save_file(found, out / f"rank-{world.rank}.safetensors")


if __name__ == "__main__":
    main()
