"""Cells of AnnData files (.h5ad): principal components as points, and every column of `obs`.

Read with h5py by the documented layout (https://anndata.readthedocs.io/en/stable/fileformat-prose.html) and by the one
before version 0.7, in which `obs` and `obsm` are tables and categories lie in `uns`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError

COMPONENTS = "X_pca"
_INDEX = ("index", "_index")


def read_h5ad(path: Path) -> tuple[NDArray[np.float64], dict[str, NDArray[Any]]]:
    """Read `obsm/X_pca` [N, d] and the columns of `obs`: strings for categories and text, else numbers.

    Raises:
        UserError: h5py is not installed, the file is not an HDF5 file or damaged, or has no principal components.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path}: reading it needs h5py; pip install 'foveate[cells]'") from None
    try:
        with h5py.File(path, "r") as file:
            return _components(path, file), _columns(file)
    except UserError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable .h5ad file ({error!s:.120})") from None


def _components(path: Path, file: Any) -> NDArray[np.float64]:
    import h5py

    # Before version 0.7 `obsm` was one table with a column for each matrix.
    held = file["obsm"] if "obsm" in file else {}
    names = list(held) if isinstance(held, h5py.Group) else list(getattr(held, "dtype", np.dtype("V")).names or ())
    if COMPONENTS not in names:
        listed = ", ".join(names) or "nothing"
        raise UserError(f"{path}: obsm must hold {COMPONENTS}, which scanpy.pp.pca writes (got {listed})")
    return np.asarray(held[COMPONENTS], dtype=np.float64)


def _columns(file: Any) -> dict[str, NDArray[Any]]:
    import h5py

    obs = file["obs"]
    if isinstance(obs, h5py.Group):
        unnamed = (*_INDEX, _text(obs.attrs.get("_index", "")))
        read = {name: _column(obs[name]) for name in obs if name not in unnamed and not name.startswith("__")}
        return {name: values for name, values in read.items() if values is not None}
    # The old layout: a table of codes, with the names of categories apart in `uns`.
    table = obs[()]
    columns = {}
    for name in table.dtype.names or ():
        categories = file.get(f"uns/{name}_categories")
        if name not in _INDEX:
            columns[name] = _texts(table[name]) if categories is None else _named(categories[()], table[name])
    return columns


def _column(held: Any) -> NDArray[Any] | None:
    """Read a column of the present layout; None for kinds without one value per row (nullable or nested ones)."""
    import h5py

    if isinstance(held, h5py.Dataset):
        return _texts(held[()]) if held.ndim == 1 else None
    if "categories" in held and "codes" in held:
        return _named(held["categories"][()], held["codes"][()])
    return None


def _named(categories: NDArray[Any], codes_N: NDArray[Any]) -> NDArray[Any]:
    """Category of each code as a string; -1, a missing value, is the empty string."""
    # The empty string first, so that code -1 becomes index 0.
    names = np.array(["", *(_text(category) for category in categories)], dtype=object)
    # A damaged file would otherwise index from the end, silently.
    if codes_N.min(initial=0) < -1 or codes_N.max(initial=-1) >= len(categories):
        raise ValueError("codes point at no category")
    return names[codes_N.astype(np.int64) + 1]


def _texts(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind in "SO":
        return np.array([_text(value) for value in values], dtype=object)
    return values


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
