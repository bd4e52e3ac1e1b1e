"""Accuracies of an adapted model on held-out splits, beside a probe of the untuned features, and their logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foveate.adapt.fit import original_features
from foveate.adapt.load_backbone import LoadedBackbone
from foveate.adapt.model import AdaptedModel
from foveate.adapt.recipe import AdaptRecipe
from foveate.adapt.results import TuningGain
from foveate.core.progress import silent
from foveate.core.results import Column, Evaluation, Row, Value
from foveate.metrics.classification import class_accuracies
from foveate.metrics.intervals import bootstrap_interval, paired_difference
from foveate.training.classification import LabeledImages, Predictions, Rows, predict
from foveate.training.linear_probe import SolvedHead
from foveate.training.logit_files import write_logits


def predict_adapted(
    adapted: AdaptedModel, network: LoadedBackbone, images: LabeledImages, rows: Rows, *, description: str
) -> Predictions:
    """Return the logits of `rows`, on the device that the backbone is on."""
    device = adapted.backbone.device
    return predict(
        lambda pixels: adapted(network.normalize(pixels)), images, rows, device=device, description=description
    )


def evaluate_split(
    adapted: AdaptedModel, network: LoadedBackbone, images: LabeledImages, split: str
) -> dict[str, float]:
    """Return accuracy and cross-entropy of a split, during training."""
    with silent():  # inside the progress bar of the training
        predictions = predict_adapted(adapted, network, images, images.rows(split), description=f"measuring {split}")
    return {"accuracy": predictions.accuracy, "loss": predictions.loss}


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


def measure_splits(
    adapted: AdaptedModel,
    recipe: AdaptRecipe,
    network: LoadedBackbone,
    images: LabeledImages,
    folder: Path,
    *,
    alone: SolvedHead | None,
) -> tuple[Evaluation, list[TuningGain]]:
    """Measure the held-out splits that exist; their logits are written into the run folder.

    Args:
        alone: a head on the features of the network as it came, for the column beside the adapter's.

    Returns:
        The table, and for each split what tuning gained over `alone`; none without it.
    """
    table: list[Row] = []
    gains: list[TuningGain] = []
    for split in held_out_splits(recipe, images):
        path = folder / f"logits-{split}.npz"
        predictions = write_predictions(adapted, network, images, images.rows(split), path, split)
        labels = predictions.labels
        predicted = {"adapted": predictions.logits.argmax(axis=1)}
        if alone is not None:
            features_ND, _ = original_features(adapted, network, images, images.rows(split), f"features of {split}")
            predicted["features"] = alone.logits(features_ND).argmax(axis=1)
        # Chance of the accuracy is the largest class; with each class counted alike it is one of K.
        largest_class = float(np.bincount(labels).max() / len(labels))
        accuracies, means = dict[str, Value](), dict[str, Value]()
        for way, predicted_N in predicted.items():
            correct_N = (predicted_N == labels).astype(float)
            accuracies[way] = bootstrap_interval(correct_N, seed=("adapt", split)).to_value()
            means[way] = Value(value=float(class_accuracies(predicted_N, labels).accuracy_C.mean()))
        if alone is not None:
            correct = [(predicted[way] == labels).astype(float) for way in ("adapted", "features")]
            difference = paired_difference(*correct, seed=("adapt", split))
            tuned, untuned = accuracies["adapted"].value, accuracies["features"].value
            gains.append(
                TuningGain(
                    split=split, tuned=tuned, features=untuned, gain=difference.value, low=difference.low,
                    high=difference.high, n=difference.n,
                )
            )  # fmt: skip
        for question, chance, values in (
            ("Which class? (accuracy)", largest_class, accuracies),
            ("Which class, each class alike? (mean of classes)", 1 / len(images.classes), means),
        ):
            table.append(Row(question=question, data=split, n=len(labels), chance=chance, values=dict(values)))
    columns = [Column(key="adapted", title="adapted", what="the last epoch's model", role="ours")]
    if alone is not None:
        what = "logistic regression on the features of the network as it came"
        columns.append(Column(key="features", title="features alone", what=what, role="baseline"))
    return Evaluation(columns=columns, table=table), gains
