"""Tables of logits: CSV and Parquet with a row per sample and a column per class.

The column `label` (or `labels`) has class names or numbers. Columns that begin with `feature_` are features, and
columns that name a sample (`id`, `key`, `image`, `path`, ...) are left out, with a note. Every other column is a class,
named after the column; where columns begin with `logit_`, only they are classes, named by what follows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foveate.core.arrow_tables import read_parquet, read_typed_csv
from foveate.core.errors import UserError, nearest

LABELS = ("labels", "label")
LOGIT, FEATURE = "logit_", "feature_"
# Whatever they hold: "" and "Unnamed: 0" are the index that pandas writes into a CSV file, the last one into Parquet.
_ROW_NUMBERS = ("", "Unnamed: 0", "index", "id", "__index_level_0__")
# Names of samples only where they are texts: a class may be called "image".
_SAMPLE_NAMES = ("key", "image", "path", "file", "filename", "name", "split")

Arrays = dict[str, NDArray[Any]]


def read_csv_table(path: Path) -> tuple[Arrays, list[str]]:
    """Read a CSV or TSV file; return arrays and notes.

    Raises:
        UserError: it is no table, columns are no numbers, there is no column of labels.
    """
    # A class may be called "NA", and a column of notes may have commas in its numbers.
    table, _ = read_typed_csv(path, labels=LABELS, null_texts=False, mixed="point")
    return _read_wide(table, path)


def read_parquet_table(path: Path) -> tuple[Arrays, list[str], bytes | None]:
    """Read a Parquet file with a list of logits per row, or with a column per class.

    Returns:
        Arrays, notes, and the metadata `class_names` of the schema, None where there is none.

    Raises:
        UserError: as `read_csv_table`.
    """
    table = read_parquet(path)
    metadata = (table.schema.metadata or {}).get(b"class_names")
    if "logits" not in table.column_names:
        arrays, notes = _read_wide(table, path)
        return arrays, notes, metadata
    arrays = {
        name: _matrix(table[name], name=name, path=path)
        for name in ("logits", "features")
        if name in table.column_names
    }
    label = next((name for name in LABELS if name in table.column_names), None)
    if label is not None:
        arrays["labels"] = _label_values(table[label], name=label, path=path)
    return arrays, [], metadata


def _read_wide(table: pa.Table, path: Path) -> tuple[Arrays, list[str]]:
    names = table.column_names
    repeated = next((name for name in names if names.count(name) > 1), None)
    # Columns are read by name, so two with the same name are ambiguous.
    if repeated is not None:
        raise UserError(f"{path}: column '{repeated}' occurs twice")
    label = next((name for name in LABELS if name in names), None)
    if label is None:
        raise UserError(f"{path}: no column 'label'; it has {', '.join(names[:6]) or 'none'}{nearest('label', names)}")
    if table.num_rows == 0:
        raise UserError(f"{path}: the table has no row")
    others = [name for name in names if name != label]
    features = [name for name in others if name.startswith(FEATURE)]
    logits = [name for name in others if name.startswith(LOGIT)]
    # With a prefix on the logits, no other column is a class. Without one every column is, unless its name is usual for
    # a column that numbers or names the samples.
    left_out = [name for name in others if name not in features and name not in logits] if logits else []
    if not logits:
        left_out = [name for name in others if name not in features and _names_samples(name, table[name].type)]
        logits = [name for name in others if name not in features and name not in left_out]
    if not logits:
        raise UserError(f"{path}: no columns of logits beside '{label}'; expected one for each class")
    arrays = {
        "logits": _columns(table, logits, path),
        "labels": _label_values(table[label], name=label, path=path),
        "class_names": np.array([name.removeprefix(LOGIT) for name in logits]),
    }
    if features:
        arrays["features"] = _columns(table, features, path)
    return arrays, [f"{path}: columns left out: {', '.join(left_out)}"] if left_out else []


def _names_samples(name: str, kind: pa.DataType) -> bool:
    return name in _ROW_NUMBERS or (name in _SAMPLE_NAMES and not _is_number(kind))


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _columns(table: pa.Table, names: list[str], path: Path) -> NDArray[Any]:
    """Return columns of numbers as [rows, columns]; an empty cell is NaN, which is refused later with its row."""
    for name in names:
        column = table[name]
        if not _is_number(column.type):
            example = next((str(value) for value in column.to_pylist() if value is not None), "nothing")
            raise UserError(
                f"{path}: column '{name}' is no column of numbers (got {column.type}, such as '{example[:40]}'); "
                "expected one column of logits for each class, and 'label'"
            )
    return np.column_stack([table[name].to_numpy() for name in names])


def _label_values(column: pa.ChunkedArray, *, name: str, path: Path) -> NDArray[Any]:
    if column.null_count:
        raise UserError(f"{path}: column '{name}' has {column.null_count} empty values")
    if pa.types.is_nested(column.type):
        raise UserError(f"{path}: column '{name}' holds {column.type}; expected one label per row, text or integers")
    return np.array(column.to_pylist())


def _matrix(column: pa.ChunkedArray, *, name: str, path: Path) -> NDArray[Any]:
    """Return a column of lists of the same length as [rows, length]."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise UserError(f"{path}: column '{name}' must be a list of numbers in each row, not {kind}")
    # Avoid Python objects: a file of 50,000 rows of 1,000 logits would take minutes.
    lengths = pc.call_function("list_value_length", [column]).to_numpy(zero_copy_only=False)
    if column.null_count or len(lengths) == 0 or len(np.unique(lengths)) != 1:
        raise UserError(f"{path}: column '{name}' must have a list of the same length in every row")
    flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks])
    return flat.reshape(len(lengths), int(lengths[0]))
