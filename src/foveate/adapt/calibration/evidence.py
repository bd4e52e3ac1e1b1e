"""Gathers what a calibration is made from: saved logits, or a fine-tuned model with the collection it was tuned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.adapt.calibration.diagnosis import Outputs
from foveate.adapt.calibration.logit_files import LogitFile, read_logits, write_logits
from foveate.adapt.calibration.pseudo import PseudoRun
from foveate.adapt.calibration.run import Evidence, groups_of
from foveate.core.errors import UserError
from foveate.core.runs import RunFolder
from foveate.metrics.class_groups import SEEN, ClassGroups, as_logits
from foveate.metrics.nearest_mean import head_changes

if TYPE_CHECKING:
    from foveate.adapt.calibration.fine_tuning import FineTuneSettings
    from foveate.adapt.classifier import Classifier
    from foveate.adapt.samples import CollectionSamples


def from_logits(
    path: Path,
    *,
    seen: Sequence[str],
    absent: Sequence[str] = (),
    training: Path | None = None,
    before: Path | None = None,
    pseudo: Sequence[Path] = (),
) -> Evidence:
    """Evidence from files of logits (`logit_files`).

    Args:
        path: of test data; of the fine-tuning data themselves where all labels are seen classes and no `training` is
            given.
        training: of the fine-tuning data. before: the pre-trained model's logits of the samples in `path`.
        pseudo: pseudo runs.

    Raises:
        UserError: a file that cannot be read or holds NaN, files that do not fit one another, classes that are none.
    """
    main = read_logits(path)
    groups = groups_of(seen, absent, main.class_names)
    only_seen = bool((groups.of_class[main.labels] == SEEN).all())
    tuned = read_logits(training) if training is not None else main if only_seen else None
    if tuned is not None:
        _same_classes(tuned, main.class_names, path)
    earlier = read_logits(before) if before is not None else None
    if earlier is not None:
        _same_classes(earlier, main.class_names, path)
        if not np.array_equal(earlier.labels, main.labels):
            raise UserError(f"{before}: its labels differ from those of {path}; the same samples in order are wanted")
    for file in (main, tuned, earlier):
        if file is not None:
            as_logits(file.logits, what=f"{file.path}: logits")
    runs = _pseudo_runs(pseudo, main.class_names, path)
    testing = training is not None or not only_seen
    return Evidence(
        names=main.class_names,
        groups=groups,
        training=None if tuned is None else (tuned.logits, tuned.labels),
        training_file="" if tuned is None else str(tuned.path),
        runs=runs,
        test=Outputs(main.logits, main.features) if testing else None,
        labels=main.labels if testing else None,
        before=None if earlier is None else Outputs(earlier.logits, earlier.features),
        notes=[] if testing else [f"{path} has seen classes only: taken as the fine-tuning data"],
    )


def _pseudo_runs(paths: Sequence[Path], names: Sequence[str], of: Path) -> list[PseudoRun]:
    """Files of pseudo runs, whose columns must be those of `of`."""
    files = [read_logits(path) for path in paths]
    for file in files:
        _same_classes(file, names, of)
    return [file.as_run() for file in files]


def _same_classes(file: LogitFile, names: Sequence[str], of: Path) -> None:
    """Refuses a file whose columns are not the classes `names`, in order, of the file or model `of`."""
    if file.classes != len(names):
        raise UserError(f"{file.path}: {file.classes} columns, but {of} has {len(names)}")
    for number, (found, wanted) in enumerate(zip(file.class_names, names, strict=True)):
        if found != wanted:
            raise UserError(f"{file.path}: class {number} is '{found}', in {of} '{wanted}'")


@dataclass(frozen=True)
class ModelData:
    """Where a model's data are: a collection with a label field, and the names of two splits."""

    collection: Path
    field: str
    train_split: str = "train"
    test_split: str = "test"


def from_model(
    model: Path,
    data: ModelData,
    run: RunFolder,
    *,
    seen: Sequence[str],
    absent: Sequence[str] = (),
    before: Path | None = None,
    method: str = "pcv",
    pseudo: Sequence[Path] = (),
    settings: FineTuneSettings | None = None,
    splits: int = 3,
    seed: int = 0,
    device: str | None = None,
) -> Evidence:
    """Evidence from a fine-tuned classifier and its data; logits are kept in the run folder as npz files.

    Args:
        before: the pre-trained model: needed by PCV; also tells whether features were damaged.
        pseudo: files of pseudo runs with the model's columns, which are then not made here.
        settings: how the model was fine-tuned, for the pseudo runs.

    Raises:
        UserError: models or data that cannot be read or do not fit; PCV without `before`.
    """
    from foveate.adapt.calibration.fine_tuning import FineTuneSettings, head_of
    from foveate.adapt.calibration.pseudo_runs import make_pseudo_runs
    from foveate.adapt.classifier import open_classifier
    from foveate.adapt.samples import answer

    if method in ("pcv", "both") and before is None and not pseudo:
        raise UserError(
            "pseudo cross-validation fine-tunes the pre-trained model three times: give it with --before FOLDER, or "
            "choose --method alg"
        )
    after = open_classifier(model, device=device)
    earlier = None if before is None else open_classifier(before, device=device)
    if earlier is not None and earlier.names != after.names:
        raise UserError(f"{before}: its classes differ from those of {model}; the same columns are wanted")
    groups = groups_of(seen, absent, after.names)
    runs = _pseudo_runs(pseudo, after.names, model)
    train, test = (_samples(after, data, split) for split in (data.train_split, data.test_split))
    tuning = np.flatnonzero(groups.of_class[train.labels] == SEEN)
    missing = np.setdiff1d(groups.seen, train.labels[tuning])
    if len(missing):
        raise UserError(
            f"{len(missing)} seen classes have no image in the split '{data.train_split}', first "
            f"'{after.names[missing[0]]}'; name only the classes that the fine-tuning data covered"
        )
    notes = [
        f"{sample.unlabeled} images of the split '{split}' have no label '{data.field}' and were left out"
        for sample, split in ((train, data.train_split), (test, data.test_split))
        if sample.unlabeled
    ]
    # Only seen classes are looked at for gamma; the others, where the split has them, serve NCM alone.
    whole = answer(after, train, what="training split")
    tested = answer(after, test, what="test split")
    for found in (whole, tested):
        as_logits(found.logits, what=f"{model}: logits")
    chosen = np.isin(whole.rows, tuning)
    training = (whole.logits[chosen], whole.labels[chosen])
    names = list(after.names)
    write_logits(run.path / "training.npz", logits=training[0], labels=training[1], class_names=names)
    write_logits(run.path / "test.npz", logits=tested.logits, labels=tested.labels, class_names=names)
    oracle = _oracle(whole, groups)
    outputs = {"test": Outputs(tested.logits, tested.features, oracle)}
    if earlier is not None:
        first = answer(earlier, test, tested.rows, what="test split, pre-trained model")
        as_logits(first.logits, what=f"{before}: logits")
        earlier_oracle = None if oracle is None else _oracle(answer(earlier, train, whole.rows), groups)
        outputs["before"] = Outputs(first.logits, first.features, earlier_oracle)
        write_logits(run.path / "before.npz", logits=first.logits, labels=first.labels, class_names=names)
    for found, split in ((whole, data.train_split), (tested, data.test_split)):
        if found.unreadable:
            example = next(iter(found.unreadable.values()))
            notes.append(f"{len(found.unreadable)} images of the split '{split}' cannot be read, such as: {example}")
    if method in ("pcv", "both") and not runs:
        assert earlier is not None
        runs = make_pseudo_runs(
            earlier,
            train,
            groups.seen,
            settings or FineTuneSettings(),
            run.path,
            count=splits,
            seed=seed,
            device=device,
        )
    heads: dict[str, Any] = {}
    if earlier is not None and head_of(earlier).shape == head_of(after).shape:
        heads = head_changes(head_of(earlier), head_of(after), groups)
    return Evidence(
        names=after.names,
        groups=groups,
        training=training,
        runs=runs,
        test=outputs["test"],
        labels=tested.labels,
        before=outputs.get("before"),
        head=heads,
        notes=notes,
    )


def plan(
    model: Path,
    data: ModelData,
    settings: FineTuneSettings,
    *,
    seen: Sequence[str],
    absent: Sequence[str] = (),
    splits: int = 3,
) -> dict[str, Any]:
    """How many fine-tunings and updates pseudo cross-validation on a model would take, before any of them."""
    from foveate.adapt.classifier import open_classifier

    after = open_classifier(model, device="cpu")
    groups = groups_of(seen, absent, after.names)
    labels = _samples(after, data, data.train_split).labels
    samples = int(np.isin(labels, groups.seen).sum()) * (len(groups.seen) // 2) // len(groups.seen)
    updates = splits * max(1, settings.epochs * (samples // min(settings.batch_size, max(samples, 1))))
    sentence = (
        f"{splits} fine-tunings on about {samples} images each, {updates} updates of "
        f"{min(settings.batch_size, samples)} samples in all"
    )
    return {"kind": "plan", "fine_tunings": splits, "updates": updates, "samples": samples, "sentence": sentence}


def _samples(classifier: Classifier, data: ModelData, split: str) -> CollectionSamples:
    from foveate.adapt.samples import CollectionSamples
    from foveate.records.collection import Collection

    if classifier.preprocess is None:
        raise UserError(
            "the model does not say how images become pixels (three channels, mean and std): add "
            "preprocessor_config.json or pretrained_cfg, or save its logits and calibrate these"
        )
    opened = Collection.open(data.collection)
    return CollectionSamples(opened, data.field, classifier.names, classifier.preprocess, split=split)


def _oracle(found: Any, groups: ClassGroups) -> Any:
    """Features and labels of training data, where they cover absent classes: NCM is for analysis only."""
    covers = bool(np.isin(found.labels, groups.absent).any())
    return (found.features, found.labels) if covers else None
