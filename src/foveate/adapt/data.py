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
from foveate.training.augment import RandomViews
from foveate.training.classification import LabeledImages, LoadSample
from foveate.training.epochs import Augmentation
from foveate.training.transforms import RandomTransforms
from foveate.vision.colors import RandomColors
from foveate.vision.preprocess import Preprocess, place_image, read_image, render_image


def augment_images(images: LabeledImages, augmentation: Augmentation) -> LoadSample | None:
    """Return a loader of varied images, drawn by seed, epoch and key; None where nothing varies.

    Raises:
        UserError: the samples are arrays of values, of which nobody knows what they show.
    """
    if augmentation == Augmentation():
        return None
    if images.size is None:
        raise UserError(f"{images.name}: augmentation is for images; arrays of values are taken as they are")
    size, crop, flip = images.size, augmentation.crop, augmentation.flip
    views = RandomViews(scale=(crop, 1.0), flip=flip) if crop < 1 or flip else None
    colors = RandomColors(augmentation.color, augmentation.gray) if augmentation.color or augmentation.gray else None
    transforms = None
    if augmentation.randaugment or augmentation.erasing:
        transforms = RandomTransforms(augmentation.randaugment, augmentation.erasing)

    # Depends on seed, epoch and key only, so a resumed run sees the same images with any number of threads.
    def load(row: int, epoch: int, seed: int) -> Tensor:
        key, view = images.keys[row], View()
        if views is not None:
            width, height = size(row)
            view = views.draw(width=width, height=height, seed=seed, epoch=epoch, key=key)
        pixels = images.load(row, view)
        if colors is not None:
            pixels = colors.apply(pixels, seed=seed, epoch=epoch, key=key)
        return pixels if transforms is None else transforms.apply(pixels, seed=seed, epoch=epoch, key=key)

    return load


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
    return _label_collection(collection, values, classes, preprocess)


def open_classifier_images(
    collection: Collection, field: str, classes: Sequence[str], preprocess: Preprocess, *, splits: Sequence[str]
) -> LabeledImages:
    """Open the images of a collection for a classifier that exists already.

    Args:
        classes: of the classifier, in the order of its logits; some may have no image.
        splits: in which every label has to be one of the classes.

    Raises:
        UserError: unknown field or split, a label that is not a class, a split without a labeled image.
    """
    values = collection.label_values(field)
    for split in splits:
        rows = collection.rows(split)
        # The empty string is "no label", which is no class of any model.
        unknown = sorted(set(values[rows].tolist()) - {"", *classes})
        if unknown:
            raise UserError(
                f"label field '{field}' of the collection {collection.name!r}: {len(unknown)} values are not classes "
                f"of the model, first '{unknown[0]}'{nearest(unknown[0], classes)}"
            )
        if not (values[rows] != "").any():
            raise UserError(f"no image of the split '{split}' has a label '{field}'")
    return _label_collection(collection, values, classes, preprocess)


def _label_collection(
    collection: Collection, values: NDArray[Any], classes: Sequence[str], preprocess: Preprocess
) -> LabeledImages:
    def load(row: int, view: View) -> Tensor:
        return read_image(collection, row, preprocess, view)[0]

    def size(row: int) -> tuple[int, int]:
        return int(collection.index["width"][row]), int(collection.index["height"][row])

    labels, hashes = _number_labels(values, classes), collection.index["sha256"]
    return LabeledImages(
        collection.name,
        tuple(classes),
        collection.keys,
        labels,
        np.asarray(collection.splits),
        load,
        size,
        # The stored hash, so that no image is read just to identify it.
        content=lambda row: str(hashes[row]).encode(),
    )


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
    labels_N = _number_labels(labels, classes)
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
    labels_N, sizes = _number_labels(values, classes), image_sizes(folder, keys)
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


def _number_labels(values: NDArray[Any], classes: Sequence[str]) -> NDArray[np.int64]:
    indices = {label: index for index, label in enumerate(classes)}
    # -1 for images of other classes and without a label: they take part in nothing.
    return np.array([indices.get(str(value), -1) for value in values.tolist()], dtype=np.int64)
