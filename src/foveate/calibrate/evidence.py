"""Collect what a calibration is made from: saved logits, or a fine-tuned model with the collection it was tuned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from foveate.calibrate.diagnosis import Outputs
from foveate.calibrate.pseudo import PseudoRun
from foveate.calibrate.run import Evidence, parse_groups
from foveate.core.errors import UserError
from foveate.core.runs import RunFolder
from foveate.metrics.class_groups import SEEN, ClassGroups, as_logits
from foveate.metrics.nearest_mean import head_changes
from foveate.training.logit_files import LogitFile, read_logits, write_logits

if TYPE_CHECKING:
    from torch import Tensor

    from foveate.calibrate.settings import FineTuneSettings, ModelData
    from foveate.records.geometry import View
    from foveate.training.classification import LabeledImages, Predictions
    from foveate.vision.classifier import Classifier

# In place of silence: whoever saves features expects nearest class means.
_FEATURES_UNUSED = (
    "features are not used: nearest class means need those of training images of all classes, also of absent ones, and "
    "are computed from a model with --collection only"
)


def from_logits(
    path: Path,
    *,
    seen: Sequence[str] = (),
    absent: Sequence[str] = (),
    training: Path | None = None,
    before: Path | None = None,
    pseudo: Sequence[Path] = (),
    class_names: Sequence[str] = (),
) -> Evidence:
    """Collect evidence from files of logits (`logit_files`).

    Args:
        path: of test data; of the fine-tuning data themselves where all labels are seen classes and no `training` is
            given.
        seen: names, numbers or ranges of classes; those with a label in `training` by default.
        absent: all others by default.
        training: of the fine-tuning data.
        before: the pre-trained model's logits of the samples in `path`.
        pseudo: of pseudo runs.
        class_names: of the columns, where `path` has none. The other files have those of `path` by default.

    Raises:
        UserError: a file that cannot be read or holds NaN, files that do not fit together, unknown classes.
    """
    main = read_logits(path, class_names=class_names)
    names = main.class_names
    fine_tuning = read_logits(training, class_names=names) if training is not None else None
    notes = list(main.notes)
    if seen:
        groups = parse_groups(seen, absent, names)
    elif fine_tuning is not None:
        _check_classes(fine_tuning, names, path)
        present = np.unique(fine_tuning.labels)
        # By number: a name may look like another class's number.
        groups = parse_groups([names[number] for number in present], absent, names)
        notes.append(f"seen classes: the {len(present)} of {len(names)} that occur in {training}")
    else:
        raise UserError("no seen classes; expected --classes-seen, or --training whose labels tell them")
    # A file with seen classes only is fine-tuning data: on test data of all classes others would occur.
    only_seen = bool((groups.of_class[main.labels] == SEEN).all())
    tuned = fine_tuning if fine_tuning is not None else main if only_seen else None
    if tuned is not None:
        _check_classes(tuned, main.class_names, path)
    earlier = read_logits(before, class_names=names) if before is not None else None
    if earlier is not None:
        _check_classes(earlier, main.class_names, path)
        # The only check that is left without ids of samples; both models must be measured on the same ones.
        if not np.array_equal(earlier.labels, main.labels):
            raise UserError(f"{before}: its labels differ from those of {path}; expected the same samples in order")
    for file in (main, tuned, earlier):
        if file is not None:
            # Called only for its error, which names the file here: later the metrics see only arrays.
            as_logits(file.logits, what=f"{file.path}: logits")
            notes += [note for note in file.notes if note not in notes]
    if any(file is not None and file.features is not None for file in (main, tuned, earlier)):
        notes.append(_FEATURES_UNUSED)
    runs = _read_pseudo_runs(pseudo, main.class_names, path)
    # A file of seen classes only is fine-tuning data: nothing about absent classes can be measured on it.
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
        notes=notes if testing else [*notes, f"{path} has seen classes only: used as the fine-tuning data"],
    )


def _read_pseudo_runs(paths: Sequence[Path], names: Sequence[str], reference: Path) -> list[PseudoRun]:
    """Read files of pseudo runs, whose columns must be those of `reference`."""
    files = [read_logits(path, class_names=names) for path in paths]
    for file in files:
        _check_classes(file, names, reference)
    return [PseudoRun.from_file(file) for file in files]


def _check_classes(file: LogitFile, names: Sequence[str], reference: Path) -> None:
    """Raise UserError unless the columns of a file are the classes `names` of the file or model `reference`."""
    if file.classes != len(names):
        raise UserError(f"{file.path} has {file.classes} columns; {reference} has {len(names)}")
    for number, (name, expected) in enumerate(zip(file.class_names, names, strict=True)):
        if name != expected:
            raise UserError(f"{file.path}: class {number} is '{name}'; in {reference} it is '{expected}'")


def from_model(
    model: Path,
    data: ModelData,
    run: RunFolder,
    *,
    seen: Sequence[str],
    absent: Sequence[str] = (),
    before: Path | None = None,
    method: str | None = None,
    pseudo: Sequence[Path] = (),
    settings: FineTuneSettings | None = None,
    splits: int = 3,
    seed: int = 0,
    device: str | None = None,
) -> Evidence:
    """Collect evidence from a fine-tuned classifier and its data; logits are written to the run folder as npz files.

    Args:
        model: folder of the fine-tuned classifier.
        data: what it was fine-tuned on.
        run: folder of the calibration.
        seen, absent: names, numbers or ranges of classes.
        before: the pre-trained model: needed by PCV; also shows whether features were damaged.
        method: as of `calibrate`; pseudo runs are made for "pcv" and "all" only.
        pseudo: files of pseudo runs with the model's columns; none are made then.
        settings: how the model was fine-tuned, for the pseudo runs.
        splits: number of pseudo runs.
        seed: of their splits.
        device: such as "cuda".

    Raises:
        UserError: models or data that cannot be read or do not fit, or PCV without `before`.
    """
    # Imported here, so that a calibration from files of logits does not load torch.
    from foveate.calibrate.fine_tuning import head_weights, make_pseudo_runs, predict_classifier
    from foveate.calibrate.settings import FineTuneSettings
    from foveate.vision.classifier import open_classifier

    makes_runs = method in ("pcv", "all") and not pseudo
    if makes_runs and before is None:
        raise UserError(
            "pseudo cross-validation fine-tunes the pre-trained model three times: give it with --before FOLDER, or "
            "leave --method out"
        )
    after = open_classifier(model, device=device)
    earlier = None if before is None else open_classifier(before, device=device)
    if earlier is not None and earlier.names != after.names:
        raise UserError(f"{before}: its classes differ from those of {model}; expected the same columns")
    groups = parse_groups(seen, absent, after.names)
    runs = _read_pseudo_runs(pseudo, after.names, model)
    images = _open_images(after, data, (data.train_split, data.test_split))
    train_rows, test_rows = images.rows(data.train_split), images.rows(data.test_split)
    tuning = _select_tuning(images, train_rows, groups, data)
    # gamma comes from seen classes alone; the others, where the split has them, serve the nearest class mean.
    train = predict_classifier(after, images, train_rows, description="training split")
    test = predict_classifier(after, images, test_rows, description="test split")
    # Called only for its error: NaN must not reach the files that are written below.
    for predictions in (train, test):
        as_logits(predictions.logits, what=f"{model}: logits")
    is_seen = np.isin(train.rows, tuning)
    training = (train.logits[is_seen], train.labels[is_seen])
    names = list(after.names)
    write_logits(run.path / "training.npz", logits=training[0], labels=training[1], class_names=names)
    write_logits(run.path / "test.npz", logits=test.logits, labels=test.labels, class_names=names)
    oracle = _class_mean_data(train, groups)
    outputs = {"test": Outputs(test.logits, test.features, oracle)}
    if earlier is not None:
        # Use only the readable rows, so that both models are measured on the same images.
        first = predict_classifier(earlier, images, test.rows, description="test split, pre-trained model")
        as_logits(first.logits, what=f"{before}: logits")
        earlier_oracle = None
        if oracle is not None:
            earlier_oracle = _class_mean_data(predict_classifier(earlier, images, train.rows), groups)
        outputs["before"] = Outputs(first.logits, first.features, earlier_oracle)
        write_logits(run.path / "before.npz", logits=first.logits, labels=first.labels, class_names=names)
    if makes_runs:
        assert earlier is not None
        runs = make_pseudo_runs(
            earlier,
            images,
            groups.seen,
            settings or FineTuneSettings(),
            run.path,
            rows=train_rows,
            count=splits,
            seed=seed,
            device=device,
        )
    heads: dict[str, Any] = {}
    # After a change of the head's width, its rows cannot be compared one by one.
    if earlier is not None and head_weights(earlier).shape == head_weights(after).shape:
        heads = head_changes(head_weights(earlier), head_weights(after), groups)
    return Evidence(
        names=after.names,
        groups=groups,
        training=training,
        runs=runs,
        test=outputs["test"],
        labels=test.labels,
        before=outputs.get("before"),
        head=heads,
        notes=_note_left_out(images, data, {data.train_split: train, data.test_split: test}),
    )


def _select_tuning(
    images: LabeledImages, train_rows: NDArray[np.int64], groups: ClassGroups, data: ModelData
) -> NDArray[np.int64]:
    """Return the rows of the training split that are of seen classes; raise UserError for a seen class without any."""
    tuning = train_rows[groups.of_class[images.labels_N[train_rows]] == SEEN]
    # A class that was never fine-tuned on is absent in truth; taken for seen, it would distort the gap.
    missing = np.setdiff1d(groups.seen, images.labels_N[tuning])
    if len(missing):
        raise UserError(
            f"{len(missing)} seen classes have no image in the split '{data.train_split}', first "
            f"'{images.classes[missing[0]]}'; name only the classes that the fine-tuning data covered"
        )
    return tuning


def _note_left_out(images: LabeledImages, data: ModelData, predictions: Mapping[str, Predictions]) -> list[str]:
    """Return a sentence for each split with images without a label, and for each with unreadable ones.

    Args:
        predictions: by split.
    """
    notes = []
    for split in predictions:
        unlabeled = int(((images.splits == split) & (images.labels_N < 0)).sum())
        if unlabeled:
            notes.append(f"{unlabeled} images of the split '{split}' have no label '{data.field}' and were left out")
    for split, of_split in predictions.items():
        if of_split.unreadable:
            example = next(iter(of_split.unreadable.values()))
            notes.append(f"{len(of_split.unreadable)} images of the split '{split}' cannot be read, such as: {example}")
    return notes


def plan(
    model: Path,
    data: ModelData,
    settings: FineTuneSettings,
    *,
    seen: Sequence[str],
    absent: Sequence[str] = (),
    splits: int = 3,
) -> dict[str, Any]:
    """Estimate the fine-tunings and steps of pseudo cross-validation on a model, before any of them."""
    from foveate.vision.classifier import open_classifier

    after = open_classifier(model, device="cpu")
    groups = parse_groups(seen, absent, after.names)
    images = _open_images(after, data, (data.train_split,))
    labels = images.labels_N[images.rows(data.train_split)]
    # Half of the seen classes, taken as equally large.
    samples = int(np.isin(labels, groups.seen).sum()) * (len(groups.seen) // 2) // len(groups.seen)
    steps = splits * settings.resolve(max(samples, 1)).steps
    sentence = (
        f"{splits} fine-tunings on about {samples} images each, {steps} steps of "
        f"{min(settings.batch_size, samples)} samples in all"
    )
    return {"kind": "plan", "fine_tunings": splits, "steps": steps, "samples": samples, "sentence": sentence}


def _open_images(classifier: Classifier, data: ModelData, splits: Sequence[str]) -> LabeledImages:
    from foveate.records.collection import Collection
    from foveate.training.labeled_images import open_labeled_images
    from foveate.vision.preprocess import read_image

    preprocess = classifier.preprocess
    if preprocess is None:
        raise UserError(
            "the model does not say how images become pixels (three channels, mean and std): add "
            "preprocessor_config.json or pretrained_cfg, or save its logits and calibrate these"
        )
    collection = Collection.open(data.collection)

    def load(row: int, view: View) -> Tensor:
        return read_image(collection, row, preprocess, view)[0]

    return open_labeled_images(collection, data.field, classifier.names, splits=splits, load=load)


def _class_mean_data(predictions: Predictions, groups: ClassGroups) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return features and labels of the training data where they cover absent classes; None otherwise."""
    # For analysis only: whoever has such data could fine-tune on them.
    covers_absent = bool(np.isin(predictions.labels, groups.absent).any())
    return (predictions.features, predictions.labels) if covers_absent else None
