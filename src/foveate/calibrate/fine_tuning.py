"""Fine-tuning with rates that leave the features whole: SGD, the backbone at a tenth of the head's learning rate.

The recipe of "Fine-Tuning is Fine, if Calibrated" (arXiv 2409.16223; rates from its public code): cross-entropy over
*all* columns, Nesterov's momentum, L2 on every weight, cosine to 0, only whole batches. A hot uniform rate damages the
features of absent classes, which no gamma repairs (docs/studies/calibration.md).
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.calibrate.settings import FineTuneSettings
from foveate.core.errors import UserError
from foveate.core.progress import silent
from foveate.core.runs import RunFolder
from foveate.training.augment import augment_images
from foveate.training.classification import (
    ClassificationTask,
    LabeledImages,
    Predictions,
    Rows,
    predict,
    train_classifier,
    training_loader,
)
from foveate.training.distributed import start
from foveate.training.optimizer import ParameterRule
from foveate.vision.classifier import Classifier


class _HeadTask(ClassificationTask):
    """Training of the head alone: everything else keeps evaluating, so that the features stay."""

    def train(self, mode: bool = True) -> _HeadTask:
        """Set the training mode of the head.

        Without gradients a backbone still changes: batch norms update their running statistics, dropout drops.
        """
        super().train(mode)
        assert isinstance(self.model, Classifier)
        self.model.eval()
        self.model.head.train(mode)
        return self


def parameter_rules(classifier: Classifier, settings: FineTuneSettings) -> list[ParameterRule]:
    """Return the rules of the optimizer: the head at the full rate, all else at `backbone_rate`."""
    # Decay on everything, biases and norms too, as in the public code.
    pattern = rf"model\.network\.{re.escape(classifier.head_name)}\..*"
    rules = [ParameterRule(pattern, weight_decay=settings.weight_decay)]
    others = [
        name for name, _ in classifier.network.named_parameters() if not name.startswith(f"{classifier.head_name}.")
    ]
    if others:  # a rule that matches nothing is an error
        # A rate of 0 means frozen: no gradients are computed, instead of steps of length 0.
        share = settings.backbone_rate
        rules.append(ParameterRule(".*", share or 1.0, weight_decay=settings.weight_decay, frozen=share == 0))
    return rules


def fine_tune(
    classifier: Classifier,
    images: LabeledImages,
    settings: FineTuneSettings,
    run: Path,
    *,
    rows: Rows | None = None,
    validation: Rows | None = None,
    device: str | None = None,
) -> Classifier:
    """Return a fine-tuned copy of `classifier`; the same call again resumes a stopped run.

    Args:
        rows: to train on; all labeled images by default.
        validation: to measure `accuracy` and `loss` on, for early stopping (`evaluate_every`, `monitor`, `patience`).
        run: folder of checkpoints and log, one per fine-tuning.
        device: that of the classifier by default.

    Raises:
        UserError: no rows, a loss or gradient that is not finite, a folder of another run, augmentation of arrays.
    """
    rows = images.labeled_rows() if rows is None else np.asarray(rows, dtype=np.int64)
    if len(rows) == 0:
        raise UserError(f"{images.name}: fine-tuning needs at least one sample")
    if settings.evaluate_every is not None and (validation is None or not len(validation)):
        raise UserError(
            f"evaluate_every: has no images to measure (got {settings.evaluate_every}); give validation rows"
        )
    training = settings.resolve(len(rows))
    copied = copy.deepcopy(classifier).requires_grad_(True)
    # The number of loader threads may change between sessions; it decides nothing about the result.
    folder = RunFolder.create(run, recipe=settings.model_dump_json(exclude={"workers"}))
    with start(device or str(classifier.device)):
        load = augment_images(images, settings.augmentation)
        loader = training_loader(images, rows, training, load=load, mixup=settings.mixup, balanced=settings.balanced)
        kind = ClassificationTask if settings.backbone_rate else _HeadTask
        task = kind(copied, label_smoothing=settings.label_smoothing, rules=parameter_rules(copied, settings))
        if training.evaluate_every is not None:
            task.evaluate_with(lambda: _measure(copied, images, validation))
        outcome = train_classifier(task, loader, training, folder)
    if outcome.status == "stopped":
        raise UserError(f"{run}: stopped at step {outcome.step}/{training.steps}; run the same command to resume")
    return copied.eval()


def _measure(classifier: Classifier, images: LabeledImages, rows: Rows | None) -> dict[str, float]:
    """Return accuracy and cross-entropy of `rows`, during training."""
    with silent():  # inside the progress bar of the training
        predictions = predict_classifier(classifier, images, rows, description="measuring validation images")
    return {"accuracy": predictions.accuracy, "loss": predictions.loss}


def predict_classifier(
    classifier: Classifier, images: LabeledImages, rows: Rows | None = None, *, description: str = "predicting"
) -> Predictions:
    """Return logits and features of `rows`, all labeled images by default, in evaluation mode.

    Raises:
        UserError: no image can be read.
    """
    training = classifier.training
    classifier.eval()
    try:
        return predict(classifier.logits_and_features, images, rows, device=classifier.device, description=description)
    finally:
        classifier.train(training)


def head_weights(classifier: Classifier) -> NDArray[np.float64]:
    """Return the head's weights [C, D]."""
    with torch.no_grad():
        return classifier.head.weight.detach().double().cpu().numpy()
