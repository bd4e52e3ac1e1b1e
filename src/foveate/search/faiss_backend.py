"""Search by faiss (the extra `faiss`): a flat index of few vectors, inverted lists of many.

Used only when the user asks for it. The results of faiss are scored again as in `nearest`, so that scores and order are
the same; with inverted lists a neighbor can be missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.files import FolderLock, commit_atomically
from foveate.core.progress import say
from foveate.search.index_folder import Segment
from foveate.search.nearest import rank_rows

# From this many rows on an approximate index. Measured (docs/verbs/search.md): of 10,000 rows the lists find .76 of the
# 20 nearest, of 100,000 and of a million all.
LISTS_FROM = 100_000
PROBES = 32
_TRAIN_PER_LIST = 64  # vectors for each list
_ADD_ROWS = 2**15


def library() -> Any:
    """Import `faiss`.

    Raises:
        UserError: when it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError("backend 'faiss': the library is not installed; run `pip install 'foveate[faiss]'`") from error
    return faiss


def nearest_by_faiss(
    parts: Sequence[NDArray[np.floating]],
    query_E: NDArray[np.float64],
    *,
    count: int,
    excluded: NDArray[np.int64],
    index: Any,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the `count` rows nearest to a unit-length query by faiss; scores and order as in `nearest`."""
    # faiss does not know which rows are excluded, so that many more are requested.
    request = min(count + len(excluded), index.ntotal)
    _, rows_1K = index.search(query_E[None].astype(np.float32), request)
    # faiss pads the result with -1 where the lists that it searched hold fewer rows.
    rows = np.setdiff1d(rows_1K[0][rows_1K[0] >= 0].astype(np.int64), excluded)
    if not len(rows):
        return np.zeros(0), rows
    return rank_rows(parts, query_E, rows, count=count)


def open_faiss(parts: Sequence[NDArray[np.floating]], segments: Sequence[Segment], folder: Path) -> Any:
    """Return a faiss index: flat in memory, or inverted lists in `folder`/faiss, built when missing.

    Args:
        segments: of the parts, all of one kind; their names decide the file of the inverted lists.
    """
    faiss = library()
    total, width = sum(map(len, parts)), parts[0].shape[1]
    if total < LISTS_FROM:
        flat = faiss.IndexFlatIP(width)
        _add(flat, parts)
        return flat
    kind, names = segments[0].kind, "\n".join(segment.name for segment in segments)
    # A hash of the segments' names is part of the file name, so lists of an earlier state are never mistaken for these.
    path = folder / "faiss" / f"{kind}-{hashlib.blake2b(names.encode(), digest_size=8).hexdigest()}.faiss"
    if not path.is_file():
        with FolderLock(folder, purpose="faiss lists"):
            path.parent.mkdir(exist_ok=True)
            # Lists of an earlier state; those of the other kind stay.
            for old in path.parent.glob(f"{kind}-*"):
                old.unlink()
            temporary = path.with_suffix(".tmp")
            faiss.write_index(inverted_lists(parts), str(temporary))
            commit_atomically(temporary, path)
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    index.nprobe = PROBES
    return index


def inverted_lists(parts: Sequence[NDArray[np.floating]]) -> Any:
    """Build an IndexIVFFlat with 4 sqrt(N) lists for N rows."""
    faiss = library()
    total, width = sum(map(len, parts)), parts[0].shape[1]
    # Faiss's guideline for up to a million vectors: 4 to 16 times sqrt(N).
    lists = int(4 * total**0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    say(f"faiss: {lists} inverted lists for {total:,} vectors, built once")
    train_rows = np.sort(
        np.random.default_rng(0).choice(total, size=min(total, _TRAIN_PER_LIST * lists), replace=False)
    )
    first, sample = 0, []
    for part in parts:
        inside = train_rows[(train_rows >= first) & (train_rows < first + len(part))] - first
        sample.append(part[inside].astype(np.float32))
        first += len(part)
    index.train(np.concatenate(sample))
    _add(index, parts)
    index.nprobe = PROBES
    return index


def _add(index: Any, parts: Sequence[NDArray[np.floating]]) -> None:
    for part in parts:
        for start in range(0, len(part), _ADD_ROWS):
            index.add(np.ascontiguousarray(part[start : start + _ADD_ROWS], dtype=np.float32))
