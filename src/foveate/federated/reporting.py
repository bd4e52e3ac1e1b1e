"""Common parts of the run folders of all three verbs: recipe, measures against labels, map samples, tables."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel

from foveate.core.errors import UserError, choose
from foveate.core.files import atomic_file
from foveate.core.progress import say
from foveate.core.seeds import generator
from foveate.federated.results import GroupMap
from foveate.federated.sources import Clients
from foveate.metrics import clustering as metrics

Floats = NDArray[np.floating]
Labels = NDArray[np.int64]
MAX_POINTS = 4000
"""Points on a map; of more, a random sample of each client in proportion."""


def infer_clusters(clients: Clients, clusters: int | None) -> int:
    """K as passed, else the number of distinct labels.

    Raises:
        UserError: neither is known.
    """
    if clusters is not None:
        return clusters
    labels = clients.all_labels()
    if labels is None:
        raise UserError("number of clusters unknown: pass --clusters, or --label, whose distinct values are counted")
    return len(np.unique(labels))


def list_methods(method: str, baselines: Sequence[str], known: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Return the run's method, then the baselines, each once.

    Raises:
        UserError: an unknown baseline.
    """
    for name in baselines:
        choose(name, known, "method")
    return [method, *(name for name in dict.fromkeys(baselines) if name != method)]


def describe_run(clients: Clients, baselines: Sequence[str], options: BaseModel, **more: Any) -> dict[str, Any]:
    """Content of recipe.yaml: all that decides a run, the data's digests too, so that a run folder refuses others."""
    return {
        "clients": clients.sizes(),
        "data": clients.digests(),
        "split": clients.about,
        "baselines": list(baselines),
        **more,
        "options": options.model_dump(mode="json"),
    }


@contextmanager
def warnings_as_progress() -> Iterator[None]:
    """Print warnings as lines of progress, each text once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    # Printed after the block and each once: many clients raise the same warning, in the middle of a progress bar.
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        say(text)


def compare_with_labels(labels_N: NDArray[Any], groups_N: Labels) -> dict[str, float]:
    """NMI, ARI and purity of groups."""
    return {
        "nmi": metrics.normalized_mutual_information(labels_N, groups_N),
        "ari": metrics.adjusted_rand_index(labels_N, groups_N),
        "purity": metrics.purity(labels_N, groups_N),
    }


def projection_axes(centers_KD: Floats) -> tuple[Floats, Floats]:
    """Origin [D] and two directions [D, 2] of a plane map.

    With one or two features these are the data's own, else the principal axes of the centers: a server, which sees
    centers but no point, can draw the same map.
    """
    width = centers_KD.shape[1]
    if width <= 2:
        return np.zeros(width), np.eye(width, 2)
    # Principal axes of the centers show groups apart; those of the points would need the points.
    mean_D = centers_KD.mean(0)
    _, _, directions = np.linalg.svd(centers_KD - mean_D, full_matrices=False)
    axes_D2 = np.zeros((width, 2))
    axes_D2[:, : min(2, len(directions))] = directions[:2].T
    return mean_D, axes_D2


def project(points_ND: Floats, axes: tuple[Floats, Floats]) -> list[list[float]]:
    """Plane positions, rounded: four digits are finer than a pixel and keep result.json small."""
    origin_D, axes_D2 = axes
    return np.round((points_ND - origin_D) @ axes_D2, 4).tolist()


def sample_map(
    clients: Clients,
    points: Sequence[Floats],
    groups: Sequence[Labels],
    centers_KD: Floats,
    *,
    seed: int,
    prepare: Callable[[Any], Any] = lambda rows: rows,
    sent: Sequence[Floats] = (),
) -> GroupMap:
    """Map of a sample of points, of all centers and of what clients sent.

    Args:
        points: [N, D] per client; D is that of the centers.
        prepare: applied to the sampled points.
    """
    axes = projection_axes(centers_KD)
    # One share for all clients, so that a large client looks large on the map.
    share = min(1.0, MAX_POINTS / sum(len(part) for part in points))
    positions, owners, group_list, labels = [], [], [], []
    for number, part in enumerate(points):
        # Draw at least one point: a small client must not vanish from the map.
        count = max(1, round(share * len(part)))
        # The same rows for every method and every run of this seed, so that maps can be compared.
        rows = np.sort(generator("map", seed, number).permutation(len(part))[:count])
        positions += project(prepare(part[rows]), axes)
        owners += [number] * len(rows)
        group_list += groups[number][rows].tolist()
        labels += clients.labels[number][rows].astype(str).tolist() if clients.labels is not None else []
    return GroupMap(
        positions=positions,
        owners=owners,
        groups=group_list,
        labels=labels or None,
        centers=project(centers_KD, axes),
        sent=project(np.concatenate(sent), axes) if sent else [],
        projected=centers_KD.shape[1] > 2,
    )


def row_columns(clients: Clients) -> dict[str, Any]:
    """Columns that name each row: client, row, label if there is one, row of the source if rows were left out."""
    sizes = [len(points) for points in clients.points]
    columns: dict[str, Any] = {
        "client": np.repeat(np.array(clients.names, dtype=object), sizes).tolist(),
        "row": np.concatenate([np.arange(size) for size in sizes]),
    }
    if clients.rows is not None:
        columns["source_row"] = np.concatenate(clients.rows)
    labels = clients.all_labels()
    return columns if labels is None else columns | {"label": labels.tolist()}


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write a Parquet file atomically."""
    with atomic_file(path) as handle:
        pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), handle)
