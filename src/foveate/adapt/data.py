"""Open labeled images: a label field of a collection, an npz file of images and labels, or a VTAB-1K task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from foveate.adapt.recipe import AdaptData
from foveate.adapt.vtab import image_loader, image_sizes, is_vtab, read_lists
from foveate.core.errors import UserError, nearest
from foveate.core.labels import as_class_labels
from foveate.core.npz_files import read_npz
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.training.classification import LabeledImages
from foveate.training.labeled_images import label_collection, number_labels
from foveate.vision.preprocess import Preprocess, place_image, read_image, render_image


def load_images(path: str | Path, data: AdaptData, preprocess: Preprocess) -> LabeledImages:
    """Open the images of a collection folder, of an npz file, or of a VTAB-1K task with its lists.

    Raises:
        UserError: it is none of these, or a field is missing.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return _open_npz(path, data, preprocess)
    if is_vtab(path):
        return _open_vtab(path, data, preprocess)
    return open_collection(Collection.open(path), data, preprocess)


def open_collection(collection: Collection, data: AdaptData, preprocess: Preprocess) -> LabeledImages:
    """Open the images of a collection with their values of `data.field`.

    Raises:
        UserError: the field is missing, or a class of `data.classes` has no image.
    """
    if data.field is None:
        fields = sorted(set(collection.table("labels")["field"].to_pylist()))
        raise UserError(
            f"data.field is missing; expected one of the label fields of {collection.name}: "
            f"{', '.join(fields) or 'there are none'}"
        )
    values = collection.label_values(data.field)
    classes = _select_classes(values, data.classes, collection.name)

    def load(row: int, view: View) -> Tensor:
        return read_image(collection, row, preprocess, view)[0]

    return label_collection(collection, values, classes, load)


def _open_npz(path: Path, data: AdaptData, preprocess: Preprocess) -> LabeledImages:
    """Open arrays images [N, H, W, 3] or [N, H, W] uint8, labels [N] (integers or names), split [N] (names)."""
    arrays = read_npz(path)
    for name in ("images", "labels", "split"):
        if name not in arrays:
            raise UserError(f"{path}: array '{name}' is missing; expected images, labels and split")
    labels = as_class_labels(arrays["labels"], what=f"{path}: array 'labels'").astype(str)
    pixels, splits = arrays["images"], arrays["split"].astype(str)
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] != 3):
        raise UserError(f"{path}: array 'images' is {pixels.dtype} {list(pixels.shape)}; expected uint8 [N, H, W, 3]")
    if not len(pixels) == len(labels) == len(splits):
        raise UserError(f"{path}: {len(pixels)} images, {len(labels)} labels and {len(splits)} splits")
    _refuse_field(path, data, "an array")

    def load(row: int, view: View) -> Tensor:
        image = Image.fromarray(pixels[row]).convert("RGB")
        return render_image(preprocess, image, place_image(preprocess, image.size, view))

    classes = _select_classes(labels, data.classes, path.name)
    keys = [str(row) for row in range(len(pixels))]
    height, width = pixels.shape[1:3]
    labels_N = number_labels(labels, classes)
    return LabeledImages(
        path.name,
        tuple(classes),
        keys,
        labels_N,
        splits,
        load,
        size=lambda row: (width, height),
        content=lambda row: pixels[row].tobytes(),
    )


def _open_vtab(folder: Path, data: AdaptData, preprocess: Preprocess) -> LabeledImages:
    """Open a task of VTAB-1K: splits train (800), validation (200) and test."""
    _refuse_field(folder, data, "in its lists")
    keys, labels, splits = read_lists(folder)
    values = np.array(labels, dtype=object)
    classes = _select_classes(values, data.classes, folder.name)
    load: Callable[[int, View], Tensor] = image_loader(folder, keys, preprocess)
    labels_N, sizes = number_labels(values, classes), image_sizes(folder, keys)
    return LabeledImages(
        folder.name,
        tuple(classes),
        keys,
        labels_N,
        np.array(splits),
        load,
        sizes,
        content=lambda row: (folder / keys[row]).read_bytes(),
    )


def _refuse_field(path: Path, data: AdaptData, where: str) -> None:
    # An option without effect is refused: the user would believe that the labels of that field were learned.
    if data.field is not None:
        raise UserError(f"data.field '{data.field}' has no effect on {path}, whose labels are {where}")


def _select_classes(values: NDArray[Any], requested: Sequence[str] | None, name: str) -> list[str]:
    """Return the classes to tell apart: all values of the labels, or those requested.

    Raises:
        UserError: a requested class has no image or is named twice, or there are fewer than two classes.
    """
    known = sorted({str(value) for value in values.tolist()} - {""}, key=_sort_key)
    classes = known if requested is None else list(requested)
    for label in classes:
        if label not in known:
            raise UserError(f"class '{label}' has no image in {name}{nearest(label, known)}")
    if len(set(classes)) < len(classes):
        raise UserError("data.classes names a class twice")
    if len(classes) < 2:
        raise UserError(f"{name}: expected at least two classes (got {len(classes)})")
    return classes


def _sort_key(name: str) -> tuple[int, str]:
    # Numbers by value, so that class "10" follows "9"; names before them, by letters.
    return (int(name), name) if name.isdecimal() else (-1, name)
