"""Exponential moving average of the trained weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from foveate.training.distributed import distribute_like


def ema_decay(step: int, *, decay: float) -> float:
    """Return the decay at `step` (from 0): min(decay, (1 + step) / (10 + step)).

    The early average forgets the initial weights quickly, so that short runs profit too (the warm-up of
    TensorFlow's ExponentialMovingAverage with `num_updates`).
    """
    return min(decay, (1 + step) / (10 + step))


class ExponentialAverage:
    """Averages of the trainable parameters, in their precision. Buffers are not averaged.

    Built before FSDP shards the model, from whole weights; `shard_like` then gives each average the sharding
    of its parameter.

    Attributes:
        averages: parameter name -> average.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.averages: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in module.named_parameters() if parameter.requires_grad
        }

    def shard_like(self, module: nn.Module) -> None:
        """Shard the averages as the parameters of `module` are, from rank 0's. A collective under FSDP."""
        parameters = dict(module.named_parameters())
        for name, average in self.averages.items():
            parameter = parameters[name]
            if isinstance(parameter, DTensor):
                self.averages[name] = distribute_like(average, like=parameter)

    @torch.no_grad()
    def update(self, module: nn.Module, *, step: int) -> None:
        """Update: average <- d * average + (1 - d) * parameter with d = ema_decay(step)."""
        # Shards are averaged where they are: the average of a shard is the shard of the average.
        parameters = dict(module.named_parameters())
        averages = [_local(average) for average in self.averages.values()]
        current = [_local(parameters[name].detach()) for name in self.averages]
        # One call for all parameters: a kernel for each would cost more than the arithmetic of small tensors.
        torch._foreach_lerp_(averages, current, 1 - ema_decay(step, decay=self.decay))

    @contextlib.contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Put the averages into the module within the block, and its weights back afterwards."""
        parameters = dict(module.named_parameters())
        weights = {name: parameters[name].detach().clone() for name in self.averages}
        self._copy(self.averages, parameters)
        try:
            yield
        finally:
            self._copy(weights, parameters)

    @staticmethod
    @torch.no_grad()
    def _copy(values: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> None:
        for name, value in values.items():
            _local(parameters[name]).copy_(_local(value))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
