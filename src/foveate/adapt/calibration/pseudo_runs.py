"""Pseudo runs from a model and its data: the pre-trained model is fine-tuned on half of the seen classes, three times.

What is truly absent takes no part: only samples of seen classes are given, and the estimate drops the other columns.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from foveate.adapt.calibration.fine_tuning import FineTuneSettings, fine_tune
from foveate.adapt.calibration.logit_files import read_logits, write_logits
from foveate.adapt.calibration.pseudo import PseudoRun, split_classes
from foveate.adapt.classifier import Classifier
from foveate.adapt.samples import Samples, answer
from foveate.core.errors import UserError
from foveate.core.progress import say


def make_pseudo_runs(
    before: Classifier,
    samples: Samples,
    seen: ArrayLike,
    settings: FineTuneSettings,
    run: Path,
    *,
    count: int = 3,
    seed: int = 0,
    device: str | None = None,
) -> list[PseudoRun]:
    """Fine-tunes `before` on the pseudo-seen half of S, `count` times, and takes its logits of all samples of S.

    Each finished run is a file `run/pseudo-K.npz` (logits, labels, halves, and the pre-trained model's logits), which
    is read again instead of being trained again.

    Args:
        before: the pre-trained model, not the fine-tuned one.
        samples: training samples; those of classes outside `seen` are left out before anything is computed.

    Raises:
        UserError: a seen class without a sample, fewer than two seen classes, a file of another split in `run`.
    """
    classes = np.sort(np.asarray(seen, dtype=np.int64))
    rows = np.flatnonzero(np.isin(samples.labels, classes))
    without = np.setdiff1d(classes, samples.labels[rows])
    if len(without):
        raise UserError(
            f"{len(without)} seen classes have no training sample, first '{before.names[without[0]]}'; "
            "name only the classes that the fine-tuning data covered"
        )
    source = None
    runs = []
    for number in range(count):
        path = run / f"pseudo-{number}.npz"
        half, absent = split_classes(classes, number=number, seed=seed)
        if not path.is_file():
            say(f"pseudo run {number + 1} of {count}: fine-tuning on {len(half)} of {len(classes)} seen classes")
            chosen = rows[np.isin(samples.labels[rows], half)]
            place = run / f"pseudo-{number}"
            tuned = fine_tune(before, samples, settings, place, rows=chosen, device=device)
            if source is None:
                source = answer(before, samples, rows, what="pre-trained model")
            found = answer(tuned, samples, rows, what=f"pseudo run {number + 1}")
            write_logits(
                path,
                logits=found.logits,
                labels=found.labels,
                class_names=list(before.names),
                seen=half,
                absent=absent,
                source_logits=source.logits,
            )
            shutil.rmtree(place / "checkpoints", ignore_errors=True)
        found_run = read_logits(path).as_run()
        if not (np.array_equal(found_run.seen, half) and np.array_equal(found_run.absent, absent)):
            raise UserError(f"{path}: is of another split of the seen classes; give another run folder")
        runs.append(found_run)
    return runs
