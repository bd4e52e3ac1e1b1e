"""Labeled images: a label field of a collection, or an npz file of images and labels."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from foveate.adapt.recipe import AdaptData
from foveate.adapt.vtab import arrays_of, image_of, is_vtab, read_lists
from foveate.core import seeds
from foveate.core.errors import UserError, choose, nearest
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.records.images import BadImage
from foveate.training.loader import BadSample
from foveate.vision.preprocess import Preprocess, place_image, read_image, render_image


@dataclass(frozen=True)
class Labeled:
    """Images with one class each.

    Attributes:
        name: of the data. classes: names by number. keys, labels_N, splits: by image; label -1 has none of the
            classes.
        image: number of an image to its uint8 pixels [3, S, S]; raises BadImage.
    """

    name: str
    classes: tuple[str, ...]
    keys: Sequence[str]
    labels_N: NDArray[np.int64]
    splits: NDArray[Any]
    image: Callable[[int, bool], Tensor]

    def rows(self, *splits: str) -> NDArray[np.int64]:
        """Images of these splits that have a class.

        Raises:
            UserError: when a split does not exist, or none of its images has a class.
        """
        known = sorted(set(self.splits.tolist()) - {""})
        for split in splits:
            choose(split, known, f"split of {self.name}")
        found = np.flatnonzero(np.isin(self.splits, splits) & (self.labels_N >= 0))
        if not len(found):
            raise UserError(f"{self.name}: no image of the split {' or '.join(splits)} has a class")
        return found

    def has(self, split: str) -> bool:
        """Whether a split has images with a class."""
        return bool(((self.splits == split) & (self.labels_N >= 0)).any())

    def trained_on(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """The data and the splits of rows that are trained on, as an adapter keeps them."""
        return {"data": self.name, "splits": sorted(set(self.splits[rows].tolist()) - {""})}

    def absent(self, rows: NDArray[np.int64]) -> list[str]:
        """Classes that none of these images has."""
        present = set(self.labels_N[rows].tolist())
        return [name for number, name in enumerate(self.classes) if number not in present]

    def few(
        self, rows: NDArray[np.int64], shots: int | None, *, seed: int, some_absent: bool = False
    ) -> NDArray[np.int64]:
        """At most `shots` images of each class, drawn by the seed, in rising order.

        Args:
            some_absent: classes may have none: the head that training starts from knows them.

        Raises:
            UserError: when a class has none.
        """
        missing = self.absent(rows)
        if missing and not some_absent:
            raise UserError(f"{self.name}: class '{missing[0]}' has no training image ({len(missing)} such classes)")
        if shots is None:
            return rows
        chosen = []
        for number in range(len(self.classes)):
            mine = rows[self.labels_N[rows] == number]
            chosen.append(seeds.generator("shots", seed, number).permutation(mine)[:shots])
        return np.sort(np.concatenate(chosen))


def labeled(path: str | Path, data: AdaptData, preprocess: Preprocess) -> Labeled:
    """The images of a collection folder, of an npz file, or of a VTAB-1K task with its lists.

    Raises:
        UserError: when it is neither, or a field is missing.
    """
    place = Path(path)
    if place.suffix == ".npz":
        return _of_arrays(place, data, preprocess)
    if is_vtab(place):
        return _of_lists(place, data, preprocess)
    return of_collection(Collection.open(place), data, preprocess)


def of_collection(collection: Collection, data: AdaptData, preprocess: Preprocess) -> Labeled:
    """The images of a collection with their values of `data.field`."""
    if data.field is None:
        fields = sorted(set(collection.table("labels")["field"].to_pylist()))
        raise UserError(f"field is missing: label fields of {collection.name} are {', '.join(fields) or 'none'}")
    values = collection.label_values(data.field)

    def image(row: int, flip: bool) -> Tensor:
        return read_image(collection, row, preprocess, View(flip=flip))[0]

    return _labeled(collection.name, collection.keys, values, collection.splits, data, image)


def _of_arrays(path: Path, data: AdaptData, preprocess: Preprocess) -> Labeled:
    """images [N, H, W, 3] or [N, H, W] uint8, labels [N] (numbers or names), split [N] (names)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path}: not an npz file of plain arrays") from error
    for name in ("images", "labels", "split"):
        if name not in arrays:
            raise UserError(f"{path}: array '{name}' is missing: images, labels and split are wanted")
    images, labels, splits = arrays["images"], arrays["labels"].astype(str), arrays["split"].astype(str)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise UserError(f"{path}: images are {images.dtype} {list(images.shape)}, wanted are uint8 [N, H, W, 3]")
    if not len(images) == len(labels) == len(splits):
        raise UserError(f"{path}: {len(images)} images, {len(labels)} labels and {len(splits)} splits")
    if data.field is not None:
        raise UserError(f"field '{data.field}' has no meaning for {path}, whose labels are an array")

    def image(row: int, flip: bool) -> Tensor:
        image = Image.fromarray(images[row]).convert("RGB")
        return render_image(preprocess, image, place_image(preprocess, image.size, View(flip=flip)))

    keys = [str(number) for number in range(len(images))]
    return _labeled(path.name, keys, labels.astype(object), splits, data, image)


def _of_lists(folder: Path, data: AdaptData, preprocess: Preprocess) -> Labeled:
    """A task of VTAB-1K: splits train (800), validation (200) and test."""
    if data.field is not None:
        raise UserError(f"field '{data.field}' has no meaning for {folder}, whose labels are in its lists")
    keys, labels, splits = read_lists(folder)
    image = image_of(folder, keys, preprocess)
    return _labeled(folder.name, keys, *arrays_of(labels, splits), data, image)


def _labeled(
    name: str,
    keys: Sequence[str],
    values: NDArray[Any],
    splits: NDArray[Any],
    data: AdaptData,
    image: Callable[[int, bool], Tensor],
) -> Labeled:
    known = sorted({str(value) for value in values.tolist()} - {""}, key=_by_number)
    chosen = known if data.classes is None else data.classes
    for one in chosen:
        if one not in known:
            raise UserError(f"class '{one}': no image of {name} has it{nearest(one, known)}")
    if len(set(chosen)) < len(chosen):
        raise UserError("classes: a class is named twice")
    if len(chosen) < 2:
        raise UserError(f"{name}: {len(chosen)} classes, wanted are at least two")
    numbers = {one: number for number, one in enumerate(chosen)}
    labels = np.array([numbers.get(str(value), -1) for value in values.tolist()], dtype=np.int64)
    return Labeled(name, tuple(chosen), keys, labels, np.asarray(splits), image)


def _by_number(name: str) -> tuple[int, str]:
    return (int(name), name) if name.isdecimal() else (-1, name)


class ImageDataset:
    """Training samples as pixels; `flip` mirrors every other epoch by the seed."""

    def __init__(self, data: Labeled, *, flip: bool) -> None:
        self.data, self.flip = data, flip

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        """Pixels and class of an image."""
        mirrored = self.flip and seeds.uniform("flip", seed, row, epoch) < 0.5
        try:
            pixels = self.data.image(row, mirrored)
        except BadImage as problem:
            raise BadSample(self.data.keys[row], str(problem)) from problem
        return {"given": pixels, "label": int(self.data.labels_N[row]), "key": self.data.keys[row]}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch."""
        return collate(samples)


class KeptDataset:
    """Training samples as what a `Prefix` kept of them."""

    def __init__(self, kept: dict[int, Tensor], data: Labeled, bad: dict[int, str]) -> None:
        self.kept, self.data, self.bad = kept, data, bad

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        """What was kept, and the class, of an image."""
        if row in self.bad:
            raise BadSample(self.data.keys[row], self.bad[row])
        return {"given": self.kept[row], "label": int(self.data.labels_N[row]), "key": self.data.keys[row]}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch."""
        return collate(samples)


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stacks samples."""
    return {
        "given": torch.stack([sample["given"] for sample in samples]),
        "label": torch.tensor([sample["label"] for sample in samples]),
        "keys": [sample["key"] for sample in samples],
    }
