"""Several processes under `torchrun`, or one: who we are, gathering with gradient, wrapping (DDP, FSDP2).

Nothing here has an effect, and no process group is needed, when there is one process.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from foveate.core.devices import device_name
from foveate.training.task import Task


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, and the device that it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


_current: World | None = None
_left_groups: list[Any] = []


def choose_device(device: str = "auto", *, local_rank: int = 0) -> torch.device:
    """The device of a name such as "cpu", "cuda", "cuda:1", "mps"; "auto" is CUDA where there is one.

    Raises:
        UserError: when the device does not exist here.
    """
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    return torch.device(device_name(device, cuda_devices=cuda, mps=mps, local_rank=local_rank))


@contextlib.contextmanager
def start(device: str = "auto", *, timeout_minutes: float = 10.0) -> Iterator[World]:
    """Joins the processes that `torchrun` started (RANK, WORLD_SIZE, LOCAL_RANK), or stays a single one.

    CUDA processes talk over NCCL for tensors on the device and over gloo for small ones on the CPU.
    """
    global _current
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local_rank=local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    before = _current
    rank = int(os.environ.get("RANK", "0")) if size > 1 else 0
    if size > 1:
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    _current = World(rank, size, chosen)
    try:
        yield _current
    finally:
        _current = before
        if size > 1:
            _leave()


def _leave() -> None:
    """Destroys the process group in a way that cannot hang.

    The destructor of a gloo group joins the group's threads while it holds the interpreter lock, and a thread that
    is just dropping a finished collective's tensors wants that lock (seen with torch 2.13 when a
    DistributedDataParallel held the last reference). So the group is kept until the process ends, and its threads
    get the time to finish first.
    """
    _left_groups.append(dist.group.WORLD)
    dist.destroy_process_group()
    time.sleep(0.05)


def world() -> World:
    """The world that `start` opened, or a single process on the default device."""
    return _current or World(0, 1, choose_device())


def _size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """Concatenates equally long tensors over ranks; the backward pass sums the gradients of all ranks."""

    @staticmethod
    def forward(ctx: FunctionCtx, local_BE: Tensor) -> Tensor:
        gathered = [torch.empty_like(local_BE) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, local_BE.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient_NE: Tensor) -> Tensor:  # type: ignore[override]
        summed_NE = gradient_NE.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed_NE)
        return summed_NE.chunk(dist.get_world_size())[dist.get_rank()]


def gather_with_grad(features_BE: Tensor) -> Tensor:
    """Features of all ranks in rank order, with gradient to all of them.

    When every rank computes the full loss from the result, or its own part of it and then `sum_with_grad`, the raw
    gradient of its own features is world size times that of a single process, so that it is right after the mean that
    DDP and FSDP take.

    Args:
        features_BE: (B, ...) with the same B on every rank; it needs a gradient on all ranks or on none.

    Returns:
        (world size * B, ...); the same tensor when there is one process.
    """
    return features_BE if _size() == 1 else _Gather.apply(features_BE)


def rows_before(rows_RE: Tensor) -> tuple[int, int]:
    """How many rows the ranks before this one have, and how many all have; a collective."""
    if _size() == 1:
        return 0, len(rows_RE)
    counts, _ = _counts(rows_RE)
    return sum(counts[: dist.get_rank()]), sum(counts)


def _counts(rows_RE: Tensor) -> tuple[list[int], bool]:
    """Rows of each rank, and whether those of any rank need a gradient."""
    mine = torch.tensor([len(rows_RE), int(rows_RE.requires_grad)], device=rows_RE.device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    counts, with_gradient = torch.stack(everyone).cpu().unbind(1)
    return counts.tolist(), bool(with_gradient.any())


def gather_ragged_with_grad(rows_RE: Tensor) -> Tensor:
    """Like `gather_with_grad` for any number of rows per rank, zero included; the result has no padding.

    A rank without rows passes a tensor of shape (0, ...) and joins every collective, backward too.

    Returns:
        (sum of all ranks' R, ...).
    """
    if _size() == 1:
        return rows_RE
    counts, with_gradient = _counts(rows_RE)
    longest = max(counts)
    if longest == 0:
        return rows_RE
    if with_gradient and not rows_RE.requires_grad and torch.is_grad_enabled():
        # Without this, the backward pass of a rank whose rows are constants would leave the others waiting.
        rows_RE = rows_RE.detach().requires_grad_()
    padding = rows_RE.new_zeros((longest - len(rows_RE), *rows_RE.shape[1:]))
    padded = gather_with_grad(torch.cat([rows_RE, padding]))
    kept = torch.cat([torch.arange(count) + rank * longest for rank, count in enumerate(counts)])
    return padded[kept.to(rows_RE.device)]


class _Sum(torch.autograd.Function):
    """Adds the ranks' parts; each part's gradient is multiplied by the number of ranks."""

    @staticmethod
    def forward(ctx: FunctionCtx, part: Tensor) -> Tensor:
        total = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * dist.get_world_size()


def sum_with_grad(part: Tensor) -> Tensor:
    """The sum of the parts of a loss of which every rank computes its own; the same number on every rank.

    The backward pass needs no collective: it treats the loss as this rank's part times world size, so that the
    gradients are right after the mean that DDP and FSDP take, as with `gather_with_grad`.
    """
    return part if _size() == 1 else _Sum.apply(part)


def all_sum(value: float | Tensor) -> Tensor:
    """The sum of a number or tensor over ranks, without gradient (counts, divisors)."""
    total = torch.as_tensor(value).detach().clone()
    if _size() > 1:
        dist.all_reduce(total)
    return total


def all_max(value: Tensor) -> Tensor:
    """The elementwise maximum of a tensor over ranks, without gradient."""
    largest = value.detach().clone()
    if _size() > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def mean_over_ranks(values: Mapping[str, float]) -> dict[str, float]:
    """The mean over ranks of named numbers; every rank gives the same names."""
    if _size() == 1:
        return dict(values)
    names = sorted(values)
    totals = all_sum(torch.tensor([values[name] for name in names], dtype=torch.float64)) / _size()
    means = dict(zip(names, totals.tolist(), strict=True))
    return {name: means[name] for name in values}


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is set on any rank: all ranks then decide alike."""
    if _size() == 1:
        return flags
    combined = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(combined, op=dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in combined.tolist())


def broadcast_json(value: Any) -> Any:
    """Rank 0's JSON value on every rank. The other ranks' argument is not looked at. No pickle travels."""
    if _size() == 1:
        return value
    data = json.dumps(value).encode("utf-8") if dist.get_rank() == 0 else b""
    length = torch.tensor([len(data)], dtype=torch.int64)
    dist.broadcast(length, 0)
    content = torch.empty(int(length), dtype=torch.uint8)
    if data:
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    dist.broadcast(content, 0)
    return json.loads(content.numpy().tobytes().decode("utf-8"))


def barrier() -> None:
    """Waits for all ranks."""
    any_rank(False)


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a possibly sharded tensor as a CPU copy, detached. A collective when sharded."""
    whole = tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()
    return whole.to("cpu", copy=True)


@torch.no_grad()
def place_full(full: Tensor | None, *, into: Tensor) -> None:
    """Copies rank 0's `full` into `into` on every rank, sharded as `into` is. A collective.

    Args:
        full: the whole tensor on rank 0 (any device); None on the other ranks.
    """
    if _size() == 1:
        assert full is not None
        into.copy_(full)
    elif isinstance(into, DTensor):
        empty = torch.empty(into.shape, dtype=into.dtype, device=into.device)
        source = empty if full is None else empty.copy_(full)
        into.copy_(distribute_like(source, like=into))
    else:
        if full is not None:
            into.copy_(full)
        dist.broadcast(into, 0)


def distribute_like(full: Tensor, *, like: DTensor) -> DTensor:
    """Rank 0's `full`, sharded over the mesh in the way of `like`."""
    return distribute_tensor(full, like.device_mesh, like.placements)


def wrap(task: Task, *, parallel: Literal["ddp", "fsdp"]) -> nn.Module:
    """The module whose call runs the task's forward: the task itself, a DistributedDataParallel of it, or (in
    place) the task sharded by FSDP2 unit by unit and then as a whole. The weights of rank 0 hold.
    """
    here = world()
    if here.size == 1:
        return task
    if parallel == "ddp":
        return DistributedDataParallel(
            task,
            device_ids=[here.device] if here.device.type == "cuda" else None,
            find_unused_parameters=task.find_unused_parameters,
        )
    check_shardable(task)
    for tensor in task.state_dict().values():
        dist.broadcast(tensor, 0)
    mesh = init_device_mesh(here.device.type, (here.size,))
    for unit in task.shard_units():
        fully_shard(unit, mesh=mesh)
    fully_shard(task, mesh=mesh)
    return task


def check_shardable(module: nn.Module) -> None:
    """Asserts that no parameter is zero-dimensional: FSDP2 splits the first dimension."""
    scalars = [name for name, parameter in module.named_parameters() if parameter.ndim == 0]
    assert not scalars, f"parameters of shape () cannot be sharded, give them the shape (1,): {', '.join(scalars)}"
