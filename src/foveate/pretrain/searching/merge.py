"""The last step of making an index: parts and old segments become the segments of the new state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.pretrain.searching.index_folder import (
    BUILDING,
    IMAGE,
    KINDS,
    QUARANTINE,
    REGION,
    ROWS,
    UNREADABLE,
    Description,
    Segment,
    new_vectors,
    read_rows,
    read_vectors,
    sweep,
)
from foveate.records.tables import read_table, write_table

# Rows of one segment: with 512 numbers each in float32, half a gigabyte.
SEGMENT_ROWS = 2**18
_COPIED = 2**14


@dataclass(frozen=True, slots=True)
class _Source:
    """Rows of one kind that are there already: an old segment, or a part of this run; `kept` says which stay.

    The vectors are named, not opened: a run has thousands of parts, and a process may have far fewer files open.
    """

    table: pa.Table
    vectors: Path
    kept: NDArray[np.bool_]
    segment: Segment | None = None


def merged(wanted: Description, out: Path, *, contents: Mapping[str, str]) -> Description:
    """Writes the segments of an index's new state, then index.json; returns its new description.

    Args:
        contents: key -> content of every image that the collection has now; rows of others are dropped.
    """
    sources: dict[str, list[_Source]] = {kind: [] for kind in KINDS}
    held: set[str] = set()
    stale: set[str] = set()
    for segment in wanted.segments:
        if segment.kind == IMAGE:
            table = read_rows([segment.rows_path(out)])
            kept = _current(table, contents, held)
            held |= set(table["key"].filter(pa.array(kept)).to_pylist())
            stale |= set(table["key"].filter(pa.array(~kept)).to_pylist())
            sources[IMAGE].append(_Source(table, segment.embeddings_path(out), kept, segment))
    for segment in wanted.segments:
        if segment.kind == REGION:
            table = read_rows([segment.rows_path(out)])
            kept = np.array([key not in stale for key in table["key"].to_pylist()], dtype=bool)
            sources[REGION].append(_Source(table, segment.embeddings_path(out), kept, segment))
    unreadable = _from_parts(out, contents, held, sources)
    segments: list[Segment] = []
    number = wanted.next_number
    for kind in KINDS:
        made, number = _segments(out, kind, sources[kind], number, wanted)
        segments += made
    _write_quarantine(out, unreadable, contents, held)
    counts = {f"{kind}s": sum(one.rows for one in segments if one.kind == kind) for kind in KINDS}
    counts["unreadable"] = read_table(out / QUARANTINE).num_rows if (out / QUARANTINE).is_file() else 0
    new = replace(wanted, finished=True, counts=counts, next_number=number, segments=tuple(segments))
    new.write(out)
    sweep(out, new)
    return new


def _current(table: pa.Table, contents: Mapping[str, str], held: set[str]) -> NDArray[np.bool_]:
    pairs = zip(table["key"].to_pylist(), table["content"].to_pylist(), strict=True)
    return np.array([contents.get(key) == content and key not in held for key, content in pairs], dtype=bool)


def _from_parts(
    out: Path, contents: Mapping[str, str], held: set[str], sources: dict[str, list[_Source]]
) -> list[dict[str, str]]:
    """Adds the parts of the run to the sources; returns what they could not read."""
    unreadable: list[dict[str, str]] = []
    for path in sorted((out / BUILDING).glob("?????.parquet")):
        table = read_table(path)
        kind_N = table["kind"].to_numpy()
        by_kind = {kind: table.filter(pa.array(kind_N == kind)) for kind in (*KINDS, "unreadable")}
        images = by_kind[IMAGE]
        kept = _current(images, contents, held)
        fresh = set(images["key"].filter(pa.array(kept)).to_pylist())
        held |= fresh
        of_regions = np.array([key in fresh for key in by_kind[REGION]["key"].to_pylist()], dtype=bool)
        for kind, mask in ((IMAGE, kept), (REGION, of_regions)):
            vectors = path.with_name(f"{path.stem}-{kind}.npy")
            sources[kind].append(_Source(by_kind[kind].select(ROWS.names), vectors, mask))
        unreadable += by_kind["unreadable"].select(UNREADABLE.names).to_pylist()
    return unreadable


def _segments(
    out: Path, kind: str, sources: list[_Source], number: int, wanted: Description
) -> tuple[list[Segment], int]:
    """Segments of one kind: whole ones stay as they are, the others are written anew together."""
    segments: list[Segment] = []
    waiting: list[_Source] = []
    filled = [source for source in sources if source.kept.any()]
    for place, source in enumerate(filled):
        last = place == len(filled) - 1
        whole = source.segment is not None and source.kept.all() and (last or len(source.kept) >= SEGMENT_ROWS)
        if whole and not waiting:
            assert source.segment is not None
            segments.append(source.segment)
        else:
            waiting.append(source)
    pieces = [(source, np.flatnonzero(source.kept)) for source in waiting]
    total = sum(len(rows) for _, rows in pieces)
    for start in range(0, total, SEGMENT_ROWS):
        segment = Segment(kind, f"{number:05d}-{kind}", min(SEGMENT_ROWS, total - start))
        _write_segment(out, segment, _cut(pieces, start, segment.rows), wanted)
        segments.append(segment)
        number += 1
    return segments, number


def _cut(
    pieces: list[tuple[_Source, NDArray[np.int64]]], start: int, count: int
) -> list[tuple[_Source, NDArray[np.int64]]]:
    """The `count` rows from `start` on of pieces that lie end to end."""
    found, at = [], 0
    for source, rows in pieces:
        low, high = max(start - at, 0), min(start + count - at, len(rows))
        if low < high:
            found.append((source, rows[low:high]))
        at += len(rows)
    return found


def _write_segment(
    out: Path, segment: Segment, pieces: list[tuple[_Source, NDArray[np.int64]]], wanted: Description
) -> None:
    path = segment.embeddings_path(out)
    with new_vectors(path, rows=segment.rows, width=wanted.embed_dim, dtype=wanted.dtype) as handle:
        for source, rows in pieces:
            vectors = read_vectors(source.vectors)
            if len(vectors) != len(source.kept):
                raise UserError(f"{source.vectors}: has {len(vectors)} rows, its table {len(source.kept)}")
            for start in range(0, len(rows), _COPIED):
                handle.write(vectors[rows[start : start + _COPIED]].tobytes())
    tables = [source.table.take(pa.array(rows)) for source, rows in pieces]
    write_table(segment.rows_path(out), pa.concat_tables(tables).combine_chunks())


def _write_quarantine(out: Path, new: list[dict[str, str]], contents: Mapping[str, str], held: set[str]) -> None:
    """Each image once; those that are readable by now, changed or removed are let go."""
    path = out / QUARANTINE
    before = read_table(path).to_pylist() if path.is_file() else []
    rows = {
        row["key"]: row
        for row in [*before, *new]
        if contents.get(row["key"]) == row["content"] and row["key"] not in held
    }
    if rows:
        write_table(path, pa.Table.from_pylist([rows[key] for key in sorted(rows)], schema=UNREADABLE))
    else:
        path.unlink(missing_ok=True)
