"""Fine-tuning with rates that leave the features whole: SGD, the backbone at a tenth of the head's learning rate.

The recipe of "Fine-Tuning is Fine, if Calibrated" (arXiv 2409.16223; rates from its public code): cross entropy over
*all* columns, Nesterov's momentum, L2 on every weight, cosine to 0, only whole batches. A hot uniform rate damages the
features of absent classes, which no gamma repairs (docs/studies/calibration.md).
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field

from foveate.adapt.classifier import Classifier
from foveate.adapt.samples import Augmentation, Samples
from foveate.core.errors import UserError
from foveate.core.recipes import Settings
from foveate.core.runs import RunFolder
from foveate.training.distributed import start
from foveate.training.loader import Loader
from foveate.training.loop import train
from foveate.training.optimizer import ParameterRule
from foveate.training.settings import TrainingSettings
from foveate.training.task import Batch, Losses, Report, Task


class FineTuneSettings(Settings):
    """How a classifier is fine-tuned."""

    epochs: int = Field(default=20, ge=1, description="passes over the training samples")
    batch_size: int = Field(default=64, ge=1, description="samples of one update; all of them where there are fewer")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate of the head")
    backbone_rate: float = Field(
        default=0.1, ge=0, description="learning rate of all but the head, as a share of the head's; 0 = frozen"
    )
    weight_decay: float = Field(default=5e-4, ge=0, description="on every trained weight")
    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="sgd with Nesterov's momentum .9, or adamw")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16 = autocast; weights stay fp32")
    augmentation: Augmentation = Field(default=Augmentation(), description="random views and colors; none by default")
    seed: int = Field(default=0, ge=0, description="decides the order of samples, views and dropout")
    workers: int = Field(default=1, ge=0, description="loader threads")


class ClassificationTask(Task):
    """Cross entropy of a classifier over all of its columns."""

    def __init__(self, classifier: Classifier, settings: FineTuneSettings) -> None:
        super().__init__()
        self.classifier = classifier
        self._settings = settings

    def losses(self, batch: Batch) -> tuple[Losses, Report]:
        """The loss, and the share of the batch that is answered right."""
        logits = self.classifier(batch["pixels"])
        loss = F.cross_entropy(logits, batch["labels"])
        return {"loss": loss}, {"accuracy": (logits.detach().argmax(1) == batch["labels"]).float().mean()}

    def parameter_groups(self) -> list[ParameterRule]:
        """The head at the full rate, all else at `backbone_rate`; decay everywhere, as in the public code."""
        settings = self._settings
        rules = [ParameterRule(_head_pattern(self.classifier), weight_decay=settings.weight_decay)]
        if any(True for name, _ in self.named_parameters() if not re.fullmatch(rules[0].pattern, name)):
            scale = settings.backbone_rate
            frozen = scale == 0
            rules.append(ParameterRule(".*", scale or 1.0, weight_decay=settings.weight_decay, frozen=frozen))
        return rules

    def export(self, folder: Path) -> None:
        """Not used: the classifier itself is what was trained."""
        raise UserError("a fine-tuned classifier is written by foveate.adapt.classifier.save_classifier")


def _head_pattern(classifier: Classifier) -> str:
    return rf"classifier\.network\.{re.escape(classifier.head_name)}\..*"


def fine_tune(
    classifier: Classifier,
    samples: Samples,
    settings: FineTuneSettings,
    run: Path,
    *,
    rows: NDArray[np.int64] | None = None,
    device: str | None = None,
) -> Classifier:
    """A fine-tuned copy of `classifier`, which stays as it was. Stopped and called again, it goes on where it was.

    Args:
        rows: of the samples to train on; all where None.
        run: folder of checkpoints and log, one per fine-tuning.

    Raises:
        UserError: no rows; loss or gradient not finite; a folder that holds another run; augmentation of arrays.
    """
    chosen = np.arange(len(samples.labels)) if rows is None else np.asarray(rows, dtype=np.int64)
    if len(chosen) == 0:
        raise UserError("fine-tuning needs at least one sample")
    batch = min(settings.batch_size, len(chosen))
    steps = max(1, settings.epochs * (len(chosen) // batch))
    of_adamw: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8} if settings.optimizer == "adamw" else {}
    training = TrainingSettings(
        steps=steps,
        batch_size=batch,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        optimizer=settings.optimizer,
        **of_adamw,
        gradient_clip_norm=None,
        precision=settings.precision,
        seed=settings.seed,
        log_every=max(1, steps // 20),
        checkpoint_every=max(50, steps // 4),
        keep_checkpoints=1,
        workers=settings.workers,
    )
    copied = copy.deepcopy(classifier).requires_grad_(True)
    recipe = settings.model_dump_json(exclude={"workers"})
    folder = RunFolder.create(run, recipe=recipe)
    with start(device or str(classifier.device)):
        varied = samples.augmented(settings.augmentation)
        loader = Loader(varied, rows=chosen, batch_size=batch, seed=settings.seed, workers=settings.workers)
        outcome = train(ClassificationTask(copied, settings), loader, training, folder)
    if outcome.status == "stopped":
        raise UserError(f"{run}: stopped after step {outcome.step} of {steps}; the same command goes on from there")
    return copied.eval()


def head_of(classifier: Classifier) -> NDArray[np.float64]:
    """The head's weights [C, D]."""
    with torch.no_grad():
        return classifier.head.weight.detach().double().cpu().numpy()
