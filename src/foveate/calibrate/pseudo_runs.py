"""Pseudo runs from a model and its data: the pre-trained model is fine-tuned on half of the seen classes, three times.

Absent classes take no part: only samples of seen classes are used, and the estimate drops the other columns.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from foveate.calibrate.fine_tuning import fine_tune, predict_classifier
from foveate.calibrate.pseudo import PseudoRun, split_classes
from foveate.calibrate.settings import FineTuneSettings
from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.training.classification import LabeledImages, Rows
from foveate.training.logit_files import read_logits, write_logits
from foveate.vision.classifier import Classifier


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
