"""Evaluate predictions against labels: classes, ranks, coverage, cameras, hours, and what each stage changed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.results import Column, Evaluation, Row, Value
from foveate.metrics.classification import ClassCounts, count_classes
from foveate.metrics.confidence import (
    brier_score,
    coverage_curve,
    expected_calibration_error,
    negative_log_likelihood,
)
from foveate.metrics.intervals import bootstrap_interval, wilson_interval
from foveate.metrics.taxonomy import ClassTree
from foveate.species.decide_results import image_decisions, open_survey
from foveate.species.predictions import Predictions
from foveate.species.results import ClassRow, Confusion, Coverage, HourRow, StageRow
from foveate.species.taxonomy import NON_ANIMALS, Classes, match_labels, read_names
from foveate.survey.taxa import Taxa

# Classes of no more training images are the tail, as in the reports of iWildCam.
TAIL_IMAGES = 100
_MAX_CONFUSIONS = 24
_MAX_POINTS = 120  # points of a curve on the page
_HOURS_PER_ROW = 4


@dataclass(frozen=True)
class Truth:
    """Labels of the predicted images.

    Attributes:
        classes_N: class of each image; -1 without a usable label.
        names_N: its label, as the id of a taxon of the model where it is one; "" for none.
        unknown: label -> images, of labels that are no class of the model.
        left_out: reason -> images without a usable label.
    """

    classes_N: NDArray[np.int64]
    names_N: NDArray[np.object_]
    unknown: dict[str, int]
    left_out: dict[str, int]


def read_truth(predictions: Predictions, *, label_field: str | None = None) -> Truth:
    """Read the labels of the predicted images and match them to classes of the model.

    Args:
        label_field: of a collection that is no survey.

    Raises:
        UserError: no image has a label.
    """
    survey = open_survey(predictions)
    if label_field is not None:
        labels = predictions.collection.label_values(label_field)[predictions.rows]
        left_out: dict[str, int] = {}
    elif survey is not None:
        labels = survey.labels()[predictions.rows]
        # The survey counts all of its images: beside a split the counts would mislead.
        left_out = survey.label_counts() if predictions.config["split"] is None else {}
    else:
        raise UserError(f"{predictions.collection.path}: no survey; name the label field with --label-field")
    names = read_names(predictions.collection)
    distinct = sorted(set(labels.tolist()) - {""})
    matches = match_truth(distinct, predictions.classes, predictions.taxa, names=names)
    classes_N = np.array([matches[label][0] if label else -1 for label in labels.tolist()], dtype=np.int64)
    unknown = Counter(names.get(label, label) for label in labels.tolist() if label and matches[label][0] < 0)
    if not (classes_N >= 0).any():
        raise UserError(
            f"{predictions.collection.path}: no image has a label that the model knows; nothing can be evaluated"
        )
    resolved = [matches[label][1] if label else "" for label in labels.tolist()]
    return Truth(classes_N, np.array(resolved, dtype=object), dict(unknown.most_common()), left_out)


def match_truth(
    labels: Sequence[str], classes: Classes, taxa: Taxa, *, names: Mapping[str, str] | None = None
) -> dict[str, tuple[int, str]]:
    """Match labels as a graph does: label -> class (-1 for none), and the id of its taxon or else the label.

    Args:
        names: scientific name of labels that are ids of another taxonomy, see `matching.read_names`.
    """
    # Reversed: of two classes of one taxon the first counts.
    class_of = {taxon: column for column, taxon in reversed(list(enumerate(classes.taxa_K.tolist()))) if taxon >= 0}
    result = {}
    for match in match_labels(labels, taxa, names=names).matches:
        column = classes.labels.index(match.label) if match.label in classes.labels else class_of.get(match.taxon, -1)
        result[match.label] = column, taxa.ids[match.taxon] if match.taxon >= 0 else match.label
    return result


def evaluate_classes(
    predictions: Predictions, truth: Truth, *, train_counts: Mapping[str, int] | None = None
) -> tuple[Evaluation, list[ClassRow], list[str]]:
    """Return the table of accuracies, the rows of classes, and remarks on what they leave out.

    Args:
        train_counts: label -> training images.
    """
    # An image that could not be read has no answer and counts neither as right nor as wrong.
    usable_N = (truth.classes_N >= 0) & ~np.isnan(predictions.probabilities_NK).any(axis=1)
    probabilities, truth_N = predictions.probabilities_NK[usable_N].astype(np.float64), truth.classes_N[usable_N]
    if not len(truth_N):
        raise UserError("no labeled image could be read; nothing can be evaluated")
    classes = predictions.classes
    answers_N, confidences_N = probabilities.argmax(axis=1), probabilities.max(axis=1)
    counts = count_classes(answers_N, truth_N, len(classes))
    correct_N = answers_N == truth_N
    is_animal_N = classes.animals_K[truth_N]
    cameras = predictions.images["camera"].to_pylist()
    groups = [cameras[row] for row in np.flatnonzero(usable_N).tolist()]
    rows = [
        _row("Accuracy", "all labeled images", correct_N, groups),
        _row("Accuracy", "images with an animal", correct_N[is_animal_N], np.array(groups)[is_animal_N].tolist()),
        *(
            Row(question="Macro-F1", data=text, n=len(truth_N), values={"model": Value(value=counts.macro_f1(name))})
            for name, text in (
                # All three, because they can differ a lot and papers seldom say which one they report.
                ("present", "classes that occur (WILDS)"),
                ("union", "that occur or are predicted (scikit-learn)"),
                ("all", "every class of the model"),
            )
        ),
    ]
    notes = []
    if train_counts:
        is_tail_K = np.array([train_counts.get(label, 0) <= TAIL_IMAGES for label in classes.labels])
        if (is_tail_K & (counts.support_K > 0)).any():
            tail = Value(value=counts.mean_recall(is_tail_K))
            text = f"classes of at most {TAIL_IMAGES} training images"
            rows.append(Row(question="Mean accuracy of rare classes", data=text, values={"model": tail}))
        # With splits by camera, some classes occur only at test cameras.
        untrained_K = np.array([not train_counts.get(label, 0) for label in classes.labels]) & (counts.support_K > 0)
        if untrained_K.any():
            notes.append(
                f"images of classes without a training image: {int(counts.support_K[untrained_K].sum())} (classes: "
                f"{int(untrained_K.sum())}); the model cannot know them, and they count as errors"
            )
    heights = ClassTree(classes.taxa_K, predictions.taxa.parents).lca_heights_of_errors(answers_N, truth_N)
    if heights.num_errors > heights.num_excluded:
        text = "errors between two animals"
        value = Value(value=heights.mean, n=heights.num_errors - heights.num_excluded)
        rows.append(
            Row(question="Mean height of the common ancestor", data=text, unit="height", values={"model": value})
        )
    calibration = {
        "Calibration error (ECE, 15 bins)": (expected_calibration_error(confidences_N, correct_N), "fraction"),
        "Brier score": (brier_score(probabilities, truth_N), "score"),
        # One certain error makes it infinite, and JSON has no number for that.
        "Negative log-likelihood": (min(negative_log_likelihood(probabilities, truth_N), 99.0), "nats"),
    }
    rows += [
        Row(question=name, data="all labeled images", n=len(truth_N), unit=unit, values={"model": Value(value=value)})
        for name, (value, unit) in calibration.items()
    ]
    if heights.num_excluded:
        notes.append(
            f"{heights.num_excluded} errors are between classes without a common ancestor, such as blank and an "
            "animal; they have no height and are left out"
        )
    table = Evaluation(
        columns=[Column(key="model", title="Model", role="ours", what="Its most probable class, before any stage")],
        table=rows,
        interval="95% intervals of accuracies, bootstrap over cameras",
    )
    return table, _class_rows(predictions, counts, train_counts), notes


def _row(question: str, data: str, correct_N: NDArray[np.bool_], groups: Sequence[str]) -> Row:
    if not len(correct_N):
        return Row(question=question, data=data, n=0, values={"model": None})
    share = float(correct_N.mean())
    value = Value(value=share, n=len(correct_N))
    if len(set(groups)) > 1:
        # Images of a camera are alike: the cameras are what was sampled.
        value = bootstrap_interval(correct_N.astype(np.float64), seed=0, groups_N=groups).to_value()
    return Row(question=question, data=data, n=len(correct_N), values={"model": value})


def _class_rows(
    predictions: Predictions, counts: ClassCounts, train_counts: Mapping[str, int] | None
) -> list[ClassRow]:
    rows = []
    for column, label in enumerate(predictions.classes.labels):
        support, predicted = int(counts.support_K[column]), int(counts.predicted_K[column])
        if not support and not predicted:
            continue
        # Wilson's interval: for a rare class with few predictions the normal one has no width or leaves [0, 1].
        interval = wilson_interval(int(counts.correct_K[column]), predicted)
        rows.append(
            ClassRow(
                label=label,
                name=name_class(predictions, column),
                support=support,
                predicted=predicted,
                precision=None if interval is None else interval.to_value(),
                recall=float(counts.recall_K[column]) if support else None,
                train_images=None if train_counts is None else train_counts.get(label, 0),
            )
        )
    return sorted(rows, key=lambda row: (-row.support, -row.predicted, row.label))


def name_class(predictions: Predictions, column: int) -> str:
    """Return the scientific name of a class, or its label where it has no taxon."""
    taxon = int(predictions.classes.taxa_K[column])
    return predictions.taxa.names[taxon] if taxon >= 0 else predictions.classes.labels[column]


def evaluate_hours(predictions: Predictions, truth: Truth) -> list[HourRow]:
    """Return accuracies by the hour of the clock; none for a collection that is no survey."""
    survey = open_survey(predictions)
    if survey is None:
        return []
    hours_N = survey.hour_N[predictions.rows]
    correct_N, usable_N = _correct(predictions, truth)
    rows = []
    for first in range(0, 24, _HOURS_PER_ROW):
        members = usable_N & (hours_N >= first) & (hours_N < first + _HOURS_PER_ROW)
        accuracy = float(correct_N[members].mean()) if members.any() else None
        rows.append(
            HourRow(hours=f"{first:02d}-{first + _HOURS_PER_ROW:02d}", labeled=int(members.sum()), accuracy=accuracy)
        )
    return rows


def camera_accuracies(predictions: Predictions, truth: Truth) -> dict[str, tuple[int, float]]:
    """Return labeled images and accuracy of each camera that has any."""
    correct_N, usable_N = _correct(predictions, truth)
    # The table lists files that are not images after the images with scores.
    cameras = np.array(predictions.images["camera"].to_pylist()[: len(correct_N)], dtype=object)
    result = {}
    for camera in dict.fromkeys(cameras[usable_N].tolist()):
        members = usable_N & (cameras == camera)
        result[camera] = (int(members.sum()), float(correct_N[members].mean()))
    return result


def _correct(predictions: Predictions, truth: Truth) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    usable_N = (truth.classes_N >= 0) & ~np.isnan(predictions.probabilities_NK).any(axis=1)
    # `argmax` would take a NaN for the highest; rows that failed are no usable ones.
    answers_N = np.nan_to_num(predictions.probabilities_NK, nan=-1.0).argmax(axis=1)
    return answers_N == truth.classes_N, usable_N


def find_confusions(predictions: Predictions, truth: Truth) -> list[Confusion]:
    """Return the most frequent confusions of classes, with the lowest taxon that both belong to."""
    correct_N, usable_N = _correct(predictions, truth)
    answers_N = np.nan_to_num(predictions.probabilities_NK, nan=-1.0).argmax(axis=1)
    wrong_N = usable_N & ~correct_N
    pairs = Counter(zip(truth.classes_N[wrong_N].tolist(), answers_N[wrong_N].tolist(), strict=True))
    tree, taxa = ClassTree(predictions.classes.taxa_K, predictions.taxa.parents), predictions.taxa
    confusions = []
    for (label, answer), count in pairs.most_common(_MAX_CONFUSIONS):
        taxon = tree.common_ancestor(int(tree.taxa_K[label]), int(tree.taxa_K[answer]))
        confusions.append(
            Confusion(
                truth=name_class(predictions, label),
                answer=name_class(predictions, answer),
                images=count,
                common=taxa.names[taxon] if taxon >= 0 else "",
                rank=taxa.ranks[taxon] if taxon >= 0 else "",
            )
        )
    return confusions


def decision_truths(predictions: Predictions, truth: Truth) -> list[str]:
    """Return the label of each decision: that of its images, where all but blank ones agree; "" otherwise.

    An animal leaves some frames of its burst, so a blank frame does not contradict the others' label.
    """
    owners_N = image_decisions(predictions, predictions.collection_keys)
    labels: list[set[str]] = [set() for _ in range(predictions.decisions.num_rows)]
    for owner, label in zip(owners_N.tolist(), truth.names_N.tolist(), strict=True):
        if label:
            labels[owner].add(label)
    # An event with two animals has no single right answer, so it is not judged.
    single = [names - {"blank"} or names for names in labels]
    return [next(iter(names)) if len(names) == 1 else "" for names in single]


def judge(name: str, label: str, taxa: Taxa) -> tuple[bool, bool]:
    """Return whether an answer is right, and whether it is the label itself.

    An ancestor of the label is right: "Felidae" for an ocelot. "animal" is right for every animal.
    """
    taxon = taxa.index(label) if label in taxa else taxa.find(label)
    lineage = [taxa.names[ancestor] for ancestor in taxa.lineage(taxon)] if taxon >= 0 else [label]
    if name == lineage[0]:
        return True, True
    return name in lineage or (name == "animal" and label not in NON_ANIMALS), False


def evaluate_stages(predictions: Predictions, truth: Truth) -> list[StageRow]:
    """Count after each stage how many decisions name something, and how many of those are right."""
    labels = decision_truths(predictions, truth)
    rows: dict[str, list[int]] = {}
    sources = predictions.decisions["source"].to_pylist()
    for label, source in zip(labels, sources, strict=True):
        if not label:
            continue
        for step in json.loads(source):
            counts = rows.setdefault(step["stage"], [0, 0, 0, 0])
            counts[0] += 1
            # Abstentions name nothing: they are neither right nor wrong.
            if step["answer"] in ("", "unknown"):
                continue
            right, exact = judge(step["answer"], label, predictions.taxa)
            counts[1] += 1
            counts[2] += right
            counts[3] += exact
    return [
        StageRow(stage=stage, total=total, named=named, right=right, exact=exact)
        for stage, (total, named, right, exact) in rows.items()
    ]


def evaluate_coverage(predictions: Predictions, truth: Truth) -> Coverage:
    """Return precision against coverage of the best class of images, as the threshold rises."""
    correct_N, usable_N = _correct(predictions, truth)
    confidences_N = np.clip(predictions.probabilities_NK[usable_N].max(axis=1).astype(np.float64), 0, 1)
    curve = coverage_curve(confidences_N, correct_N[usable_N])
    # Thinned out: a curve has a point for each distinct confidence, up to one per image.
    picked = np.unique(np.linspace(0, len(curve.coverage_T) - 1, _MAX_POINTS).round().astype(int))
    return Coverage(
        thresholds=curve.thresholds_T[picked].tolist(),
        coverage=curve.coverage_T[picked].tolist(),
        precision=curve.accuracy_T[picked].tolist(),
    )
