"""Classify new images with what was tuned: an adapter, its run, or a merged or calibrated classifier folder.

```python
predictor = foveate.open_adapter("runs/adapt-lora")
answers = predictor.predict(["a.jpg", "b.jpg"])
answers.labels, answers.probabilities
```
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.adapt.export import open_adapted
from foveate.adapt.folder import CONFIG, find_adapter_folder
from foveate.adapt.labels import count_names
from foveate.adapt.results import AdaptResult, PredictResult, SheetGroup, SheetImage
from foveate.adapt.scores import write_thumbnail
from foveate.adapt.tasks import SINGLE_LABEL, Answers, read_answers
from foveate.core.devices import choose_device
from foveate.core.errors import UserError, choose
from foveate.core.files import read_json
from foveate.core.hub import find
from foveate.core.hub_upload import HubMixin
from foveate.core.results import CalibrateResult, parse_result
from foveate.core.runs import RunFolder
from foveate.core.tables import csv_rows
from foveate.metrics.agreement import softmax
from foveate.records import layout
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.records.images import BadImage, ImageInput, encode_input, is_single_image
from foveate.records.importers.sample import IMAGE_SUFFIXES
from foveate.training.classification import LabeledImages, predict
from foveate.vision.classifier import Classifier, open_classifier
from foveate.vision.preprocess import Preprocess, read_image, render_file

FOLDED = "calibration.json"  # written by `fold` into a calibrated checkpoint
CALIBRATION = "calibration"  # run folder of `foveate calibrate` inside a run of `adapt train`
SHEET = "images"  # folder of thumbnails in the folder of a page
MAX_GROUPS, MAX_PER_GROUP = 24, 12  # of a contact sheet
_NUM_RANGES = 5  # of values, with as many images each


@dataclass(frozen=True)
class Gamma:
    """What a calibration adds to logits.

    Attributes:
        value: added to the logit of every absent class.
        absent: positions of the absent classes.
        folded: the classifier's bias holds it already.
    """

    value: float
    absent: tuple[int, ...]
    folded: bool = False

    def shift(self, logits_NK: NDArray[Any], sign: float = 1.0) -> NDArray[np.float64]:
        """Return logits with gamma (times `sign`) on the absent classes."""
        shifted_NK = logits_NK.astype(np.float64)
        shifted_NK[:, list(self.absent)] += sign * self.value
        return shifted_NK


@dataclass(frozen=True)
class ImagePredictions:
    """Answers of a tuned model, a row for each image that could be read, in the order given.

    Attributes:
        classes: K names, in the order of the columns; none of values.
        images: names of the images: path, key in a collection, or position.
        logits: [N, K], as the network gives them; of values and ordered classes [N, 1], in their unit.
        gamma: of the calibration; None where there is none.
        unreadable: image -> reason, of images that were skipped.
        answers: how the logits are read: task, thresholds of several labels, unit of values.
    """

    classes: tuple[str, ...]
    images: tuple[str, ...]
    logits: NDArray[np.float32]
    gamma: Gamma | None = None
    unreadable: dict[str, str] = field(default_factory=dict)
    answers: Answers = field(default_factory=Answers)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Probabilities [N, K] without calibration; of several labels each for itself; [N, 0] without any."""
        if self.answers.task != SINGLE_LABEL:
            return self.answers.probabilities(self.logits)
        folded = self.gamma is not None and self.gamma.folded
        # A folded gamma is in the bias already: without it are the answers before calibration.
        logits = self.gamma.shift(self.logits, -1.0) if folded and self.gamma else self.logits.astype(np.float64)
        return softmax(logits)

    @property
    def labels(self) -> list[str]:
        """The most probable class of each image, without calibration; several labels with ; between them."""
        if self.answers.task == SINGLE_LABEL:
            return [self.classes[index] for index in self.probabilities.argmax(axis=1)]
        return [";".join(names) for names in self.label_sets]

    @property
    def label_sets(self) -> list[tuple[str, ...]]:
        """The labels of each image from their thresholds on; one class of other tasks, none of values."""
        if self.answers.task == SINGLE_LABEL:
            return [(label,) for label in self.labels]
        return self.answers.decide(self.logits)

    @property
    def values(self) -> NDArray[np.float64] | None:
        """The value of each image [N], in its unit, of ordered classes their number; None of other tasks."""
        return self.logits[:, 0].astype(np.float64) if self.answers.task in ("regression", "ordinal") else None

    @property
    def calibrated_probabilities(self) -> NDArray[np.float64] | None:
        """Probabilities [N, K] with gamma on the absent classes; None without a calibration."""
        if self.gamma is None:
            return None
        return softmax(self.logits.astype(np.float64) if self.gamma.folded else self.gamma.shift(self.logits))

    @property
    def calibrated_labels(self) -> list[str] | None:
        """The most probable class of each image after calibration; None without a calibration."""
        probabilities = self.calibrated_probabilities
        return None if probabilities is None else [self.classes[index] for index in probabilities.argmax(axis=1)]

    def write_csv(self, path: Path, *, top: int = 1, each_class: bool = False) -> None:
        """Write a row for each image: image, class, probability, the calibrated ones where there are any, error.

        Several labels: `labels` with ; between them, and a column probability_LABEL for each. Values: `value`, and
        `unit` where it is known. Ordered classes: `class`, and `value`, the number that was rounded to it.

        Args:
            path: of the file.
            top: also write the further most probable classes, as top2_class, top2_probability and so on.
            each_class: also write a column probability_CLASS for each class.

        Raises:
            UserError: `top` is not between 1 and the number of classes, or there is no most probable class.
        """
        if self.answers.task != SINGLE_LABEL:
            if top > 1 or (each_class and not self.probabilities.shape[1]):
                option = "top" if top > 1 else "each_class"
                raise UserError(f"{option}: has no effect on a model of task '{self.answers.task}'")
            self._write_rows(path, self._columns_of_task())
            return
        if not 1 <= top <= len(self.classes):
            raise UserError(f"top: out of range (got {top}); expected 1 to {len(self.classes)}, the number of classes")
        probabilities_NK, calibrated_NK = self.probabilities, self.calibrated_probabilities
        # Stable, so that of equal classes the first is first, as `argmax` has it.
        order_NK = np.argsort(-probabilities_NK, axis=1, kind="stable")
        columns = {"class": self.labels, "probability": probabilities_NK.max(axis=1).tolist()}
        if calibrated_NK is not None:
            columns["calibrated_class"] = self.calibrated_labels or []
            columns["calibrated_probability"] = calibrated_NK.max(axis=1).tolist()
        for rank in range(1, top):
            chosen_N = order_NK[:, rank]
            columns[f"top{rank + 1}_class"] = [self.classes[number] for number in chosen_N.tolist()]
            values_N = np.take_along_axis(probabilities_NK, chosen_N[:, None], axis=1)[:, 0]
            columns[f"top{rank + 1}_probability"] = values_N.tolist()
        if each_class:
            columns |= {
                f"probability_{name}": probabilities_NK[:, number].tolist() for number, name in enumerate(self.classes)
            }
        self._write_rows(path, columns)

    def _columns_of_task(self) -> dict[str, list[Any]]:
        """Return the columns of several labels, values or ordered classes."""
        if self.answers.task == "multi-label":
            by_label = {f"probability_{name}": self.probabilities[:, k].tolist() for k, name in enumerate(self.classes)}
            return {"labels": self.labels, **by_label}
        assert self.values is not None, "the other tasks have values"
        if self.answers.task == "ordinal":
            return {"class": self.labels, "value": self.values.tolist()}
        unit = {"unit": [self.answers.unit] * len(self.images)} if self.answers.unit else {}
        return {"value": self.values.tolist(), **unit}

    def _write_rows(self, path: Path, columns: dict[str, list[Any]]) -> None:
        with csv_rows(path, ["image", *columns, "error"]) as writer:
            for row, image in enumerate(self.images):
                writer.writerow({"image": image, **{name: values[row] for name, values in columns.items()}})
            writer.writerows({"image": image, "error": reason} for image, reason in self.unreadable.items())


@dataclass(frozen=True)
class ImageSource:
    """An image to classify: its name, and a function that renders it for a network; that may raise BadImage."""

    name: str
    render: Callable[[Preprocess], Tensor]


class Predictor(HubMixin):
    """A tuned network with its classes and preprocessing. Use `foveate.open_adapter`.

    Attributes:
        folder: that it was opened from. name: of it, for errors.
        classes: names, in the order of the logits.
        preprocess: how images become pixels.
        gamma: of the calibration; None where there is none.
        network: the module behind it; None where only its logits are known.
        answers: how the logits are read.

    Example:
        >>> predictor = open_adapter(adapter_run)
        >>> answers = predictor.predict([image_file])
        >>> answers.labels[0] in predictor.classes, answers.probabilities.shape == (1, len(predictor.classes))
        (True, True)
    """

    _opener = "foveate.adapt.predictor:open_adapter"
    folder: Path | None = None

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        classes: Sequence[str],
        preprocess: Preprocess,
        *,
        name: str = "",
        device: torch.device | str = "cpu",
        gamma: Gamma | None = None,
        network: nn.Module | None = None,
        answers: Answers | None = None,
    ) -> None:
        self._logits, self.name, self._device, self.network = logits, name, device, network
        self.classes, self.preprocess, self.gamma = tuple(classes), preprocess, gamma
        self.answers = answers or Answers(classes=self.classes)

    def __repr__(self) -> str:
        return f"Predictor({self.name!r}, {self.answers.task}, {len(self.classes)} classes)"

    def predict(self, images: Iterable[ImageInput], *, skip_unreadable: bool = False) -> ImagePredictions:
        """Classify images: paths, bytes, Pillow images or arrays uint8 [H, W, 3].

        Args:
            skip_unreadable: leave out images that cannot be read and list them in the result, instead of raising.

        Raises:
            UserError: naming the first image that cannot be read; there is no image, or no readable one.
        """
        # Strings and arrays are iterable, too: their letters or rows would be taken for images.
        if is_single_image(images):
            raise UserError("images: expected a list (got a single image); write [image]")
        sources = [_describe_input(image, number) for number, image in enumerate(images)]
        return self.predict_sources(sources, skip_unreadable=skip_unreadable)

    def predict_sources(self, sources: Sequence[ImageSource], *, skip_unreadable: bool) -> ImagePredictions:
        """Classify images that are rendered when it is their turn; see `predict`."""
        if not sources:
            raise UserError("images: expected at least one (got none)")

        def load(row: int, view: View) -> Tensor:
            try:
                return sources[row].render(self.preprocess)
            except BadImage as problem:
                if skip_unreadable:
                    raise
                raise UserError(f"{sources[row].name}: cannot be read: {problem}") from problem

        rows = np.arange(len(sources))
        names = [source.name for source in sources]
        splits = np.full(len(rows), "")
        # `predict` takes labeled images; -1 means "no label", and nothing here reads it.
        labeled = LabeledImages(self.name, self.classes, names, np.full(len(rows), -1), splits, load)
        outputs = predict(self._logits, labeled, rows, device=self._device, description="classifying")
        unreadable = {names[row]: reason for row, reason in outputs.unreadable.items()}
        read = tuple(names[row] for row in outputs.rows.tolist())
        return ImagePredictions(self.classes, read, outputs.logits, self.gamma, unreadable, self.answers)


def _describe_input(image: ImageInput, number: int) -> ImageSource:
    name = os.fspath(image) if isinstance(image, str | os.PathLike) else str(number)
    return ImageSource(name, lambda preprocess: render_file(encode_input(image), preprocess)[0])


def list_sources(paths: Sequence[Path]) -> tuple[list[ImageSource], int]:
    """List the images of files, folders (at any depth) and collections; also count other files in the folders.

    Raises:
        UserError: a path does not exist, or a folder or collection has no image.
    """
    sources: list[ImageSource] = []
    others = 0
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder of images")
        if (path / layout.DESCRIPTION).is_file():
            listed = _list_collection(path, prefix=f"{path}/" if len(paths) > 1 else "")
        elif path.is_dir():
            files = sorted(file for file in path.rglob("*") if not file.is_dir())
            images = [file for file in files if _is_image(file, path)]
            others += len(files) - len(images)
            listed = [_describe_input(file, 0) for file in images]
        else:
            listed = [_describe_input(path, 0)]
        if not listed:
            raise UserError(f"{path}: has no images; expected files that end in {', '.join(sorted(IMAGE_SUFFIXES))}")
        sources += listed
    return sources, others


def _is_image(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.suffix[1:].lower() in IMAGE_SUFFIXES


def _list_collection(path: Path, *, prefix: str) -> list[ImageSource]:
    collection = Collection.open(path)

    # A separate function, because lambdas in the comprehension below would all render the last row.
    def source(row: int, key: str) -> ImageSource:
        return ImageSource(f"{prefix}{key}", lambda preprocess: read_image(collection, row, preprocess)[0])

    return [source(row, key) for row, key in enumerate(collection.keys)]


def open_adapter(
    folder: str | os.PathLike[str],
    *,
    device: str | None = None,
    backbone: str | None = None,
    gamma: float | None = None,
    calibration: str | os.PathLike[str] | None = None,
) -> Predictor:
    """Open what was tuned, ready to classify images.

    Args:
        folder: run folder of `adapt train`, adapter folder, or classifier folder (merged, calibrated).
        device: such as "cuda"; CUDA where there is one by default.
        backbone: where the backbone of an adapter is now, if it moved.
        gamma: added to the classes that had no training image, instead of a calibration's.
        calibration: run folder of `foveate calibrate`; by default `calibration` in the run folder, where it is.

    Raises:
        UserError: the folder is none of these, its classes are not saved, or the calibration is of other classes.

    Example:
        >>> len(open_adapter(adapter_run).classes) > 1
        True
    """
    path = find("adapter", os.fspath(folder)).folder
    if gamma is not None and (calibration is not None or not math.isfinite(gamma)):
        raise UserError(f"gamma: expected a finite number, without a calibration (got {gamma})")
    here = choose_device(device or "auto")
    logits: Callable[[Tensor], Tensor]
    module: nn.Module
    folded = None
    if (find_adapter_folder(path) / CONFIG).is_file():
        adapted, network, info = open_adapted(path, backbone=backbone)
        classes, answers = info.get("classes"), Answers.from_info(info)
        if not classes and answers.task != "regression":
            raise UserError(f"{path}: the adapter does not say which classes its head has; expected info.classes")
        module = adapted.to(here).eval()
        preprocess, logits = network.preprocess, lambda pixels: adapted(network.normalize(pixels))
    else:
        if backbone is not None:
            raise UserError(f"backbone: has no effect on {path}, which is no adapter but a classifier")
        answers = read_answers(path)
        classifier: Classifier = open_classifier(path, device=str(here), any_task=True)
        module = classifier
        classes, logits = (() if answers.task == "regression" else answers.classes or classifier.names), classifier
        if classifier.preprocess is None:
            raise UserError(f"{path}: this classifier takes arrays of floating-point values, not images")
        preprocess = classifier.preprocess
        if (path / FOLDED).is_file():
            folded = _read_folded(path / FOLDED, num_classes=len(classes))
    if answers.task != SINGLE_LABEL and (gamma is not None or calibration is not None):
        option = "gamma" if gamma is not None else "calibration"
        raise UserError(f"{option}: shifts one class against another; {path} is a model of task '{answers.task}'")
    in_use = _choose_gamma(path, classes or (), gamma, None if calibration is None else Path(calibration), folded)
    predictor = Predictor(
        logits, classes or (), preprocess, name=str(path), device=here, gamma=in_use, network=module, answers=answers
    )
    predictor.folder = path
    return predictor


def _read_folded(path: Path, *, num_classes: int) -> Gamma:
    note = read_json(path)
    fields = note if isinstance(note, dict) else {}
    value, absent = fields.get("gamma"), fields.get("absent")
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{path}: field 'gamma' must be a finite number (got {value})")
    positions = range(num_classes)
    if not isinstance(absent, list) or not all(isinstance(number, int) and number in positions for number in absent):
        raise UserError(f"{path}: field 'absent' must list class numbers below {num_classes} (got {absent})")
    return Gamma(float(value), tuple(absent), folded=True)


def _choose_gamma(
    path: Path, classes: Sequence[str], value: float | None, calibration: Path | None, folded: Gamma | None
) -> Gamma | None:
    # The bias already contains gamma: a second one would be added on top of it.
    if folded is not None:
        if value is not None or calibration is not None:
            raise UserError(
                f"{path}: is calibrated already (gamma {folded.value:g} in its bias); expected no other gamma"
            )
        return folded
    if value is not None:
        absent = _read_result(path, "adapt").absent if (path / "result.json").is_file() else []
        if not absent:
            raise UserError(
                f"gamma: {path} does not say which classes had no training image; give --calibration instead"
            )
        return Gamma(value, _positions(absent, classes, path))
    if calibration is None and (path / CALIBRATION / "result.json").is_file():
        calibration = path / CALIBRATION
    if calibration is None:
        return None
    result = _read_result(calibration, "calibrate")
    known = {*result.classes.seen, *result.classes.absent}
    if len(known) + result.classes.rest != len(classes):
        raise UserError(
            f"{calibration}: is a calibration of {len(known) + result.classes.rest} classes; expected {len(classes)} "
            f"as in {path}"
        )
    # Called only for its error: a calibration of other classes must not pass because the counts happen to agree.
    _positions(result.classes.seen, classes, calibration)
    return Gamma(result.gamma, _positions(result.classes.absent, classes, calibration))


def _read_result(folder: Path, kind: str) -> Any:
    path = folder / "result.json"
    content = read_json(path)
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise UserError(f"{path}: field 'kind' must be {kind!r}")
    return parse_result(AdaptResult if kind == "adapt" else CalibrateResult, content)


def _positions(names: Sequence[str], classes: Sequence[str], where: Path) -> tuple[int, ...]:
    return tuple(classes.index(choose(name, list(classes), f"class in {where}")) for name in names)


def predict_files(
    predictor: Predictor,
    paths: Sequence[Path],
    to: Path,
    *,
    top: int = 1,
    each_class: bool = False,
    page: Path | None = None,
    command: list[str] | None = None,
) -> PredictResult:
    """Classify the images of files, folders and collections, and write a CSV file; see `ImagePredictions.write_csv`.

    Args:
        page: folder for a contact sheet: thumbnails and a result.json, of which the report makes a page.
        command: command line, for the page.

    Raises:
        UserError: see `list_sources` and `Predictor.predict`; `to` is a folder, or `page` holds another run.
    """
    if to.is_dir():
        raise UserError(f"{to}: is a folder; expected the name of a CSV file")
    sources, others = list_sources(paths)
    folder = None if page is None else RunFolder.create(page, command=command)
    # One damaged file among thousands must not cost the others: it gets a row with the reason instead.
    answers = predictor.predict_sources(sources, skip_unreadable=True)
    answers.write_csv(to, top=top, each_class=each_class)
    calibrated, values = answers.calibrated_labels, answers.values
    is_value = answers.answers.task == "regression"
    spread = None if values is None or not is_value else (values.min(), values.mean(), values.max())
    changed = None if calibrated is None else sum(a != b for a, b in zip(answers.labels, calibrated, strict=True))
    result = PredictResult(
        title=f"Answers for {len(answers.images):,} images",
        command=command or "",
        model=predictor.name,
        table=str(to),
        images=len(answers.images),
        task=answers.answers.task,
        unit=answers.answers.unit,
        counts=count_names(answers.label_sets, answers.classes),
        values=spread,
        unreadable=answers.unreadable,
        ignored_files=others,
        gamma=None if answers.gamma is None else answers.gamma.value,
        changed=changed,
    )
    if folder is not None:
        sheet = write_sheet(predictor, {source.name: source for source in sources}, answers, folder.path)
        result = result.model_copy(update={"sheet": sheet, "per_group": MAX_PER_GROUP})
        folder.write_result(result.to_json())
    return result


# The contact sheet of predictions.


def write_sheet(
    predictor: Predictor, sources: Mapping[str, ImageSource], answers: ImagePredictions, folder: Path
) -> list[SheetGroup]:
    """Write thumbnails of some images of each answer, as the network sees them, and return the groups.

    The most frequent classes come first. In a group images stand from the surest to the least sure; of more than
    `MAX_PER_GROUP` some evenly between the two.
    """
    saved: dict[int, str] = {}

    def thumbnail(row: int) -> str:
        # An image with several labels is in several groups, and written once.
        if row not in saved:
            saved[row] = f"{SHEET}/{row}.webp"
            write_thumbnail(sources[answers.images[row]].render(predictor.preprocess), folder / saved[row])
        return saved[row]

    groups = []
    for title, rows, texts in _group_answers(answers)[:MAX_GROUPS]:
        shown = np.unique(np.linspace(0, len(rows) - 1, min(MAX_PER_GROUP, len(rows))).astype(int)).tolist()
        images = [
            SheetImage(image=thumbnail(rows[place]), key=answers.images[rows[place]], text=texts[place])
            for place in shown
        ]
        groups.append(SheetGroup(title=title, count=len(rows), images=images))
    return groups


def _group_answers(answers: ImagePredictions) -> list[tuple[str, list[int], list[str]]]:
    """Return title, rows in the order of the sheet, and text of each row, by group."""
    values, unit = answers.values, answers.answers.unit
    if answers.answers.task == "regression" and values is not None:
        order = np.argsort(values, kind="stable")
        parts = [part for part in np.array_split(order, min(_NUM_RANGES, len(order))) if len(part)]
        return [
            (
                f"{values[part[0]]:.4g} to {values[part[-1]]:.4g} {unit}".strip(),
                part.tolist(),
                [f"{values[row]:.4g} {unit}".strip() for row in part],
            )
            for part in parts
        ]
    members: dict[str, list[int]] = {}
    for row, names in enumerate(answers.label_sets):
        for name in names or ("none of the labels",):
            members.setdefault(name, []).append(row)
    groups = []
    for name, rows in sorted(members.items(), key=lambda item: -len(item[1])):
        number = answers.classes.index(name) if name in answers.classes else None
        if values is not None and number is not None:  # ordered classes: near the class is sure
            sure_N, texts = -np.abs(values - number), [f"{value:.2f}" for value in values]
        elif number is None:  # the highest of what was not enough
            sure_N = 1 - answers.probabilities.max(axis=1)
            texts = [f"highest {probability:.2f}" for probability in answers.probabilities.max(axis=1)]
        else:
            sure_N = answers.probabilities[:, number]
            texts = [f"{probability:.2f}" for probability in sure_N]
        ordered = sorted(rows, key=lambda row: -sure_N[row])
        groups.append((name, ordered, [texts[row] for row in ordered]))
    return groups
