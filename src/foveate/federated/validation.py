"""Lists with the data of several clients, as the estimators take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foveate.core.errors import UserError


def is_list_of_clients(data: Any) -> bool:
    """Whether data are several clients' arrays and not one array: a list or tuple with an element that has two axes."""
    return isinstance(data, list | tuple) and any(np.ndim(one) >= 2 for one in data if not np.isscalar(one))


def rows_of(data: Any) -> int:
    """How many rows a client's data have; 0 for what has none, such as None."""
    try:
        return len(data)
    except TypeError:
        return 0


def common_columns(parts: Sequence[Any]) -> list[str] | None:
    """Names of the columns of the frames in a list; None where there is no frame, or its columns have no names.

    Data frames of as many columns must have the same ones in the same order: rows of numbers know no names.

    Raises:
        UserError: two do not; names the clients and the first column that differs.
    """
    first, known = 0, None
    for number, part in enumerate(parts):
        names = _columns(part)
        if names is None:
            continue
        if known is None:
            first, known = number, names
        elif len(names) == len(known):
            _compare(names, known, f"client {number}", f"client {first}")
    return known


def check_columns(data: Any, known: Sequence[str]) -> None:
    """Returns where data are no frame, or one with the columns that an estimator was fitted on.

    Raises:
        UserError: other columns, or the same in another order.
    """
    names = _columns(data)
    if names is not None and len(names) == len(known):
        _compare(names, list(known), "the frame", "those that were fitted")


def _columns(data: Any) -> list[str] | None:
    names = list(data.columns) if hasattr(data, "columns") else None
    return names if names and all(isinstance(one, str) for one in names) else None


def _compare(names: list[str], known: list[str], who: str, whom: str) -> None:
    for place, (found, wanted) in enumerate(zip(names, known, strict=True)):
        if found != wanted:
            how = "in another order" if sorted(names) == sorted(known) else "of other names"
            raise UserError(
                f"{who} has columns {how} than {whom}: column {place} is '{found}', not '{wanted}'; "
                "give all clients the same columns in the same order"
            )
