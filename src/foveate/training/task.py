"""What a system brings to the training loop: one module that turns a batch into losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.training.optimizer import ParameterRule

Batch = dict[str, Any]
Report = dict[str, "float | Tensor"]


class Task(nn.Module):
    """A model with its losses. Subclasses fill in `losses`; the rest has defaults.

    With several processes every rank computes the loss of the *whole* batch from features gathered with
    gradient (`foveate.training.distributed.gather_with_grad`): the mean that DDP and FSDP take over ranks is
    then exactly the gradient of one process. Every trainable parameter takes part on every rank and in every
    step; a rank without rows for some part runs that part on zero rows. Where this cannot be held, set
    `find_unused_parameters`.

    Scalars that are trained (a logit scale) are parameters of shape (1,), not (): FSDP2 shards the first
    dimension.
    """

    find_unused_parameters: ClassVar[bool] = False

    def prepare_batch(self, batch: Batch, device: torch.device) -> Batch:
        """Moves the batch's tensors to `device`; a subclass may also build what its losses need."""
        return {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Report]:
        """The loss terms, scalars, with the weighted total under "loss"; and further numbers for the log."""
        raise NotImplementedError(f"{type(self).__name__} has no losses")

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], Report]:
        """`losses`: DDP and FSDP wrap the whole task, so that gathers happen inside their forward."""
        return self.losses(batch)

    def parameter_groups(self) -> Sequence[ParameterRule]:
        """Rules for learning rates, decay and frozen parts; the first that matches a parameter holds."""
        return ()

    def shard_units(self) -> Sequence[nn.Module]:
        """Modules that FSDP2 shards one by one (transformer blocks), inner ones first; the task is last."""
        return ()

    def export(self, folder: Path) -> None:
        """Writes the trained model as a model folder."""
        raise NotImplementedError(f"{type(self).__name__} cannot be exported")
