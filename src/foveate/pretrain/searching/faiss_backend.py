"""Search by faiss (the extra `faiss`): a flat index of few vectors, inverted lists of many.

Never chosen silently: only where the user asks for it. What faiss finds is scored again as everywhere else, so that
equal answers have equal scores and the same order; with inverted lists a neighbor can be missing.
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
from foveate.pretrain.searching.index_folder import Segment
from foveate.pretrain.searching.nearest import ranked

# From this many rows on an approximate index. Measured (docs/verbs/search.md): of 10,000 rows the lists find .76 of the
# 20 nearest, of 100,000 and of a million all.
LISTS_FROM = 100_000
PROBES = 32
_TRAINED_ON = 64  # vectors for each list
_ADDED = 2**15


def library() -> Any:
    """The module `faiss`.

    Raises:
        UserError: when it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError("the backend 'faiss' needs a library: pip install 'foveate[faiss]'") from error
    return faiss


def faiss_nearest(
    parts: Sequence[NDArray[np.floating]],
    query_E: NDArray[np.float64],
    *,
    count: int,
    excluded: NDArray[np.int64],
    index: Any,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The `count` rows that faiss finds nearest to one unit-length query; scores and order as in `nearest`."""
    asked = min(count + len(excluded), index.ntotal)
    _, rows_1K = index.search(query_E[None].astype(np.float32), asked)
    rows = np.setdiff1d(rows_1K[0][rows_1K[0] >= 0].astype(np.int64), excluded)
    if not len(rows):
        return np.zeros(0), rows
    return ranked(parts, query_E, rows, count=count)


def open_faiss(parts: Sequence[NDArray[np.floating]], segments: Sequence[Segment], folder: Path) -> Any:
    """A faiss index of the parts: flat in memory, or inverted lists kept in `folder`/faiss and made when missing.

    Args:
        segments: of the parts, all of one kind; the file of inverted lists is of exactly these.
    """
    faiss = library()
    total, width = sum(map(len, parts)), parts[0].shape[1]
    if total < LISTS_FROM:
        flat = faiss.IndexFlatIP(width)
        _add(flat, parts)
        return flat
    kind, names = segments[0].kind, "\n".join(segment.name for segment in segments)
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
    """An IndexIVFFlat of the parts, with 4 times the square root of the number of rows as its number of lists."""
    faiss = library()
    total, width = sum(map(len, parts)), parts[0].shape[1]
    lists = int(4 * total**0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    say(f"faiss: {lists} inverted lists of {total:,} vectors, made once")
    chosen = np.sort(np.random.default_rng(0).choice(total, size=min(total, _TRAINED_ON * lists), replace=False))
    first, sample = 0, []
    for part in parts:
        inside = chosen[(chosen >= first) & (chosen < first + len(part))] - first
        sample.append(part[inside].astype(np.float32))
        first += len(part)
    index.train(np.concatenate(sample))
    _add(index, parts)
    index.nprobe = PROBES
    return index


def _add(index: Any, parts: Sequence[NDArray[np.floating]]) -> None:
    for part in parts:
        for start in range(0, len(part), _ADDED):
            index.add(np.ascontiguousarray(part[start : start + _ADDED], dtype=np.float32))
