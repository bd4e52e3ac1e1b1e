"""Training of a link model: one loss for each pass, never added together, under one optimizer.

The optimizer is AdamW without decay, which is Adam; its moments are shared by all passes. Between batches gradients are
None, so parameters outside a pass neither move nor count a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.species.links import Relation
from foveate.training.optimizer import ParameterRule
from foveate.training.settings import TrainingSettings
from foveate.training.task import Batch, Losses, Report, Task

IMAGE_PATTERN = r"model\.image\..*"


def link_loss(scores_BN: Tensor, labels_B: Tensor, relation: Relation) -> Tensor:
    """Return the mean loss of a batch of one relation.

    Source: the released code of COSMO, main.py: cross-entropy over taxa (PARENT, SPECIES); over places and hours binary
    cross-entropy against a one-hot row, mean over B N, so that the one positive weighs 1 / N.
    """
    if relation in (Relation.PARENT, Relation.SPECIES):
        return F.cross_entropy(scores_BN, labels_B)
    # Keep the scores' type: the released code rounds it to float32 even in a float64 run, which shifts the loss.
    target_BN = F.one_hot(labels_B, scores_BN.shape[1]).to(scores_BN.dtype)
    return F.binary_cross_entropy_with_logits(scores_BN, target_BN)


def chance_loss(num_candidates: int) -> float:
    """Return the binary cross-entropy of places or hours at chance: the entropy of Bernoulli(1 / N)."""
    share = 1 / num_candidates
    if num_candidates == 1:
        return 0.0
    return float(-(share * np.log(share) + (1 - share) * np.log1p(-share)))


def class_offsets(labels_N: NDArray[np.int64], num_classes: int, tau: float) -> Tensor:
    """Return tau times the log frequency of each class [K], added to logits in training only.

    Source: Menon et al. 2021, "Long-tail learning via logit adjustment" (arXiv 2007.07314), equation 10. A class
    without an image counts as one: its frequency has no logarithm.
    """
    # Add the prior instead of subtracting it: training then fits logits minus the prior, and prediction without the
    # term is balanced.
    counts_K = np.bincount(labels_N, minlength=num_classes).clip(min=1)
    return torch.from_numpy(tau * np.log(counts_K / counts_K.sum())).float()


class LinkTask(Task):
    """Losses of a link model; see `foveate.training.task.Task`.

    Args:
        model: a `LinkModel`, or a baseline, which has only the species relation.
        image_rate_scale: learning rate of the image network, its linear layer included, over the recipe's.
        offsets_K: added to species scores in training; see `class_offsets`.
        steps_per_epoch: an evaluation follows every so many steps; None: none.
        evaluation: returns the metrics of an evaluation.
        save: writes the trained model to a folder.
    """

    # A pass trains only the parameters of its relation.
    find_unused_parameters = True

    def __init__(
        self,
        model: nn.Module,
        *,
        image_rate_scale: float = 1.0,
        offsets_K: Tensor | None = None,
        steps_per_epoch: int | None = None,
        evaluation: Callable[[], Mapping[str, float]] | None = None,
        save: Callable[[Path], object] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("offsets_K", offsets_K, persistent=False)
        self._rate_scale, self._steps_per_epoch = image_rate_scale, steps_per_epoch
        self._evaluation, self._save = evaluation, save

    def losses(self, batch: Batch) -> tuple[Losses, Report]:
        """Return the loss of the batch's relation, and the same under the relation's name for the log."""
        relation = batch["relation"]
        scores_BN = self.model(batch["inputs"], relation)
        if relation is Relation.SPECIES and self.offsets_K is not None:
            scores_BN = scores_BN + self.offsets_K
        loss = link_loss(scores_BN, batch["labels"], relation)
        return {"loss": loss}, {f"loss_{relation.name.lower()}": loss.detach()}

    def parameter_groups(self) -> Sequence[ParameterRule]:
        """Return the rule of the image network: its linear layer learns as slowly as the encoder below it."""
        return (ParameterRule(IMAGE_PATTERN, learning_rate_scale=self._rate_scale),)

    def should_evaluate(self, step: int, *, settings: TrainingSettings) -> bool:
        """Whether an epoch ends with this step."""
        return self._steps_per_epoch is not None and step % self._steps_per_epoch == 0

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Return the metrics of the validation images."""
        return super().evaluate(step) if self._evaluation is None else self._evaluation()

    def export(self, folder: Path) -> None:
        """Write the trained model."""
        assert self._save is not None, "the task was built without a folder to write"
        self._save(folder)
