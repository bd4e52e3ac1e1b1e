"""Cells of AnnData files (.h5ad): principal components as points, and every column of `obs`.

Read with h5py by the documented layout (https://anndata.readthedocs.io/en/stable/fileformat-prose.html) and by the one
before version 0.7, in which `obs` and `obsm` are tables and categories lie in `uns`.

HDF5 can send a reader to other files of the machine (links, virtual and external data): nothing of that is followed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.federated.points import ReadOptions, as_matrix

COMPONENTS = "X_pca"
_INDEX = ("index", "_index")
_BLOCK = 256
_MAX_COLUMNS = 10_000
_DAMAGE = (OSError, LookupError, ValueError, TypeError, RuntimeError, ArithmeticError, AttributeError)


def read_h5ad(path: Path, options: ReadOptions | None = None) -> tuple[NDArray[np.float64], dict[str, NDArray[Any]]]:
    """Read `obsm/X_pca` [N, d] and the columns of `obs`: strings for categories and text, else numbers.

    Raises:
        UserError: h5py is not installed, the file is not an HDF5 file or damaged, has no principal components, points
            at other files, or is larger than allowed.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path}: reading it needs h5py; pip install 'foveate[cells]'") from None
    try:
        with h5py.File(path, "r") as file:
            reader = _Reader(path, options or ReadOptions())
            points = reader.components(file)
            return points, reader.columns(file, len(points))
    except UserError:
        raise
    except _DAMAGE as error:
        raise UserError(f"{path}: not a readable .h5ad file ({type(error).__name__}: {error!s:.120})") from None


class _Reader:
    """Reads parts of one file and counts their bytes."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self._path, self._options, self._held = path, options, 0

    def components(self, file: Any) -> NDArray[np.float64]:
        import h5py

        # Before version 0.7 `obsm` was one table with a column for each matrix.
        obsm = self._member(file, "obsm")
        if isinstance(obsm, h5py.Group):
            names = list(obsm)
        else:
            names = list(getattr(getattr(obsm, "dtype", None), "names", None) or ())
        if COMPONENTS not in names:
            listed = ", ".join(names[:20]) or "nothing"
            raise UserError(f"{self._path}: obsm must hold {COMPONENTS}, which scanpy.pp.pca writes (got {listed})")
        if isinstance(obsm, h5py.Group):
            values = self._values(self._member(obsm, COMPONENTS), f"obsm/{COMPONENTS}")
        else:
            values = self._values(obsm, "obsm")[COMPONENTS]
        return as_matrix(np.asarray(values), f"{self._path}: obsm/{COMPONENTS}")

    def columns(self, file: Any, rows: int) -> dict[str, NDArray[Any]]:
        import h5py

        obs = self._member(file, "obs")
        columns: dict[str, NDArray[Any] | None] = {}
        if isinstance(obs, h5py.Group):
            if len(obs) > _MAX_COLUMNS:
                raise UserError(f"{self._path}: obs has {len(obs):,} columns; expected at most {_MAX_COLUMNS:,}")
            unnamed = (*_INDEX, _text(obs.attrs.get("_index", "")))
            for name in obs:
                if name not in unnamed and not name.startswith("__"):
                    columns[name] = self._column(self._member(obs, name), f"obs/{name}")
        elif obs is not None:
            # The old layout: a table of codes, with the names of categories apart in `uns`.
            table = self._values(obs, "obs")
            for name in table.dtype.names or ():
                if name not in _INDEX and table.dtype[name].kind in "biufSO":
                    categories = self._member(file, "uns", f"{name}_categories")
                    columns[name] = (
                        self._texts(table[name])
                        if categories is None
                        else self._named(self._texts(self._values(categories, name)), table[name], f"obs/{name}")
                    )
        for name, values in columns.items():
            if values is not None and len(values) != rows:
                raise UserError(
                    f"{self._path}: obs/{name} has {len(values):,} entries; expected {rows:,}, one per point"
                )
        return {name: values for name, values in columns.items() if values is not None}

    def _member(self, group: Any, *names: str) -> Any:
        """A member of a group, or None; only what lies in this file is opened."""
        import h5py

        for name in names:
            if not isinstance(group, h5py.Group) or name not in group.keys():  # noqa: SIM118
                return None
            # Any link but a hard one may end in another file, a soft one by way of a group that does.
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise UserError(f"{self._path}: {group.name.rstrip('/')}/{name} is a link, which may leave the file")
            group = group[name]
        return group

    def _values(self, dataset: Any, what: str) -> NDArray[Any]:
        """All values of a dataset, after its size."""
        import h5py

        if not isinstance(dataset, h5py.Dataset):
            raise UserError(f"{self._path}: {what} must be an array")
        if dataset.is_virtual or dataset.external:
            raise UserError(f"{self._path}: {what} lies in other files, which are not read")
        if dataset.shape is None:
            raise UserError(f"{self._path}: {what} is empty")
        # A file of a few bytes may claim any shape: what was never written is made up by the library when it is read.
        self._count(what, math.prod(dataset.shape) * max(8, dataset.dtype.itemsize))
        # HDF5 unpacks whole chunks, so one that is larger than the data must be refused, too.
        if dataset.chunks is not None:
            self._options.check_size(f"{self._path}: {what}", math.prod(dataset.chunks) * dataset.dtype.itemsize)
        if not dataset.dtype.hasobject or dataset.ndim != 1:
            return np.asarray(dataset[()])
        blocks = []
        # Texts of any length: many rows may refer to one long text, so its copies are counted.
        for start in range(0, len(dataset), _BLOCK):
            block = dataset[start : start + _BLOCK]
            self._count(what, sum(len(text) for text in block if isinstance(text, bytes | str)))
            blocks.append(block)
        return np.concatenate(blocks) if blocks else np.zeros(0, dtype=object)

    def _count(self, what: str, num_bytes: int) -> None:
        self._held += num_bytes
        self._options.check_size(f"{self._path}: {what}", self._held)

    def _column(self, held: Any, what: str) -> NDArray[Any] | None:
        """Read a column of the present layout; None for kinds without one value per row (nullable or nested ones)."""
        import h5py

        if isinstance(held, h5py.Dataset):
            return self._texts(self._values(held, what)) if held.ndim == 1 and held.dtype.kind in "biufSO" else None
        categories, codes = self._member(held, "categories"), self._member(held, "codes")
        if categories is None or codes is None:
            return None
        return self._named(self._texts(self._values(categories, what)), self._values(codes, what), what)

    def _named(self, categories: NDArray[Any], codes_N: NDArray[Any], what: str) -> NDArray[Any]:
        """Category of each code as a string; -1, a missing value, is None."""
        if codes_N.ndim != 1 or codes_N.dtype.kind not in "iu" or categories.ndim != 1:
            raise UserError(f"{self._path}: {what} has codes or categories that are no list")
        # None precedes the names, so that code -1 becomes index 0.
        names = np.array([None, *(_text(category) for category in categories)], dtype=object)
        # A damaged file would otherwise index from the end, silently.
        if int(codes_N.min(initial=0)) < -1 or int(codes_N.max(initial=-1)) >= len(categories):
            raise UserError(f"{self._path}: {what}: codes point at no category")
        return names[codes_N.astype(np.int64) + 1]

    def _texts(self, values: NDArray[Any]) -> NDArray[Any]:
        if values.dtype.kind in "biuf":
            return values
        if values.dtype.kind in "SO":
            result = np.empty(len(values), dtype=object)
            result[:] = [_text(value) for value in values]
            return result
        raise UserError(f"{self._path}: a column of obs must be numbers or text (got {values.dtype})")


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
