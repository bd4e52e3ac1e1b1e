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
from dataclasses import dataclass, field
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
from foveate.federated.public_sets import FASHION_IMAGES, SETS, fashion_mnist
from foveate.federated.store import digest
from foveate.metrics.neighbors import as_points
from foveate.records.collection import Collection

POINT_NAMES = ("points", "embedding", "embeddings", "features", "X")
_ASIDE = ("key", "kind", "box", "phrase", "norm")
SPLITS = ("even", "dirichlet", "balanced", "shards")


@dataclass(frozen=True)
class Points:
    """Points of one source.

    Attributes:
        name: of the source. columns: whatever else it has one entry per row of, as texts or numbers.
    """

    name: str
    points_ND: NDArray[np.float64]
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)

    def column(self, name: str, what: str) -> NDArray[np.str_]:
        """A column as texts.

        Raises:
            UserError: there is none of that name.
        """
        if name not in self.columns:
            listed = ", ".join(sorted(self.columns)) or "none"
            raise UserError(f"{self.name}: no {what} '{name}'; there are {listed}{nearest(name, self.columns)}")
        return self.columns[name].astype(str)


def read_points(source: str | Path) -> Points:
    """Reads one source.

    Raises:
        UserError: a source that is none of the kinds, is damaged, or holds NaN; names it and what is allowed.
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
        return Points(str(path), as_points(_loaded(path), what=str(path)))
    if path.suffix == ".npz":
        return _from_arrays(path, _loaded(path))
    if path.suffix == ".parquet":
        return _from_table(path, _table(path))
    if path.suffix == ".h5ad":
        points, columns = read_h5ad(path)
        return Points(str(path), as_points(points, what=f"{path}: X_pca"), columns)
    raise UserError(f"{path}: allowed are .npy, .npz, .parquet and .h5ad files")


def _loaded(path: Path) -> Any:
    try:
        found = np.load(path, allow_pickle=False)
        return found if path.suffix == ".npy" else {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no readable file of arrays ({error!s:.120})") from None


def _from_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> Points:
    found = [name for name in POINT_NAMES if name in arrays]
    if not found:
        raise UserError(f"{path}: holds {', '.join(arrays) or 'nothing'}; points are called {', '.join(POINT_NAMES)}")
    points = as_points(arrays[found[0]], what=f"{path}: {found[0]}")
    columns = {name: one for name, one in arrays.items() if name != found[0] and one.shape == (len(points),)}
    return Points(str(path), points, columns)


def _table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: no readable Parquet file ({error!s:.120})") from None


def _from_table(path: Path, table: pa.Table) -> Points:
    if not table.num_rows:
        raise UserError(f"{path}: has no row")
    lists = [n for n in table.column_names if _is_list(table.schema.field(n).type) and n in POINT_NAMES]
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
        used = {n for n, kind in kinds.items() if pa.types.is_floating(kind) and n not in _ASIDE}
        if not used:
            wanted = ", ".join(POINT_NAMES)
            raise UserError(f"{path}: has no column of lists called {wanted}, and no columns of floating-point numbers")
        stacked = [table[name].to_numpy() for name in table.column_names if name in used]
        points = as_points(np.stack(stacked, axis=1), what=str(path))
    rest = {n: table[n] for n in table.column_names if n not in used and not _is_list(table.schema.field(n).type)}
    return Points(str(path), points, {name: np.array(one.to_pylist(), dtype=object) for name, one in rest.items()})


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _folder(path: Path) -> Points:
    """Parts of a table, or the images of exported embeddings."""
    inner = path / "images" if (path / "images").is_dir() else path
    parts = sorted(inner.glob("*.parquet")) or sorted(inner.glob("*.npz"))
    if not parts:
        raise UserError(f"{path}: holds no .parquet or .npz files, and no folder 'images' with some")
    read = [read_points(part) for part in parts]
    shared = set.intersection(*(set(one.columns) for one in read))
    columns = {name: np.concatenate([one.columns[name].astype(object) for one in read]) for name in sorted(shared)}
    return Points(str(path), np.concatenate([one.points_ND for one in read]), columns)


def with_labels(points: Points, collection: Path, label: str) -> Points:
    """The points with a label field of a collection as a further column, by the keys of exported embeddings.

    Raises:
        UserError: the points have no keys, or the collection lacks one.
    """
    keys = points.column("key", "column")
    opened = Collection.open(collection)
    values = opened.label_values(label)
    rows = {key: row for row, key in enumerate(opened.keys)}
    missing = [key for key in keys if key not in rows]
    if missing:
        raise UserError(f"{collection}: has no image '{missing[0]}' ({len(missing)} of {len(keys)} are missing)")
    found = np.array([values[rows[key]] for key in keys], dtype=object)
    return Points(points.name, points.points_ND, points.columns | {label: found})


@dataclass(frozen=True)
class Clients:
    """Points by client.

    Attributes:
        names, points: one per client.
        labels: one array per client; None where there are none.
        about: how the points were split, as text.
    """

    names: list[str]
    points: list[NDArray[np.float64]]
    labels: list[NDArray[np.str_]] | None
    about: str

    def sizes(self) -> dict[str, int]:
        """Number of points by client."""
        return {name: len(points) for name, points in zip(self.names, self.points, strict=True)}

    def all_labels(self) -> NDArray[np.str_] | None:
        """Labels of all clients one after another; None where there are none."""
        return None if self.labels is None else np.concatenate([labels.astype(str) for labels in self.labels])

    def digests(self) -> dict[str, str]:
        """Digest of the points by client: what is stored of a run belongs to these points and no others."""
        return {name: digest(points) for name, points in zip(self.names, self.points, strict=True)}


def split_words(words: str) -> tuple[str, float]:
    """`dirichlet:0.3` as ("dirichlet", 0.3).

    Raises:
        UserError: for another name, or without a number where one is needed.
    """
    name, _, number = words.partition(":")
    choose(name, SPLITS, "split")
    if name == "even":
        if number:
            raise UserError(f"split '{words}': even takes no number")
        return name, 0.0
    try:
        return name, float(number)
    except ValueError:
        example = "shards:2" if name == "shards" else f"{name}:0.3"
        raise UserError(f"split '{words}': needs a number, such as {example}") from None


def split_labels(
    labels_N: NDArray[Any] | None, points: int, words: str, clients: int, *, seed: int, smallest: int = 10
) -> Partition:
    """A split for experiments: even, dirichlet:ALPHA, balanced:ALPHA (FedNE's), or shards:CLASSES.

    Raises:
        UserError: a split by labels without labels, or one that cannot be.
    """
    name, number = split_words(words)
    random = generator("partition", seed)
    if name == "even":
        return partition.even(points, clients, random)
    if labels_N is None:
        raise UserError(f"split '{words}' needs labels: name them with --label")
    if name == "shards":
        return partition.shards(labels_N, clients, random, classes=int(number))
    return partition.dirichlet(labels_N, clients, random, alpha=number, smallest=smallest, balanced=name == "balanced")


def split_clients(
    points_ND: NDArray[np.float64], labels_N: NDArray[Any] | None, words: str, clients: int, *, seed: int
) -> Clients:
    """Points of one set over clients, split as `split_labels` says.

    Raises:
        UserError: see `split_labels`.
    """
    found = split_labels(labels_N, len(points_ND), words, clients, seed=seed)
    again = f", {found.draws - 1} redraws" if found.draws > 1 else ""
    return _parted(points_ND, labels_N, found, f"{words} over {clients} clients, seed {seed}{again}")


def _parted(points_ND: NDArray[np.float64], labels_N: NDArray[Any] | None, found: Partition, about: str) -> Clients:
    labels = None if labels_N is None else [labels_N[rows] for rows in found.rows]
    return Clients(found.names, [points_ND[rows] for rows in found.rows], labels, about)


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
    """Clients of one or several sources: one per source, by a column, or by a split of a single source.

    Args:
        label: column of labels, or with `collection` a label field of it. client: column that says whose a row is.
        split: see `split_labels`; with `clients`, how many.

    Raises:
        UserError: for sources, columns or splits that do not fit one another.
    """
    read = [read_points(one) for one in sources]
    if collection is not None:
        if label is None:
            raise UserError("--collection names where labels are: give the field with --label")
        read = [with_labels(one, collection, label) for one in read]
    if label is None and all(str(one) in SETS for one in sources):
        label = "label"
    labels = None if label is None else [one.column(label, "column of labels") for one in read]
    if len(read) > 1:
        if client is not None or split is not None or clients is not None:
            raise UserError("several sources are one client each: --client, --split and --clients have no effect")
        widths = {one.points_ND.shape[1] for one in read}
        if len(widths) > 1:
            listed = ", ".join(f"{one.name}: {one.points_ND.shape[1]}" for one in read)
            raise UserError(f"the sources have different numbers of features ({listed:.300})")
        return Clients([Path(one.name).stem for one in read], [one.points_ND for one in read], labels, "a source each")
    whole, own = read[0], None if labels is None else labels[0]
    if client is not None:
        if split is not None or clients is not None:
            raise UserError("--client says whose each row is: --split and --clients have no effect")
        found = partition.by_id(whole.column(client, "column of clients").tolist())
        return _parted(whole.points_ND, own, found, f"by '{client}'")
    if split is None or clients is None:
        raise UserError(
            f"{whole.name} is one source: say how it is split, with --split and --clients, or with --client"
        )
    return split_clients(whole.points_ND, own, split, clients, seed=seed)
