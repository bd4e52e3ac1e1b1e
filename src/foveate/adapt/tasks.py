"""What a head learns: a class, several labels, a value, or ordered classes; one class per kind of labels.

```python
task = open_task(images, rows)              # standardizes values by the training images `rows`
head = new_head(width, task.num_outputs)
probe = task.solve(features_ND, rows, training)
task.score(outputs_NT, task.truth(held_out))
```

A head of values is trained on standardized ones. `to_units` folds mean and deviation into its weights at the end, so
that every saved, merged or exported model answers in the unit of the labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.adapt.recipe import AdaptTraining
from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.metrics.agreement import softmax
from foveate.metrics.multilabel import best_thresholds, mean_average_precision
from foveate.metrics.regression import mean_absolute_error, quadratic_kappa, r2
from foveate.training.classification import Criterion, LabeledImages, Rows, TaskName, cross_entropy_criterion
from foveate.training.linear_probe import SolvedHead, solve_head, solve_multi_label, solve_values
from foveate.training.task import Report
from foveate.vision.classifier import LABELS_FILE

SINGLE_LABEL: TaskName = "single-label"
# Fields of the training that one kind of labels alone reads, with the values at which they do nothing.
_IDLE: Mapping[str, Any] = {
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "balanced": False,
    "class_weights": "none",
    "focal_gamma": 0.0,
    "loss": "mse",
}


def sigmoid(logits_NK: NDArray[Any]) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-x)) in float64, without overflow."""
    # exp(-log(1 + exp(-x))): both ends are exact.
    return np.exp(-np.logaddexp(0.0, -logits_NK.astype(np.float64)))


class LabelTask(ABC):
    """One kind of labels.

    Attributes:
        score_name: what decides between two models; higher is better.
        reads: fields of the training that this kind reads of those that not all do.
        images: with labels of this kind.
        num_outputs: of the head.
    """

    score_name: ClassVar[str]
    reads: ClassVar[frozenset[str]]

    def __init__(self, images: LabeledImages) -> None:
        self.images, self.num_outputs = images, len(images.classes)

    def check(self, training: AdaptTraining) -> None:
        """Raise UserError for a field of the training that this kind of labels has no use for."""
        for name, idle in _IDLE.items():
            if name not in self.reads and getattr(training, name) != idle:
                raise UserError(
                    f"training.{name}: has no meaning for {self.images.task} labels (got {getattr(training, name)}); "
                    f"expected {idle}"
                )

    def truth(self, rows: Rows) -> NDArray[Any]:
        """Return the labels of `rows` as `score` takes them."""
        assert self.images.targets_NT is not None, self.images.task
        return self.images.targets_NT[rows]

    def in_units(self, outputs_NT: NDArray[Any]) -> NDArray[Any]:
        """Return outputs of a head in training as `to_units` would give them."""
        return outputs_NT

    def to_units(self, head: nn.Module) -> None:
        """Give a trained head the unit of the labels, in place."""
        return

    def from_units(self, head: nn.Module) -> None:
        """Undo `to_units`, for a head that is trained on."""
        return

    @abstractmethod
    def criterion(self, training: AdaptTraining, rows: Rows) -> Criterion:
        """Return the loss of a training on `rows`."""

    @abstractmethod
    def solve(self, features_ND: NDArray[np.float32], rows: Rows, training: AdaptTraining) -> SolvedHead:
        """Solve a head on features of `rows`; see `foveate.training.linear_probe`."""

    @abstractmethod
    def score(self, outputs_NT: NDArray[Any], truth: NDArray[Any]) -> float:
        """Return how good outputs are, in the unit of the labels."""

    def metrics(self, outputs_NT: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
        """Return what the log of a training says of held-out images."""
        return {self.score_name: self.score(outputs_NT, truth)}


class SingleLabel(LabelTask):
    """One class per image: softmax and cross-entropy."""

    score_name = "accuracy"
    reads = frozenset({"label_smoothing", "mixup", "balanced", "class_weights", "focal_gamma"})

    def truth(self, rows: Rows) -> NDArray[Any]:
        """Return class numbers."""
        return self.images.labels_N[rows]

    def criterion(self, training: AdaptTraining, rows: Rows) -> Criterion:
        """Return the cross-entropy."""
        weight_K = None
        if training.class_weights == "balanced":
            counts_K = np.bincount(self.images.labels_N[rows], minlength=self.num_outputs)
            # N / (K n), as scikit-learn; a class without an image has no loss to weigh.
            weight_K = torch.from_numpy(len(rows) / (self.num_outputs * np.maximum(counts_K, 1))).float()
        return cross_entropy_criterion(
            label_smoothing=training.label_smoothing, weight_K=weight_K, focal_gamma=training.focal_gamma
        )

    def solve(self, features_ND: NDArray[np.float32], rows: Rows, training: AdaptTraining) -> SolvedHead:
        """Solve a logistic regression."""
        labels_N = self.images.labels_N[rows]
        return solve_head(features_ND, labels_N, num_classes=self.num_outputs, C=training.head_c, seed=training.seed)

    def score(self, outputs_NT: NDArray[Any], truth: NDArray[Any]) -> float:
        """Return the accuracy."""
        return float((outputs_NT.argmax(axis=1) == truth).mean())

    def metrics(self, outputs_NT: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
        """Return accuracy and mean cross-entropy, without smoothing and weights."""
        loss = F.cross_entropy(torch.from_numpy(outputs_NT), torch.from_numpy(truth))
        return {"accuracy": self.score(outputs_NT, truth), "loss": float(loss)}


class MultiLabel(LabelTask):
    """Any number of labels per image: a sigmoid and a binary cross-entropy for each."""

    score_name = "mAP"
    reads = frozenset({"class_weights", "focal_gamma"})

    def criterion(self, training: AdaptTraining, rows: Rows) -> Criterion:
        """Return the mean binary cross-entropy over labels."""
        gamma, weight_K = training.focal_gamma, None
        if training.class_weights == "balanced":
            count_K = self.truth(rows).sum(axis=0)
            weight_K = torch.from_numpy((len(rows) - count_K) / np.maximum(count_K, 1)).float()

        def compute(logits_BK: Tensor, targets_BK: Tensor) -> tuple[Tensor, Report]:
            weight = None if weight_K is None else weight_K.to(logits_BK)
            each_BK = F.binary_cross_entropy_with_logits(logits_BK, targets_BK, pos_weight=weight, reduction="none")
            if gamma:
                p_BK = logits_BK.sigmoid()
                # 1 - p of what is true.
                each_BK = (p_BK + targets_BK - 2 * p_BK * targets_BK) ** gamma * each_BK
            right = ((logits_BK.detach() > 0) == (targets_BK > 0.5)).float().mean()
            return each_BK.mean(), {"right_labels": right}

        return compute

    def solve(self, features_ND: NDArray[np.float32], rows: Rows, training: AdaptTraining) -> SolvedHead:
        """Solve a logistic regression for each label."""
        return solve_multi_label(features_ND, self.truth(rows), C=training.head_c, seed=training.seed)

    def score(self, outputs_NT: NDArray[Any], truth: NDArray[Any]) -> float:
        """Return the mean average precision; 0 where no image has any label."""
        value = mean_average_precision(outputs_NT, truth)
        return value if np.isfinite(value) else 0.0

    def thresholds(self, outputs_NT: NDArray[Any] | None, truth: NDArray[Any] | None) -> list[float]:
        """Return the threshold of each label, with the highest F1 on these images; 0.5 where there are none."""
        if outputs_NT is None or truth is None:
            return [0.5] * self.num_outputs
        return best_thresholds(sigmoid(outputs_NT), truth).tolist()


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of the values of the training images."""

    mean: float
    deviation: float


class Values(LabelTask):
    """A value per image: standardized, and fitted by least squares or Huber's loss."""

    score_name = "R2"
    reads = frozenset({"loss"})

    def __init__(self, images: LabeledImages, rows: Rows) -> None:
        super().__init__(images)
        self.num_outputs = 1
        values_N = self.truth(rows).astype(np.float64)
        # As of a single class: equal values have nothing to learn, and no deviation to divide by.
        if values_N.min() == values_N.max():
            raise UserError(
                f"{images.name}: all {len(values_N)} training images have the value {values_N[0]:g}; expected at least "
                "two different ones"
            )
        self.scale = Scale(float(values_N.mean()), float(values_N.std()))

    def truth(self, rows: Rows) -> NDArray[Any]:
        """Return values [N]."""
        return super().truth(rows)[:, 0]

    def in_units(self, outputs_NT: NDArray[Any]) -> NDArray[Any]:
        """Return values in their unit."""
        return outputs_NT * self.scale.deviation + self.scale.mean

    @torch.no_grad()
    def to_units(self, head: nn.Module) -> None:
        """Fold deviation and mean into weight and bias."""
        assert isinstance(head, nn.Linear), "a head of values is linear"
        head.weight.mul_(self.scale.deviation)
        head.bias.mul_(self.scale.deviation).add_(self.scale.mean)

    @torch.no_grad()
    def from_units(self, head: nn.Module) -> None:
        """Take mean and deviation out of weight and bias."""
        assert isinstance(head, nn.Linear), "a head of values is linear"
        head.bias.sub_(self.scale.mean).div_(self.scale.deviation)
        head.weight.div_(self.scale.deviation)

    def criterion(self, training: AdaptTraining, rows: Rows) -> Criterion:
        """Return the mean error of standardized values."""
        mean, deviation = self.scale.mean, self.scale.deviation
        error = F.mse_loss if training.loss == "mse" else F.huber_loss

        def compute(outputs_B1: Tensor, values_B1: Tensor) -> tuple[Tensor, Report]:
            standard_B1 = (values_B1 - mean) / deviation
            distance = deviation * (outputs_B1.detach() - standard_B1).abs().mean()
            return error(outputs_B1, standard_B1), {"mean_absolute_error": distance}

        return compute

    def solve(self, features_ND: NDArray[np.float32], rows: Rows, training: AdaptTraining) -> SolvedHead:
        """Solve a ridge regression of standardized values."""
        standard_N = ((self.truth(rows) - self.scale.mean) / self.scale.deviation).astype(np.float32)
        return solve_values(features_ND, standard_N, C=training.head_c, seed=training.seed)

    def score(self, outputs_NT: NDArray[Any], truth: NDArray[Any]) -> float:
        """Return R2; -1 times the mean absolute error where all true values are equal, and R2 is not defined."""
        value = r2(outputs_NT[:, 0], truth)
        return value if np.isfinite(value) else -mean_absolute_error(outputs_NT[:, 0], truth)

    def metrics(self, outputs_NT: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
        """Return score and mean absolute error."""
        error = mean_absolute_error(outputs_NT[:, 0], truth)
        return {self.score_name: self.score(outputs_NT, truth), "mean_absolute_error": error}


class Ordinal(Values):
    """Ordered classes, fitted as their numbers; the nearest class is the answer."""

    score_name = "quadratic_kappa"
    reads = frozenset({"loss", "balanced"})

    def score(self, outputs_NT: NDArray[Any], truth: NDArray[Any]) -> float:
        """Return quadratic kappa; 0 where answers and truth are one and the same class."""
        value = quadratic_kappa(nearest_classes(outputs_NT, len(self.images.classes)), truth)
        return value if np.isfinite(value) else 0.0


def nearest_classes(values_N1: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """Return the number of the ordered class next to each value [N, 1], shape [N]."""
    return np.clip(np.rint(values_N1[:, 0]), 0, num_classes - 1).astype(np.int64)


def open_task(images: LabeledImages, rows: Rows) -> LabelTask:
    """Return the kind of labels of `images`.

    Args:
        rows: of the training images, whose values set the scale.

    Raises:
        UserError: all values are equal.
    """
    if images.task == "multi-label":
        return MultiLabel(images)
    if images.task == "regression":
        return Values(images, rows)
    return Ordinal(images, rows) if images.task == "ordinal" else SingleLabel(images)


# Outputs of a saved model, which has no training images.


@dataclass(frozen=True)
class Answers:
    """How the outputs of a saved head are read.

    Attributes:
        task: the kind of labels. classes: their names, none of a regression.
        thresholds: of several labels; a probability from it on counts.
        unit: of a value.
    """

    task: str = SINGLE_LABEL
    classes: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    unit: str = ""

    @classmethod
    def from_info(cls, info: Mapping[str, Any]) -> Answers:
        """Read what `to_info` wrote; older adapters have one class per image and no entry."""
        saved, classes = info.get("labels") or {}, tuple(info.get("classes") or ())
        task = str(saved.get("task", SINGLE_LABEL))
        # A model that was not measured has no chosen ones.
        unchosen = (0.5,) * len(classes) if task == "multi-label" else ()
        return cls(
            task=task,
            classes=classes,
            thresholds=tuple(saved.get("thresholds", unchosen)),
            unit=str(saved.get("unit", "")),
        )

    def to_info(self) -> dict[str, Any]:
        """Return what is saved beside the classes; nothing of one class per image."""
        if self.task == SINGLE_LABEL:
            return {}
        fields: dict[str, Any] = {"task": self.task}
        fields |= {"thresholds": list(self.thresholds)} if self.thresholds else {}
        fields |= {"unit": self.unit} if self.unit else {}
        return {"labels": fields}

    def probabilities(self, outputs_NT: NDArray[Any]) -> NDArray[np.float64]:
        """Return probabilities [N, K]; none ([N, 0]) of values."""
        if self.task == SINGLE_LABEL:
            return softmax(outputs_NT.astype(np.float64))
        return sigmoid(outputs_NT) if self.task == "multi-label" else np.zeros((len(outputs_NT), 0))

    def decide(self, outputs_NT: NDArray[Any]) -> list[tuple[str, ...]]:
        """Return the classes of each image: one, or those from their thresholds on; none of a value."""
        if self.task == "multi-label":
            chosen_NK = self.probabilities(outputs_NT) >= np.array(self.thresholds)
            return [tuple(self.classes[k] for k in np.flatnonzero(row)) for row in chosen_NK]
        if self.task == "regression":
            return [()] * len(outputs_NT)
        ordered = self.task == "ordinal"
        numbers_N = nearest_classes(outputs_NT, len(self.classes)) if ordered else outputs_NT.argmax(axis=1)
        return [(self.classes[number],) for number in numbers_N.tolist()]


def read_answers(folder: Path) -> Answers:
    """Read how the outputs of a merged or exported model are meant; one class per image where nothing says so."""
    path = folder / LABELS_FILE
    if not path.is_file():
        return Answers()
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise UserError(f"{path}: field 'labels' must be an object (got {type(content).__name__})")
    return Answers.from_info(content)


def single_label_only(task: str, what: str) -> None:
    """Raise UserError for labels that `what`, a verb or a format, does not take."""
    if task != SINGLE_LABEL:
        raise UserError(f"{what} takes models of one class per image (got task '{task}')")
