"""Points of one source: a matrix, the names and types of its columns, and what else each row has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError, nearest

NUMBER, BOOLEAN = "number", "boolean"


@dataclass(frozen=True)
class Feature:
    """A column of a matrix of points.

    Attributes:
        name: "" where a source has no names, such as a .npy file.
        type: number or boolean. Whole and decimal numbers are one type: whether a column of 36 and 37.5 is whole
            depends on which rows a client happens to hold.
    """

    name: str = ""
    type: Literal["number", "boolean"] = "number"


@dataclass(frozen=True)
class Points:
    """Points of one source.

    Attributes:
        name: of the source.
        columns: everything else that has one entry per row, as strings or numbers.
        features: name and type of each column of the matrix, in its order.
    """

    name: str
    points_ND: NDArray[np.float64]
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    features: tuple[Feature, ...] = ()

    def __post_init__(self) -> None:
        if not self.features:
            object.__setattr__(self, "features", (Feature(),) * self.points_ND.shape[1])
        assert len(self.features) == self.points_ND.shape[1]

    def column(self, name: str, what: str) -> NDArray[np.str_]:
        """Return a column as strings.

        Raises:
            UserError: there is no such column.
        """
        if name not in self.columns:
            listed = ", ".join(sorted(self.columns)) or "none"
            raise UserError(f"{self.name}: no {what} '{name}'; there are {listed}{nearest(name, self.columns)}")
        return self.columns[name].astype(str)
