"""A task of VTAB-1K as it is handed around: lists of 800, 200 and test images beside the images themselves.

Zhai et al. 2019, arXiv 1910.04867; the lists of 800 and 200 are those that comparisons of few-parameter methods use. A
line is a path within the folder and the number of a class.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from foveate.core.errors import UserError
from foveate.records.images import decode
from foveate.vision.preprocess import Preprocess

LISTS = {"train": "train800.txt", "validation": "val200.txt", "test": "test.txt"}
GROUPS = {
    "natural": ("cifar", "caltech101", "dtd", "oxford_flowers102", "oxford_iiit_pet", "svhn", "sun397"),
    "specialized": ("patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy"),
    "structured": (
        "clevr_count",
        "clevr_dist",
        "dmlab",
        "kitti",
        "dsprites_loc",
        "dsprites_ori",
        "smallnorb_azi",
        "smallnorb_ele",
    ),
}


def is_vtab(folder: Path) -> bool:
    """Whether a folder is a task with its three lists."""
    return all((folder / name).is_file() for name in LISTS.values())


def tasks_in(folder: Path) -> list[Path]:
    """The tasks of a folder of tasks, by name; none where it is something else."""
    if not folder.is_dir() or is_vtab(folder):
        return []
    return sorted(inner for inner in folder.iterdir() if inner.is_dir() and is_vtab(inner))


def group_of(task: str) -> str:
    """The group of a task's name, or nothing."""
    return next((group for group, tasks in GROUPS.items() if task in tasks), "")


def read_lists(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Paths, classes and splits of all images of the three lists.

    Raises:
        UserError: for a line of another form, or an image that is missing or trained and tested on.
    """
    keys: list[str] = []
    labels: list[str] = []
    splits: list[str] = []
    seen: dict[str, str] = {}
    for split, name in LISTS.items():
        text = (folder / name).read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            key, _, label = line.strip().rpartition(" ")
            if not key or not label.isdecimal():
                raise UserError(f"{folder / name}, line {number}: wanted is a path and the number of a class")
            if seen.setdefault(key, split) != split:
                raise UserError(f"{folder / name}, line {number}: {key} is in {LISTS[seen[key]]}, too")
            keys.append(key)
            labels.append(label)
            splits.append(split)
    missing = next((key for key in keys if not (folder / key).is_file()), None)
    if missing is not None:
        raise UserError(f"{folder}: the image {missing} of its lists is missing")
    return keys, labels, splits


def image_of(folder: Path, keys: list[str], preprocess: Preprocess) -> Callable[[int, bool], Tensor]:
    """What reads an image of the lists by its number: squashed to the square, bicubic, as comparisons on it do."""

    def image(row: int, flip: bool) -> Tensor:
        side = (preprocess.side, preprocess.side)
        image = decode((folder / keys[row]).read_bytes()).resize(side, Image.Resampling.BICUBIC)
        return preprocess.pixels(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)

    return image


def arrays_of(labels: list[str], splits: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Classes and splits as `foveate.adapt.data` takes them."""
    return np.array(labels, dtype=object), np.array(splits)
