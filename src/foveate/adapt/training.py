"""The task of the training loop: cross-entropy of an adapted model, on pixels or on what was kept of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from foveate.adapt.folder import save_adapter
from foveate.adapt.model import AdaptedModel
from foveate.adapt.prefix import Prefix
from foveate.core.runs import RunFolder
from foveate.training.loader import Loader
from foveate.training.loop import TrainingError, TrainingOutcome, train
from foveate.training.optimizer import ParameterRule
from foveate.training.settings import TrainingSettings
from foveate.training.task import Batch, Losses, Report, Task
from foveate.vision.preprocess import Preprocess

_SHOWN = 64


def normalized(preprocess: Preprocess, pixels: Tensor) -> Tensor:
    """uint8 pixels as the backbone takes them; floating-point ones are that already."""
    return pixels if pixels.is_floating_point() else preprocess.normalize(pixels)


class AdaptTask(Task):
    """Classification with an adapted model.

    Args:
        prefix: batches hold what it kept; None: they hold uint8 pixels.
        decay: weight decay of all that is trained; None: the loop's rule (matrices alone).
        factor: update to the share of the peak learning rate; None: as the loop's settings say.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        *,
        preprocess: Preprocess,
        prefix: Prefix | None,
        decay: float | None,
        factor: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__()
        self.adapted = adapted
        self.preprocess, self.prefix, self.decay, self.factor = preprocess, prefix, decay, factor
        self.keys: list[str] = []  # of the last batch

    def learning_rate_factor(self, step: int, *, settings: TrainingSettings) -> float:
        """Of the study's released schedule, where that is chosen."""
        return super().learning_rate_factor(step, settings=settings) if self.factor is None else self.factor(step)

    def logits(self, given: Tensor) -> Tensor:
        """Of a batch's images."""
        if self.prefix is not None:
            return self.prefix.logits(given)
        return self.adapted(normalized(self.preprocess, given))

    def losses(self, batch: Batch) -> tuple[Losses, Report]:
        """Cross-entropy, and the share of the batch that is right."""
        self.keys = batch["keys"]
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


def train_adapted(task: AdaptTask, loader: Loader, settings: TrainingSettings, run: RunFolder) -> TrainingOutcome:
    """`foveate.training.loop.train`; where a loss is no finite number, the error names the images of its batch.

    Raises:
        UserError: as there.
    """
    try:
        return train(task, loader, settings, run)
    except TrainingError as error:
        shown = ", ".join(task.keys[:_SHOWN]) + (f" and {len(task.keys) - _SHOWN} more" * (len(task.keys) > _SHOWN))
        raise TrainingError(f"{error}; images of this update: {shown}") from error
