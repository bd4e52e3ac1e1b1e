"""Features that were computed elsewhere: vectors by image key in an npz file or a Parquet table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.arrow_tables import read_parquet
from foveate.core.errors import UserError, choose, nearest
from foveate.core.npz_files import read_npz


def read_features(path: Path, keys: Sequence[str], rows: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
    """Read vectors by key from an npz file or a Parquet table with `key` and `vector`.

    Returns:
        Features [N, F] in the order of `keys`, zeros where there are none, and those of `rows` that have none.

    Raises:
        UserError: the file is no such table, a key comes twice, vectors differ in length or are not finite, or no image
            has one.
    """
    names, vectors = _read_npz(path) if path.suffix.lower() == ".npz" else _read_parquet(path)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: key {repeated[0]!r} comes more than once; expected one vector for each image")
    if not vectors.shape[1]:
        raise UserError(f"{path}: the vectors have length 0; expected at least one number for each image")
    # One NaN would spread to all weights of the linear layer in the first step.
    wrong_M = ~np.isfinite(vectors).all(axis=1)
    if wrong_M.any():
        raise UserError(f"{path}: the vector of key {names[int(np.flatnonzero(wrong_M)[0])]!r} is not finite")
    positions = {name: position for position, name in enumerate(names)}
    # Matched by key: the file may have other images, or the same ones in another order.
    index_N = np.array([positions.get(key, -1) for key in keys], dtype=np.int64)
    missing = rows[index_N[rows] < 0]
    # Some images may lack features and are reported; if all do, the file belongs to another collection.
    if len(missing) == len(rows):
        raise UserError(
            f"{path}: no key is an image of the collection (got {names[:1]}); expected keys such as "
            f"{keys[int(rows[0])]!r}{nearest(names[0], keys) if names else ''}"
        )
    features = np.zeros((len(keys), vectors.shape[1]), dtype=np.float32)
    features[index_N >= 0] = vectors[index_N[index_N >= 0]]
    return torch.from_numpy(features), missing


def _read_npz(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    arrays = read_npz(path, ("key", "vector"))
    for name in ("key", "vector"):
        if name not in arrays:
            raise UserError(f"{path}: array '{name}' is missing; expected key [N] and vector [N, F]")
    keys, vectors = arrays["key"], arrays["vector"]
    if keys.ndim != 1:
        raise UserError(f"{path}: array 'key' is {list(keys.shape)}; expected [N]")
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or len(vectors) != len(keys):
        raise UserError(
            f"{path}: array 'vector' is {vectors.dtype} {list(vectors.shape)}; expected numbers [{len(keys)}, F]"
        )
    return keys.astype(str).tolist(), vectors.astype(np.float32)


def _read_parquet(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    table = read_parquet(path)
    for name in ("key", "vector"):
        choose(name, table.column_names, f"{path}: column")
    # Check the schema before any value: a column of text would end in a NumPy error that names no file.
    kind = table.schema.field("vector").type
    value = getattr(kind, "value_type", None)
    if value is None or not (pa.types.is_floating(value) or pa.types.is_integer(value)):
        raise UserError(f"{path}: column 'vector' is {kind}; expected lists of numbers")
    names = [str(value) for value in table["key"].to_pylist()]
    lists = table["vector"].to_pylist()
    # A null is a row without a vector; -1 distinguishes it from an empty list.
    widths = {len(value) if isinstance(value, list) else -1 for value in lists}
    if len(widths) != 1 or widths == {-1}:
        raise UserError(f"{path}: column 'vector' has lists of different lengths (got {sorted(widths)}); expected one")
    return names, np.array(lists, dtype=np.float32)
