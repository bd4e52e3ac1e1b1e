"""The last steps of a build: merge parts and old segments into new ones, and add what is derived from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.records.bm25 import TextIndex
from foveate.records.collection import Collection
from foveate.records.tables import positions, read_table, write_table
from foveate.search.index_folder import (
    BUILDING,
    IMAGE,
    KINDS,
    QUARANTINE,
    REGION,
    ROWS,
    TEXTS,
    UNREADABLE,
    Description,
    Segment,
    new_vectors,
    read_rows,
    read_vectors,
)

# Rows of one segment: with 512 numbers each in float32, half a gigabyte.
SEGMENT_ROWS = 2**18
_COPY_ROWS = 2**14
# Raised whenever texts are split into other terms, so that the next run writes the texts of an older index again.
_TERMS_VERSION = 2


@dataclass(frozen=True, slots=True)
class _Source:
    """Rows of one kind in an old segment or a part of this run; `mask` marks those to keep."""

    # A path, not an open file: a run has thousands of parts, and a process may have far fewer files open.

    table: pa.Table
    vectors: Path
    mask: NDArray[np.bool_]
    segment: Segment | None = None


def merge_parts(target: Description, out: Path, *, contents: Mapping[str, str]) -> Description:
    """Write the segments of an index's new state and return its description, which makes them valid once written.

    Args:
        contents: key -> content hash of every image of the collection; rows of others are dropped.
    """
    sources: dict[str, list[_Source]] = {kind: [] for kind in KINDS}
    indexed: set[str] = set()
    stale: set[str] = set()
    for segment in target.segments:
        if segment.kind == IMAGE:
            table = read_rows([segment.rows_path(out)])
            mask = _is_current(table, contents, indexed)
            indexed |= set(table["key"].filter(pa.array(mask)).to_pylist())
            stale |= set(table["key"].filter(pa.array(~mask)).to_pylist())
            sources[IMAGE].append(_Source(table, segment.embeddings_path(out), mask, segment))
    for segment in target.segments:
        if segment.kind == REGION:
            table = read_rows([segment.rows_path(out)])
            mask = np.array([key not in stale for key in table["key"].to_pylist()], dtype=bool)
            sources[REGION].append(_Source(table, segment.embeddings_path(out), mask, segment))
    unreadable = _add_parts(out, contents, indexed, sources)
    segments: list[Segment] = []
    number = target.next_number
    for kind in KINDS:
        new_segments, number = _write_segments(out, kind, sources[kind], number, target)
        segments += new_segments
    _write_quarantine(out, unreadable, contents, indexed)
    counts = {f"{kind}s": sum(segment.rows for segment in segments if segment.kind == kind) for kind in KINDS}
    counts["unreadable"] = read_table(out / QUARANTINE).num_rows if (out / QUARANTINE).is_file() else 0
    return replace(target, finished=True, counts=counts, next_number=number, segments=tuple(segments))


def write_texts(description: Description, out: Path, collection: Collection) -> str:
    """Write the inverted index of the texts of an index's images: keys and captions; return its file name."""
    segments = [segment for segment in description.segments if segment.kind == IMAGE]
    keys = read_rows([segment.rows_path(out) for segment in segments])["key"]
    documents = []
    for key, row in zip(keys.to_pylist(), positions(keys, among=pa.array(collection.keys, pa.string())), strict=True):
        # Removed images keep their rows until the next merge, and a row has a document.
        captions = collection.read_captions(int(row)) if row >= 0 else ()
        documents.append([key, *(caption.text for caption in captions)])
    content = json.dumps([_TERMS_VERSION, documents]).encode()
    # Named by its content, so that the old one stays valid until index.json names the new one.
    name = TEXTS.format(hashlib.blake2b(content, digest_size=8).hexdigest())
    if not (out / name).is_file():
        TextIndex.build(documents).write(out / name)
    return name


def _is_current(table: pa.Table, contents: Mapping[str, str], indexed: set[str]) -> NDArray[np.bool_]:
    """Mark rows whose image is unchanged and not indexed yet."""
    pairs = zip(table["key"].to_pylist(), table["content"].to_pylist(), strict=True)
    return np.array([contents.get(key) == content and key not in indexed for key, content in pairs], dtype=bool)


def _add_parts(
    out: Path, contents: Mapping[str, str], indexed: set[str], sources: dict[str, list[_Source]]
) -> list[dict[str, str]]:
    """Add the parts of the run to the sources; return the images that could not be read."""
    unreadable: list[dict[str, str]] = []
    for path in sorted((out / BUILDING).glob("?????.parquet")):
        table = read_table(path)
        kind_N = table["kind"].to_numpy()
        by_kind = {kind: table.filter(pa.array(kind_N == kind)) for kind in (*KINDS, "unreadable")}
        images = by_kind[IMAGE]
        mask = _is_current(images, contents, indexed)
        fresh = set(images["key"].filter(pa.array(mask)).to_pylist())
        indexed |= fresh
        region_mask = np.array([key in fresh for key in by_kind[REGION]["key"].to_pylist()], dtype=bool)
        for kind, kind_mask in ((IMAGE, mask), (REGION, region_mask)):
            vectors = path.with_name(f"{path.stem}-{kind}.npy")
            sources[kind].append(_Source(by_kind[kind].select(ROWS.names), vectors, kind_mask))
        unreadable += by_kind["unreadable"].select(UNREADABLE.names).to_pylist()
    return unreadable


def _write_segments(
    out: Path, kind: str, sources: list[_Source], number: int, target: Description
) -> tuple[list[Segment], int]:
    """Return the segments of one kind: complete ones stay as they are, the others are merged and written."""
    segments: list[Segment] = []
    waiting: list[_Source] = []
    filled = [source for source in sources if source.mask.any()]
    for index, source in enumerate(filled):
        last = index == len(filled) - 1
        # A complete segment is never rewritten, so an update costs what is new and not the size of the index.
        whole = source.segment is not None and source.mask.all() and (last or len(source.mask) >= SEGMENT_ROWS)
        if whole and not waiting:
            assert source.segment is not None
            segments.append(source.segment)
        else:
            waiting.append(source)
    pieces = [(source, np.flatnonzero(source.mask)) for source in waiting]
    total = sum(len(rows) for _, rows in pieces)
    for start in range(0, total, SEGMENT_ROWS):
        segment = Segment(kind, f"{number:05d}-{kind}", min(SEGMENT_ROWS, total - start))
        _write_segment(out, segment, _cut(pieces, start, segment.rows), target)
        segments.append(segment)
        number += 1
    return segments, number


def _cut(
    pieces: list[tuple[_Source, NDArray[np.int64]]], start: int, count: int
) -> list[tuple[_Source, NDArray[np.int64]]]:
    """Return the `count` rows from `start` on of concatenated pieces."""
    selected, at = [], 0
    for source, rows in pieces:
        low, high = max(start - at, 0), min(start + count - at, len(rows))
        if low < high:
            selected.append((source, rows[low:high]))
        at += len(rows)
    return selected


def _write_segment(
    out: Path, segment: Segment, pieces: list[tuple[_Source, NDArray[np.int64]]], target: Description
) -> None:
    path = segment.embeddings_path(out)
    with new_vectors(path, rows=segment.rows, width=target.embed_dim, dtype=target.dtype) as handle:
        for source, rows in pieces:
            vectors = read_vectors(source.vectors)
            if len(vectors) != len(source.mask):
                raise UserError(f"{source.vectors}: has {len(vectors)} rows; its table has {len(source.mask)}")
            # Indexing by an array copies, so rows are copied in blocks: a whole segment may have half a gigabyte.
            for start in range(0, len(rows), _COPY_ROWS):
                handle.write(vectors[rows[start : start + _COPY_ROWS]].tobytes())
    tables = [source.table.take(pa.array(rows)) for source, rows in pieces]
    write_table(segment.rows_path(out), pa.concat_tables(tables).combine_chunks())


def _write_quarantine(out: Path, new: list[dict[str, str]], contents: Mapping[str, str], indexed: set[str]) -> None:
    """Write the quarantine, each image once; without those that are readable by now, changed or removed."""
    path = out / QUARANTINE
    before = read_table(path).to_pylist() if path.is_file() else []
    rows = {
        row["key"]: row
        for row in [*before, *new]
        if contents.get(row["key"]) == row["content"] and row["key"] not in indexed
    }
    if rows:
        write_table(path, pa.Table.from_pylist([rows[key] for key in sorted(rows)], schema=UNREADABLE))
    else:
        path.unlink(missing_ok=True)
