"""The task of the training loop: cross-entropy of an adapted model, on pixels or on what was kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from foveate.adapt.folder import save_adapter
from foveate.adapt.model import AdaptedModel
from foveate.adapt.prefix import Prefix
from foveate.training.optimizer import ParameterRule
from foveate.training.task import Batch, Losses, Report, Task
from foveate.vision.pixels import Preprocess


class AdaptTask(Task):
    """Classification with an adapted model.

    Args:
        prefix: batches hold what it kept; None: they hold uint8 pixels.
        decay: weight decay of all that is trained; None: the loop's rule (matrices alone).
    """

    def __init__(
        self, adapted: AdaptedModel, *, preprocess: Preprocess, prefix: Prefix | None, decay: float | None
    ) -> None:
        super().__init__()
        self.adapted = adapted
        self.preprocess, self.prefix, self.decay = preprocess, prefix, decay

    def logits(self, given: Tensor) -> Tensor:
        """Of a batch's pictures."""
        if self.prefix is not None:
            return self.prefix.logits(given)
        return self.adapted(self.preprocess.normalise(given))

    def losses(self, batch: Batch) -> tuple[Losses, Report]:
        """Cross-entropy, and the share of the batch that is right."""
        logits, labels = self.logits(batch["given"]).float(), batch["label"]
        right = (logits.argmax(dim=1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits, labels)}, {"accuracy": right}

    def parameter_groups(self) -> Sequence[ParameterRule]:
        """One rule where everything decays."""
        return () if self.decay is None else (ParameterRule(".*", weight_decay=self.decay),)

    def shard_units(self) -> Sequence[nn.Module]:
        """The blocks."""
        return [block.module for block in self.adapted.view.blocks]

    def export(self, folder: Path) -> None:
        """The adapter folder."""
        save_adapter(self.adapted, folder)
