"""AdaFactor on shards of FSDP2, with the updates of `torch.optim.Adafactor`, which fails on them.

Rows of a matrix are split over processes (FSDP2 shards the first dimension). The mean of squares of a row needs this
process alone, that of a column, the mean over rows and the two norms need all: they are summed for all parameters in
two collectives a step. Checked with torch 2.13, whose optimizer stops at an in-place operation on a partial norm.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor


class _Entry(NamedTuple):
    """A parameter in a step: its shard, that of its gradient, its moments, and the options of its group."""

    parameter: DTensor
    shard: Tensor
    gradient: Tensor
    state: dict[str, Any]
    group: dict[str, Any]


class ShardedAdafactor(torch.optim.Adafactor):
    """AdaFactor (Shazeer and Stern 2018) on DTensors that are sharded along their first dimension.

    Args and moments are those of `torch.optim.Adafactor`; see `new_moment` for how these are sharded.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient, on every process the same ones. A collective."""
        assert closure is None, "the loop calls backward itself"
        entries = [self._enter(parameter, group) for group in self.param_groups for parameter in group["params"]]
        used = [entry for entry in entries if entry is not None]
        columns = iter(_sum_over_ranks(_measure_gradient(entry) for entry in used))
        updates = [_scale_gradient(entry, next(columns)) for entry in used]
        # Norms are taken before the weight decay below, as torch does.
        norms = _sum_over_ranks(
            torch.stack([entry.shard.square().sum(), update.square().sum()])
            for entry, update in zip(used, updates, strict=True)
        )
        for entry, update, (weight_sq, update_sq) in zip(used, updates, norms, strict=True):
            step, size, group = entry.state["step"].item(), entry.parameter.numel(), entry.group
            # Algorithm 4 of the paper with the relative steps of section 8: rho = min(lr, 1 / sqrt(t)), times the size
            # of the parameter where eps[1] is below it.
            rate = min(group["lr"], step**-0.5) * max(group["eps"][1], (weight_sq.item() / size) ** 0.5)
            if group["weight_decay"]:
                entry.shard.mul_(1 - group["lr"] * group["weight_decay"])
            # Section 6: an update whose root mean square exceeds d is scaled down to it, since a second moment that
            # lags behind the gradient makes steps too large.
            clipped = max(1.0, (update_sq.item() / size) ** 0.5 / group["d"])
            entry.shard.add_(update, alpha=-rate / clipped)

    def _enter(self, parameter: Tensor, group: dict[str, Any]) -> _Entry | None:
        """Return what a step needs of a parameter, with new moments in its first step; None without a gradient."""
        if parameter.grad is None:
            return None
        assert isinstance(parameter, DTensor), "a whole parameter would be summed over processes"
        state = self.state[parameter]
        if not state:
            # On the CPU, as in torch, so that reading it in every step does not wait for the device.
            state["step"] = torch.zeros((), dtype=torch.float32)
            for moment in ("row_var", "col_var") if parameter.ndim > 1 else ("variance",):
                state[moment] = new_moment(parameter, moment)
        state["step"] += 1
        return _Entry(parameter, _local(parameter), _local(parameter.grad), state, group)


def new_moment(parameter: DTensor, moment: str) -> Tensor:
    """Return zeros for a moment: `variance` as the parameter, `row_var` [n, ..., 1] and `col_var` [n, ..., 1, m].

    They are sharded as the parameter, but for the columns of a matrix, [1, m], which every process has whole.
    """
    if moment == "row_var":
        return torch.zeros_like(parameter[..., :1])
    if moment == "col_var" and parameter.ndim == 2:
        return parameter.to_local().new_zeros(1, parameter.shape[1])
    return torch.zeros_like(parameter[..., :1, :] if moment == "col_var" else parameter)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _decay(entry: _Entry) -> float:
    # The weight of the new gradient, 1 - beta2 of step t (section 7): t**-0.8 by default, so that beta2 rises to 1.
    return float(entry.state["step"].item() ** entry.group["beta2_decay"])


def _measure_gradient(entry: _Entry) -> Tensor:
    """Update the moments of rows, or of a vector; return what is summed over processes: columns, and all rows."""
    gradient, state = entry.gradient, entry.state
    if gradient.ndim < 2:
        _local(state["variance"]).lerp_(gradient.square(), _decay(entry))
        return gradient.new_zeros(0)
    row_var = _local(state["row_var"])
    row_var.lerp_(gradient.square().mean(dim=-1, keepdim=True), _decay(entry))
    # Rows and columns are the last two dimensions, but shards split the first, so nothing is left to sum.
    if gradient.ndim > 2:
        return gradient.new_zeros(0)
    # Sums, not means: processes may hold different numbers of rows.
    return torch.cat([gradient.square().sum(dim=0), row_var.sum(dim=0)])


def _scale_gradient(entry: _Entry, sums: Tensor) -> Tensor:
    """Return the gradient over the root of its estimated mean square.

    Args:
        sums: of `_measure_gradient` over all processes.
    """
    gradient, state = entry.gradient, entry.state
    eps = entry.group["eps"][0]
    eps = torch.finfo(gradient.dtype).eps if eps is None else eps
    if gradient.ndim < 2:
        estimate = _local(state["variance"]).clone()
    else:
        row_var, col_var = _local(state["row_var"]), _local(state["col_var"])
        if gradient.ndim == 2:
            # A DTensor has the shape of the whole matrix, not of this process's shard.
            rows = entry.parameter.shape[0]
            col_var.lerp_(sums[None, :-1] / rows, _decay(entry))
            mean = sums[-1] / rows
        else:
            col_var.lerp_(gradient.square().mean(dim=-2, keepdim=True), _decay(entry))
            mean = row_var.mean(dim=-2, keepdim=True)
        # Section 3: the outer product of row and column means over their common mean is the rank-1 approximation of
        # least I-divergence.
        estimate = row_var @ col_var / mean.clamp(min=eps)
    return estimate.clamp_(min=eps * eps).rsqrt_().mul_(gradient)


def _sum_over_ranks(parts: Iterable[Tensor]) -> list[Tensor]:
    """Sum the vectors of all parameters over processes, in one collective."""
    vectors = list(parts)
    if not vectors:
        return []
    total = torch.cat(vectors)
    dist.all_reduce(total)
    return list(total.split([len(vector) for vector in vectors]))
