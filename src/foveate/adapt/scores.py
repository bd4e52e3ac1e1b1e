"""Scores of an adapted model on held-out splits, beside a probe of the untuned features, and where it is wrong.

What is kept is decided on validation images, and so are the thresholds of several labels; test images decide nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from foveate.adapt.fit import original_features
from foveate.adapt.load_backbone import LoadedBackbone
from foveate.adapt.model import AdaptedModel
from foveate.adapt.recipe import AdaptRecipe
from foveate.adapt.results import (
    ClassScore,
    ConfidenceBin,
    ConfusedClasses,
    Mistake,
    SplitDetails,
    TuningGain,
)
from foveate.adapt.tasks import LabelTask, MultiLabel, nearest_classes, sigmoid
from foveate.core.files import atomic_file
from foveate.core.progress import silent
from foveate.core.results import Column, Evaluation, Row, Value
from foveate.metrics.agreement import softmax
from foveate.metrics.classification import class_accuracies, count_classes
from foveate.metrics.confidence import expected_calibration_error
from foveate.metrics.intervals import (
    Interval,
    accuracy_interval,
    bootstrap_interval,
    bootstrap_statistic,
    paired_difference,
)
from foveate.metrics.multilabel import average_precision, count_labels, mean_average_precision, micro_f1
from foveate.metrics.regression import r2
from foveate.records.geometry import View
from foveate.training.classification import LabeledImages, Predictions, Rows, predict
from foveate.training.linear_probe import SolvedHead
from foveate.training.logit_files import write_logits

MISTAKES = "mistakes"  # folder of thumbnails in the run folder
_MAX_MISTAKES, _MAX_POINTS, _NUM_BINS = 12, 2000, 10
# A matrix of a thousand classes would be megabytes of zeros in result.json.
_MAX_MATRIX, _MAX_CONFUSED = 100, 50
_THUMBNAIL = 160  # pixels of the longest side


def predict_adapted(
    adapted: AdaptedModel, network: LoadedBackbone, images: LabeledImages, rows: Rows, *, description: str
) -> Predictions:
    """Return the outputs of `rows`, on the device that the backbone is on."""
    device = adapted.backbone.device
    return predict(
        lambda pixels: adapted(network.normalize(pixels)), images, rows, device=device, description=description
    )


def evaluate_split(
    adapted: AdaptedModel, task: LabelTask, network: LoadedBackbone, images: LabeledImages, split: str
) -> dict[str, float]:
    """Return the metrics of a split, during training."""
    with silent():  # inside the progress bar of the training
        description = f"measuring {split}"
        predictions = predict_adapted(adapted, network, images, images.rows(split), description=description)
    return task.metrics(task.in_units(predictions.logits), task.truth(predictions.rows))


def write_predictions(
    adapted: AdaptedModel, network: LoadedBackbone, images: LabeledImages, rows: Rows, path: Path, what: str
) -> Predictions:
    """Return the logits of `rows`, and write them as a file that `foveate calibrate` reads."""
    predictions = predict_adapted(adapted, network, images, rows, description=f"measuring {what}")
    write_logits(path, logits=predictions.logits, labels=predictions.labels, class_names=list(images.classes))
    return predictions


def held_out_splits(recipe: AdaptRecipe, images: LabeledImages) -> list[str]:
    """Return the splits that are measured at the end; none that was trained on."""
    # `dict.fromkeys`: one split may serve as validation and test, and is measured once.
    splits = dict.fromkeys((recipe.data.validation, recipe.data.test))
    # Accuracy on training images is no answer to how good a model is.
    return [split for split in splits if images.has_split(split) and split not in recipe.data.train]


Kept = Literal["tuned", "features"]
_KEYS: dict[Kept, str] = {"tuned": "adapted", "features": "features"}


@dataclass
class Measured:
    """Scores on held-out splits.

    Attributes:
        evaluation: the table; None where nothing was measured.
        gains: of each split, what tuning gained over the untuned features; none where these were not measured.
        kept: the better of tuned model and untuned features on validation images, the tuned one of equals.
        details: where the kept model is right and wrong on test images, else on validation images.
        thresholds: by column of the table, those of several labels.
    """

    evaluation: Evaluation | None = None
    gains: list[TuningGain] = field(default_factory=list)
    kept: Kept = "tuned"
    details: SplitDetails | None = None
    thresholds: dict[str, tuple[float, ...]] = field(default_factory=lambda: {"adapted": (), "features": ()})


@dataclass(frozen=True)
class _Outputs:
    """Outputs [N, T] of one split by column of the table, in the unit of the labels, and the truth."""

    rows: Rows
    truth: NDArray[Any]
    by_column: Mapping[str, NDArray[Any]]


def measure_splits(
    adapted: AdaptedModel,
    task: LabelTask,
    recipe: AdaptRecipe,
    network: LoadedBackbone,
    images: LabeledImages,
    folder: Path,
    *,
    alone: SolvedHead | None,
) -> Measured:
    """Measure the held-out splits that exist; write the outputs of the kept model into the run folder.

    Args:
        alone: a head on the features of the network as it came, for the column beside the adapter's.
    """
    measured, table = Measured(), list[Row]()
    data = recipe.data
    # One split for both would choose on test images.
    chooses = data.validation != data.test
    if isinstance(task, MultiLabel):
        unchosen = tuple(task.thresholds(None, None))
        measured.thresholds = {"adapted": unchosen, "features": unchosen}
    # Validation comes first, so that what is kept is known before anything of the test images is.
    for split in held_out_splits(recipe, images):
        outputs = _compute_outputs(adapted, task, network, images, split, alone)
        decides = chooses and split == data.validation
        if isinstance(task, MultiLabel) and decides:
            for column, outputs_NK in outputs.by_column.items():
                measured.thresholds[column] = tuple(task.thresholds(outputs_NK, outputs.truth))
        if alone is not None:
            gain = measure_gain(task, split, outputs.by_column, outputs.truth)
            measured.gains.append(gain)
            if decides and recipe.keep == "better" and gain.gain < 0:
                measured.kept = "features"
        kept = _KEYS[measured.kept]
        kept_NT = outputs.by_column[kept]
        if images.task == "single-label":
            names = list(images.classes)
            write_logits(folder / f"logits-{split}.npz", logits=kept_NT, labels=outputs.truth, class_names=names)
        table += _ROWS[images.task](task, split, outputs, measured.thresholds)
        measured.details = describe_outputs(task, split, outputs.rows, kept_NT, measured.thresholds[kept])
    if measured.details is not None:
        measured.details = save_thumbnails(images, measured.details, folder)
    columns = [Column(key="adapted", title="adapted", what="the model after training", role="ours")]
    if alone is not None:
        how = "ridge" if images.task in ("regression", "ordinal") else "logistic"
        what = f"{how} regression on the features of the network as it came"
        columns.append(Column(key="features", title="features alone", what=what, role="baseline"))
    measured.evaluation = Evaluation(columns=columns, table=table)
    return measured


def _compute_outputs(
    adapted: AdaptedModel,
    task: LabelTask,
    network: LoadedBackbone,
    images: LabeledImages,
    split: str,
    alone: SolvedHead | None,
) -> _Outputs:
    rows = images.rows(split)
    predictions = predict_adapted(adapted, network, images, rows, description=f"measuring {split}")
    outputs = {"adapted": predictions.logits}
    if alone is not None:
        features_ND, _ = original_features(adapted, network, images, rows, f"features of {split}")
        outputs["features"] = task.in_units(alone.logits(features_ND))
    return _Outputs(predictions.rows, task.truth(predictions.rows), outputs)


def measure_gain(task: LabelTask, split: str, outputs: Mapping[str, NDArray[Any]], truth: NDArray[Any]) -> TuningGain:
    """Return what tuning gained on a split.

    Args:
        outputs: of "adapted" and "features", [N, T] each.
        truth: see `LabelTask.truth`.
    """
    tuned_NT, features_NT = outputs["adapted"], outputs["features"]
    seed = ("adapt", split)
    if task.score_name == "accuracy":
        # A mean over images, whose bootstrap is much faster than that of any statistic.
        hits = [(values_NT.argmax(axis=1) == truth).astype(float) for values_NT in (tuned_NT, features_NT)]
        difference = paired_difference(hits[0], hits[1], seed=seed)
    else:
        difference = _bootstrap(
            lambda rows: task.score(tuned_NT[rows], truth[rows]) - task.score(features_NT[rows], truth[rows]),
            truth,
            seed,
        )
    # A bootstrap cannot tell how certain it is where all images have the same difference.
    varies = difference.low != difference.high
    return TuningGain(
        score=task.score_name,
        split=split,
        tuned=task.score(tuned_NT, truth),
        features=task.score(features_NT, truth),
        gain=difference.value,
        low=difference.low if varies else None,
        high=difference.high if varies else None,
        n=difference.n,
    )


def _bootstrap(statistic: Callable[[NDArray[np.int64]], float], truth: NDArray[Any], seed: object) -> Interval:
    # Fewer draws of large tables: a sort of a million scores takes a tenth of a second.
    resamples = 1000 if truth.size <= 50_000 else 200
    interval = bootstrap_statistic(statistic, rows=len(truth), seed=seed, resamples=resamples)
    return _without_width(interval)


def _without_width(interval: Interval) -> Interval:
    """Return an interval without its ends where both are one: a perfect score is the same in every draw of these."""
    return replace(interval, low=None, high=None) if interval.low == interval.high else interval


def _mean_error(errors_N: NDArray[Any], split: str) -> Value:
    return _without_width(bootstrap_interval(errors_N, seed=("adapt", split))).to_value()


Thresholds = Mapping[str, tuple[float, ...]]


def _single_label_rows(task: LabelTask, split: str, outputs: _Outputs, thresholds: Thresholds) -> list[Row]:
    labels_N, names = outputs.truth, task.images.classes
    accuracies, means = dict[str, Value](), dict[str, Value]()
    for column, logits_NK in outputs.by_column.items():
        predicted_N = logits_NK.argmax(axis=1)
        accuracies[column] = accuracy_interval(predicted_N == labels_N).to_value()
        means[column] = Value(value=float(class_accuracies(predicted_N, labels_N).accuracy_C.mean()))
    # Chance of the accuracy is the largest class; with each class counted alike it is one of K.
    largest_class = float(np.bincount(labels_N).max() / len(labels_N))
    return [
        Row(question=question, data=split, n=len(labels_N), chance=chance, values=dict(values))
        for question, chance, values in (
            ("Which class? (accuracy)", largest_class, accuracies),
            ("Which class, each class alike? (mean of classes)", 1 / len(names), means),
        )
    ]


def _multi_label_rows(task: LabelTask, split: str, outputs: _Outputs, thresholds: Thresholds) -> list[Row]:
    truth_NK = outputs.truth
    precisions, micro, macro = dict[str, Value](), dict[str, Value](), dict[str, Value]()
    for column, logits_NK in outputs.by_column.items():
        precisions[column] = _bootstrap(
            lambda rows, logits_NK=logits_NK: task.score(logits_NK[rows], truth_NK[rows]), truth_NK, ("adapt", split)
        ).to_value()
        counts = count_labels(sigmoid(logits_NK) >= np.array(thresholds[column]), truth_NK)
        micro[column] = Value(value=float(np.nan_to_num(micro_f1(counts))))
        macro[column] = Value(value=counts.macro_f1("all"))
    # Random scores have the share of a label as its average precision, up to a term that vanishes with many images.
    chance = mean_average_precision(np.zeros(truth_NK.shape), truth_NK) if truth_NK.any() else None
    return [
        Row(question=question, data=split, n=len(truth_NK), chance=by_chance, values=dict(values))
        for question, by_chance, values in (
            ("Which labels, ranked? (mean average precision)", chance, precisions),
            ("Which labels, decided? (F1 of all decisions)", None, micro),
            ("Which labels, each label alike? (mean of F1)", None, macro),
        )
    ]


def _value_rows(task: LabelTask, split: str, outputs: _Outputs, thresholds: Thresholds) -> list[Row]:
    truth_N, unit = outputs.truth, task.images.unit
    errors, shares = dict[str, Value](), dict[str, Value]()
    for column, outputs_N1 in outputs.by_column.items():
        values_N = outputs_N1[:, 0]
        errors[column] = _mean_error(np.abs(values_N - truth_N), split)
        if np.isfinite(r2(values_N, truth_N)):
            shares[column] = _bootstrap(
                lambda rows, of_N1=outputs_N1: task.score(of_N1[rows], truth_N[rows]), truth_N, ("adapt", split)
            ).to_value()
    # What the median of these images as the only answer would be off.
    chance = float(np.abs(truth_N - np.median(truth_N)).mean())
    rows = [
        Row(
            question="How far off? (mean absolute error)",
            data=split,
            n=len(truth_N),
            chance=chance,
            unit=unit or "in the unit of the values",
            best="lowest",
            values=dict(errors),
        )
    ]
    if shares:
        question = "How much of the differences is told? (R2)"
        rows.append(Row(question=question, data=split, n=len(truth_N), chance=0.0, unit="", values=dict(shares)))
    return rows


def _ordinal_rows(task: LabelTask, split: str, outputs: _Outputs, thresholds: Thresholds) -> list[Row]:
    truth_N, num_classes = outputs.truth, len(task.images.classes)
    kappas, accuracies, errors = dict[str, Value](), dict[str, Value](), dict[str, Value]()
    for column, outputs_N1 in outputs.by_column.items():
        predicted_N = nearest_classes(outputs_N1, num_classes)
        kappas[column] = _bootstrap(
            lambda rows, of_N1=outputs_N1: task.score(of_N1[rows], truth_N[rows]), truth_N, ("adapt", split)
        ).to_value()
        accuracies[column] = accuracy_interval(predicted_N == truth_N).to_value()
        errors[column] = _mean_error(np.abs(predicted_N - truth_N), split)
    largest_class = float(np.bincount(truth_N.astype(np.int64)).max() / len(truth_N))
    return [
        Row(question=question, data=split, n=len(truth_N), chance=chance, unit=unit, best=best, values=dict(values))
        for question, chance, unit, best, values in (
            ("Which class, far mistakes count more? (quadratic kappa)", 0.0, "", "highest", kappas),
            ("Which class? (accuracy)", largest_class, "fraction", "highest", accuracies),
            ("How many classes off? (mean absolute error)", None, "classes", "lowest", errors),
        )
    ]


_ROWS: dict[str, Callable[[LabelTask, str, _Outputs, Thresholds], list[Row]]] = {
    "single-label": _single_label_rows,
    "multi-label": _multi_label_rows,
    "regression": _value_rows,
    "ordinal": _ordinal_rows,
}


# Where a model is right and wrong.


def describe_outputs(
    task: LabelTask, split: str, rows: Rows, outputs_NT: NDArray[Any], thresholds: tuple[float, ...]
) -> SplitDetails:
    """Return counts by class, calibration and the worst mistakes on one split.

    Args:
        rows: of the images.
        outputs_NT: of the kept model, in the unit of the labels.
        thresholds: of several labels.
    """
    truth, images = task.truth(rows), task.images
    if images.task == "multi-label":
        return _describe_labels(images, split, rows, outputs_NT, truth, np.array(thresholds))
    if images.task == "regression":
        return _describe_values(images, split, rows, outputs_NT[:, 0], truth)
    num_classes = len(images.classes)
    truth_N = truth.astype(np.int64)
    if images.task == "ordinal":
        predicted_N, confidence_N = nearest_classes(outputs_NT, num_classes), None
        # The farthest mistakes first.
        severity_N = np.abs(outputs_NT[:, 0] - truth_N)
    else:
        probabilities_NK = softmax(outputs_NT.astype(np.float64))
        predicted_N, confidence_N = outputs_NT.argmax(axis=1), probabilities_NK.max(axis=1)
        severity_N = confidence_N
    counts = count_classes(predicted_N, truth_N, num_classes)
    confusion_KK = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(confusion_KK, (truth_N, predicted_N), 1)
    wrong_N = np.flatnonzero(predicted_N != truth_N)
    pairs = Counter(zip(truth_N[wrong_N].tolist(), predicted_N[wrong_N].tolist(), strict=True))
    worst = wrong_N[np.argsort(-severity_N[wrong_N], kind="stable")][:_MAX_MISTAKES]
    return SplitDetails(
        split=split,
        n=len(rows),
        classes=[
            ClassScore(name=name, n=int(n), predicted=int(predicted), right=int(right))
            for name, n, predicted, right in zip(
                images.classes, counts.support_K, counts.predicted_K, counts.correct_K, strict=True
            )
        ],
        confusion=confusion_KK.tolist() if num_classes <= _MAX_MATRIX else [],
        confused=[
            ConfusedClasses(truth=images.classes[true], answer=images.classes[answer], count=count)
            for (true, answer), count in pairs.most_common(_MAX_CONFUSED)
        ],
        bins=[] if confidence_N is None else bin_confidences(confidence_N, predicted_N == truth_N),
        calibration_error=None
        if confidence_N is None
        else expected_calibration_error(confidence_N, predicted_N == truth_N),
        mistakes=[
            Mistake(
                key=images.keys[rows[index]],
                truth=images.classes[truth_N[index]],
                answer=images.classes[predicted_N[index]],
                confidence=None if confidence_N is None else float(confidence_N[index]),
            )
            for index in worst.tolist()
        ],
    )


def _describe_labels(
    images: LabeledImages,
    split: str,
    rows: Rows,
    logits_NK: NDArray[Any],
    truth_NK: NDArray[Any],
    thresholds_K: NDArray[np.float64],
) -> SplitDetails:
    probabilities_NK, is_true_NK = sigmoid(logits_NK), truth_NK > 0.5
    predicted_NK = probabilities_NK >= thresholds_K
    counts, precision_K = count_labels(predicted_NK, truth_NK), average_precision(logits_NK, truth_NK)
    # A decision against a label is as confident as the label is improbable.
    confidence_NK = np.where(is_true_NK, 1 - probabilities_NK, probabilities_NK)
    wrong = np.argwhere(predicted_NK != is_true_NK)
    order = np.argsort(-confidence_NK[wrong[:, 0], wrong[:, 1]], kind="stable")
    mistakes = []
    for index, label in wrong[order][:_MAX_MISTAKES].tolist():
        name, present = images.classes[label], bool(is_true_NK[index, label])
        named = [images.classes[k] for k in np.flatnonzero(is_true_NK[index])]
        mistakes.append(
            Mistake(
                key=images.keys[rows[index]],
                truth=", ".join(named) or "none",
                answer=f"no {name}" if present else name,
                confidence=float(confidence_NK[index, label]),
            )
        )
    fields = (images.classes, counts.support_K, counts.predicted_K, counts.correct_K, precision_K, thresholds_K)
    return SplitDetails(
        split=split,
        n=len(rows),
        classes=[
            ClassScore(
                name=name,
                n=int(n),
                predicted=int(predicted),
                right=int(right),
                precision=None if np.isnan(precision) else float(precision),
                threshold=float(threshold),
            )
            for name, n, predicted, right, precision, threshold in zip(*fields, strict=True)
        ],
        bins=bin_confidences(probabilities_NK.ravel(), is_true_NK.ravel()),
        calibration_error=expected_calibration_error(probabilities_NK.ravel(), is_true_NK.ravel()),
        mistakes=mistakes,
    )


def _describe_values(
    images: LabeledImages, split: str, rows: Rows, values_N: NDArray[Any], truth_N: NDArray[Any]
) -> SplitDetails:
    # Evenly through the rows, so that a few thousand points stand for any number of images.
    shown = np.unique(np.linspace(0, len(rows) - 1, min(_MAX_POINTS, len(rows))).astype(int))
    worst = np.argsort(-np.abs(values_N - truth_N), kind="stable")[:_MAX_MISTAKES]
    return SplitDetails(
        split=split,
        n=len(rows),
        points=[(float(truth_N[index]), float(values_N[index])) for index in shown],
        mistakes=[
            Mistake(
                key=images.keys[rows[index]],
                truth=f"{truth_N[index]:.4g} {images.unit}".strip(),
                answer=f"{values_N[index]:.4g} {images.unit}".strip(),
            )
            for index in worst.tolist()
        ],
    )


def bin_confidences(
    confidences_N: NDArray[Any], right_N: NDArray[np.bool_], *, num_bins: int = _NUM_BINS
) -> list[ConfidenceBin]:
    """Return the bins of equal width that hold an answer, rising; see `expected_calibration_error`."""
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    bin_N = np.clip(np.searchsorted(edges, confidences_N, side="left") - 1, 0, num_bins - 1)
    return [
        ConfidenceBin(
            count=int((bin_N == number).sum()),
            confidence=float(confidences_N[bin_N == number].mean()),
            right=float(right_N[bin_N == number].mean()),
        )
        for number in np.unique(bin_N).tolist()
    ]


def save_thumbnails(images: LabeledImages, details: SplitDetails, folder: Path) -> SplitDetails:
    """Write the images of the mistakes into the run folder, as the network sees them; return where they are."""
    row_of = {key: row for row, key in enumerate(images.keys)}
    mistakes = []
    for number, mistake in enumerate(details.mistakes):
        pixels: Tensor = images.load(row_of[mistake.key], View())
        # Networks on arrays have no pixels that a person could look at.
        if pixels.ndim == 3 and pixels.shape[0] == 3 and not pixels.is_floating_point():
            relative = f"{MISTAKES}/{number}.webp"
            write_thumbnail(pixels, folder / relative)
            mistake = mistake.model_copy(update={"image": relative})
        mistakes.append(mistake)
    return details.model_copy(update={"mistakes": mistakes})


def write_thumbnail(pixels: Tensor, path: Path) -> None:
    """Write pixels uint8 [3, H, W] as a small WebP file."""
    image = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as handle:
        image.save(handle, format="WEBP", quality=80)
