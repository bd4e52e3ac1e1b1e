"""Run as a script by two processes: the losses over several processes, their gradients, and what they compute.

    python loss_ranks.py OUT

Writes for each case losses, raw gradients of this rank's rows, and FLOPs to OUT/CASE-rank-R.safetensors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from batches import build_task, make_batch, reordered

from foveate.pretrain.losses import (
    clip_loss,
    grounding_loss,
    region_text_loss,
    sigmoid_loss,
    sigmoid_region_loss,
)
from foveate.training import distributed

GOLDEN = Path(__file__).resolve().parents[1] / "goldens" / "cloc" / "clip_loss_multirank.npz"
GOLDEN_SCALE = 1 / 0.07
# Regions of rank 0 and rank 1. The last phrase is the first one again: with the last split, all that rank 1 has in
# that column is masked.
SPLITS = ((7, 0), (0, 7), (3, 4), (6, 1))
PHRASES = (5, 1, 2, 1, 4, 6, 5)
CHUNKS = (None, 2)
REGION_CASES = {
    f"regions-{loss}-{filter_name}-{chunk}-{split}": (loss, filter_name, chunk, split)
    for loss, filter_name, chunk, split in product(
        ("softmax", "sigmoid"), ("embedding", "exact", "none"), CHUNKS, range(len(SPLITS))
    )
}
EVEN = (2,) * 8
Values = dict[str, Tensor]


def region_inputs() -> Values:
    random = torch.Generator().manual_seed(3)
    made = {name: torch.randn(7, 6, generator=random, dtype=torch.float64) for name in ("z", "t", "box", "target")}
    made["t"] = made["t"][[0, 1, 2, 1, 4, 5, 0]] * torch.arange(1, 8)[:, None]
    return made | {name: made[name][:, :4] for name in ("box", "target")}


def golden_inputs(dtype: torch.dtype) -> Values:
    arrays = np.load(GOLDEN, allow_pickle=False)
    return {"image": torch.from_numpy(arrays["w0_img"]).to(dtype), "text": torch.from_numpy(arrays["w0_txt"]).to(dtype)}


def region_losses(values: Mapping[str, Tensor], *, loss: str, filter_name: str, chunk: int | None) -> Values:
    """The terms of the region losses, with the sum of region loss and grounding as "loss"; both divisors are used."""
    fixed: dict[str, Any] = {"normalize": "fixed", "M": 4, "N": 8}
    options = {"filter": filter_name, "phrase_ids": values["phrases"], "row_chunk": chunk}
    options |= {} if filter_name == "exact" else fixed
    if loss == "sigmoid":
        region = sigmoid_region_loss(values["z"], values["t"], values["scale"], logit_bias=values["bias"], **options)
    else:
        region = region_text_loss(values["z"], values["t"], values["scale"], **options)
    grounding = grounding_loss(values["box"], values["target"])
    fixed_grounding = grounding_loss(values["box"], values["target"], **fixed)
    parts = {"r2t": region.r2t, "t2r": region.t2r, "masked": region.masked_fraction, "grounding": grounding}
    return {**parts, "fixed": fixed_grounding, "loss": region.loss.sum() + grounding + 2 * fixed_grounding}


def pair_losses(values: Mapping[str, Tensor], *, loss: str, chunk: int | None) -> Values:
    if loss == "sigmoid":
        total = sigmoid_loss(values["image"], values["text"], values["scale"], values["bias"], row_chunk=chunk)
    else:
        total = clip_loss(values["image"], values["text"], values["scale"], row_chunk=chunk)
    return {"loss": total.sum()}


def with_gradients(call: Callable[[Mapping[str, Tensor]], Values], values: Values) -> Values:
    """The losses of `call`, the gradients of their "loss", and the FLOPs of both."""
    leaves = {name: value.clone() for name, value in values.items()}
    trained = [name for name in leaves if name not in ("target", "phrases")]
    for name in trained:
        leaves[name].requires_grad_()
    with FlopCounterMode(display=False) as counter:
        found = call(leaves)
        found["loss"].backward()
    said = {name: value.detach().double().reshape(1) for name, value in found.items()}
    for name in trained:
        gradient = leaves[name].grad
        said[f"grad/{name}"] = torch.zeros_like(leaves[name]) if gradient is None else gradient
    return said | {"flops": torch.tensor([counter.get_total_flops()])}


def scalars(dtype: torch.dtype, scale: float) -> Values:
    return {"scale": torch.tensor([scale], dtype=dtype), "bias": torch.tensor([-4.0], dtype=dtype)}


def region_case(name: str, rows: slice = slice(None)) -> Values:
    """A case of `REGION_CASES` with these rows of the seven."""
    loss, filter_name, chunk, _ = REGION_CASES[name]
    values = {key: value[rows] for key, value in region_inputs().items()} | {"phrases": torch.tensor(PHRASES)[rows]}
    return with_gradients(
        lambda leaves: region_losses(leaves, loss=loss, filter_name=filter_name, chunk=chunk),
        values | scalars(torch.float64, 14.0),
    )


def pair_case(loss: str, dtype: torch.dtype, chunk: int | None, rows: slice = slice(None)) -> Values:
    """The golden's pairs, of unit length."""
    values = {key: value[rows] for key, value in golden_inputs(dtype).items()}
    return with_gradients(
        lambda leaves: pair_losses(leaves, loss=loss, chunk=chunk), values | scalars(dtype, GOLDEN_SCALE)
    )


def task_flops(rank: int = 0, world: int = 1) -> Values:
    """FLOPs of `loss_of` and its backward pass, in a batch where every image has two regions."""
    task = build_task(regions={"filter": "embedding"})
    whole = make_batch(task.model, EVEN, same_phrase=False)
    share = len(EVEN) // world
    batch = reordered(whole, list(range(rank * share, (rank + 1) * share)))
    with torch.no_grad():
        made = task.embed(batch)
    leaves = {name: F.normalize(value, dim=-1).requires_grad_() for name, value in made.items()}
    with FlopCounterMode(display=False) as counter:
        losses, _ = task.loss_of(batch, embeddings=leaves)
        losses["loss"].backward()
    return {"flops": torch.tensor([counter.get_total_flops()])}


def main() -> None:
    out = Path(sys.argv[1])
    with distributed.start("cpu") as world:

        def write(name: str, found: Values) -> None:
            save_file(found, out / f"{name}-rank-{world.rank}.safetensors")

        for loss, dtype, chunk in product(("softmax", "sigmoid"), (torch.float64, torch.float32), CHUNKS):
            half = slice(4 * world.rank, 4 * world.rank + 4)
            write(f"pairs-{loss}-{str(dtype).partition('.')[2]}-{chunk}", pair_case(loss, dtype, chunk, half))
        for name, (*_, split) in REGION_CASES.items():
            first = SPLITS[split][0]
            write(name, region_case(name, slice(0, first) if world.rank == 0 else slice(first, 7)))
        write("task", task_flops(world.rank, world.size))


if __name__ == "__main__":
    main()
