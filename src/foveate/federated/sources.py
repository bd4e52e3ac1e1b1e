"""Points from public sets and files (arrays, Parquet tables, AnnData, exported embeddings), and splits over clients.

| source | points | labels, clients |
|---|---|---|
| `digits`, `mnist-5k`, `fashion-mnist`, `pbmc68k` | see `public_sets` | `label` |
| folder with MNIST's files | its training part, pixels from 0 to 1 | `label` |
| `x.npy` | the matrix | |
| `x.npz` | array `points`, `embedding`, `embeddings`, `features` or `X` | arrays of any name, one entry per row |
| `x.csv` | the columns of decimal numbers, or those that the user names | columns of any name |
| `x.parquet`, folder of them | a column of lists of these names, else as for `x.csv` | columns of any name |
| `x.h5ad` | the principal components `X_pca` (extra `cells`) | every column of `obs` |
| folder of `foveate export --to embeddings` | its images | by key from a collection |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError, choose, nearest
from foveate.core.seeds import generator
from foveate.federated import partition
from foveate.federated.array_files import read_npy, read_npz
from foveate.federated.h5ad import read_h5ad
from foveate.federated.partition import MAX_DRAWS, MIN_POINTS, Partition
from foveate.federated.points import Feature, Points, ReadOptions, as_matrix, match_columns
from foveate.federated.public_sets import FASHION_IMAGES, SETS, fashion_mnist
from foveate.federated.store import digest
from foveate.federated.tables import POINT_NAMES, read_csv, read_parquet, table_points
from foveate.records.collection import Collection

_SUFFIXES = "a .npy, .npz, .csv, .parquet or .h5ad"
SPLITS = ("even", "dirichlet", "balanced", "shards")


def read_points(source: str | Path, options: ReadOptions | None = None, *, others: Sequence[str] = ()) -> Points:
    """Read one source.

    Args:
        options: which columns are points, what becomes of missing values, the largest size.
        others: columns of a table that are no points, such as labels and clients.

    Raises:
        UserError: an unknown kind of source, a damaged one, one that is too large, columns that may be points or
            labels, or a missing, infinite or huge value; names it and what is allowed.

    Example:
        >>> table = new_folder.with_suffix(".csv")
        >>> _ = table.write_text("id,lab_a,lab_b\\n1,0.5,1.5\\n2,2.5,\\n")
        >>> points = read_points(table, ReadOptions(columns=("lab_*",), drop_missing=True))
        >>> points.points_ND.tolist(), points.rows.tolist()
        ([[0.5, 1.5]], [0])
    """
    options = options or ReadOptions()
    return _read(source, options, others).finished(options, others)


def _read(source: str | Path, options: ReadOptions, others: Sequence[str]) -> Points:
    path, name = Path(source), str(source)
    is_set = name in SETS or (path / FASHION_IMAGES).is_file()
    if path.is_dir() and not is_set:
        return _folder(path, options, others)
    if not path.is_file() and not is_set:
        kinds = f"a source is {', '.join(SETS)}, {_SUFFIXES} file, or a folder"
        raise UserError(f"{source}: no such file; {kinds}{nearest(name, SETS)}")
    suffix = "" if is_set else path.suffix.lower()
    if options.columns and suffix in ("", ".npy", ".npz", ".h5ad"):
        raise UserError(f"{source}: its columns have no names; --columns is for .csv and .parquet tables")
    if is_set:
        return Points(name, *(SETS[name]() if name in SETS else fashion_mnist(path)))
    match suffix:
        case ".npy":
            return Points(name, as_matrix(read_npy(path, options), name))
        case ".npz":
            key, arrays = read_npz(path, options, POINT_NAMES)
            points_ND = as_matrix(arrays.pop(key), f"{path}: {key}")
            return Points(
                name, points_ND, {key: values for key, values in arrays.items() if len(values) == len(points_ND)}
            )
        case ".parquet":
            return table_points(name, read_parquet(path, options), options, others)
        case ".csv" | ".tsv":
            return table_points(name, read_csv(path, options), options, others)
        case ".h5ad":
            return Points(name, *read_h5ad(path, options))
    raise UserError(f"{path}: must be {_SUFFIXES} file")


def _folder(path: Path, options: ReadOptions, others: Sequence[str]) -> Points:
    """Read parts of a table, or the images of exported embeddings."""
    # An export holds images and phrases apart; only the images are points.
    inner = path / "images" if (path / "images").is_dir() else path
    # Sorted by name, the order in which an export was written.
    parts = sorted(inner.glob("*.parquet")) or sorted(inner.glob("*.npz"))
    if not parts:
        raise UserError(f"{path} has no .parquet or .npz files, and no folder 'images' with some")
    read: list[Points] = []
    for part in parts:
        if not part.is_file():
            raise UserError(f"{part}: is no file")
        points = _read(part, options, others)
        first = read[0] if read else points
        if points.features != first.features:
            raise UserError(f"{part}: has other columns than {first.name} ({_listed(points)}; {_listed(first)})")
        read.append(points)
        options.check_size(str(path), sum(points.points_ND.size * 8 for points in read))
    # Parts of one table may differ in columns; only what all of them have can be joined.
    shared = set.intersection(*(set(part.columns) for part in read))
    columns = {name: np.concatenate([part.columns[name].astype(object) for part in read]) for name in sorted(shared)}
    points_ND = np.concatenate([part.points_ND for part in read])
    return Points(str(path), points_ND, columns, read[0].features, read[0].aside)


def _listed(points: Points) -> str:
    return ", ".join(points.names()[:10]) or f"{points.points_ND.shape[1]} without names"


def with_labels(points: Points, collection: Path, label: str) -> Points:
    """Add a label field of a collection as a column, by the keys of exported embeddings.

    Raises:
        UserError: the points have no keys, or the collection lacks one.
    """
    keys = points.column("key", "column")
    opened = Collection.open(collection)
    values = opened.label_values(label)
    # Match by key, not by row: an export may hold one split only, in an order of its own.
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
        aside: columns of the first source that are no points, and why.
        rows: row of the source of each point of each client where rows were left out; else None.
    """

    names: list[str]
    points: list[NDArray[np.float64]]
    labels: list[NDArray[np.str_]] | None
    about: str
    features: list[tuple[Feature, ...]] = field(default_factory=list)
    aside: dict[str, str] = field(default_factory=dict)
    rows: list[NDArray[np.int64]] | None = None

    def column_lines(self) -> list[str]:
        """Say which columns are points and which are not; nothing where sources have no names."""
        names = [feature.name for feature in self.features[0] if feature.name] if self.features else []
        if not names:
            return []
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        lines = [f"points: {', '.join(names[:20])}{more}"]
        if self.aside:
            aside = [f"{name} ({reason})" for name, reason in self.aside.items()]
            more = f" and {len(aside) - 20} more" if len(aside) > 20 else ""
            lines.append(f"not points: {', '.join(aside[:20])}{more}")
        return lines

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
    labels_N: NDArray[Any] | None,
    points: int,
    split: str,
    clients: int,
    *,
    seed: int,
    min_points: int = MIN_POINTS,
    max_draws: int = MAX_DRAWS,
) -> Partition:
    """Split rows for an experiment: even, dirichlet:ALPHA, balanced:ALPHA (FedNE's), or shards:CLASSES.

    Args:
        min_points, max_draws: of a Dirichlet split, see `partition.dirichlet`.

    Raises:
        UserError: a split by labels without labels, or one that cannot be.
    """
    name, number = parse_split(split)
    # A stream of its own: the same seed splits the same way, whatever else a run draws.
    random = generator("partition", seed)
    if name == "even":
        return partition.even(points, clients, random)
    if labels_N is None:
        raise UserError(f"split '{split}' needs labels: name them with --label")
    if name == "shards":
        return partition.shards(labels_N, clients, random, classes=int(number))
    return partition.dirichlet(
        labels_N,
        clients,
        random,
        alpha=number,
        min_points=min_points,
        max_draws=max_draws,
        balanced=name == "balanced",
    )


def split_clients(
    points: Points | NDArray[np.float64],
    labels_N: NDArray[Any] | None,
    split: str,
    clients: int,
    *,
    seed: int,
    min_points: int = MIN_POINTS,
    max_draws: int = MAX_DRAWS,
) -> Clients:
    """Split the points of one set over clients, see `split_labels`.

    Raises:
        UserError: see `split_labels`.
    """
    whole = points if isinstance(points, Points) else Points("points", points)
    parts = split_labels(
        labels_N, len(whole.points_ND), split, clients, seed=seed, min_points=min_points, max_draws=max_draws
    )
    # Reported, because a split that was redrawn until clients were large enough is not a plain Dirichlet draw.
    again = f", {parts.draws - 1} redraws" if parts.draws > 1 else ""
    return _select(whole, labels_N, parts, f"{split} over {clients} clients, seed {seed}{again}")


def _select(whole: Points, labels_N: NDArray[Any] | None, parts: Partition, about: str) -> Clients:
    labels = None if labels_N is None else [labels_N[rows] for rows in parts.rows]
    points = [whole.points_ND[rows] for rows in parts.rows]
    source_rows = None if whole.rows is None else [whole.rows[rows] for rows in parts.rows]
    features = [whole.features] * len(parts.rows)
    return Clients(parts.names, points, labels, about, features, whole.aside, source_rows)


def gather(
    sources: Sequence[str | Path],
    *,
    label: str | None = None,
    client: str | None = None,
    split: str | None = None,
    clients: int | None = None,
    collection: Path | None = None,
    align_columns: bool = False,
    seed: int = 0,
    min_points: int = MIN_POINTS,
    max_draws: int = MAX_DRAWS,
    options: ReadOptions | None = None,
) -> Clients:
    """Read clients from one or several sources: one per source, by a column, or by a split of a single source.

    Args:
        label: column of labels, or with `collection` a label field of it.
        client: column that names the client of each row.
        split: see `split_labels`.
        clients: number of clients of a split.
        collection: of the labels of exported embeddings.
        align_columns: reorder the columns of several sources by name, as in the first; else another order is an error.
        min_points, max_draws: of a Dirichlet split, see `partition.dirichlet`.
        options: how the sources are read.

    Raises:
        UserError: sources, columns or splits that do not fit one another.
    """
    if collection is not None and label is None:
        raise UserError("--collection needs --label, the label field")
    # With --collection, the label is a field of the collection, not a column of the sources.
    others = [name for name in (client, None if collection is not None else label) if name is not None]
    read = [read_points(source, options, others=others) for source in sources]
    if collection is not None and label is not None:
        read = [with_labels(points, collection, label) for points in read]
    # Public sets have one known column of labels, so no option is needed to measure against it.
    if label is None and all(str(source) in SETS for source in sources):
        label = "label"
    labels = None if label is None else [points.column(label, "column of labels") for points in read]
    gathered = _gather_several(read, labels, client, split, clients, align_columns) if len(read) > 1 else None
    if gathered is None:
        whole, first_labels = read[0], None if labels is None else labels[0]
        if client is not None:
            if split is not None or clients is not None:
                raise UserError("--client names the client of each row: --split and --clients have no effect")
            parts = partition.by_id(whole.column(client, "column of clients").tolist())
            gathered = _select(whole, first_labels, parts, f"by '{client}'")
        elif split is None or clients is None:
            raise UserError(
                f"{whole.name} is a single source; split it with --split and --clients, or by a column with --client"
            )
        else:
            gathered = split_clients(
                whole, first_labels, split, clients, seed=seed, min_points=min_points, max_draws=max_draws
            )
    dropped = sum(points.num_dropped for points in read)
    return (
        replace(gathered, about=f"{gathered.about}, {dropped} rows with missing values left out")
        if dropped
        else gathered
    )


def _gather_several(
    read: Sequence[Points],
    labels: list[NDArray[np.str_]] | None,
    client: str | None,
    split: str | None,
    clients: int | None,
    align_columns: bool,
) -> Clients:
    """One client per source."""
    if client is not None or split is not None or clients is not None:
        raise UserError("several sources are one client each: --client, --split and --clients have no effect")
    # Compared here, where the sources have names; later there are only numbers of clients.
    widths = {points.points_ND.shape[1] for points in read}
    if len(widths) > 1:
        listed = ", ".join(f"{points.name}: {points.points_ND.shape[1]}" for points in read)
        raise UserError(f"the sources have different numbers of features ({listed:.300})")
    rows = None
    if any(points.rows is not None for points in read):
        rows = [np.arange(len(points.points_ND)) if points.rows is None else points.rows for points in read]
    names, features = [points.name for points in read], [points.features for points in read]
    matched = match_columns(names, [points.points_ND for points in read], features, align=align_columns)
    return Clients(
        [Path(name).stem for name in names],
        matched,
        labels,
        "a source each",
        # After matching, all sources have the columns of the first, in its order.
        [features[0] for _ in read],
        read[0].aside,
        rows,
    )
