"""Groups of classes: fine-tuned on (S), absent from the fine-tuning data (U), and the rest (R); strict checks.

Logits are arrays [N, C]; nothing here copies all of them, so that 50,000 samples of 1,000 classes in float32 (200 MB)
stay 200 MB: rows are checked and converted to float64 in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError, nearest
from foveate.core.labels import as_class_labels

SEEN, ABSENT, REST = 0, 1, 2
_NUMBERS_PER_CHUNK = 1 << 21  # 16 MB in float64
_ROWS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class ClassGroups:
    """Disjoint groups of the classes 0..C-1.

    Attributes:
        seen: S, the classes of the fine-tuning data, rising.
        absent: U, the classes whose logits gamma shifts, rising.
        rest: R, all others: neither shifted nor left out where "all columns" are meant, rising.
        classes: C.

    Example:
        >>> groups = ClassGroups.of([0, 2], classes=4)  # fine-tuned on the first and the third
        >>> groups.absent.tolist()
        [1, 3]
    """

    seen: NDArray[np.int64]
    absent: NDArray[np.int64]
    rest: NDArray[np.int64]
    classes: int

    @classmethod
    def of(cls, seen: ArrayLike, *, classes: int, absent: ArrayLike | None = None) -> ClassGroups:
        """Group classes by their numbers.

        Args:
            seen: at least one.
            absent: all that are not seen, where None.

        Raises:
            UserError: a class outside 0..C-1 or named twice, the same class in both groups, no seen class.
        """
        seen_S = _indices(seen, classes=classes, what="seen classes")
        if len(seen_S) == 0:
            raise UserError("seen classes: none was given; name the classes that the fine-tuning data covered")
        everything = np.arange(classes)
        absent_U = (
            np.setdiff1d(everything, seen_S)
            if absent is None
            else _indices(absent, classes=classes, what="absent classes")
        )
        both = np.intersect1d(seen_S, absent_U)
        if len(both):
            raise UserError(
                f"seen and absent classes overlap in {len(both)} ({_some(both)}); expected each class in one of them"
            )
        return cls(seen_S, absent_U, np.setdiff1d(everything, np.concatenate([seen_S, absent_U])), classes)

    @property
    def not_absent(self) -> NDArray[np.int64]:
        """S and R together, rising."""
        return np.union1d(self.seen, self.rest)

    @property
    def of_class(self) -> NDArray[np.int8]:
        """SEEN, ABSENT or REST for each class, shape [C]."""
        groups_C = np.full(self.classes, REST, dtype=np.int8)
        groups_C[self.seen], groups_C[self.absent] = SEEN, ABSENT
        return groups_C

    def need_absent(self, purpose: str) -> None:
        """Raise UserError where U is empty."""
        if len(self.absent) == 0:
            raise UserError(f"{purpose} needs at least one absent class: all {self.classes} classes are seen")


def _indices(values: ArrayLike, *, classes: int, what: str) -> NDArray[np.int64]:
    numbers_K = np.asarray(values)
    # NumPy makes an empty list float64, which the check of the type would refuse.
    if numbers_K.size == 0:
        return np.zeros(0, dtype=np.int64)
    if numbers_K.ndim != 1 or numbers_K.dtype.kind not in "iu":
        raise UserError(f"{what}: not a list of class numbers (got {numbers_K.dtype} of shape {list(numbers_K.shape)})")
    outside = numbers_K[(numbers_K < 0) | (numbers_K >= classes)]
    if len(outside):
        raise UserError(f"{what}: {_some(outside)} lie outside the {classes} columns, 0 to {classes - 1}")
    unique, counts = np.unique(numbers_K, return_counts=True)
    if (counts > 1).any():
        raise UserError(f"{what}: class {unique[counts > 1][0]} is named twice")
    return unique.astype(np.int64)


def _some(values: NDArray[Any], max_values: int = 5) -> str:
    listed = ", ".join(str(value) for value in values[:max_values].tolist())
    return listed + (", ..." if len(values) > max_values else "")


def as_logits(logits_NC: ArrayLike, *, what: str = "logits", finite: bool = True) -> NDArray[Any]:
    """Convert logits to an array [N, C] of any real type, without a copy if it is one.

    Args:
        finite: check all values here; False where the caller goes through `chunks`, which checks.

    Raises:
        UserError: another shape, no sample, no column, no numbers, NaN or infinities (their count and first row).
    """
    logits = np.asarray(logits_NC)
    if logits.ndim != 2 or 0 in logits.shape:
        raise UserError(
            f"{what}: wrong shape (got {list(logits.shape)}); expected [samples, classes], at least one of each"
        )
    if logits.dtype.kind not in "fiu":
        raise UserError(f"{what}: not real numbers (got {logits.dtype})")
    if finite:
        for _ in chunks(logits, what=what):
            pass
    return logits


def as_labels(labels_N: ArrayLike, *, rows: int, classes: int, what: str = "labels") -> NDArray[np.int64]:
    """Convert labels to class numbers [N].

    Raises:
        UserError: another number of them than of rows, no whole numbers, or one outside 0..C-1 (the first is named).
    """
    labels = as_class_labels(labels_N, what=what, numbers=True)
    if labels.shape != (rows,):
        raise UserError(f"{what}: there are {rows} rows of logits, but labels of shape {list(labels.shape)}")
    # NumPy would read -1, a common mark for "none", as the last column.
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        raise UserError(
            f"{what}: {len(outside)} lie outside the {classes} columns of the logits, "
            f"first {labels[outside[0]]} in row {outside[0]}"
        )
    return labels.astype(np.int64, copy=False)


def chunks(logits_NC: NDArray[Any], *, what: str = "logits") -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield parts of the rows as float64 copies, with their slice.

    Raises:
        UserError: NaN or infinities among all rows (their count and first row).
    """
    rows = max(1, _NUMBERS_PER_CHUNK // logits_NC.shape[1])
    for start in range(0, len(logits_NC), rows):
        part_rows = slice(start, min(start + rows, len(logits_NC)))
        part = logits_NC[part_rows].astype(np.float64)
        # NaN passes through both and infinities are one of them: two scans instead of a mask of all numbers.
        if not np.isfinite(part.min()) or not np.isfinite(part.max()):
            raise UserError(_not_finite(logits_NC, start, rows, what))
        yield part_rows, part


def _not_finite(logits_NC: NDArray[Any], start: int, rows: int, what: str) -> str:
    """Describe NaN and infinities; the first is in the chunk at `start`."""
    count, bad_rows = 0, list[int]()
    for begin in range(start, len(logits_NC), rows):
        bad_N = (~np.isfinite(logits_NC[begin : begin + rows])).sum(1)
        bad_rows += (begin + np.flatnonzero(bad_N)).tolist()[: _ROWS_SHOWN + 1 - len(bad_rows)]
        count += int(bad_N.sum())
    others = ", ".join(map(str, bad_rows[1:_ROWS_SHOWN])) + (", ..." if len(bad_rows) > _ROWS_SHOWN else "")
    listed = f"{bad_rows[0]}, then {others}" if others else f"{bad_rows[0]}"
    return f"{what}: {count} values are NaN or infinite, the first in row {listed}; repair or leave out these rows"


def parse_classes(values: Sequence[str], names: Sequence[str], *, what: str) -> NDArray[np.int64]:
    """Parse class names, class numbers, or ranges such as `0-17` to class numbers; a name comes before a number.

    Raises:
        UserError: what is neither, with the nearest name; a number outside 0..C-1; a range that runs backwards.
    """
    indices: list[int] = []
    by_name = {name: number for number, name in enumerate(names)}
    for value in values:
        first, dash, last = value.partition("-")
        if value in by_name:
            indices.append(by_name[value])
        elif value.isdecimal():
            indices.append(_class_number(value, len(names), what))
        elif dash and first.isdecimal() and last.isdecimal():
            start, end = (_class_number(text, len(names), what) for text in (first, last))
            if end < start:
                raise UserError(f"{what}: '{value}' runs backwards; write {last}-{first}")
            indices.extend(range(start, end + 1))
        else:
            raise UserError(
                f"{what}: '{value}' is not a class; expected class names, numbers from 0 to {len(names) - 1} "
                f"or ranges such as 0-4{nearest(value, names)}"
            )
    return np.array(indices, dtype=np.int64)


_MAX_DIGITS = 12  # more are no class number, and too many are none that Python converts


def _class_number(text: str, classes: int, what: str) -> int:
    if len(text) > _MAX_DIGITS or int(text) >= classes:
        shortened = text if len(text) <= _MAX_DIGITS + 1 else f"{text[:8]}..."
        raise UserError(f"{what}: {shortened} lies outside the {classes} classes, 0 to {classes - 1}")
    return int(text)
