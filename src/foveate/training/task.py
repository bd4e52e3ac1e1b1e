"""What a system brings to the training loop: one module that turns a batch into losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from foveate.training.optimizer import ParameterRule
from foveate.training.schedule import learning_rate_factor
from foveate.training.settings import TrainingSettings

Batch = dict[str, Any]
Losses = dict[str, Tensor]
Report = dict[str, "float | Tensor"]
Call = Literal["losses", "embed", "loss_of", "evaluate"]


class Task(nn.Module, ABC):
    """A model with its losses. Subclasses fill in `losses` and `export`; the rest has defaults.

    With several processes every rank returns the loss of the *whole* batch, computed from features gathered with
    gradient (`foveate.training.distributed.gather_with_grad`), or as the sum of the ranks' parts (`sum_with_grad`):
    the mean that DDP and FSDP take over ranks is then exactly the gradient of one process. Every trainable parameter
    takes part on every rank and in every step; a rank without rows for some part runs that part on zero rows. Where
    this cannot be held, set `find_unused_parameters`.

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

    @abstractmethod
    def losses(self, batch: Batch) -> tuple[Losses, Report]:
        """The loss terms, scalars, with the weighted total under "loss"; and further numbers for the log."""

    def forward(self, *inputs: Any, call: Call = "losses", **arguments: Any) -> Any:
        """Run `losses`, or another of the task's methods.

        DDP and FSDP wrap the whole task, so whatever gathers features or unshards weights has to be inside their
        forward.
        """
        return getattr(self, call)(*inputs, **arguments)

    def learning_rate_factor(self, step: int, *, settings: TrainingSettings) -> float:
        """Share of the peak learning rate in update number `step`, from 0: the schedule of the settings."""
        return learning_rate_factor(step, settings=settings)

    def should_evaluate(self, step: int, *, settings: TrainingSettings) -> bool:
        """Whether to evaluate after `step` steps; the loop asks for the last step too.

        Override it where evaluations follow something else than a number of steps, such as whole epochs.
        """
        every = settings.evaluate_every
        return every is not None and (step % every == 0 or step == settings.steps)

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Measure the model after `step` steps and return named metrics, the same ones each time.

        The loop calls it on every rank in evaluation mode, without gradient, with the averaged weights where there
        are some, and with a random state of its own. The metrics of rank 0 count, so a task that splits the work over
        ranks combines its results itself (`foveate.training.distributed.all_sum`).
        """
        raise NotImplementedError

    def parameter_groups(self) -> Sequence[ParameterRule]:
        """Rules for learning rates, decay and frozen parts; the first that matches a parameter holds."""
        return ()

    def shard_units(self) -> Sequence[nn.Module]:
        """Modules that FSDP2 shards one by one (transformer blocks), inner ones first; the task is last."""
        return ()

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Writes the trained model as a model folder."""


class EmbeddingTask(Task):
    """A task whose loss couples the samples of a batch through their embeddings alone, as contrastive losses do.

    Only such a task can be trained in parts of a batch (`foveate.training.accumulation`): plain accumulation would
    leave each sample with the negatives of its own part.
    """

    @abstractmethod
    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Tensors by name, rows in the order of the batch: all that `loss_of` reads of the networks. No collective
        takes place here. A row depends on its own sample only."""

    @abstractmethod
    def loss_of(self, batch: Batch, *, embeddings: Mapping[str, Tensor]) -> tuple[Losses, Report]:
        """What `losses` gives, from `embed`'s tensors; it may have parameters of its own (a temperature)."""

    @abstractmethod
    def split(self, batch: Batch, parts: int) -> list[Batch]:
        """The batch in `parts` batches, whose embeddings laid end to end are those of the whole."""

    def losses(self, batch: Batch) -> tuple[Losses, Report]:
        """`loss_of` of `embed`."""
        return self.loss_of(batch, embeddings=self.embed(batch))
