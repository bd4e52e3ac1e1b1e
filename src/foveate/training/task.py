"""The task protocol: what a system brings to the training loop, one module that turns a batch into losses."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.training.optimizer import ParameterRule, learning_rate_factor
from foveate.training.settings import TrainingSettings

Batch = dict[str, Any]
Losses = dict[str, Tensor]
Report = dict[str, "float | Tensor"]
Call = Literal["losses", "embed", "loss_of", "evaluate"]


class Task(nn.Module, ABC):
    """A model with its losses. Subclasses fill in `losses` and `export`; the rest has defaults.

    `losses` returns means over the batch that it is given, which may be one rank's share or a part of it. The loop
    weights them by `count_targets` over all parts and ranks, so that the gradient is the one of the whole batch. A task
    needs no collectives for that. Every trainable parameter takes part on every rank and in every step; a rank without
    rows for some layers runs them on zero rows. Where this cannot be held, set `find_unused_parameters`.

    Scalars that are trained (a logit scale) are parameters of shape (1,), not (): FSDP2 shards the first
    dimension.
    """

    find_unused_parameters: ClassVar[bool] = False
    # Keys of the samples of the last batch, for the error of a loss that is not finite; a task may leave them out.
    batch_keys: Sequence[str] = ()

    def prepare_batch(self, batch: Batch, device: torch.device) -> Batch:
        """Move the batch's tensors to `device`; a subclass may also build what its losses need."""
        return {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    @abstractmethod
    def losses(self, batch: Batch) -> tuple[Losses, Report]:
        """Return the loss terms, scalars, with the weighted total under "loss"; and further numbers for the log."""

    def count_targets(self, batch: Batch) -> Mapping[str, float]:
        """Return the number of targets behind each mean of `losses` in this batch: rows, unless overridden.

        A language model returns its target tokens. Where terms are means over different things, each has an entry of
        its own; "loss" is the count of every other term and report, and `total` adds the terms up.
        """
        return {"loss": float(_count_rows(batch, type(self).__name__))}

    def total(self, terms: Losses) -> Tensor:
        """Add up the terms of `losses`; needed only if `count_targets` has an entry for each of several terms."""
        return terms["loss"]

    def split(self, batch: Batch, parts: int) -> list[Batch]:
        """Split a batch into `parts` smaller ones of almost equal length, for gradient accumulation.

        By default each tensor and list is cut along its first dimension; other values go into every part.

        Raises:
            UserError: for entries of different lengths; a task with ragged batches overrides this.
        """
        rows = _count_rows(batch, type(self).__name__)
        # Cut by rounding, so that lengths differ by at most one.
        edges = [round(part * rows / parts) for part in range(parts + 1)]
        return [
            {name: value[start:stop] if _has_rows(value) else value for name, value in batch.items()}
            for start, stop in itertools.pairwise(edges)
        ]

    def forward(self, *inputs: Any, call: Call = "losses", **arguments: Any) -> Any:
        """Run `losses`, or another of the task's methods.

        DDP and FSDP wrap the whole task, so whatever gathers features or unshards weights has to be inside their
        forward.
        """
        return getattr(self, call)(*inputs, **arguments)

    def learning_rate_factor(self, step: int, *, settings: TrainingSettings) -> float:
        """Return the factor of the peak learning rate at `step`, from 0: the schedule of the settings."""
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

        Raises:
            NotImplementedError: by default; a task without an evaluation is trained with `evaluate_every` None.
        """
        raise NotImplementedError(f"{type(self).__name__} has no evaluate(); train it with evaluate_every=None")

    def parameter_groups(self) -> Sequence[ParameterRule]:
        """Return rules for learning rates, decay and frozen parts; the first that matches a parameter applies."""
        return ()

    def shard_units(self) -> Sequence[nn.Module]:
        """List the modules that FSDP2 shards one by one (transformer blocks), inner ones first; the task is last."""
        return ()

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the trained model as a model folder."""


def _has_rows(value: Any) -> bool:
    # A zero-dimensional tensor is one number for the whole batch, which must not be split.
    return isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 0)


def _count_rows(batch: Batch, owner: str) -> int:
    lengths = {name: len(value) for name, value in batch.items() if _has_rows(value)}
    if len(set(lengths.values())) != 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "none"
        raise UserError(
            f"{owner}: a batch has entries of different lengths ({listed}) and the task no split of its own"
        )
    return next(iter(lengths.values()))


class EmbeddingTask(Task):
    """A task whose loss couples the samples of a batch only through embeddings, as contrastive losses do.

    Plain accumulation would leave each sample with the negatives of its own part, so embeddings are cached instead
    (`foveate.training.accumulation`).

    With several processes every rank returns the loss of the *whole* batch, computed from embeddings gathered with
    gradient (`foveate.training.distributed.gather_with_grad`), or as the sum of the ranks' parts (`sum_with_grad`):
    the mean that DDP and FSDP take over ranks is then exactly the gradient of one process.
    """

    @abstractmethod
    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the tensors that `loss_of` reads of the networks, by name, rows in the order of the batch.

        A row depends on its sample only, and no collective takes place here: it runs twice when a batch is split.
        """

    @abstractmethod
    def loss_of(self, batch: Batch, *, embeddings: Mapping[str, Tensor]) -> tuple[Losses, Report]:
        """Compute the losses of the whole batch from `embed`'s tensors; it may have parameters (a temperature)."""

    @abstractmethod
    def split(self, batch: Batch, parts: int) -> list[Batch]:
        """Split the batch so that the embeddings of the parts, laid end to end, are those of the whole."""

    def losses(self, batch: Batch) -> tuple[Losses, Report]:
        """Compute the losses of a batch."""
        return self.loss_of(batch, embeddings=self.embed(batch))
