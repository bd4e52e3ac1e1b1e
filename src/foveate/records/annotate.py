"""Annotate a collection in resumable parts: pending requests -> results -> rows.

A run that asks something about every image lasts hours. Its rows are appended in parts, every so many results or
seconds; a kill loses at most the part that was not written yet. Rows name the request that they answer, so that the
same command finds what is there (`completed_requests`, `matching_parts`) and does only what is missing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.records import layout, tables
from foveate.records.appender import AnnotationAppender, NameSet, read_parts
from foveate.records.tables import Provenance

R = TypeVar("R")
Row = dict[str, object]


def describe_unreachable(count: int, total: int, first: str) -> str:
    """Describe images that a run could not reach (`BadImage.is_passing`): the end of a command that tries them again.

    Args:
        total: images of the run.
        first: why the first of them could not be read.
    """
    return (
        f"{count:,} of {total:,} images could not be reached (the first: {first}); is the card still there? Run the "
        "same command again"
    )


def matching_parts(
    collection: Path, table: str, columns: Sequence[str], *, where: Mapping[str, object]
) -> Iterator[pa.Table]:
    """Read the rows of an annotation table whose columns have the values of `where`.

    Yields one part of the table after the other.

    Args:
        columns: columns of the result; those of `where` need not be among them.
    """
    for part in read_parts(collection, table, [*dict.fromkeys((*columns, *where))]):
        for column, value in where.items():
            part = part.filter(pc.call_function("equal", [part[column], pa.scalar(value)]))
        yield part.select(list(columns))


def remove_rows(collection: Path, table: str, select: Callable[[pa.Table], NDArray[np.bool_]], *, purpose: str) -> int:
    """Remove rows of an annotation table for good; return how many.

    A kill leaves whole parts, with or without their rows: the same call removes the rest. A part without rows stays, so
    that its number is not given to another one.

    Args:
        select: marks the rows of a part that are removed.
        purpose: for the error that another writer gets.

    Raises:
        UserError: another process writes the collection, or a part is damaged.
    """
    removed = 0
    # The appender is opened for its lock and its checks only; nothing is appended.
    with AnnotationAppender(collection, purpose=purpose):
        for path in layout.annotation_parts(collection, table, set(layout.committed_shards(collection))):
            # Reads every column, even those unknown to this version, because the part is written back.
            part = tables.read_table(path)
            is_removed = select(part)
            if is_removed.any():
                tables.write_table(path, part.filter(pa.array(~is_removed)))
                removed += int(is_removed.sum())
    return removed


def completed_requests(collection: Path, table: str, *, where: Mapping[str, object] | None = None) -> NameSet:
    """Collect the keys of requests that the rows of an annotation table answer.

    Rows without a request (captions that an importer brought) do not count.
    """
    requests = NameSet()
    for part in matching_parts(collection, table, ["request"], where=where or {}):
        requests.update(request for request in part["request"].to_pylist() if request)
    return requests


T = TypeVar("T", contravariant=True)


class ResultWriter(Protocol[T]):
    """Takes results and writes them in parts, such as `PartWriter`."""

    def add(self, results: Iterable[T]) -> None:
        """Buffer results until the next part."""
        ...

    @property
    def due(self) -> bool:
        """Whether it is time for a part."""
        ...

    def flush(self) -> None:
        """Write what is buffered, if anything."""
        ...


class PartWriter(Generic[R]):
    """Buffer results and append their rows to a collection in parts.

    Args:
        appender: the collection's one writer, entered.
        provenance: of all rows.
        split_rows: results -> rows of each annotation table. Tables are written in the order of the mapping: a table
            that says that an image is finished comes last, so that a kill between two tables repeats work and never
            leaves it out.
        max_results: a part is due when so many results wait.
        max_seconds: a part is due after so long, however few results wait.
        on_part: called after each part with its results and the seconds since the last one.
    """

    def __init__(
        self,
        appender: AnnotationAppender,
        provenance: Provenance,
        split_rows: Callable[[Sequence[R]], Mapping[str, list[Row]]],
        *,
        max_results: int,
        max_seconds: float,
        on_part: Callable[[Sequence[R], float], None] | None = None,
    ) -> None:
        self._appender, self._provenance, self._split_rows, self._on_part = appender, provenance, split_rows, on_part
        self._max_results, self._max_seconds = max_results, max_seconds
        self._pending: list[R] = []
        self._written_at = time.monotonic()

    def add(self, results: Iterable[R]) -> None:
        """Buffer results until the next part."""
        self._pending += results

    @property
    def due(self) -> bool:
        """Whether it is time for a part."""
        late = time.monotonic() - self._written_at >= self._max_seconds
        return len(self._pending) >= self._max_results or (late and bool(self._pending))

    def flush(self) -> None:
        """Append the rows of buffered results, each table whole or not at all."""
        # Taken out first: results whose rows are refused must not be appended again by the flush at the end.
        pending, self._pending = self._pending, []
        seconds, self._written_at = time.monotonic() - self._written_at, time.monotonic()
        if not pending:
            return
        for table, rows in self._split_rows(pending).items():
            if rows:
                self._appender.append(table, rows, self._provenance)
        if self._on_part is not None:
            self._on_part(pending, seconds)


def write_results(results: Iterable[R], writer: ResultWriter[R]) -> None:
    """Write results as they come, and the rest at their end."""
    for result in results:
        writer.add([result])
        if writer.due:
            writer.flush()
    writer.flush()


async def write_stream(stream: AsyncGenerator[Sequence[R], None], writer: ResultWriter[R]) -> UserError | None:
    """Write results from a stream; return the UserError that ended it early, if any.

    What came before an error is written, so that the next run need not ask for it again. Parts are written in a thread:
    requests in flight are not held up by the disk.
    """
    failure: UserError | None = None
    try:
        async for results in stream:
            writer.add(results)
            if writer.due:
                await asyncio.to_thread(writer.flush)
    except UserError as error:
        failure = error
    finally:
        # Closed before the last part is written: what was in flight is canceled, not waited for.
        await stream.aclose()
    await asyncio.to_thread(writer.flush)
    return failure
