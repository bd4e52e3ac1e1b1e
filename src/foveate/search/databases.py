"""Search by a vector database: LanceDB, embedded, or Qdrant, embedded or a server (extras `lancedb`, `qdrant`).

The vectors of an index are copied once, each with its key, kind, phrase and box, so that other programs can ask the
same table. A database gives candidates, which are scored again as in `foveate.search.nearest`: scores, verdicts and
pages stay the same, and what an approximate index misses is missing.
"""

from __future__ import annotations

import hashlib
import math
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.core.errors import UserError, shorten_reason
from foveate.core.files import FolderLock
from foveate.core.progress import say
from foveate.search.index_folder import Segment

# Rows that are copied at a time.
_ROWS = 2**13
# From this many rows on LanceDB makes lists, of which it searches so many.
_LISTS_FROM, _LISTS_SEARCHED = 100_000, 32
_FIELDS = ("key", "kind", "phrase", "x1", "y1", "x2", "y2")


class Candidates(Protocol):
    """What gives candidates, as an index of faiss does."""

    ntotal: int

    def search(self, queries_1E: NDArray[np.float32], count: int) -> tuple[Any, NDArray[np.int64]]:
        """Return something, and row numbers [1, K] near to a query."""
        ...


class Vectors(NamedTuple):
    """All rows of one kind of an index: vectors [n, E] in parts, the segments they are from, and their table."""

    parts: Sequence[NDArray[np.floating]]
    segments: Sequence[Segment]
    rows: pa.Table

    @property
    def total(self) -> int:
        return self.rows.num_rows

    @property
    def name(self) -> str:
        """A name of this state of the index: several indexes may share a server."""
        digest = hashlib.blake2b("\n".join(segment.name for segment in self.segments).encode(), digest_size=8)
        digest.update(np.ascontiguousarray(self.parts[0][:1]).tobytes() + self.total.to_bytes(8))
        return f"foveate-{self.segments[0].kind}-{digest.hexdigest()}"

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32], pa.Table]]:
        """Yield first row number, vectors and rows of blocks."""
        first = 0
        for part in self.parts:
            for start in range(0, len(part), _ROWS):
                block = np.ascontiguousarray(part[start : start + _ROWS], dtype=np.float32)
                yield first + start, block, self.rows.slice(first + start, len(block)).select(_FIELDS)
            first += len(part)


def open_database(name: str, argument: str, vectors: Vectors, folder: Path) -> Candidates:
    """Open a database that has the vectors of an index, and copy them where it has not.

    Args:
        name: key of `DATABASES`. argument: where it is; by default in the index folder.

    Raises:
        UserError: its library is not installed, or it cannot be reached.
    """
    try:
        return DATABASES[name](argument, vectors, folder)
    except ImportError as error:
        raise UserError(
            f"backend '{name}': the library is not installed; run `pip install 'foveate[{name}]'`"
        ) from error
    except UserError:
        raise
    except Exception as error:  # of a database, which may be on another machine
        raise UserError(f"backend '{name}': {argument or folder / name}: {shorten_reason(error)}") from error


class _Lance:
    def __init__(self, table: Any, total: int) -> None:
        self._table, self.ntotal = table, total

    def search(self, queries_1E: NDArray[np.float32], count: int) -> tuple[Any, NDArray[np.int64]]:
        query = self._table.search(queries_1E[0]).distance_type("cosine").nprobes(_LISTS_SEARCHED)
        found = query.limit(count).select(["row", "_distance"]).to_arrow()
        return None, found["row"].to_numpy()[None].astype(np.int64)


def _open_lancedb(argument: str, vectors: Vectors, folder: Path) -> _Lance:
    import lancedb  # pyrefly: ignore[missing-import]

    database = lancedb.connect(argument or str(folder / "lancedb"))
    with FolderLock(folder, purpose="LanceDB"):
        names = set(database.table_names(limit=10_000))
        if vectors.name in names:
            table = database.open_table(vectors.name)
            # A killed copy is not taken for a whole one.
            if table.count_rows() == vectors.total:
                return _Lance(table, vectors.total)
        if not argument:
            # Tables of earlier states, which only this index can have made.
            for old in (name for name in names if name.rpartition("-")[0] == vectors.name.rpartition("-")[0]):
                database.drop_table(old)
        say(f"LanceDB: copying {vectors.total:,} vectors, once")
        width = vectors.parts[0].shape[1]
        fields = [vectors.rows.schema.field(name) for name in _FIELDS]
        schema = pa.schema([("row", pa.int64()), *fields, ("vector", pa.list_(pa.float32(), width))])

        def batches() -> Iterator[pa.RecordBatch]:
            for first, block, rows in vectors.blocks():
                columns = [pa.array(range(first, first + len(block)), pa.int64())]
                columns += [rows[name].combine_chunks() for name in _FIELDS]
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), width))
                yield pa.record_batch(columns, schema=schema)

        table = database.create_table(vectors.name, data=batches(), schema=schema, mode="overwrite")
        if vectors.total >= _LISTS_FROM:
            lists = 2 ** round(math.log2(vectors.total**0.5))
            table.create_index(
                metric="cosine", num_partitions=lists, vector_column_name="vector", index_type="IVF_FLAT"
            )
    return _Lance(table, vectors.total)


class _Qdrant:
    def __init__(self, client: Any, name: str, total: int) -> None:
        self._client, self._name, self.ntotal = client, name, total
        weakref.finalize(self, client.close)

    def search(self, queries_1E: NDArray[np.float32], count: int) -> tuple[Any, NDArray[np.int64]]:
        found = self._client.query_points(self._name, query=queries_1E[0].tolist(), limit=count, with_payload=False)
        return None, np.array([[point.id for point in found.points]], dtype=np.int64).reshape(1, -1)


def _open_qdrant(argument: str, vectors: Vectors, folder: Path) -> _Qdrant:
    from qdrant_client import QdrantClient, models  # pyrefly: ignore[missing-import]

    is_server = "://" in argument
    # One that is embedded locks its folder while it is open, so that each kind has its own.
    path = Path(argument or folder / "qdrant") / vectors.segments[0].kind
    place = {"url": argument} if is_server else {"path": str(path)}
    client = QdrantClient(**place, api_key=os.environ.get("QDRANT_API_KEY") if is_server else None)
    name, width = vectors.name, vectors.parts[0].shape[1]
    if client.collection_exists(name):
        if client.count(name).count == vectors.total:
            return _Qdrant(client, name, vectors.total)
        client.delete_collection(name)
    say(f"Qdrant: copying {vectors.total:,} vectors, once")
    client.create_collection(name, vectors_config=models.VectorParams(size=width, distance=models.Distance.COSINE))
    for first, block, rows in vectors.blocks():
        numbers = range(first, first + len(block))
        client.upload_collection(name, vectors=block, payload=rows.to_pylist(), ids=numbers, wait=True)
    return _Qdrant(client, name, vectors.total)


DATABASES: Mapping[str, Callable[[str, Vectors, Path], Candidates]] = {
    "lancedb": _open_lancedb,
    "qdrant": _open_qdrant,
}
