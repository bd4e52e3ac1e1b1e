"""A table's rows grouped by image, so that the annotations of one image are one slice."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pyarrow as pa

from foveate.records.tables import positions


class GroupedTable:
    """An annotation table sorted by the row number of its image (stable: the order of adding is kept)."""

    def __init__(self, table: pa.Table, keys: pa.ChunkedArray) -> None:
        """Group `table` by the position of its column `key` in `keys`; all its keys must be there."""
        rows = positions(table["key"], among=keys)
        assert not len(rows) or rows.min() >= 0, "a row belongs to no image"
        order = np.argsort(rows, kind="stable")
        in_order = bool(np.array_equal(order, np.arange(len(order))))
        self.table = table if in_order else table.take(pa.array(order)).combine_chunks()
        self.row_numbers = rows[order]
        self.offsets = np.concatenate([[0], np.cumsum(np.bincount(self.row_numbers, minlength=len(keys)))])
        self._arrays: dict[str, pa.Array] = {}
        self._numbers: dict[str, np.ndarray] = {}

    def bounds(self, row: int) -> tuple[int, int]:
        """First and past-the-last table row of the image `row`."""
        return int(self.offsets[row]), int(self.offsets[row + 1])

    def texts(self, column: str, start: int, end: int) -> list[str]:
        """Values start..end-1 of a text column."""
        if start == end:
            return []
        array = self._arrays.get(column)
        if array is None:
            array = self.table[column].combine_chunks()
            array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
            self._arrays[column] = array
        return array.slice(start, end - start).to_pylist()

    def numbers(self, column: str) -> np.ndarray:
        """A numeric column as numpy, as long as the table."""
        values = self._numbers.get(column)
        if values is None:
            values = self._numbers[column] = self.table[column].to_numpy()
        return values

    @cached_property
    def counts(self) -> np.ndarray:
        """Number of table rows per image."""
        return np.diff(self.offsets)
