"""Saved logits with labels, from files of several formats; read strictly, and never by running pickled objects.

| format | content |
|---|---|
| `.npz`, `.pt`, `.pth`, `.safetensors` | arrays by the names below; `.safetensors` has `class_names` in its metadata |
| `.csv`, `.tsv`, `.parquet` | a row per sample, a column per class, named after it, and `label`; see `logit_tables` |
| `.parquet` | also: a column `logits` of lists; `class_names` in the schema's metadata |
| `.npy` | logits; labels in `NAME-labels.npy` or `.txt` beside it, class names in `class_names.txt` |

| array | content |
|---|---|
| `logits` | [N, C] numbers |
| `labels`, `label` | [N] class numbers, or names that `class_names` has |
| `class_names` | [C] texts, in JSON where it is metadata |
| `features` | [N, D]; not used by `foveate calibrate`, which says so |
| `seen`, `absent`, `source_logits` | of a pseudo run: its halves of S, and the pre-trained model's logits |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError, nearest
from foveate.core.files import atomic_file
from foveate.core.labels import as_class_labels
from foveate.core.npz_files import DAMAGE, read_npz
from foveate.metrics.class_groups import as_labels, as_logits
from foveate.training.logit_tables import read_csv_table, read_parquet_table

_KNOWN = ("logits", "labels", "class_names", "features", "seen", "absent", "source_logits")


@dataclass(frozen=True)
class LogitFile:
    """The content of a file of logits; checked except for NaN, which the metrics name with their row."""

    path: Path
    logits: NDArray[Any]
    labels: NDArray[np.int64]
    class_names: list[str]
    features: NDArray[Any] | None = None
    seen: NDArray[Any] | None = None
    absent: NDArray[Any] | None = None
    source_logits: NDArray[Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """Number of columns, C."""
        return self.logits.shape[1]


def read_logits(path: Path, *, class_names: Sequence[str] = ()) -> LogitFile:
    """Read a file of logits and labels.

    Args:
        class_names: names of the columns where the file has none; their numbers by default.

    Raises:
        UserError: another ending, a broken file, an unknown or missing array, shapes or labels that do not fit.
    """
    if path.suffix not in _READERS:
        raise UserError(
            f"{path}: unknown kind of file '{path.suffix}'; expected logits as one of {', '.join(_READERS)}"
            f"{nearest(path.suffix, _READERS)}"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        arrays, notes = _READERS[path.suffix](path)
    # Before the parsers' errors, because UserError is a ValueError, and so is one of them.
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path}: its arrays are larger than the memory") from error
    except DAMAGE as error:
        raise UserError(f"{path}: cannot be read as {path.suffix} ({_shorten(error)})") from error
    # Tables of other tools have one label a row and name the column in the singular.
    if "label" in arrays and "labels" not in arrays:
        arrays["labels"] = arrays.pop("label")
    unknown = next((name for name in arrays if name not in _KNOWN), None)
    if unknown is not None:
        raise UserError(f"{path}: unknown array '{unknown}': allowed are {', '.join(_KNOWN)}{nearest(unknown, _KNOWN)}")
    if "logits" not in arrays:
        raise UserError(f"{path}: no array 'logits'{nearest('logits', arrays)}")
    if "labels" not in arrays:
        raise UserError(f"{path}: no array 'labels'{nearest('labels', arrays)}")
    logits = as_logits(arrays["logits"], what=f"{path}: logits", finite=False)
    classes = logits.shape[1]
    default = list(class_names) if len(class_names) == classes else [str(number) for number in range(classes)]
    names = _texts(arrays["class_names"]) if "class_names" in arrays else default
    # A repeated name would leave open which of two columns a label means.
    if len(names) != classes or len(set(names)) != classes:
        raise UserError(f"{path}: class_names must be {classes} different names, one for each column of the logits")
    features = arrays.get("features")
    if features is not None and (features.ndim != 2 or len(features) != len(logits)):
        raise UserError(f"{path}: features must be [{len(logits)}, width] (got {list(features.shape)})")
    return LogitFile(
        path,
        logits,
        _number_labels(arrays["labels"], names, rows=len(logits), path=path),
        names,
        features,
        arrays.get("seen"),
        arrays.get("absent"),
        arrays.get("source_logits"),
        tuple(notes),
    )


def write_logits(path: Path, **arrays: Any) -> Path:
    """Write an npz file of the known arrays, atomically; None is left out."""
    assert set(arrays) <= set(_KNOWN), set(arrays) - set(_KNOWN)
    arrays_present: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items() if value is not None}
    with atomic_file(path) as handle:
        np.savez_compressed(handle, **arrays_present)
    return path


Arrays = dict[str, NDArray[Any]]


def _read_npy(path: Path) -> tuple[Arrays, list[str]]:
    """Read logits from one file, labels and class names from those beside it."""
    arrays = {"logits": _load_npy(path)}
    stem = path.stem.replace("logits", "labels") if "logits" in path.stem else f"{path.stem}-labels"
    files = [path.with_name(f"{stem}{suffix}") for suffix in (".npy", ".txt")]
    labels = next((file for file in files if file.is_file()), None)
    if labels is None:
        raise UserError(f"{path} has no labels; expected them in {files[0]} or, one a line, in {files[1]}")
    arrays["labels"] = _load_npy(labels) if labels.suffix == ".npy" else _label_lines(labels)
    names = path.with_name("class_names.txt")
    if names.is_file():
        arrays["class_names"] = np.array(_read_lines(names))
    return arrays, []


def _load_npy(path: Path) -> NDArray[Any]:
    try:
        # Mapped first: a header that promises more than the file holds is then an error, and no memory is taken for it.
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except DAMAGE as error:
        raise UserError(f"{path}: not an npy file of a plain array ({_shorten(error)})") from error


def _label_lines(path: Path) -> NDArray[Any]:
    lines = _read_lines(path)
    return np.array([int(line) for line in lines] if all(line.isdecimal() for line in lines) else lines)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text, one entry a line") from error


def _read_torch(path: Path) -> tuple[Arrays, list[str]]:
    """Read a dictionary of tensors, or a pair of logits and labels; anything else that is pickled is refused."""
    import torch

    try:
        # `weights_only` refuses all but plain values: a pickle of anything else may run code while it is loaded.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (*DAMAGE, torch.serialization.pickle.UnpicklingError) as error:
        raise UserError(
            f"{path}: not a file of plain tensors ({_shorten(error)}); other objects are not loaded, since that runs "
            "code"
        ) from error
    if isinstance(content, list | tuple) and len(content) == 2:
        content = dict(zip(("logits", "labels"), content, strict=True))
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path}: holds a {type(content).__name__}; expected a dictionary with 'logits' and 'labels', or the pair"
        )
    return {str(name): _as_array(value, name=str(name), path=path) for name, value in content.items()}, []


def _as_array(value: Any, *, name: str, path: Path) -> NDArray[Any]:
    """Convert a tensor or list; bfloat16, which NumPy does not have, to float32."""
    import torch

    try:
        if isinstance(value, torch.Tensor):
            value = value.detach()
            # NumPy has no bfloat16.
            return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        return np.array(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: '{name}' is no plain array ({_shorten(error)})") from error


def _read_safetensors(path: Path) -> tuple[Arrays, list[str]]:
    from safetensors import SafetensorError, safe_open

    try:
        # By way of torch, because NumPy has no bfloat16.
        with safe_open(path, framework="pt") as file:
            arrays = {name: _as_array(file.get_tensor(name), name=name, path=path) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a safetensors file ({_shorten(error)})") from error
    if "class_names" in metadata:
        arrays["class_names"] = np.array(parse_names(metadata["class_names"], path))
    return arrays, []


def _read_parquet(path: Path) -> tuple[Arrays, list[str]]:
    arrays, notes, names = read_parquet_table(path)
    if names is not None:
        arrays["class_names"] = np.array(parse_names(names, path))
    return arrays, notes


def parse_names(text: str | bytes, path: Path) -> list[str]:
    """Parse class names in metadata, a JSON list.

    Raises:
        UserError: it is none.
    """
    try:
        return [str(name) for name in json.loads(text)]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: metadata 'class_names' must be a JSON list of names") from error


_READERS: dict[str, Callable[[Path], tuple[Arrays, list[str]]]] = {
    ".npz": lambda path: (read_npz(path), []),
    ".csv": read_csv_table,
    ".tsv": read_csv_table,
    ".parquet": _read_parquet,
    ".npy": _read_npy,
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
}
FORMATS = tuple(_READERS)


def _number_labels(labels: NDArray[Any], names: list[str], *, rows: int, path: Path) -> NDArray[np.int64]:
    """Return labels as class numbers; texts are looked up among the names, whole floats are numbers."""
    # Unlike where labels become class names, 1.0 is no new class here: it can only be the column 1.
    if labels.ndim == 1 and labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels % 1 == 0).all():
        labels = labels.astype(np.int64)
    labels = as_class_labels(labels, what=f"{path}: labels")
    # Columns that are named 3, 7, 9 are the classes 3, 7, 9: a label 7 is then a name and no position.
    named_by_numbers = all(name.isdecimal() for name in names) and names != [str(n) for n in range(len(names))]
    if labels.dtype.kind in "USO" or (labels.dtype.kind in "iu" and named_by_numbers):
        indices = {name: number for number, name in enumerate(names)}
        texts = _texts(labels)
        strange = next((label for label in texts if label not in indices), None)
        if strange is not None:
            raise UserError(
                f"{path}: label '{strange}' is none of the {len(names)} class names{nearest(strange, names)}"
                + ("; the file has no class_names" if names == [str(n) for n in range(len(names))] else "")
            )
        labels = np.array([indices[label] for label in texts], dtype=np.int64)
    return as_labels(labels, rows=rows, classes=len(names), what=f"{path}: labels")


def _texts(values: NDArray[Any]) -> list[str]:
    """Return texts of an array of texts, bytes or numbers."""
    return [
        value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        for value in values.ravel().tolist()
    ]


def _shorten(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
