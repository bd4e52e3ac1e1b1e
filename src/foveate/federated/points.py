"""Points of one source with their columns, and the matching of columns among clients.

Columns are matched by their position. Where they have names, clients send a digest of names and types, never the names;
short names can be guessed from it. A server compares the digests, and clients may sort their columns by name.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from foveate.core.errors import UserError, nearest
from foveate.core.recipes import Settings, validate

MAX_COORDINATE = 1e30
"""No measurement is larger in any unit; a larger coordinate is a mistake or an attack, which take centers along."""
GIB = 1 << 30
READ_FIELDS = {"columns": "columns", "drop-missing": "drop_missing", "max-gib": "max_gib"}
"""Fields of a network node's configuration that are options of reading, and their names here."""


class ReadOptions(Settings):
    """Options for reading sources.

    Example:
        >>> ReadOptions(columns=("lab_*", "age"), drop_missing=True).max_gib
        1.0
    """

    columns: tuple[str, ...] = Field(
        (),
        description="columns of a table that are the points; patterns such as lab_* and exclusions such as !id work; "
        "all columns of decimal numbers by default",
    )
    drop_missing: bool = Field(
        False, description="skip rows with missing values; without this option they are an error"
    )
    max_gib: float = Field(
        1.0,
        gt=0,
        le=4096,
        description="refuse sources larger than this many GiB (8 bytes per number) before reading them",
    )

    @property
    def max_bytes(self) -> int:
        """Bound of what is read, in bytes."""
        return int(self.max_gib * GIB)

    def check_size(self, what: str, num_bytes: int) -> None:
        """Raise UserError if something is larger than `max_gib`, before memory is taken for it."""
        if num_bytes > self.max_bytes:
            raise UserError(
                f"{what}: {num_bytes / GIB:,.4g} GiB are more than --max-gib {self.max_gib:g}; raise it if the memory "
                "is there"
            )

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> ReadOptions:
        """Read the options in the configuration of a network node.

        Raises:
            UserError: a value that is not allowed.
        """
        content = {name: config[key] for key, name in READ_FIELDS.items() if key in config}
        columns = content.get("columns", ())
        if not isinstance(columns, tuple):  # a policy has a list, in which a name may hold a comma
            # Flower's configurations hold single values only, so a list of columns arrives as one text.
            content["columns"] = tuple(part.strip() for part in str(columns).split(",") if part.strip())
        return validate(cls, content, where="the node's configuration")


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
        columns: everything else that has one entry per row, as strings or numbers; None is missing.
        features: name and type of each column of the matrix, in its order.
        aside: columns of a table that are no points, and why.
        rows: row of the source of each point where rows were dropped; else None.
        num_dropped: number of rows that were dropped.
    """

    name: str
    points_ND: NDArray[np.float64]
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    features: tuple[Feature, ...] = ()
    aside: dict[str, str] = field(default_factory=dict)
    rows: NDArray[np.int64] | None = None
    num_dropped: int = 0

    def __post_init__(self) -> None:
        if not self.features:
            object.__setattr__(self, "features", (Feature(),) * self.points_ND.shape[1])
        assert len(self.features) == self.points_ND.shape[1]

    def column(self, name: str, what: str) -> NDArray[np.str_]:
        """Return a column as strings.

        Raises:
            UserError: there is no such column, or a row has nothing in it.
        """
        if name not in self.columns:
            listed = ", ".join(sorted(self.columns)) or "none"
            raise UserError(f"{self.name}: no {what} '{name}'; there are {listed}{nearest(name, self.columns)}")
        missing_N = is_missing(self.columns[name])
        if missing_N.any():
            raise UserError(
                f"{self.name}: {what} '{name}' is empty in {missing_N.sum():,} rows, the first is row "
                f"{int(missing_N.argmax())}; --drop-missing leaves them out"
            )
        return self.columns[name].astype(str)

    def names(self) -> list[str]:
        """Names of the features; empty where the source has none."""
        return [feature.name for feature in self.features if feature.name]

    def finished(self, options: ReadOptions, others: Sequence[str] = ()) -> Points:
        """The points without rows of missing values, if the options say so, and with all values checked.

        Args:
            others: columns besides the points that must not be missing, such as labels.

        Raises:
            UserError: a missing, infinite or huge value; names row and column.
        """
        if self.points_ND.size:
            options.check_size(self.name, self.points_ND.size * 8)
        missing_N = np.isnan(self.points_ND).any(axis=1)
        if options.drop_missing:
            # Without --drop-missing, `Points.column` refuses a missing label and names its row.
            for name in others:
                if name in self.columns:
                    missing_N |= is_missing(self.columns[name])
        points = self
        if options.drop_missing and missing_N.any():
            rows = np.flatnonzero(~missing_N)
            points = replace(
                self,
                points_ND=self.points_ND[rows],
                columns={name: column[rows] for name, column in self.columns.items()},
                rows=rows,
                num_dropped=int(missing_N.sum()),
            )
        elif missing_N.any():
            row = int(missing_N.argmax())
            column = int(np.isnan(self.points_ND[row]).argmax())
            raise UserError(
                f"{self.name}: row {row}, {self._title(column)} is missing (NaN); {missing_N.sum():,} of "
                f"{len(self.points_ND):,} rows have a missing value; --drop-missing leaves them out"
            )
        if not len(points.points_ND):
            raise UserError(f"{self.name} has no rows{' without a missing value' if options.drop_missing else ''}")
        points._check_magnitudes()
        return points

    def _check_magnitudes(self) -> None:
        """Raise UserError for infinite values, and for those whose squares would be."""
        position = find_huge(self.points_ND)
        if position is not None:
            row, column = position
            # The row number in the file, where the user looks for it: rows above it may have been dropped.
            source_row = row if self.rows is None else int(self.rows[row])
            raise UserError(
                f"{self.name}: row {source_row}, {self._title(column)} is infinite or too large (got "
                f"{self.points_ND[position]:.3g}); expected at most {MAX_COORDINATE:g}"
            )

    def _title(self, column: int) -> str:
        name = self.features[column].name
        return f"column '{name}'" if name else f"column {column}"


def find_huge(points_ND: NDArray[np.floating], limit: float = MAX_COORDINATE) -> tuple[int, int] | None:
    """Row and column of the first value that is infinite, or beyond a limit where its square may be."""
    # Looked for before any work: one such value ends a run in its last step, when distances become infinite.
    # In parts: absolute values and mask of all points at once would take as much memory again.
    for start in range(0, len(points_ND), 4096):
        # Negated, so that NaN counts as huge.
        huge = ~(np.abs(points_ND[start : start + 4096]) <= limit)
        if huge.any():
            row, column = np.argwhere(huge)[0]
            return start + int(row), int(column)
    return None


def is_missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark the entries of a column that are None or NaN, [N]."""
    if values.dtype.kind == "f":
        return np.isnan(values)
    if values.dtype.kind != "O":
        return np.zeros(len(values), dtype=bool)
    # NaN is the only number that differs from itself; `math.isnan` would fail for texts.
    return np.array([value is None or (isinstance(value, float) and value != value) for value in values], dtype=bool)


def as_matrix(values: NDArray[Any], what: str) -> NDArray[np.float64]:
    """Convert an array of a file to float64 [N, D]; NaN stays, as a missing value.

    Raises:
        UserError: complex numbers, dates, strings or anything else that is no number, or another shape.
    """
    if values.dtype.kind not in "biuf":
        raise UserError(f"{what}: must be real numbers (got {values.dtype})")
    if values.ndim != 2 or values.shape[1] < 1:
        raise UserError(f"{what}: must be a matrix [points, features] (got shape {list(values.shape)})")
    return values.astype(np.float64)


def as_points(data: ArrayLike) -> NDArray[np.float64]:
    """Read a client's data as float64 points [N, D].

    Raises:
        UserError: no point, another shape, not numbers, NaN, or numbers too large to square.
    """
    array = np.asarray(data)
    # Strings and objects would be converted number by number, or fail in the middle of the k-means.
    if array.dtype.kind not in "biuf":
        raise UserError(f"the data must be numbers (got {array.dtype})")
    if array.ndim != 2:
        raise UserError(f"the data must be [points, features] (got shape {list(array.shape)})")
    if array.size == 0:
        raise UserError(f"the data are empty (shape {list(array.shape)})")
    points = np.ascontiguousarray(array, dtype=np.float64)
    largest = np.abs(points).max()
    if not largest <= MAX_COORDINATE:  # written with `not`, so that NaN fails too
        row = int(np.flatnonzero(~(np.abs(points) <= MAX_COORDINATE).all(1))[0])
        raise UserError(f"the data have NaN, infinite or huge values, the first in row {row}")
    return points


HELP = "give the columns the same names and order, or let every client pass --align-columns (align-columns=true)"


@dataclass(frozen=True)
class ColumnDigests:
    """Digests of columns with names; "" where one has no name.

    Attributes:
        ordered: of names and types in their order. unordered: of the same, sorted.
    """

    ordered: str = ""
    unordered: str = ""

    @classmethod
    def of(cls, features: Sequence[Feature]) -> ColumnDigests:
        """Digests of these columns."""
        if not features or any(not feature.name for feature in features):
            return cls()
        pairs = [[feature.name, feature.type] for feature in features]
        ordered, unordered = (
            # 128 bits are enough to tell columns apart; a longer digest would not make names harder to guess.
            hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:32]
            for listed in (pairs, sorted(pairs))
        )
        return cls(ordered, unordered)


def find_mismatches(digests: Mapping[int, ColumnDigests]) -> dict[int, str]:
    """Reasons by client whose columns differ from those of most clients; columns without names are not compared.

    Raises:
        UserError: the columns differ, and no more than half of the clients agree.
    """
    named = {client: digest for client, digest in digests.items() if digest.ordered}
    if not named:
        return {}
    usual, votes = Counter(digest.ordered for digest in named.values()).most_common(1)[0]
    if votes == len(named):
        return {}
    # Half is no majority: if two clients differ, nothing shows which one is right.
    if 2 * votes <= len(named):
        raise UserError(f"columns: the clients' names, order or types differ and no majority agrees; {HELP}")
    unordered = next(digest.unordered for digest in named.values() if digest.ordered == usual)
    return {
        client: (
            "its columns are in another order than those of most clients; let every client pass --align-columns"
            if digest.unordered == unordered
            else "its columns have other names or types than those of most clients"
        )
        for client, digest in named.items()
        if digest.ordered != usual
    }


def sort_columns(points: Points) -> Points:
    """Sort the columns by name, which is the same order at every client that does so.

    Raises:
        UserError: a column without a name, or two of one name.
    """
    names = [feature.name for feature in points.features]
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"{points.name}: columns cannot be aligned, because some have no name or the same name")
    order = np.argsort(np.array(names))
    features = tuple(points.features[index] for index in order)
    return replace(points, points_ND=np.ascontiguousarray(points.points_ND[:, order]), features=features)


def match_columns(
    names: Sequence[str], points: Sequence[NDArray[np.float64]], features: Sequence[Sequence[Feature]], *, align: bool
) -> list[NDArray[np.float64]]:
    """Points of clients in one process with the columns of the first; reordered by name with `align`.

    Args:
        names: of the clients, for errors.

    Raises:
        UserError: columns of other names, types or order; names the client and the first column that differs.
    """
    first = list(features[0])
    matched = []
    for name, matrix, client_features in zip(names, points, features, strict=True):
        columns = list(client_features)
        # Without names only the position is left to match by.
        if columns == first or not all(feature.name for feature in (*first, *columns)):
            matched.append(matrix)
            continue
        if align and len(set(first)) == len(first) and set(columns) == set(first):
            matched.append(np.ascontiguousarray(matrix[:, [columns.index(feature) for feature in first]]))
            continue
        index = next(i for i, (a, b) in enumerate(zip(columns, first, strict=True)) if a != b)
        is_order = set(columns) == set(first)
        how = "in another order than" if is_order else "other names or types than"
        help_text = "pass --align-columns to reorder them by name" if is_order else "rename them"
        raise UserError(
            f"{name}: columns: {how} {names[0]}, the first at {index} (got '{columns[index].name}', a "
            f"{columns[index].type}); expected '{first[index].name}', a {first[index].type}; {help_text}"
        )
    return matched
