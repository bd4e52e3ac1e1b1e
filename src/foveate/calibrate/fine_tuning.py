"""Fine-tuning with rates that leave the features whole: SGD, the backbone at a tenth of the head's learning rate.

The recipe of "Fine-Tuning is Fine, if Calibrated" (arXiv 2409.16223; rates from its public code): cross-entropy over
*all* columns, Nesterov's momentum, L2 on every weight, cosine to 0, only whole batches. A hot uniform rate damages the
features of absent classes, which no gamma repairs (docs/studies/calibration.md).
"""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from foveate.calibrate.pseudo import PseudoRun, split_classes
from foveate.calibrate.settings import FineTuneSettings
from foveate.core.errors import UserError
from foveate.core.progress import say, silent
from foveate.core.runs import RunFolder
from foveate.training.augment import augment_images
from foveate.training.classification import (
    ClassificationTask,
    LabeledImages,
    Predictions,
    Rows,
    predict,
    training_loader,
)
from foveate.training.distributed import start
from foveate.training.logit_files import read_logits, write_logits
from foveate.training.loop import train
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

    Example:
        >>> from foveate.training import open_labeled_images
        >>> from foveate.vision import open_classifier, read_image
        >>> before, collection = open_classifier(classifier_folder), Collection.open(collection_folder)
        >>> def load(row, view):
        ...     return read_image(collection, row, before.preprocess, view)[0]
        >>> images = open_labeled_images(collection, "category", before.names, splits=["train"], load=load)
        >>> settings = FineTuneSettings(epochs=1, workers=0)
        >>> fine_tune(before, images, settings, new_folder, rows=images.rows("train"), device="cpu").names
        ('disc', 'square', 'triangle')
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

    def measure() -> dict[str, float]:
        with silent():  # inside the progress bar of the training
            return predict_classifier(copied, images, validation, description="measuring validation images").metrics

    # The number of loader threads may change between sessions; it decides nothing about the result.
    folder = RunFolder.create(run, recipe=settings.model_dump_json(exclude={"workers"}))
    with start(device or str(classifier.device)):
        load = augment_images(images, settings.augmentation)
        loader = training_loader(images, rows, training, load=load, mixup=settings.mixup, balanced=settings.balanced)
        kind = ClassificationTask if settings.backbone_rate else _HeadTask
        task = kind(copied, label_smoothing=settings.label_smoothing, rules=parameter_rules(copied, settings))
        if training.evaluate_every is not None:
            task.evaluate_with(measure)
        outcome = train(task, loader, training, folder)
    if outcome.status == "stopped":
        raise UserError(f"{run}: stopped at step {outcome.step}/{training.steps}; run the same command to resume")
    return copied.eval()


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


# Pseudo runs from a model and its data: the pre-trained model is fine-tuned on half of the seen classes, three times.
#
# Absent classes take no part: only samples of seen classes are used, and the estimate drops the other columns.


def make_pseudo_runs(
    before: Classifier,
    images: LabeledImages,
    seen: ArrayLike,
    settings: FineTuneSettings,
    run: Path,
    *,
    rows: Rows | None = None,
    count: int = 3,
    seed: int = 0,
    device: str | None = None,
) -> list[PseudoRun]:
    """Fine-tune `before` on the pseudo-seen half of S, `count` times, and predict all samples of S with each.

    Each finished run is a file `run/pseudo-K.npz` (logits, labels, halves, and the pre-trained model's logits), which
    is read again instead of being trained again.

    Args:
        before: the pre-trained model, not the fine-tuned one.
        images: training samples; those of classes outside `seen` are left out before anything is computed.
        seen: class numbers of S.
        settings: how the model under study was fine-tuned.
        run: folder of the files.
        rows: of `images`; all labeled ones by default.
        count: number of runs; the paper takes three.
        seed: of the splits of S.
        device: that of the classifier by default.

    Raises:
        UserError: a seen class without a sample, fewer than two seen classes, or a file of another split in `run`.
    """
    classes = np.sort(np.asarray(seen, dtype=np.int64))
    rows = images.labeled_rows() if rows is None else rows
    # First of all: samples of absent classes must not even be predicted.
    rows = rows[np.isin(images.labels_N[rows], classes)]
    missing = np.setdiff1d(classes, images.labels_N[rows])
    if len(missing):
        raise UserError(
            f"{len(missing)} seen classes have no training sample, first '{before.names[missing[0]]}'; "
            "name only the classes that the fine-tuning data covered"
        )
    source = None
    runs = []
    for number in range(count):
        path = run / f"pseudo-{number}.npz"
        half, absent = split_classes(classes, number=number, seed=seed)
        if not path.is_file():
            say(f"pseudo run {number + 1}/{count}: fine-tuning on {len(half)} of {len(classes)} seen classes")
            half_rows = rows[np.isin(images.labels_N[rows], half)]
            folder = run / f"pseudo-{number}"
            tuned = fine_tune(before, images, settings, folder, rows=half_rows, device=device)
            if source is None:  # the same for all runs
                source = predict_classifier(before, images, rows, description="pre-trained model")
            predictions = predict_classifier(tuned, images, rows, description=f"pseudo run {number + 1}")
            write_logits(
                path,
                logits=predictions.logits,
                labels=predictions.labels,
                class_names=list(before.names),
                seen=half,
                absent=absent,
                source_logits=source.logits,
            )
            # The file is all that is read from now on; checkpoints of three models are the larger part of a run folder.
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        pseudo_run = PseudoRun.from_file(read_logits(path))
        if not (np.array_equal(pseudo_run.seen, half) and np.array_equal(pseudo_run.absent, absent)):
            raise UserError(f"{path} holds another split of the seen classes; give another run folder")
        runs.append(pseudo_run)
    return runs
