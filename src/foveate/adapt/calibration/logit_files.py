"""Saved logits: npz with arrays, or Parquet with one row per sample; read strictly, never as pickle.

| array or column | what |
|---|---|
| `logits` | [N, C] numbers; in Parquet a list per row |
| `labels` (Parquet: also `label`) | [N] class numbers, or names that `class_names` has |
| `class_names` | [C] texts; in Parquet a JSON list in the schema's metadata |
| `features` | [N, D], for nearest class means |
| `seen`, `absent`, `source_logits` | of a pseudo run (npz only): its halves of S, and the pre-trained model's logits |
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from foveate.adapt.calibration.pseudo import PseudoRun
from foveate.core.errors import UserError, nearest
from foveate.core.files import atomic_file
from foveate.metrics.class_groups import as_labels, as_logits

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

    @property
    def classes(self) -> int:
        """Number of columns, C."""
        return self.logits.shape[1]

    def as_run(self) -> PseudoRun:
        """Return the file as a pseudo run.

        Raises:
            UserError: the file does not name its halves.
        """
        if self.seen is None or self.absent is None:
            raise UserError(f"{self.path}: a pseudo run needs the arrays 'seen' and 'absent': its halves of S")
        return PseudoRun(self.logits, self.labels, self.seen, self.absent, self.source_logits, str(self.path))


def read_logits(path: Path) -> LogitFile:
    """Read an .npz or .parquet file of logits.

    Raises:
        UserError: another ending, a broken file, an unknown or missing array, shapes or labels that do not fit.
    """
    if path.suffix not in (".npz", ".parquet"):
        raise UserError(f"{path}: allowed are .npz and .parquet files of logits")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    arrays = _read_npz(path) if path.suffix == ".npz" else _read_parquet(path)
    if "logits" not in arrays:
        raise UserError(f"{path}: no array 'logits'{nearest('logits', arrays)}")
    if "labels" not in arrays:
        raise UserError(f"{path}: no array 'labels'{nearest('labels', arrays)}")
    logits = as_logits(arrays["logits"], what=f"{path}: logits", finite=False)
    classes = logits.shape[1]
    # Without names classes are called by their numbers.
    names = [str(name) for name in arrays.get("class_names", np.arange(classes)).tolist()]
    if len(names) != classes or len(set(names)) != classes:
        raise UserError(f"{path}: class_names must be {classes} different names, one for each column of the logits")
    features = arrays.get("features")
    if features is not None and (features.ndim != 2 or len(features) != len(logits)):
        raise UserError(f"{path}: features must be [{len(logits)}, width], not {list(features.shape)}")
    return LogitFile(
        path,
        logits,
        _number_labels(arrays["labels"], names, rows=len(logits), path=path),
        names,
        features,
        arrays.get("seen"),
        arrays.get("absent"),
        arrays.get("source_logits"),
    )


def write_logits(path: Path, **arrays: Any) -> Path:
    """Write an npz file of the known arrays, atomically; None is left out."""
    assert set(arrays) <= set(_KNOWN), set(arrays) - set(_KNOWN)
    arrays_present: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items() if value is not None}
    with atomic_file(path) as handle:
        np.savez_compressed(handle, **arrays_present)
    return path


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            unknown = [name for name in file.files if name not in _KNOWN]
            if unknown:
                name = unknown[0]
                raise UserError(
                    f"{path}: unknown array '{name}': allowed are {', '.join(_KNOWN)}{nearest(name, _KNOWN)}"
                )
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        # A UserError is a ValueError, too, and names the array already.
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not an npz file of plain arrays ({' '.join(str(error).split())[:120]})") from error


def _read_parquet(path: Path) -> dict[str, NDArray[Any]]:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file ({' '.join(str(error).split())[:120]})") from error
    arrays: dict[str, NDArray[Any]] = {}
    for name in ("logits", "features"):
        if name in table.column_names:
            arrays[name] = _matrix(table[name], name=name, path=path)
    # Tables of other tools often have one label a row, in the singular.
    label = "labels" if "labels" in table.column_names else "label"
    if label in table.column_names:
        column = table[label]
        if column.null_count:
            raise UserError(f"{path}: column '{label}' has {column.null_count} empty values")
        arrays["labels"] = np.array(column.to_pylist())
    if not arrays:
        columns = ", ".join(table.column_names[:6]) or "none"
        raise UserError(f"{path}: no columns 'logits' and 'labels'; it has {columns}")
    metadata = (table.schema.metadata or {}).get(b"class_names")
    if metadata is not None:
        try:
            arrays["class_names"] = np.array([str(name) for name in json.loads(metadata)])
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: metadata 'class_names' must be a JSON list of names") from error
    return arrays


def _matrix(column: pa.ChunkedArray, *, name: str, path: Path) -> NDArray[Any]:
    """Return a column of lists of the same length as [rows, length]."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise UserError(f"{path}: column '{name}' must be a list of numbers in each row, not {kind}")
    # Without Python objects: a file of 50,000 rows of 1,000 logits would take minutes.
    lengths = pc.call_function("list_value_length", [column]).to_numpy(zero_copy_only=False)
    if column.null_count or len(lengths) == 0 or len(np.unique(lengths)) != 1:
        raise UserError(f"{path}: column '{name}' must have a list of the same length in every row")
    flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks])
    return flat.reshape(len(lengths), int(lengths[0]))


def _number_labels(labels: NDArray[Any], names: list[str], *, rows: int, path: Path) -> NDArray[np.int64]:
    """Return labels as class numbers; texts are looked up among the names."""
    if labels.dtype.kind in "US":
        indices = {name: number for number, name in enumerate(names)}
        strange = next((str(label) for label in labels.tolist() if str(label) not in indices), None)
        if strange is not None:
            raise UserError(
                f"{path}: label '{strange}' is none of the {len(names)} class names{nearest(strange, names)}"
            )
        labels = np.array([indices[str(label)] for label in labels.tolist()], dtype=np.int64)
    return as_labels(labels, rows=rows, classes=len(names), what=f"{path}: labels")
