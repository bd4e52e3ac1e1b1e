"""Checks of what users pass as clients' data: lists of arrays, column names, seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from foveate.core.errors import UserError
from foveate.federated.points import MAX_COORDINATE, find_huge
from foveate.metrics.neighbors import as_points


def is_list_of_clients(data: Any) -> bool:
    """Whether data are several clients' arrays, not one array: a list or tuple with an element of two or more axes."""
    return isinstance(data, list | tuple) and any(np.ndim(item) >= 2 for item in data if not np.isscalar(item))


def read_clients(clients: Sequence[ArrayLike], *, limit: float = MAX_COORDINATE) -> list[NDArray[np.float64]]:
    """Points of every client as float64 matrices of one width.

    Args:
        limit: larger values are refused; their squares would be infinite.

    Raises:
        UserError: no client, an empty one, NaN, a huge value, or different widths; names the client.
    """
    if not len(clients):
        raise UserError("no clients; pass a list with the points of each client")
    matrices = [as_points(data, what=f"points of client {number}") for number, data in enumerate(clients)]
    for number, matrix in enumerate(matrices):
        if not len(matrix):
            raise UserError(f"client {number} has no points; leave it out")
        if (position := find_huge(matrix, limit)) is not None:
            row, column = position
            raise UserError(
                f"points of client {number}: row {row}, column {column} is too large (got {matrix[position]:.3g}); "
                f"expected at most {limit:g}"
            )
        # In one process different widths are a mistake; over a network those of most clients count (`compare_sizes`).
        if matrix.shape[1] != matrices[0].shape[1]:
            raise UserError(f"client {number} has {matrix.shape[1]} features; client 0 has {matrices[0].shape[1]}")
    return matrices


def count_rows(data: Any) -> int:
    """Rows of a client's data; 0 for data without a length, such as None."""
    try:
        return len(data)
    except TypeError:
        return 0


def draw_seed(random_state: int | np.random.RandomState | None) -> int:
    """Seed of a fit from scikit-learn's `random_state`: a number as it is, else one drawn from the state."""
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    # 2^31 - 1 is the largest bound on every platform of NumPy's legacy generator.
    return int(check_random_state(random_state).randint(2**31 - 1))


def common_columns(parts: Sequence[Any]) -> list[str] | None:
    """Column names of the data frames in a list; None if there is no frame, or its columns have no names.

    Frames of equal width must have the same columns in the same order, because a model of numeric rows knows no names.

    Raises:
        UserError: two differ; names the clients and the first column that differs.
    """
    first, known = 0, None
    for number, part in enumerate(parts):
        names = _column_names(part)
        if names is None:
            continue
        if known is None:
            first, known = number, names
        # Frames of other widths are refused elsewhere, with their numbers of features.
        elif len(names) == len(known):
            _compare(names, known, f"client {number}", f"client {first}")
    return known


def remember_columns(estimator: Any, clients: Sequence[Any]) -> None:
    """Set scikit-learn's `feature_names_in_` of an estimator to the columns that clients have in common, if they do.

    Raises:
        UserError: see `common_columns`.
    """
    columns = common_columns(clients)
    if columns is not None:
        estimator.feature_names_in_ = np.array(columns, dtype=object)
    elif hasattr(estimator, "feature_names_in_"):
        # Names of an earlier fit would be demanded of arrays that have none.
        del estimator.feature_names_in_


def check_columns(data: Any, known: Sequence[str]) -> None:
    """Raise UserError if a data frame has other columns than those fitted, or another order."""
    names = _column_names(data)
    if names is not None and len(names) == len(known):
        _compare(names, list(known), "the frame", "those that were fitted")


def _column_names(data: Any) -> list[str] | None:
    names = list(data.columns) if hasattr(data, "columns") else None
    return names if names and all(isinstance(name, str) for name in names) else None


def _compare(names: list[str], known: list[str], who: str, whom: str) -> None:
    for index, (name, expected) in enumerate(zip(names, known, strict=True)):
        if name != expected:
            how = "in another order" if sorted(names) == sorted(known) else "of other names"
            raise UserError(
                f"{who} has columns {how} than {whom}: column {index} is '{name}', not '{expected}'; "
                "give all clients the same columns in the same order"
            )
