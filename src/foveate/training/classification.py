"""Classification of labeled images: the images, one task, training and prediction.

Every system that trains a classifier (adapters, comparisons, calibrated fine-tuning) brings a module that maps images
to logits and a callable that loads images; nothing here knows an encoder or a preprocessing.

```python
images = LabeledImages("mine", classes, keys, labels, splits, load)
settings = ClassificationSettings(epochs=20).resolve(len(rows))            # foveate.training.epochs
loader = training_loader(images, rows, settings)
train(ClassificationTask(model), loader, settings, run)                    # foveate.training.loop
predict(model, images, images.rows("test")).accuracy
```
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.core import seeds
from foveate.core.errors import UserError, choose
from foveate.core.labels import as_class_labels
from foveate.core.progress import say, track
from foveate.records.geometry import View
from foveate.records.images import BadImage
from foveate.training.loader import BadSample, Loader, MixtureLoader, Source
from foveate.training.optimizer import ParameterRule
from foveate.training.settings import TrainingSettings
from foveate.training.task import Batch, Losses, Report, Task
from foveate.training.transforms import mix_batch

BATCH_SIZE = 64  # for prediction: large enough to fill a core, small enough for any memory

Rows = NDArray[np.int64]
TaskName = Literal["single-label", "multi-label", "regression", "ordinal"]


@dataclass(frozen=True)
class LabeledImages:
    """Images with one class each, or with several labels or a value.

    Attributes:
        name: of the data, for errors and results.
        classes: names; a label is an index into them. None of a regression.
        keys: one per image, for errors.
        labels_N: class of each image, -1 where it has none of the classes. Of several labels or a value: 0 where they
            are known, else -1.
        splits: name of each image's split, "" where it has none.
        load: row and view to the model's input, uint8 pixels [C, S, S] or floating-point values; raises BadImage.
        size: row to width and height in pixels; None where images cannot be cropped.
        content: row to bytes that tell its image from any other, such as its file or a hash of it.
        task: what the labels are.
        targets_NT: what is learned instead of a class: 1 and 0 for each of K labels, or one value (of ordered classes
            the number of the class); None of a single label.
        unit: of the value, for tables.
    """

    name: str
    classes: tuple[str, ...]
    keys: Sequence[str]
    labels_N: Rows
    splits: NDArray[Any]
    load: Callable[[int, View], Tensor]
    size: Callable[[int], tuple[int, int]] | None = None
    content: Callable[[int], bytes] | None = None
    task: TaskName = "single-label"
    targets_NT: NDArray[np.float32] | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        as_class_labels(self.labels_N, what=f"{self.name}: labels", numbers=True)
        assert (self.targets_NT is None) == (self.task == "single-label"), self.task

    def rows(self, *splits: str) -> Rows:
        """Return the labeled images of these splits, ascending.

        Raises:
            UserError: a split does not exist, or none of its images has a class.
        """
        known = sorted(set(self.splits.tolist()) - {""})
        for split in splits:
            choose(split, known, f"split of {self.name}")
        rows = np.flatnonzero(np.isin(self.splits, splits) & (self.labels_N >= 0))
        if not len(rows):
            raise UserError(f"{self.name}: no image of the split {' or '.join(splits)} has a class")
        return rows

    def labeled_rows(self) -> Rows:
        """Return all labeled images, ascending."""
        return np.flatnonzero(self.labels_N >= 0)

    def has_split(self, split: str) -> bool:
        """Whether a split has labeled images."""
        return bool(((self.splits == split) & (self.labels_N >= 0)).any())

    def provenance(self, rows: Rows) -> dict[str, Any]:
        """Return the name of the data and the splits of `rows`: what a trained model remembers of its images."""
        return {"data": self.name, "splits": sorted(set(self.splits[rows].tolist()) - {""})}

    def identify(self, rows: Rows) -> dict[str, Any]:
        """Identify `rows` by the names of data and classes and a hash of keys, labels and content."""
        digest = hashlib.blake2b(digest_size=16)
        for row in rows.tolist():
            # As JSON, so that where a key ends and its label begins is unambiguous.
            digest.update(json.dumps([self.keys[row], int(self.labels_N[row])]).encode())
            if self.targets_NT is not None:
                digest.update(self.targets_NT[row].astype("<f4").tobytes())
            if self.content is not None:
                digest.update(self.content(row))
        named = {"name": self.name, "classes": list(self.classes), "images": len(rows), "hash": digest.hexdigest()}
        # Not of a single label: runs that were begun before there were others have no such entry.
        return named if self.task == "single-label" else {**named, "task": self.task}

    def missing_classes(self, rows: Rows) -> list[str]:
        """Return the names of classes that none of `rows` has."""
        if self.task == "multi-label" and self.targets_NT is not None:
            present = set(np.flatnonzero(self.targets_NT[rows].any(axis=0)).tolist())
        else:
            present = set(self.labels_N[rows].tolist())
        return [name for number, name in enumerate(self.classes) if number not in present]

    def draw_shots(self, rows: Rows, shots: int | None, *, seed: int, allow_missing: bool = False) -> Rows:
        """Draw at most `shots` of `rows` for each class, ascending; all where `shots` is None.

        Args:
            allow_missing: classes may have no image, because the head that training starts from knows them.

        Raises:
            UserError: a class has no image, or images have several labels or a value.
        """
        if shots is not None and self.task in ("multi-label", "regression"):
            raise UserError(f"data.shots: counts images per class; {self.name} is {self.task} (got {shots})")
        missing = self.missing_classes(rows)
        if missing and not allow_missing:
            raise UserError(f"{self.name}: class '{missing[0]}' has no training image ({len(missing)} such classes)")
        if shots is None:
            return rows
        drawn = []
        for number in range(len(self.classes)):
            # A generator for each class number: the draw for a class does not depend on the images of the others, but
            # on its place among the classes.
            of_class = rows[self.labels_N[rows] == number]
            drawn.append(seeds.generator("shots", seed, number).permutation(of_class)[:shots])
        return np.sort(np.concatenate(drawn))


def array_images(arrays: NDArray[Any], labels: NDArray[Any], *, name: str = "arrays") -> LabeledImages:
    """Wrap arrays [N, ...] that the model takes as they are, with class numbers [N].

    Raises:
        UserError: the numbers of arrays and labels differ or are 0, labels are no class numbers, or a value is not
            finite.
    """
    numbers = as_class_labels(labels, what=f"{name}: labels", numbers=True)
    if len(arrays) != len(labels) or len(labels) == 0:
        raise UserError(f"{name}: expected as many arrays as labels, at least one (got {len(arrays)}, {len(labels)})")
    if not np.isfinite(arrays).all():
        raise UserError(f"{name}: some values are NaN or infinite")
    tensors = torch.from_numpy(np.ascontiguousarray(arrays, dtype=np.float32))
    labels_N = numbers.astype(np.int64)
    classes = tuple(str(number) for number in range(int(labels_N.max()) + 1))
    keys = [str(row) for row in range(len(labels_N))]
    return LabeledImages(name, classes, keys, labels_N, np.full(len(labels_N), ""), lambda row, _: tensors[row])


LoadSample = Callable[[int, int, int], Tensor]
"""Row, epoch and seed to the model's input: a pure function of the three; may raise BadImage."""


def load_cached(cache: Mapping[int, Tensor], unreadable: Mapping[int, str]) -> LoadSample:
    """Return a loader of tensors in memory.

    Args:
        cache: row -> tensor. unreadable: row -> reason, for rows that could not be cached.
    """

    def load(row: int, epoch: int, seed: int) -> Tensor:
        if row in unreadable:
            raise BadImage("unreadable", unreadable[row])
        return cache[row]

    return load


class ClassificationDataset:
    """Training samples for `foveate.training.loader.Loader`: the model's input and the class of an image.

    Args:
        load: how a sample is loaded; images unchanged by default. See `load_cached`.
        mixup: alpha of the distribution of shares that the samples of a batch are mixed by; 0 = not mixed.
    """

    def __init__(self, images: LabeledImages, load: LoadSample | None = None, *, mixup: float = 0.0) -> None:
        self.images, self.mixup = images, mixup
        self.load: LoadSample = load or (lambda row, epoch, seed: images.load(row, View()))

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        """Return input, class and key of one image."""
        try:
            inputs = self.load(row, epoch, seed)
        except BadImage as problem:
            # The loader counts and replaces only samples that raise BadSample.
            raise BadSample(self.images.keys[row], str(problem)) from problem
        targets_NT = self.images.targets_NT
        label = int(self.images.labels_N[row]) if targets_NT is None else torch.from_numpy(targets_NT[row])
        return {"inputs": inputs, "label": label, "key": self.images.keys[row], "draw": (seed, row, epoch)}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack samples to a batch; labels are class numbers [B], or targets [B, T], soft where samples are mixed."""
        inputs, drawn = torch.stack([sample["inputs"] for sample in samples]), [sample["label"] for sample in samples]
        labels = torch.stack(drawn) if isinstance(drawn[0], Tensor) else torch.tensor(drawn)
        if self.mixup:
            # No two steps begin with the same sample of the same epoch: its seeds are those of the batch.
            classes, draw = len(self.images.classes), samples[0]["draw"]
            inputs, labels = mix_batch(inputs, labels, alpha=self.mixup, num_classes=classes, draw=draw)
        return {"inputs": inputs, "labels": labels, "keys": [sample["key"] for sample in samples]}


def training_loader(
    images: LabeledImages,
    rows: Rows,
    settings: TrainingSettings,
    *,
    load: LoadSample | None = None,
    mixup: float = 0.0,
    balanced: bool = False,
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """Return the batches of a training: what every training of a classifier draws, and how.

    Args:
        images: with classes.
        rows: of the training images.
        settings: batch size, seed and loader threads.
        load: how a sample is varied or cached; images unchanged by default.
        mixup, balanced: see `foveate.training.epochs.ClassificationSettings`.
        workers: those of the settings by default; 0 where samples are in memory and nothing is decoded.
        rank, world_size: of this process among those that train together.
    """
    dataset = ClassificationDataset(images, load, mixup=mixup)
    options: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "workers": settings.workers if workers is None else workers,
        "rank": rank,
        "world_size": world_size,
    }
    if not balanced:
        return Loader(dataset, rows=rows, **options)
    # A source for each class: each pass over a class has its own order and views, unlike rows that are repeated.
    labels = images.labels_N[rows]
    sources = [
        Source(f"class {images.classes[number]}", dataset, rows[labels == number])
        for number in np.unique(labels).tolist()
    ]
    return MixtureLoader(sources, **options)


Criterion = Callable[[Tensor, Tensor], tuple[Tensor, Report]]
"""Outputs [B, K] in float32 and labels of a batch to the loss, and to what the log says of the batch."""


def cross_entropy_criterion(
    *, label_smoothing: float = 0.0, weight_K: Tensor | None = None, focal_gamma: float = 0.0
) -> Criterion:
    """Return the cross-entropy over classes, and the share of the batch that is classified correctly.

    Args:
        label_smoothing: share of each target that is spread over all classes.
        weight_K: of the classes; alike by default.
        focal_gamma: exponent of the focal loss, which weighs images by (1 - p)^gamma; 0 = none.

    Source: Lin et al. 2017, arXiv 1708.02002, equation 4.
    """

    def compute(logits_BK: Tensor, labels: Tensor) -> tuple[Tensor, Report]:
        # A mixed sample counts as the class with the larger share.
        classes_B = labels if labels.ndim == 1 else labels.argmax(dim=1)
        accuracy = (logits_BK.detach().argmax(dim=1) == classes_B).float().mean()
        weight = None if weight_K is None else weight_K.to(logits_BK)
        if not focal_gamma:
            loss = F.cross_entropy(logits_BK, labels, weight=weight, label_smoothing=label_smoothing)
            return loss, {"accuracy": accuracy}
        # p of the true class, without weights and smoothing: it says how hard the image is.
        p_B = logits_BK.softmax(dim=1).gather(1, classes_B[:, None])[:, 0]
        each_B = F.cross_entropy(logits_BK, labels, weight=weight, label_smoothing=label_smoothing, reduction="none")
        total = len(each_B) if weight is None else weight[classes_B].sum()
        return ((1 - p_B) ** focal_gamma * each_B).sum() / total, {"accuracy": accuracy}

    return compute


class ClassificationTask(Task):
    """Loss of a model on labeled images: the cross-entropy over its classes by default.

    Args:
        model: holds the trained parameters; maps the inputs of a batch to logits [B, K].
        logits: how inputs become logits instead, such as from cached tokens; reads the parameters of `model`.
        label_smoothing: of the cross-entropy.
        criterion: another loss than the cross-entropy.
        rules: learning rates, decay and frozen parts, by parameter names that begin with "model.".
        shard_units: modules that FSDP2 shards one by one.
        schedule: step (from 0) -> share of the peak learning rate; that of the settings by default.
        save: writes the trained model to a folder.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        logits: Callable[[Tensor], Tensor] | None = None,
        label_smoothing: float = 0.0,
        criterion: Criterion | None = None,
        rules: Sequence[ParameterRule] = (),
        shard_units: Sequence[nn.Module] = (),
        schedule: Callable[[int], float] | None = None,
        save: Callable[[Path], object] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        # Behind a function: as an attribute, a module would be registered a second time.
        self._logits = (lambda inputs: model(inputs)) if logits is None else logits
        self._rules, self._schedule, self._save = rules, schedule, save
        self._criterion = criterion or cross_entropy_criterion(label_smoothing=label_smoothing)
        self._shard_units = tuple(shard_units)
        self._evaluation: Callable[[], Mapping[str, float]] | None = None
        self._images_per_epoch: int | None = None

    def logits(self, inputs: Tensor) -> Tensor:
        """Return logits [B, K] of the inputs of a batch."""
        return self._logits(inputs)

    def losses(self, batch: Batch) -> tuple[Losses, Report]:
        """Return the loss of a batch, and what the log says of it."""
        self.batch_keys = batch["keys"]
        # The softmax in float32, also where autocast gives bfloat16 logits.
        loss, report = self._criterion(self.logits(batch["inputs"]).float(), batch["labels"])
        return {"loss": loss}, report

    def learning_rate_factor(self, step: int, *, settings: TrainingSettings) -> float:
        """Return the share of the peak learning rate for a step."""
        if self._schedule is None:
            return super().learning_rate_factor(step, settings=settings)
        return self._schedule(step)

    def evaluate_with(
        self, evaluation: Callable[[], Mapping[str, float]], *, images_per_epoch: int | None = None
    ) -> None:
        """Set what `evaluate` measures.

        Args:
            images_per_epoch: evaluate at the end of every epoch of this many images, the last one excepted; None:
                every `evaluate_every` steps.
        """
        self._evaluation, self._images_per_epoch = evaluation, images_per_epoch

    def should_evaluate(self, step: int, *, settings: TrainingSettings) -> bool:
        """Whether an evaluation follows after `step` steps."""
        if self._images_per_epoch is None:
            return super().should_evaluate(step, settings=settings)
        # Epochs need not end with a batch: the first step that has passed the end of one counts.
        before, after = (number * settings.batch_size // self._images_per_epoch for number in (step - 1, step))
        return before < after and step < settings.steps

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Return the metrics of `evaluate_with`."""
        return super().evaluate(step) if self._evaluation is None else self._evaluation()

    def parameter_groups(self) -> Sequence[ParameterRule]:
        """Return the rules."""
        return self._rules

    def shard_units(self) -> Sequence[nn.Module]:
        """Return the modules that FSDP2 shards one by one."""
        return self._shard_units

    def export(self, folder: Path) -> None:
        """Write the trained model.

        Raises:
            UserError: the task was built without `save`.
        """
        if self._save is None:
            raise UserError(f"{folder}: this classifier is trained in memory; save the model itself")
        self._save(folder)


@dataclass(frozen=True)
class Predictions:
    """Logits and features of a model for labeled images.

    Attributes:
        logits: [N, K]. labels: [N].
        rows: [N], the images that could be read, in the requested order.
        features: [N, D] before the head, where the model gives them; else [N, 0].
        unreadable: row -> reason.
    """

    logits: NDArray[np.float32]
    labels: Rows
    rows: Rows
    features: NDArray[np.float32]
    unreadable: dict[int, str] = field(default_factory=dict)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each image is classified correctly, [N]."""
        return self.logits.argmax(axis=1) == self.labels

    @property
    def accuracy(self) -> float:
        """The share of images that are classified correctly."""
        return float(self.correct.mean())

    @property
    def metrics(self) -> dict[str, float]:
        """Accuracy and mean cross-entropy (without smoothing), as the log of a training has them."""
        loss = F.cross_entropy(torch.from_numpy(self.logits), torch.from_numpy(self.labels))
        return {"accuracy": self.accuracy, "loss": float(loss)}


def readable_batches(
    images: LabeledImages, rows: Rows, unreadable: dict[int, str], *, description: str
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield rows and stacked inputs of the images that can be read, with a progress bar.

    Args:
        unreadable: receives row -> reason of the others.
        description: of the progress bar.
    """
    for start in track(range(0, len(rows), BATCH_SIZE), description=description):
        readable, inputs = [], []
        for row in rows[start : start + BATCH_SIZE].tolist():
            try:
                inputs.append(images.load(row, View()))
                readable.append(row)
            except BadImage as problem:
                unreadable[row] = str(problem)
        if readable:
            yield readable, torch.stack(inputs)


@torch.no_grad()
def predict(
    model: Callable[[Tensor], Tensor | tuple[Tensor, Tensor]],
    images: LabeledImages,
    rows: Rows | None = None,
    *,
    device: torch.device | str = "cpu",
    description: str = "predicting",
) -> Predictions:
    """Return logits of `rows`, all labeled images by default; images that cannot be read are left out and reported.

    Args:
        model: inputs to logits [B, K], or to logits and features [B, D]; in evaluation mode already.

    Raises:
        UserError: no image can be read.
    """
    rows = images.labeled_rows() if rows is None else np.asarray(rows, dtype=np.int64)
    logits, features, readable, unreadable = [], [], list[int](), dict[int, str]()
    for part, inputs in readable_batches(images, rows, unreadable, description=description):
        outputs = model(inputs.to(device))
        # Features of width 0 if the model returns none, so that results always have the same form.
        pair = outputs if isinstance(outputs, tuple) else (outputs, outputs.new_zeros(len(outputs), 0))
        # float(), because NumPy has no bfloat16.
        logits.append(pair[0].float().cpu().numpy())
        features.append(pair[1].float().cpu().numpy())
        readable += part
    if not readable:
        example = next(iter(unreadable.values()), "there are none")
        raise UserError(f"{images.name}: none of {len(rows)} images can be read, for example: {example}")
    if unreadable:
        say(
            f"{len(unreadable)} images cannot be read and were left out, for example: {next(iter(unreadable.values()))}"
        )
    order = np.array(readable, dtype=np.int64)
    return Predictions(np.concatenate(logits), images.labels_N[order], order, np.concatenate(features), unreadable)
