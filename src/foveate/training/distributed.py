"""Distributed training under `torchrun`: ranks, collectives with gradient, wrapping (DDP, FSDP2).

With one process every function is the identity and no process group is needed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from foveate.core.devices import choose_device
from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.training.settings import TrainingSettings
from foveate.training.task import Task


@dataclass(frozen=True)
class World:
    """Rank of this process among `size`, and the device that it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


_current: World | None = None
_left_groups: list[Any] = []


@contextlib.contextmanager
def start(device: str = "auto", *, timeout_minutes: float = 10.0) -> Iterator[World]:
    """Join the processes that `torchrun` started (RANK, WORLD_SIZE, LOCAL_RANK), or stay a single one.

    CUDA processes use NCCL for tensors on the device and gloo for small ones on the CPU.
    """
    global _current
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    torch_device = choose_device(device, local_rank=local_rank)
    if torch_device.type == "cuda":
        # Before the group is made: NCCL uses the current device of each process.
        torch.cuda.set_device(torch_device)
    before = _current
    rank = int(os.environ.get("RANK", "0")) if size > 1 else 0
    if size > 1:
        backend = "cpu:gloo,cuda:nccl" if torch_device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    _current = World(rank, size, torch_device)
    try:
        yield _current
    finally:
        _current = before
        if size > 1:
            _leave()


def _leave() -> None:
    """Destroy the process group in a way that cannot hang.

    The destructor of a gloo group joins the group's threads while it holds the interpreter lock, and a thread that
    is just dropping a finished collective's tensors wants that lock (seen with torch 2.13 when a
    DistributedDataParallel held the last reference). So the group is kept until the process ends, and its threads
    get the time to finish first.
    """
    _left_groups.append(dist.group.WORLD)
    dist.destroy_process_group()
    # Long enough for a thread to drop its tensors; nothing signals that it has.
    time.sleep(0.05)


def world() -> World:
    """Return the world that `start` opened, or a single process on the default device."""
    return _current or World(0, 1, choose_device())


def _size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """Concatenate equally long tensors over ranks; the backward pass sums the gradients of all ranks."""

    @staticmethod
    def forward(ctx: FunctionCtx, local_BE: Tensor) -> Tensor:
        gathered = [torch.empty_like(local_BE) for _ in range(dist.get_world_size())]
        # Collectives refuse tensors that are not contiguous.
        dist.all_gather(gathered, local_BE.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient_NE: Tensor) -> Tensor:  # type: ignore[override]
        # A copy, as autograd may use the gradient elsewhere too; contiguous, as collectives want it.
        summed_NE = gradient_NE.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed_NE)
        return summed_NE.chunk(dist.get_world_size())[dist.get_rank()]


def gather_with_grad(features_BE: Tensor) -> Tensor:
    """Gather features of all ranks in rank order, with gradient to all of them.

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
    """Count the rows of the ranks before this one, and of all ranks. A collective."""
    if _size() == 1:
        return 0, len(rows_RE)
    counts, _ = _counts(rows_RE)
    return sum(counts[: dist.get_rank()]), sum(counts)


def _counts(rows_RE: Tensor) -> tuple[list[int], bool]:
    """Count the rows of each rank, and find out whether those of any rank need a gradient."""
    mine = torch.tensor([len(rows_RE), int(rows_RE.requires_grad)], device=rows_RE.device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    counts, with_gradient = torch.stack(everyone).cpu().unbind(1)
    return counts.tolist(), bool(with_gradient.any())


def gather_ragged_with_grad(rows_RE: Tensor) -> Tensor:
    """Gather any number of rows per rank, zero included, with gradient; the result has no padding.

    A rank without rows passes a tensor of shape (0, ...) and joins every collective, backward too.

    Returns:
        (sum of all ranks' R, ...).
    """
    if _size() == 1:
        return rows_RE
    # The collectives need equal lengths, so rows are padded to the longest rank and the padding is cut out again.
    counts, with_gradient = _counts(rows_RE)
    longest = max(counts)
    # All ranks see the same counts, so that all of them leave here together.
    if longest == 0:
        return rows_RE
    if with_gradient and not rows_RE.requires_grad and torch.is_grad_enabled():
        # Without this, the backward pass of a rank whose rows are constants would leave the others waiting.
        rows_RE = rows_RE.detach().requires_grad_()
    padding = rows_RE.new_zeros((longest - len(rows_RE), *rows_RE.shape[1:]))
    padded = gather_with_grad(torch.cat([rows_RE, padding]))
    unpadded = torch.cat([torch.arange(count) + rank * longest for rank, count in enumerate(counts)])
    return padded[unpadded.to(rows_RE.device)]


class _Sum(torch.autograd.Function):
    """Add the ranks' parts; each part's gradient is multiplied by the number of ranks."""

    @staticmethod
    def forward(ctx: FunctionCtx, part: Tensor) -> Tensor:
        # Collectives accept only contiguous tensors.
        total = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * dist.get_world_size()


def sum_with_grad(part: Tensor) -> Tensor:
    """Sum the parts of a loss of which every rank computes one; the same number on every rank.

    The backward pass needs no collective: it treats the loss as this rank's part times world size, so that the
    gradients are right after the mean that DDP and FSDP take, as with `gather_with_grad`.
    """
    return part if _size() == 1 else _Sum.apply(part)


def all_sum(value: float | Tensor) -> Tensor:
    """Sum a number or tensor over ranks, without gradient (counts, divisors)."""
    total = torch.as_tensor(value).detach().clone()
    if _size() > 1:
        dist.all_reduce(total)
    return total


def all_max(value: Tensor) -> Tensor:
    """Take the elementwise maximum of a tensor over ranks, without gradient."""
    largest = value.detach().clone()
    if _size() > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def mean_over_ranks(values: Mapping[str, float]) -> dict[str, float]:
    """Average named numbers over ranks; every rank passes the same names."""
    if _size() == 1:
        return dict(values)
    names = sorted(values)  # one collective for all, in the same order on every rank
    totals = all_sum(torch.tensor([values[name] for name in names], dtype=torch.float64)) / _size()
    means = dict(zip(names, totals.tolist(), strict=True))
    return {name: means[name] for name in values}


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """Return for each flag whether it is set on any rank, so that all ranks decide alike."""
    if _size() == 1:
        return flags
    combined = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(combined, op=dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in combined.tolist())


def broadcast_json(value: Any) -> Any:
    """Send rank 0's JSON value to every rank, without pickle. The other ranks' argument is ignored."""
    if _size() == 1:
        return value
    data = json.dumps(value).encode("utf-8") if dist.get_rank() == 0 else b""
    # The length goes first: the others need a buffer of the right size before they can receive.
    length = torch.tensor([len(data)], dtype=torch.int64)
    dist.broadcast(length, 0)
    content = torch.empty(int(length), dtype=torch.uint8)
    if data:
        # A bytearray, because PyTorch warns of tensors over bytes that cannot be written.
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    dist.broadcast(content, 0)
    return json.loads(content.numpy().tobytes().decode("utf-8"))


def barrier() -> None:
    """Wait for all ranks."""
    any_rank(False)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a possibly sharded tensor whole, as a detached copy on the CPU. A collective when sharded."""
    whole = tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()
    # On the CPU `to` alone would return the module's own memory, which the next step changes.
    return whole.to("cpu", copy=True)


@torch.no_grad()
def place_full(full: Tensor | None, *, into: Tensor) -> None:
    """Copy rank 0's `full` into `into` on every rank, sharded as `into` is. A collective.

    Args:
        full: the whole tensor on rank 0 (any device); None on the other ranks.
    """
    if _size() == 1:
        assert full is not None
        into.copy_(full)
    elif isinstance(into, DTensor):
        empty = torch.empty(into.shape, dtype=into.dtype, device=into.device)
        # distribute_tensor wants the full shape on every rank, and takes the values of rank 0.
        source = empty if full is None else empty.copy_(full)
        into.copy_(distribute_like(source, like=into))
    else:
        if full is not None:
            into.copy_(full)
        dist.broadcast(into, 0)


def distribute_like(full: Tensor, *, like: DTensor) -> DTensor:
    """Shard rank 0's `full` over the mesh as `like` is."""
    return distribute_tensor(full, like.device_mesh, like.placements)


def wrap(task: Task, settings: TrainingSettings) -> nn.Module:
    """Wrap the task for several processes, its blocks compiled if the settings say so; rank 0's weights are used.

    Returns:
        The module to call: the task itself, a DistributedDataParallel of it, or (in place) the task sharded by FSDP2
        unit by unit and then as a whole.

    Raises:
        UserError: `shard_size` does not divide the number of processes.
    """
    here = world()
    # Before FSDP2, whose hooks gather the weights around what is compiled.
    for unit in _inner_units(task) if settings.compile else ():
        unit.compile()
    if here.size == 1:
        return task
    if settings.parallel == "ddp":
        return DistributedDataParallel(
            task,
            # DDP refuses device ids for modules on the CPU.
            device_ids=[here.device] if here.device.type == "cuda" else None,
            find_unused_parameters=task.find_unused_parameters,
        )
    check_shardable(task)
    # DDP broadcasts rank 0's weights itself, fully_shard does not.
    for tensor in task.state_dict().values():
        dist.broadcast(tensor, 0)
    options: dict[str, Any] = {"mesh": _make_mesh(here, settings.shard_size)}
    if settings.gathered_precision == "bf16":
        # Inputs are left alone: autocast casts them where an operation wants it.
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    if settings.offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=here.device.type == "cuda")
    # Inner modules first: FSDP2 leaves to the outer one only the parameters that no inner one has taken.
    for unit in task.shard_units():
        fully_shard(unit, **options)
    fully_shard(task, **options)
    return task


def _make_mesh(here: World, shard_size: int | None) -> DeviceMesh:
    """Arrange the processes: in a line that shares one copy of the weights, or in several such lines (HSDP)."""
    if shard_size is None or shard_size == here.size:
        return init_device_mesh(here.device.type, (here.size,))
    if here.size % shard_size:
        raise UserError(f"training.shard_size: {shard_size} does not divide {here.size} processes; expected a divisor")
    shape = (here.size // shard_size, shard_size)
    return init_device_mesh(here.device.type, shape, mesh_dim_names=("replicas", "shards"))


@contextlib.contextmanager
def recomputing(task: Task) -> Iterator[None]:
    """Let the trained blocks of a task compute their activations again in the backward pass, within the block."""
    trained = [unit for unit in _inner_units(task) if any(each.requires_grad for each in unit.parameters())]
    if not trained:
        say("training.activation_checkpointing has no effect: the task has no trained blocks")
    for unit in trained:
        # The module's own forward, not a module around it: names of parameters stay as they are. Hooks, by which FSDP2
        # gathers the weights, surround it.
        unit.forward = functools.partial(checkpoint, unit.forward, use_reentrant=False)
    try:
        yield
    finally:
        for unit in trained:
            # The instance's attribute alone: that of its class is uncovered.
            del unit.forward


def _inner_units(task: Task) -> list[nn.Module]:
    """List the units without further units in them: nothing is computed a third time, or compiled twice."""
    units = task.shard_units()
    return [unit for unit in units if not any(other is not unit and other in set(unit.modules()) for other in units)]


def check_shardable(module: nn.Module) -> None:
    """Assert that no parameter is zero-dimensional: FSDP2 splits the first dimension."""
    scalars = [name for name, parameter in module.named_parameters() if parameter.ndim == 0]
    assert not scalars, f"parameters of shape () cannot be sharded, give them the shape (1,): {', '.join(scalars)}"
