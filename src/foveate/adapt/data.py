"""Open labeled images: a collection, a folder per class, a table of paths, an npz file, or a VTAB-1K task.

Data without splits get some by class, always the same: training, comparison and `wise` then test on the same images.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from foveate.adapt.recipe import AdaptData
from foveate.adapt.vtab import image_loader, image_sizes, is_vtab, read_lists
from foveate.core import seeds
from foveate.core.errors import UserError, nearest
from foveate.core.labels import as_class_labels
from foveate.core.npz_files import read_npz
from foveate.core.progress import say
from foveate.core.tables import find_column, need_column, read_rows
from foveate.records import layout
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.records.images import BadImage
from foveate.records.importers.files import list_names
from foveate.records.importers.sample import IMAGE_SUFFIXES
from foveate.records.importers.table import PATHS
from foveate.training.classification import LabeledImages
from foveate.training.labeled_images import label_collection, number_labels
from foveate.vision.preprocess import Preprocess, place_image, read_image, render_file, render_image

# Files with a row per image, as `foveate.core.tables` reads them.
TABLES = (".csv", ".tsv", ".parquet", ".jsonl")
LABELS = ("label", "class", "class_name", "category", "species")
# Usual names of folders and of values of a column, to those of the recipe's defaults.
SPLITS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
HELD_OUT = 0.1  # of the images of a class for validation, and as many for the test; as `foveate collect` has it


def load_images(
    path: str | Path, data: AdaptData, preprocess: Preprocess, *, draw_splits: bool = True
) -> LabeledImages:
    """Open a collection folder, a folder per class, a table of paths, an npz file, or a VTAB-1K task with its lists.

    Args:
        draw_splits: give images splits by class where no image has one; see `draw_class_splits`.

    Raises:
        UserError: it is none of these, or a field is missing.
    """
    path = Path(path)
    if path.suffix == ".npz":
        images = _open_npz(path, data, preprocess)
    elif path.suffix.lower() in TABLES:
        images = _open_table(path, data, preprocess)
    elif is_vtab(path):
        images = _open_vtab(path, data, preprocess)
    elif path.is_dir() and not (path / layout.DESCRIPTION).is_file():
        images = _open_folder(path, data, preprocess)
    else:
        images = open_collection(Collection.open(path), data, preprocess)
    if not draw_splits or (images.splits != "").any():
        return images
    images = dataclasses.replace(images, splits=draw_class_splits(images))
    counts = ", ".join(f"{count} {split}" for split, count in sorted(Counter(images.splits.tolist()).items()) if split)
    say(f"{images.name} has no splits; drawn by class: {counts} images")
    return images


def draw_class_splits(images: LabeledImages) -> NDArray[Any]:
    """Draw a split for each image with a class: from 3 images of a class on one is tested, from 4 on one validates.

    Equal images share a split. The draw depends only on an image's bytes and on how many images its class has.

    Returns:
        Names [N] of `train`, `validation`, `test`; "" without a class.
    """
    digests: list[str] = [""] * len(images.keys)
    split_of: dict[str, str] = {}
    for number in range(len(images.classes)):
        rows = np.flatnonzero(images.labels_N == number).tolist()
        for row in rows:
            assert images.content is not None, "all images of this module have content"
            digests[row] = hashlib.blake2b(images.content(row), digest_size=16).hexdigest()
        # Images of an earlier class with the same bytes have their split already.
        free = sorted({digests[row] for row in rows} - set(split_of), key=lambda digest: seeds.uniform("split", digest))
        tested = max(1, round(HELD_OUT * len(free))) if len(free) > 2 else 0
        validating = max(1, round(HELD_OUT * len(free))) if len(free) > 3 else 0
        for position, digest in enumerate(free):
            is_validation = position < tested + validating
            split_of[digest] = "test" if position < tested else "validation" if is_validation else "train"
    return np.array([split_of.get(digest, "") for digest in digests])


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
    """Open arrays images [N, H, W, 3] or [N, H, W] uint8, labels [N] (integers or names), maybe split [N]."""
    arrays = read_npz(path)
    for name in ("images", "labels"):
        if name not in arrays:
            raise UserError(f"{path}: array '{name}' is missing; expected images, labels and, if drawn, split")
    labels = as_class_labels(arrays["labels"], what=f"{path}: array 'labels'").astype(str)
    pixels = arrays["images"]
    splits = arrays["split"].astype(str) if "split" in arrays else np.full(len(pixels), "")
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
    return _open_files(folder.name, folder, keys, labels, splits, data, image_loader(folder, keys, preprocess))


def _open_folder(folder: Path, data: AdaptData, preprocess: Preprocess) -> LabeledImages:
    """Open a folder per class, as torchvision's ImageFolder; below folders train, val and test where there are such.

    Raises:
        UserError: no image lies in a folder of a class.
    """
    _refuse_field(folder, data, "the names of its folders")
    # Nothing is written here, so that no target inside the folder is to be left out.
    files, links, _ = list_names(folder, folder / "?")
    names = [name for name in files if Path(name).suffix[1:].lower() in IMAGE_SUFFIXES]
    if links:
        say(f"{folder}: {len(links)} links to folders are not followed, such as {links[0]!r}")
    parts = [name.split("/") for name in names]
    # ImageFolder takes one split at a time; here all of them are below one folder.
    has_splits = {part[0].casefold() for part in parts if len(part) > 1} <= set(SPLITS)
    depth = 2 if has_splits else 1
    used = [(name, part) for name, part in zip(names, parts, strict=True) if len(part) > depth]
    if not used:
        raise UserError(
            f"{folder} is no collection and has no folder per class; expected images such as {folder}/oak/1.jpg, a "
            "collection (foveate collect), a CSV table with the columns image and label, or an npz file"
        )
    if len(used) < len(names):
        say(f"{folder}: {len(names) - len(used)} images lie in no folder of a class and are left out")
    keys, labels = [name for name, _ in used], [part[depth - 1] for _, part in used]
    splits = [SPLITS[part[0].casefold()] if has_splits else "" for _, part in used]
    load = _file_loader(folder, keys, preprocess)
    return _open_files(folder.resolve().name, folder, keys, labels, splits, data, load)


def _open_table(path: Path, data: AdaptData, preprocess: Preprocess) -> LabeledImages:
    """Open a table with a row per image: its path, from the folder of the table on, its label, maybe its split.

    Raises:
        UserError: a column or a file is missing, or an image has two labels or splits.
    """
    table = read_rows(path)
    image = need_column(table.names, PATHS, requested=None, option="a column of that name", where=path)
    label = need_column(table.names, LABELS, requested=data.field, option="--field", where=path)
    split = find_column(table.names, ("split",), requested=None, option="", where=path)
    rows: dict[str, tuple[str, str]] = {}
    for (line, _), cells in zip(table.rows, table.to_dicts(), strict=True):
        key = cells[image].strip()
        if not key or not (path.parent / key).is_file():
            raise UserError(f"{path}, line {line}: no such file {key!r} (column {image!r}), from {path.parent} on")
        name = "" if split is None else cells[split].strip()
        row = cells[label].strip(), SPLITS.get(name.casefold(), name)
        if rows.setdefault(key, row) != row:
            raise UserError(f"{path}, line {line}: {key} has another label or split before; expected one of each")
    keys, load = list(rows), _file_loader(path.parent, list(rows), preprocess)
    labels, splits = [value for value, _ in rows.values()], [value for _, value in rows.values()]
    return _open_files(path.name, path.parent, keys, labels, splits, data, load)


def _file_loader(folder: Path, keys: Sequence[str], preprocess: Preprocess) -> Callable[[int, View], Tensor]:
    def load(row: int, view: View) -> Tensor:
        try:
            content = (folder / keys[row]).read_bytes()
        except OSError as error:
            raise BadImage("unreadable", str(error)) from error
        return render_file(content, preprocess, view)[0]

    return load


def _open_files(
    name: str,
    folder: Path,
    keys: list[str],
    labels: Sequence[str],
    splits: Sequence[str],
    data: AdaptData,
    load: Callable[[int, View], Tensor],
) -> LabeledImages:
    """Return the images of files; `keys` are their paths from `folder` on."""
    values = np.array(labels, dtype=object)
    classes = _select_classes(values, data.classes, name)
    return LabeledImages(
        name,
        tuple(classes),
        keys,
        number_labels(values, classes),
        np.array(splits),
        load,
        image_sizes(folder, keys),
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
