"""Points from public sets and files (arrays, Parquet tables, AnnData, exported embeddings), and splits over clients.

| source | points | labels, clients |
|---|---|---|
| `digits`, `mnist-5k`, `fashion-mnist`, `pbmc68k` | see `public_sets` | `label` |
| folder with MNIST's files | its training part, pixels from 0 to 1 | `label` |
| `x.npy` | the matrix | |
| `x.npz` | array `points`, `embedding`, `embeddings`, `features` or `X` | arrays of any name, one entry per row |
| `x.parquet`, folder of them | a column of lists of these names, else all columns of numbers | columns of any name |
| `x.h5ad` | the principal components `X_pca` (extra `cells`) | every column of `obs` |
| folder of `foveate export --to embeddings` | its images | by key from a collection |
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from foveate.core.errors import UserError, choose, nearest
from foveate.core.seeds import generator
from foveate.federated import partition
from foveate.federated.h5ad import read_h5ad
from foveate.federated.partition import Partition
from foveate.federated.points import Feature, Points
from foveate.federated.public_sets import FASHION_IMAGES, SETS, fashion_mnist
from foveate.federated.store import digest
from foveate.metrics.neighbors import as_points
from foveate.records.collection import Collection

POINT_NAMES = ("points", "embedding", "embeddings", "features", "X")
# Columns of exported embeddings that describe a row and are no features.
_ASIDE = ("key", "kind", "box", "phrase", "norm")
SPLITS = ("even", "dirichlet", "balanced", "shards")


def read_points(source: str | Path) -> Points:
    """Read one source.

    Raises:
        UserError: an unknown kind of source, a damaged one, or NaN; names it and what is allowed.
    """
    path = Path(source)
    if str(source) in SETS:
        return Points(str(source), *SETS[str(source)]())
    if path.is_dir():
        return Points(str(path), *fashion_mnist(path)) if (path / FASHION_IMAGES).is_file() else _folder(path)
    if not path.is_file():
        kinds = f"a source is {', '.join(SETS)}, a .npy, .npz, .parquet or .h5ad file, or a folder"
        raise UserError(f"{source}: no such file; {kinds}{nearest(str(source), SETS)}")
    if path.suffix == ".npy":
        return Points(str(path), as_points(_load_arrays(path), what=str(path)))
    if path.suffix == ".npz":
        return _from_arrays(path, _load_arrays(path))
    if path.suffix == ".parquet":
        return _from_table(path, _read_table(path))
    if path.suffix == ".h5ad":
        points, columns = read_h5ad(path)
        return Points(str(path), as_points(points, what=f"{path}: X_pca"), columns)
    raise UserError(f"{path}: must be a .npy, .npz, .parquet or .h5ad file")


def _load_arrays(path: Path) -> Any:
    try:
        # No pickle: an array file from elsewhere could run code.
        arrays = np.load(path, allow_pickle=False)
        return arrays if path.suffix == ".npy" else {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable file of arrays ({error!s:.120})") from None


def _from_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> Points:
    names = [name for name in POINT_NAMES if name in arrays]
    if not names:
        raise UserError(
            f"{path}: no array of points; expected one of {', '.join(POINT_NAMES)} "
            f"(got {', '.join(arrays) or 'nothing'})"
        )
    points = as_points(arrays[names[0]], what=f"{path}: {names[0]}")
    # Any other array with one entry per row may be a label or name a client.
    columns = {name: array for name, array in arrays.items() if name != names[0] and array.shape == (len(points),)}
    return Points(str(path), points, columns)


def _read_table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error!s:.120})") from None


def _from_table(path: Path, table: pa.Table) -> Points:
    if not table.num_rows:
        raise UserError(f"{path} has no rows")
    # A column of lists wins over columns of numbers: exports have both, and the numbers there describe rows.
    lists = [n for n in table.column_names if _is_list(table.schema.field(n).type) and n in POINT_NAMES]
    features: tuple[Feature, ...] = ()
    if lists:
        rows = table[lists[0]].combine_chunks()
        lengths = pc.list_value_length(rows)  # pyrefly: ignore[missing-attribute]
        widths = np.unique(lengths.to_numpy(zero_copy_only=False))
        if len(widths) != 1:
            raise UserError(f"{path}: the lists in '{lists[0]}' have different lengths")
        flat = np.asarray(rows.flatten().to_numpy(zero_copy_only=False), dtype=np.float64)
        points = as_points(flat.reshape(table.num_rows, -1), what=f"{path}: {lists[0]}")
        used = set(lists[:1])
    else:
        kinds = {name: table.schema.field(name).type for name in table.column_names}
        # Integers are labels or ids more often than features, so only floating-point columns are points.
        used = {n for n, kind in kinds.items() if pa.types.is_floating(kind) and n not in _ASIDE}
        if not used:
            names = ", ".join(POINT_NAMES)
            raise UserError(f"{path} has no column of lists called {names}, and no columns of floating-point numbers")
        names_D = [name for name in table.column_names if name in used]
        points = as_points(np.stack([table[name].to_numpy() for name in names_D], axis=1), what=str(path))
        features = tuple(Feature(name) for name in names_D)
    # Lists that are no points (boxes, second embeddings) cannot label rows.
    rest = {n: table[n] for n in table.column_names if n not in used and not _is_list(table.schema.field(n).type)}
    columns = {name: np.array(column.to_pylist(), dtype=object) for name, column in rest.items()}
    return Points(str(path), points, columns, features)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _folder(path: Path) -> Points:
    """Read parts of a table, or the images of exported embeddings."""
    # An export holds images and phrases apart; only the images are points.
    inner = path / "images" if (path / "images").is_dir() else path
    parts = sorted(inner.glob("*.parquet")) or sorted(inner.glob("*.npz"))
    if not parts:
        raise UserError(f"{path} has no .parquet or .npz files, and no folder 'images' with some")
    # Sorted by name, the order in which an export was written.
    read = [read_points(part) for part in parts]
    # Parts of one table may differ in columns; only what all of them have can be joined.
    shared = set.intersection(*(set(part.columns) for part in read))
    columns = {name: np.concatenate([part.columns[name].astype(object) for part in read]) for name in sorted(shared)}
    return Points(str(path), np.concatenate([part.points_ND for part in read]), columns, read[0].features)


def with_labels(points: Points, collection: Path, label: str) -> Points:
    """Add a label field of a collection as a column, by the keys of exported embeddings.

    Raises:
        UserError: the points have no keys, or the collection lacks one.
    """
    keys = points.column("key", "column")
    opened = Collection.open(collection)
    values = opened.label_values(label)
    rows = {key: row for row, key in enumerate(opened.keys)}
    missing = [key for key in keys if key not in rows]
    if missing:
        raise UserError(f"{collection} has no image '{missing[0]}' ({len(missing)} of {len(keys)} are missing)")
    labels = np.array([values[rows[key]] for key in keys], dtype=object)
    return replace(points, columns=points.columns | {label: labels})


@dataclass(frozen=True)
class Clients:
    """Points by client.

    Attributes:
        names, points: one per client.
        labels: one array per client; None where there are none.
        about: how the points were split, as text.
        features: names and types of the columns of each client's points; empty where nothing is known of them.
    """

    names: list[str]
    points: list[NDArray[np.float64]]
    labels: list[NDArray[np.str_]] | None
    about: str
    features: list[tuple[Feature, ...]] = field(default_factory=list)

    def sizes(self) -> dict[str, int]:
        """Number of points by client."""
        return {name: len(points) for name, points in zip(self.names, self.points, strict=True)}

    def all_labels(self) -> NDArray[np.str_] | None:
        """Labels of all clients one after another; None where there are none."""
        return None if self.labels is None else np.concatenate([labels.astype(str) for labels in self.labels])

    def digests(self) -> dict[str, str]:
        """Digest of the points by client: what is stored of a run belongs to these points and no others."""
        return {name: digest(points) for name, points in zip(self.names, self.points, strict=True)}


def parse_split(text: str) -> tuple[str, float]:
    """Parse `dirichlet:0.3` into ("dirichlet", 0.3).

    Raises:
        UserError: an unknown name, or a missing number.
    """
    name, _, number = text.partition(":")
    choose(name, SPLITS, "split")
    if name == "even":
        if number:
            raise UserError(f"split '{text}': even takes no number")
        return name, 0.0
    try:
        return name, float(number)
    except ValueError:
        example = "shards:2" if name == "shards" else f"{name}:0.3"
        raise UserError(f"split '{text}': needs a number, such as {example}") from None


def split_labels(
    labels_N: NDArray[Any] | None, points: int, split: str, clients: int, *, seed: int, smallest: int = 10
) -> Partition:
    """Split rows for an experiment: even, dirichlet:ALPHA, balanced:ALPHA (FedNE's), or shards:CLASSES.

    Raises:
        UserError: a split by labels without labels, or one that cannot be.
    """
    name, number = parse_split(split)
    random = generator("partition", seed)
    if name == "even":
        return partition.even(points, clients, random)
    if labels_N is None:
        raise UserError(f"split '{split}' needs labels: name them with --label")
    if name == "shards":
        return partition.shards(labels_N, clients, random, classes=int(number))
    return partition.dirichlet(labels_N, clients, random, alpha=number, smallest=smallest, balanced=name == "balanced")


def split_clients(
    points_ND: NDArray[np.float64], labels_N: NDArray[Any] | None, split: str, clients: int, *, seed: int
) -> Clients:
    """Split the points of one set over clients, see `split_labels`.

    Raises:
        UserError: see `split_labels`.
    """
    parts = split_labels(labels_N, len(points_ND), split, clients, seed=seed)
    again = f", {parts.draws - 1} redraws" if parts.draws > 1 else ""
    return _select(points_ND, labels_N, parts, f"{split} over {clients} clients, seed {seed}{again}")


def _select(points_ND: NDArray[np.float64], labels_N: NDArray[Any] | None, parts: Partition, about: str) -> Clients:
    labels = None if labels_N is None else [labels_N[rows] for rows in parts.rows]
    return Clients(parts.names, [points_ND[rows] for rows in parts.rows], labels, about)


def gather(
    sources: Sequence[str | Path],
    *,
    label: str | None = None,
    client: str | None = None,
    split: str | None = None,
    clients: int | None = None,
    collection: Path | None = None,
    seed: int = 0,
) -> Clients:
    """Read clients from one or several sources: one per source, by a column, or by a split of a single source.

    Args:
        label: column of labels, or with `collection` a label field of it.
        client: column that names the client of each row.
        split: see `split_labels`.
        clients: number of clients of a split.
        collection: of the labels of exported embeddings.

    Raises:
        UserError: sources, columns or splits that do not fit one another.
    """
    read = [read_points(source) for source in sources]
    if collection is not None:
        if label is None:
            raise UserError("--collection needs --label, the label field")
        read = [with_labels(points, collection, label) for points in read]
    if label is None and all(str(source) in SETS for source in sources):
        label = "label"
    labels = None if label is None else [points.column(label, "column of labels") for points in read]
    if len(read) > 1:
        if client is not None or split is not None or clients is not None:
            raise UserError("several sources are one client each: --client, --split and --clients have no effect")
        # Compared here, where the sources have names; later there are only numbers of clients.
        widths = {points.points_ND.shape[1] for points in read}
        if len(widths) > 1:
            listed = ", ".join(f"{points.name}: {points.points_ND.shape[1]}" for points in read)
            raise UserError(f"the sources have different numbers of features ({listed:.300})")
        return Clients(
            [Path(points.name).stem for points in read],
            [points.points_ND for points in read],
            labels,
            "a source each",
            [points.features for points in read],
        )
    whole, first_labels = read[0], None if labels is None else labels[0]
    if client is not None:
        if split is not None or clients is not None:
            raise UserError("--client names the client of each row: --split and --clients have no effect")
        parts = partition.by_id(whole.column(client, "column of clients").tolist())
        return replace(
            _select(whole.points_ND, first_labels, parts, f"by '{client}'"),
            features=[whole.features] * len(parts.rows),
        )
    if split is None or clients is None:
        raise UserError(
            f"{whole.name} is a single source; split it with --split and --clients, or by a column with --client"
        )
    parts = split_clients(whole.points_ND, first_labels, split, clients, seed=seed)
    return replace(parts, features=[whole.features] * len(parts.names))
