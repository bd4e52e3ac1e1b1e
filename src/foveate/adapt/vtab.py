"""A task of VTAB-1K as it is distributed: lists of 800, 200 and test images, next to the images themselves.

Zhai et al. 2019, arXiv 1910.04867; the lists of 800 and 200 are those that comparisons of few-parameter methods use. A
line is a path within the folder and the number of a class.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from foveate.core.errors import UserError
from foveate.records.geometry import View
from foveate.records.images import decode, read_image_info

if TYPE_CHECKING:
    from torch import Tensor

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
    """Return the tasks in a folder of tasks, by name; empty where it is something else."""
    if not folder.is_dir() or is_vtab(folder):
        return []
    return sorted(inner for inner in folder.iterdir() if inner.is_dir() and is_vtab(inner))


def group_of(task: str) -> str:
    """Return the group of a task of this name, or ""."""
    return next((group for group, tasks in GROUPS.items() if task in tasks), "")


def read_lists(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Read paths, classes and splits of all images of the three lists.

    Raises:
        UserError: a line of another form, or an image that is missing or in two lists.
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
            # From the right: a path may hold spaces, the number of a class cannot.
            key, _, label = line.strip().rpartition(" ")
            if not key or not label.isdecimal():
                raise UserError(f"{folder / name}, line {number}: expected a path and the number of a class")
            # An image to learn from must not be among those that select or test.
            if seen.setdefault(key, split) != split:
                raise UserError(f"{folder / name}, line {number}: {key} is in {LISTS[seen[key]]} as well")
            keys.append(key)
            labels.append(label)
            splits.append(split)
    missing = next((key for key in keys if not (folder / key).is_file()), None)
    if missing is not None:
        raise UserError(f"{folder / missing}: no such file; the lists name it")
    return keys, labels, splits


def image_sizes(folder: Path, keys: list[str]) -> Callable[[int], tuple[int, int]]:
    """Return a function of row to width and height in pixels, read from the header."""

    def size(row: int) -> tuple[int, int]:
        info = read_image_info((folder / keys[row]).read_bytes())[0]
        return info.width, info.height

    return size


def image_loader(folder: Path, keys: list[str], preprocess: Preprocess) -> Callable[[int, View], Tensor]:
    """Return a loader of the lists' images by row."""

    def load(row: int, view: View) -> Tensor:
        # Squashed to the square, bicubic: comparisons on VTAB-1K do not keep the aspect ratio.
        side = (preprocess.side, preprocess.side)
        image = decode((folder / keys[row]).read_bytes())
        # Squashed as well: a random crop keeps no aspect ratio that the whole image does not keep.
        box = None if view.crop is None else view.fit(*image.size, side, stretch=True).crop_px
        image = image.resize(side, Image.Resampling.BICUBIC, box=box)
        return preprocess.pixels(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else image)

    return load
