"""Labeled samples of a classifier, from arrays or from a collection's label field, and a model's answers to them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from foveate.adapt.classifier import Classifier
from foveate.core.errors import UserError, nearest
from foveate.core.progress import track
from foveate.core.recipes import Settings
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.records.images import BadImage
from foveate.training.augment import RandomViews
from foveate.training.loader import BadSample
from foveate.vision.colors import RandomColors
from foveate.vision.preprocess import Preprocess, read_image


class Augmentation(Settings):
    """Random views and colors; as it is, none.

    The public code of "Fine-Tuning is Fine, if Calibrated" trains Office-Home with crop 0.7, flip 0.5, color 0.3 and
    now and then a gray image.
    """

    crop: float = Field(
        default=1.0, gt=0, le=1, description="smallest area of a random crop, as a share of the image; 1 = no crops"
    )
    flip: float = Field(default=0.0, ge=0, le=1, description="probability of mirroring left to right")
    color: float = Field(
        default=0.0, ge=0, le=0.5, description="largest change of brightness, contrast, saturation and hue"
    )
    gray: float = Field(default=0.0, ge=0, le=1, description="probability of an image without colors")

    @property
    def views(self) -> RandomViews | None:
        """Crops and mirroring, or None where there are none."""
        if self.crop == 1 and self.flip == 0:
            return None
        return RandomViews(scale=(self.crop, 1.0), flip=self.flip)

    @property
    def colors(self) -> RandomColors | None:
        """Changes of color, or None where there are none."""
        return RandomColors(self.color, self.gray) if self.color or self.gray else None


_BATCH = 64


class Samples(Protocol):
    """Rows with labels; a `foveate.training.loader.Dataset` besides."""

    labels: NDArray[np.int64]

    def pixels(self, row: int) -> Tensor:
        """A row as it is evaluated. Raises BadImage where it cannot be read."""
        ...

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        """A row as it is trained on."""
        ...

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of `sample`s."""
        ...

    def augmented(self, augmentation: Augmentation) -> Self:
        """The same samples, varied when they are trained on; `pixels` stays."""
        ...


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "pixels": torch.stack([one["pixels"] for one in samples]),
        "labels": torch.tensor([one["label"] for one in samples]),
    }


class ArraySamples:
    """Arrays [N, ...] that the network takes as they are.

    Raises:
        UserError: another number of labels, or values that are not finite.
    """

    def __init__(self, arrays: NDArray[Any], labels: NDArray[Any]) -> None:
        if len(arrays) != len(labels) or len(labels) == 0:
            raise UserError(f"samples and labels must be as many and at least one, not {len(arrays)} and {len(labels)}")
        if not np.isfinite(arrays).all():
            raise UserError("samples: some values are NaN or infinite")
        self.arrays = torch.from_numpy(np.ascontiguousarray(arrays, dtype=np.float32))
        self.labels = np.asarray(labels, dtype=np.int64)

    def pixels(self, row: int) -> Tensor:
        """See `Samples`."""
        return self.arrays[row]

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        """See `Samples`; arrays are not augmented."""
        return {"pixels": self.arrays[row], "label": int(self.labels[row])}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """See `Samples`."""
        return _collate(samples)

    def augmented(self, augmentation: Augmentation) -> Self:
        """See `Samples`.

        Raises:
            UserError: for any augmentation: what an array shows is not known here.
        """
        if augmentation != Augmentation():
            raise UserError("arrays are trained on as they are: augmentation is for images of a collection")
        return self


class CollectionSamples:
    """Images of a collection that have a label among the classes, preprocessed for a classifier.

    Args:
        views, colors: drawn anew at each epoch in training.

    Attributes:
        rows: of the collection, ascending; sample r is its image rows[r].
        unlabeled: how many images of the split have no label.
        unreadable: key -> reason.

    Raises:
        UserError: an unknown field or split, a label that is no class, no labeled image.
    """

    def __init__(
        self,
        collection: Collection,
        field: str,
        names: Sequence[str],
        preprocess: Preprocess,
        *,
        split: str | None = None,
        views: RandomViews | None = None,
        colors: RandomColors | None = None,
    ) -> None:
        self.collection, self.preprocess, self.views, self.colors = collection, preprocess, views, colors
        values = collection.label_values(field)
        chosen = collection.rows(split)
        labeled = chosen[values[chosen] != ""]
        place = {name: number for number, name in enumerate(names)}
        strange = sorted({str(value) for value in values[labeled]} - set(place))
        if strange:
            raise UserError(
                f"label field '{field}' of the collection {collection.name!r}: {len(strange)} values are no class of "
                f"the model, first '{strange[0]}'{nearest(strange[0], names)}"
            )
        if len(labeled) == 0:
            raise UserError(f"no image of the split {split!r} has a label '{field}'")
        self.rows = labeled
        self.unlabeled = len(chosen) - len(labeled)
        self.labels = np.array([place[str(value)] for value in values[labeled]], dtype=np.int64)
        self.unreadable: dict[str, str] = {}

    def pixels(self, row: int) -> Tensor:
        """See `Samples`."""
        return read_image(self.collection, int(self.rows[row]), self.preprocess)[0]

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        """See `Samples`; with a random view and random colors, where they are drawn."""
        number = int(self.rows[row])
        key = self.collection.keys[number]
        view = View()
        if self.views is not None:
            index = self.collection.index
            width, height = int(index["width"][number]), int(index["height"][number])
            view = self.views.draw(width=width, height=height, seed=seed, epoch=epoch, key=key)
        try:
            pixels = read_image(self.collection, number, self.preprocess, view)[0]
        except BadImage as problem:
            raise BadSample(key, str(problem)) from problem
        if self.colors is not None:
            pixels = self.colors.apply(pixels, seed=seed, epoch=epoch, key=key)
        return {"pixels": pixels, "label": int(self.labels[row])}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """See `Samples`."""
        return _collate(samples)

    def augmented(self, augmentation: Augmentation) -> Self:
        """See `Samples`."""
        varied = copy.copy(self)
        varied.views, varied.colors = augmentation.views, augmentation.colors
        return varied


@dataclass(frozen=True)
class Answers:
    """What a classifier gives for rows of samples: logits [N, C], features [N, D], labels [N], and what was left out.

    Attributes:
        rows: of the samples, those that could be read. unreadable: row -> reason.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]
    unreadable: dict[int, str] = field(default_factory=dict)


def answer(
    classifier: Classifier, samples: Samples, rows: NDArray[np.int64] | None = None, *, what: str = "logits"
) -> Answers:
    """Logits and features of rows in evaluation mode; images that cannot be read are left out and named.

    Raises:
        UserError: when none can be read.
    """
    wanted = np.arange(len(samples.labels)) if rows is None else np.asarray(rows)
    logits, features, kept, unreadable = [], [], list[int](), dict[int, str]()
    training = classifier.training
    classifier.eval()
    try:
        for start in track(range(0, len(wanted), _BATCH), description=what):
            pixels: list[Tensor] = []
            for row in wanted[start : start + _BATCH].tolist():
                try:
                    pixels.append(samples.pixels(row))
                    kept.append(row)
                except BadImage as problem:
                    unreadable[row] = str(problem)
            if pixels:
                with torch.inference_mode():
                    found = classifier.logits_and_features(torch.stack(pixels).to(classifier.device))
                logits.append(found[0].float().cpu().numpy())
                features.append(found[1].float().cpu().numpy())
    finally:
        classifier.train(training)
    if not kept:
        raise UserError(f"none of {len(wanted)} images can be read, for example: {next(iter(unreadable.values()), '')}")
    chosen = np.array(kept, dtype=np.int64)
    return Answers(np.concatenate(logits), np.concatenate(features), samples.labels[chosen], chosen, unreadable)
