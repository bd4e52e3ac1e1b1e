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

from foveate.adapt.labels import Labels, read_label_array, read_text_labels, split_groups
from foveate.adapt.recipe import AdaptData
from foveate.adapt.tasks import SINGLE_LABEL
from foveate.adapt.vtab import image_loader, image_sizes, is_vtab, read_lists
from foveate.core import seeds
from foveate.core.errors import UserError
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
from foveate.training.labeled_images import label_collection
from foveate.vision.preprocess import Preprocess, place_image, read_image, render_file, render_image

# Files with a row per image, as `foveate.core.tables` reads them.
TABLES = (".csv", ".tsv", ".parquet", ".jsonl")
LABELS = ("label", "labels", "class", "classes", "class_name", "category", "species", "target", "value")
# Usual names of folders and of values of a column, to those of the recipe's defaults.
SPLITS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
HELD_OUT = 0.1  # of the images of a class for validation, and as many for the test; as `foveate collect` has it


def load_images(
    path: str | Path,
    data: AdaptData,
    preprocess: Preprocess,
    *,
    draw_splits: bool = True,
    single_label_for: str = "",
) -> LabeledImages:
    """Open a collection folder, a folder per class, a table of paths, an npz file, or a VTAB-1K task with its lists.

    Args:
        draw_splits: give images splits by class where no image has one; see `draw_class_splits`.
        single_label_for: a verb that takes images of one class alone; else the kind of labels is printed.

    Raises:
        UserError: it is none of these, or a field is missing; labels of another kind than a verb takes.
    """
    path = Path(path)
    if path.suffix == ".npz":
        images, labels = _open_npz(path, data, preprocess)
    elif path.suffix.lower() in TABLES:
        images, labels = _open_table(path, data, preprocess)
    elif is_vtab(path):
        images, labels = _open_vtab(path, data, preprocess)
    elif path.is_dir() and not (path / layout.DESCRIPTION).is_file():
        images, labels = _open_folder(path, data, preprocess)
    else:
        images, labels = open_collection(Collection.open(path), data, preprocess)
    if single_label_for and labels.task != SINGLE_LABEL:
        raise UserError(
            f"{images.name}: labels are {labels.describe()}; {single_label_for} takes images of one class alone"
        )
    if not single_label_for:
        say(
            f"task: {labels.describe()}; --task says otherwise" if data.task == "auto" else f"task: {labels.describe()}"
        )
    images = dataclasses.replace(
        images, task=labels.task, targets_NT=labels.targets_NT, unit=data.unit if labels.task == "regression" else ""
    )
    if data.unit and labels.task != "regression":
        raise UserError(f"data.unit '{data.unit}' has no effect on {images.name}, whose task is {labels.task}")
    if not draw_splits or (images.splits != "").any():
        return images
    images = dataclasses.replace(images, splits=draw_class_splits(images, split_groups(labels)))
    counts = ", ".join(f"{count} {split}" for split, count in sorted(Counter(images.splits.tolist()).items()) if split)
    by = {"multi-label": "rarest label", "regression": "value"}.get(labels.task, "class")
    say(f"{images.name} has no splits; drawn by {by}: {counts} images")
    return images


def draw_class_splits(images: LabeledImages, groups_N: NDArray[np.int64] | None = None) -> NDArray[Any]:
    """Draw a split for each image with a class: from 3 images of a class on one is tested, from 4 on one validates.

    Equal images share a split. The draw depends only on an image's bytes and on how many images its class has.

    Args:
        groups_N: what counts as classes, -1 for none; see `foveate.adapt.labels.split_groups`.

    Returns:
        Names [N] of `train`, `validation`, `test`; "" without a class.
    """
    groups_N = images.labels_N if groups_N is None else groups_N
    digests: list[str] = [""] * len(images.keys)
    split_of: dict[str, str] = {}
    for number in np.unique(groups_N[groups_N >= 0]).tolist():
        rows = np.flatnonzero(groups_N == number).tolist()
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


Opened = tuple[LabeledImages, Labels]
"""Images with their splits, whose task and targets `load_images` fills in, and what was read of their labels."""


def open_collection(collection: Collection, data: AdaptData, preprocess: Preprocess) -> Opened:
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
    labels = read_text_labels(values, data, collection.name)

    def load(row: int, view: View) -> Tensor:
        return read_image(collection, row, preprocess, view)[0]

    images = label_collection(collection, values, labels.classes, load)
    return dataclasses.replace(images, labels_N=labels.labels_N), labels


def _open_npz(path: Path, data: AdaptData, preprocess: Preprocess) -> Opened:
    """Open arrays images [N, H, W, 3] or [N, H, W] uint8, labels [N] or [N, K], maybe split [N] and classes [K]."""
    arrays = read_npz(path)
    for name in ("images", "labels"):
        if name not in arrays:
            raise UserError(f"{path}: array '{name}' is missing; expected images, labels and, if drawn, split")
    names = arrays["classes"].astype(str).tolist() if "classes" in arrays else None
    pixels = arrays["images"]
    splits = arrays["split"].astype(str) if "split" in arrays else np.full(len(pixels), "")
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] != 3):
        raise UserError(f"{path}: array 'images' is {pixels.dtype} {list(pixels.shape)}; expected uint8 [N, H, W, 3]")
    counts = [len(np.atleast_1d(array)) for array in (pixels, arrays["labels"], splits)]
    if len(set(counts)) > 1:
        raise UserError(f"{path}: {counts[0]} images, {counts[1]} labels and {counts[2]} splits")
    labels = read_label_array(arrays["labels"], data, path.name, what=f"{path}: array 'labels'", names=names)
    _refuse_field(path, data, "an array")

    def load(row: int, view: View) -> Tensor:
        image = Image.fromarray(pixels[row]).convert("RGB")
        return render_image(preprocess, image, place_image(preprocess, image.size, view))

    keys = [str(row) for row in range(len(pixels))]
    height, width = pixels.shape[1:3]
    images = LabeledImages(
        path.name,
        labels.classes,
        keys,
        labels.labels_N,
        splits,
        load,
        size=lambda row: (width, height),
        content=lambda row: pixels[row].tobytes(),
    )
    return images, labels


def _open_vtab(folder: Path, data: AdaptData, preprocess: Preprocess) -> Opened:
    """Open a task of VTAB-1K: splits train (800), validation (200) and test."""
    _refuse_field(folder, data, "in its lists")
    keys, texts, splits = read_lists(folder)
    labels = read_text_labels(np.array(texts, dtype=object), data, folder.name, infer=False)
    return _open_files(folder.name, folder, keys, labels, splits, image_loader(folder, keys, preprocess))


def _open_folder(folder: Path, data: AdaptData, preprocess: Preprocess) -> Opened:
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
    keys, texts = [name for name, _ in used], [part[depth - 1] for _, part in used]
    splits = [SPLITS[part[0].casefold()] if has_splits else "" for _, part in used]
    load, name = _file_loader(folder, keys, preprocess), folder.resolve().name
    labels = read_text_labels(np.array(texts, dtype=object), data, name, infer=False)
    return _open_files(name, folder, keys, labels, splits, load)


def _open_table(path: Path, data: AdaptData, preprocess: Preprocess) -> Opened:
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
    texts, splits = [value for value, _ in rows.values()], [value for _, value in rows.values()]
    labels = read_text_labels(np.array(texts, dtype=object), data, path.name)
    return _open_files(path.name, path.parent, keys, labels, splits, load)


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
    labels: Labels,
    splits: Sequence[str],
    load: Callable[[int, View], Tensor],
) -> Opened:
    """Return the images of files; `keys` are their paths from `folder` on."""
    images = LabeledImages(
        name,
        labels.classes,
        keys,
        labels.labels_N,
        np.array(splits),
        load,
        image_sizes(folder, keys),
        content=lambda row: (folder / keys[row]).read_bytes(),
    )
    return images, labels


def _refuse_field(path: Path, data: AdaptData, where: str) -> None:
    # An option without effect is refused: the user would believe that the labels of that field were learned.
    if data.field is not None:
        raise UserError(f"data.field '{data.field}' has no effect on {path}, whose labels are {where}")
