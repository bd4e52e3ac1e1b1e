"""Exact nearest-neighbor search in blocks, with an order that no block size and no library changes.

A first pass in float32 (for float16 vectors and few queries: in float16) selects the candidates: all rows whose score
is within its rounding error of the k-th best. Only these are scored again, in float64 and always in the same way, and
sorted: ties, which the last bits of a matrix product would break at random, go to the lower row.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import timeit
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from foveate.core.errors import UserError
from foveate.core.files import FolderLock, commit_atomically
from foveate.core.progress import say
from foveate.search.index_folder import Segment

# Queries scored at a time, and scores in one block: 8 MB in float32.
_QUERIES, _SCORES = 256, 2**21
_ROWS = {np.dtype(np.float32): 16384, np.dtype(np.float16): 8192}
# Up to this many queries are multiplied one by one, float32 vectors by NumPy's dot product of rows, which is
# faster than its matrix product there, and float16 vectors as they are: that reads half of the bytes. More pay for the
# matrix product, and for making float16 vectors float32 once.
_FEW = 4
# Candidates scored again at a time.
_RESCORE_ROWS = 8192


def nearest(
    parts: Sequence[NDArray[np.floating]],
    queries_QE: NDArray[np.floating],
    *,
    count: int,
    excluded: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the `count` rows of highest cosine with each query, best first, equal scores by row.

    Args:
        parts: unit-length vectors [n, E], float32 or float16, in memory or memory-mapped; row numbers run on.
        queries_QE: any length, not zero.
        excluded: row numbers to leave out, ascending.

    Returns:
        Cosines [Q, K] in [-1, 1] and row numbers [Q, K]; K = count, or as many rows as there are. The cosines are
        those of the stored vectors, computed in float64.

    Raises:
        UserError: stored vectors are NaN, so that fewer than `count` rows have a cosine.
    """
    queries = np.asarray(queries_QE, dtype=np.float64)
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    excluded = np.zeros(0, np.int64) if excluded is None else excluded
    count = min(count, sum(map(len, parts)) - len(excluded))
    scores, rows = np.zeros((len(queries), max(0, count))), np.zeros((len(queries), max(0, count)), np.int64)
    if count < 1:
        return scores, rows
    for start in range(0, len(queries), _QUERIES):
        chunk = queries[start : start + _QUERIES]
        for index, rows_C in enumerate(_candidates(parts, chunk, count, excluded)):
            if len(rows_C):
                best, rows_C = rank_rows(parts, chunk[index], rows_C, count=count)
            else:
                best = np.zeros(0)
            if len(best) < count or not np.isfinite(best).all():
                raise UserError("The embeddings are damaged: some of them are NaN; build the index again")
            scores[start + index], rows[start + index] = best, rows_C
    return scores, rows


def rank_rows(
    parts: Sequence[NDArray[np.floating]], query_E: NDArray[np.float64], rows_C: NDArray[np.int64], *, count: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Score rows against a unit-length query in float64; return the best `count`, equal scores by row."""
    # Ascending, because that is how they are read, and so that the stable sort below keeps equal scores in row order.
    rows = np.sort(rows_C)
    scores = np.concatenate(
        [_cosines(parts, query_E, rows[at : at + _RESCORE_ROWS]) for at in range(0, len(rows), _RESCORE_ROWS)]
    )
    if len(scores) > count:
        # Everything that ties with the last one stays in, so that the row number decides and not the partition.
        mask = scores >= np.partition(scores, len(scores) - count)[len(scores) - count]
        scores, rows = scores[mask], rows[mask]
    order = np.argsort(-scores, kind="stable")[:count]
    # Rounding may carry the cosine of equal vectors above 1.
    return scores[order].clip(-1.0, 1.0), rows[order]


def rounding_slack(dtype: np.dtype, width: int, *, narrow: bool = False) -> float:
    """Bound the error of the first product of a stored vector with a query, as an estimate of their cosine.

    The error of a float32 sum of `width` products is at most width * 2^-24 in any order (Higham, Accuracy and
    Stability of Numerical Algorithms, 3.1); rounding the query and the stored length add theirs. A float16 vector's
    length is off by up to 2^-11, and by 2^-25 for each number too small for its exponent.

    Args:
        narrow: the query is rounded to float16, too, and so is the sum, which is still taken in float32.
    """
    half = 2.0**-11 + width**0.5 * 2.0**-25
    slack = (width + 4) * 2.0**-24
    if dtype == np.float16:
        slack += half
    if narrow:
        slack += half + 2.0**-11
    return 1.05 * slack


def _candidates(
    parts: Sequence[NDArray[np.floating]], queries_QE: NDArray[np.float64], count: int, excluded: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """Return for each query the rows that can be among its nearest."""
    number, width = queries_QE.shape
    narrow = number <= _FEW and _sums_in_float32()
    slacks = (rounding_slack(part.dtype, width, narrow=narrow and part.dtype == np.float16) for part in parts)
    # Twice the error: the score of the k-th best may be that much too high, and another row's that much too low.
    candidates = _Candidates(number, count, np.float32(2 * max(slacks)))
    scored, next_tightening = 0, 0
    for first, scores_BQ in _scores(parts, queries_QE, narrow=narrow):
        if len(excluded):
            # Sorted, so that a block looks up its own part and not the whole list.
            inside = excluded[np.searchsorted(excluded, first) : np.searchsorted(excluded, first + len(scores_BQ))]
            scores_BQ[inside - first] = -np.inf
        candidates.add(first, scores_BQ)
        scored += len(scores_BQ)
        if scored >= next_tightening or candidates.size > candidates.max_size:
            candidates.tighten()
            # After twice as many rows: the sorting is then done a logarithmic number of times.
            next_tightening = 2 * scored
    return candidates.split_by_query()


def _scores(
    parts: Sequence[NDArray[np.floating]], queries_QE: NDArray[np.float64], *, narrow: bool
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the first row number of each block, and the products [B, Q] of its vectors with the queries."""
    table_EQ = np.ascontiguousarray(queries_QE.T.astype(np.float32))
    halves_QE = torch.from_numpy(queries_QE).to(torch.float16)
    first = 0
    for part in parts:
        size = max(256, min(_ROWS[part.dtype], _SCORES // len(queries_QE)))
        if part.dtype != np.float16:
            product = _dots if len(queries_QE) <= _FEW else np.matmul
            for start in range(0, len(part), size):
                yield first + start, product(np.asarray(part[start : start + size], np.float32), table_EQ)
        else:
            stored, wide = _tensor(part), torch.empty(min(size, len(part)), part.shape[1])
            for start in range(0, len(part), size):
                block_BE = stored[start : start + size]
                if narrow:
                    with _one_thread():
                        columns = [torch.mv(block_BE, half_E) for half_E in halves_QE]
                    yield first + start, torch.stack(columns, dim=1).float().numpy()
                else:
                    yield first + start, wide[: len(block_BE)].copy_(block_BE).numpy() @ table_EQ
        first += len(part)


def _dots(block_BE: NDArray[np.float32], table_EQ: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the product [B, Q], column by column."""
    dot_rows = _faster_dots()
    return np.stack([dot_rows(block_BE, query_E) for query_E in np.ascontiguousarray(table_EQ.T)], axis=1)


def _sum_products(block_BE: NDArray[np.float32], query_E: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.einsum("be,e->b", block_BE, query_E)


# The BLAS's dot product of each row, and NumPy's own sum of products. Neither starts a thread, unlike a matrix product.
_DOT_KERNELS: tuple[Callable[..., NDArray[np.float32]], ...] = (np.vecdot, _sum_products)


@functools.cache
def _faster_dots() -> Callable[..., NDArray[np.float32]]:
    """Return the kernel that this processor runs faster: measured once a process, in some 5 ms.

    Which one it is differs: by 7 % on an Intel Xeon, where only reading memory is left to save. Scores are the same
    within the slack of `rounding_slack`, so the choice changes no result.
    """
    # 4 MB: more than the fast caches hold, as the vectors of an index are.
    block_BE = np.ones((2048, 512), np.float32)
    seconds = []
    for kernel in _DOT_KERNELS:
        kernel(block_BE, block_BE[0])
        seconds.append(min(timeit.repeat(functools.partial(kernel, block_BE, block_BE[0]), number=1, repeat=6)))
    return _DOT_KERNELS[int(np.argmin(seconds))]


def _tensor(part: NDArray[np.floating]) -> torch.Tensor:
    """Return the array as a tensor on the same memory."""
    # torch warns about read-only memory maps; the tensor is never written to.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(np.asarray(part))


@functools.cache
def _openmp() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit OpenMP to one thread: a block's product takes less time than synchronizing threads."""
    with _openmp().limit(limits=1):
        yield


@functools.cache
def _sums_in_float32() -> bool:
    """Whether this PyTorch sums float16 products in float32 on this processor, as it does by default."""
    # In float16 the sum would stop at 2048, where adding 1 no longer changes it.
    ones = torch.ones(2, 4096, dtype=torch.float16)
    return bool((torch.mv(ones, ones[0]) == 4096).all())


class _Candidates:
    """Rows that may still be among the nearest of each query, and the lowest score `floor_Q` that can be."""

    def __init__(self, queries: int, count: int, margin: np.float32) -> None:
        self.queries, self.count, self.margin = queries, count, margin
        self.floor_Q = np.full(queries, -np.inf, np.float32)
        self.size, self.max_size = 0, max(2**18, 8 * queries * count)
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []

    def add(self, first: int, scores_BQ: NDArray[np.float32]) -> None:
        """Add a block of scores, whose first row number is `first`."""
        passing = np.flatnonzero(scores_BQ >= self.floor_Q)
        size = len(scores_BQ)
        if len(passing) > 8 * self.count * self.queries and size > self.count:
            # The k-th best of the block alone is already a floor that most rows are below.
            kth_Q = np.partition(scores_BQ, size - self.count, axis=0)[size - self.count]
            self.floor_Q = np.maximum(self.floor_Q, kth_Q - self.margin)
            passing = np.flatnonzero(scores_BQ >= self.floor_Q)
        if len(passing):
            row, query = np.divmod(passing, self.queries)
            score = scores_BQ.ravel()[passing]
            # Excluded rows have a score of -inf, which passes as long as the floor is -inf too.
            included = score > -np.inf
            self._parts.append((query[included], row[included] + first, score[included]))
            self.size += int(included.sum())

    def tighten(self) -> None:
        """Raise the floors to the k-th best candidates, and drop what is below."""
        query, row, score = self._joined()
        order = np.lexsort((-score, query))
        query, row, score = query[order], row[order], score[order]
        ends = np.searchsorted(query, np.arange(self.queries), side="right")
        starts = np.searchsorted(query, np.arange(self.queries), side="left")
        full = ends - starts >= self.count
        kth = score[starts[full] + self.count - 1]
        self.floor_Q[full] = np.maximum(self.floor_Q[full], kth - self.margin)
        mask = score >= self.floor_Q[query]
        self._parts = [(query[mask], row[mask], score[mask])]
        # Many equal vectors all have to stay: tighten again only when the number has doubled.
        self.size = int(mask.sum())
        self.max_size = max(2**18, 8 * self.queries * self.count, 2 * self.size)

    def _joined(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        if not self._parts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
        query, row, score = (np.concatenate(columns) for columns in zip(*self._parts, strict=True))
        return query, row, score

    def split_by_query(self) -> list[NDArray[np.int64]]:
        """Return the remaining rows of each query."""
        self.tighten()
        query, row, _ = self._joined()
        return np.split(row, np.searchsorted(query, np.arange(1, self.queries)))


def _cosines(
    parts: Sequence[NDArray[np.floating]], query_E: NDArray[np.float64], rows_C: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return cosines in float64, each row summed in the same order, so that equal vectors tie exactly."""
    vectors_CE = take(parts, rows_C).astype(np.float64)
    dots_C = (vectors_CE * query_E).sum(axis=1)
    return dots_C / np.sqrt((vectors_CE * vectors_CE).sum(axis=1))


def take(parts: Sequence[NDArray[np.floating]], rows_C: NDArray[np.int64]) -> NDArray[np.floating]:
    """Return the vectors [C, E] of ascending row numbers."""
    edges = np.searchsorted(rows_C, np.cumsum([0, *map(len, parts)]))
    first, vectors = 0, []
    for part, start, stop in zip(parts, edges[:-1], edges[1:], strict=True):
        if stop > start:
            vectors.append(part[rows_C[start:stop] - first])
        first += len(part)
    return np.concatenate(vectors)


# Search by faiss (the extra `faiss`): a flat index of few vectors, inverted lists of many, or any index of its factory.
#
# Used only when the user asks for it. The results of faiss are scored again as in `nearest`, so that scores and order
# are the same; with an approximate index a neighbor can be missing.


# From this many rows on an approximate index. Measured (docs/verbs/search.md): of 10,000 rows lists miss neighbors.
LISTS_FROM = 100_000
_TRAIN_ROWS = 2**16  # vectors that an index is trained on at most
# Rows that are copied at a time as float32, the only type that faiss takes.
_ADD_ROWS = 2**15
# An index of shortened vectors orders the nearest ones wrongly: so many times more are scored again by their own.
_REFINED = 4
# How the effort of a search is chosen: as many nearest of so many of the index's own vectors must be found.
_ASKED, _NEAREST, MIN_RECALL = 200, 20, 0.99
# What faiss calls the effort of inverted lists and of graphs.
_EFFORTS = ("nprobe", "efSearch")


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


def nearest_among(
    parts: Sequence[NDArray[np.floating]],
    query_E: NDArray[np.float64],
    *,
    count: int,
    excluded: NDArray[np.int64],
    index: Any,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the `count` rows nearest to a unit-length query by an index; scores and order as in `nearest`.

    Args:
        index: of faiss, or another that gives candidates (`foveate.search.databases.Candidates`).
    """
    # An index does not know which rows are excluded, so that many more are requested.
    request = min(_REFINED * count + len(excluded), index.ntotal)
    _, rows_1K = index.search(query_E[None].astype(np.float32), request)
    # faiss pads the result with -1 where the lists that it searched hold fewer rows.
    rows = np.setdiff1d(rows_1K[0][rows_1K[0] >= 0].astype(np.int64), excluded)
    if not len(rows):
        return np.zeros(0), rows
    return rank_rows(parts, query_E, rows, count=count)


def choose_factory(total: int) -> str:
    """Return faiss's factory string for so many rows: a flat index, or about sqrt(N) inverted lists.

    >>> choose_factory(1000), choose_factory(100_000), choose_factory(1_000_000)
    ('Flat', 'IVF256,Flat', 'IVF1024,Flat')
    """
    # A power of two near sqrt(N): four times as many, faiss's guideline, take sixteen times as long to make.
    return "Flat" if total < LISTS_FROM else f"IVF{2 ** round(math.log2(total**0.5))},Flat"


def open_faiss(
    parts: Sequence[NDArray[np.floating]], segments: Sequence[Segment], folder: Path, *, factory: str = ""
) -> Any:
    """Return a faiss index: flat in memory, or another in `folder`/faiss, built when missing.

    Args:
        segments: of the parts, all of one kind; their names decide the file of the index.
        factory: string of `faiss.index_factory`, as "IVF4096,PQ64"; by the number of rows where it is "".

    Raises:
        UserError: faiss is not installed, or cannot make such an index of these vectors.
    """
    faiss = library()
    factory = factory or choose_factory(sum(map(len, parts)))
    if factory == "Flat":
        return build_faiss(parts, factory)
    kind, names = segments[0].kind, "\n".join([factory, *(segment.name for segment in segments)])
    # A hash of the segments' names is part of the file name, so an index of an earlier state is never taken for this.
    path = folder / "faiss" / f"{kind}-{hashlib.blake2b(names.encode(), digest_size=8).hexdigest()}.faiss"
    if not path.is_file():
        with FolderLock(folder, purpose="faiss lists"):
            path.parent.mkdir(exist_ok=True)
            # That of an earlier state, or of another factory; those of the other kind stay.
            for old in path.parent.glob(f"{kind}-*"):
                old.unlink()
            temporary = path.with_suffix(".tmp")
            faiss.write_index(build_faiss(parts, factory), str(temporary))
            commit_atomically(temporary, path)
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)


def build_faiss(parts: Sequence[NDArray[np.floating]], factory: str) -> Any:
    """Build a faiss index, and choose its effort by its recall of the nearest of its own vectors.

    Raises:
        UserError: faiss knows no such index, or cannot make it of so many vectors of this width.
    """
    faiss = library()
    total, width = sum(map(len, parts)), parts[0].shape[1]
    try:
        index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
        if factory != "Flat":
            say(f"faiss: {factory} of {total:,} vectors, built once")
        if not index.is_trained:
            index.train(_sample(parts, _TRAIN_ROWS))
        for part in parts:
            for start in range(0, len(part), _ADD_ROWS):
                index.add(np.ascontiguousarray(part[start : start + _ADD_ROWS], dtype=np.float32))
    except RuntimeError as error:
        # faiss's messages begin with the function, the line of its source, and the condition in it.
        reason = re.sub(r"^.* at \S+:[0-9]+: (Error: )?('.*' failed: )?", "", str(error), flags=re.DOTALL).strip()
        raise UserError(
            f"backend 'faiss:{factory}': faiss cannot make it of {total:,} vectors of {width} numbers ({reason}); "
            f"allowed are strings of its index_factory, such as {choose_factory(LISTS_FROM)}"
        ) from error
    if factory != "Flat":
        _choose_effort(index, parts)
    return index


def _sample(parts: Sequence[NDArray[np.floating]], count: int) -> NDArray[np.float32]:
    total = sum(map(len, parts))
    rows = np.random.default_rng(0).choice(total, size=min(total, count), replace=False)
    return np.ascontiguousarray(take(parts, np.sort(rows)), dtype=np.float32)


def _choose_effort(index: Any, parts: Sequence[NDArray[np.floating]]) -> None:
    """Double the effort of an index until it finds what `MIN_RECALL` asks for, or no more is found."""
    space, queries_QE = library().ParameterSpace(), _sample(parts, _ASKED)
    _, exact_QK = nearest(parts, queries_QE, count=_NEAREST)
    name = next((name for name in _EFFORTS if _set(space, index, name, 1)), None)
    none, counts = np.zeros(0, np.int64), list[int]()
    # Not less than 16: texts lie farther from their neighbors than an index's own vectors do from theirs.
    for effort in (2**power for power in range(4, 13)):
        if name is not None:
            _set(space, index, name, effort)
        found = (
            nearest_among(parts, query_E, count=_NEAREST, excluded=none, index=index)[1]
            for query_E in queries_QE.astype(np.float64)
        )
        counts.append(sum(len(np.intersect1d(*pair)) for pair in zip(found, exact_QK, strict=True)))
        recall = counts[-1] / exact_QK.size
        # What three efforts do not change is lost by the shortened vectors.
        if recall >= MIN_RECALL or name is None or counts[-3:] == 3 * counts[-1:]:
            break
    setting = "" if name is None else f" with {name} {effort}"
    say(f"faiss: finds {recall:.3f} of the {_NEAREST} nearest of the index's own vectors{setting}")


def _set(space: Any, index: Any, name: str, value: int) -> bool:
    """Set a parameter of a faiss index; return whether it has one of that name."""
    try:
        space.set_index_parameter(index, name, value)
    except RuntimeError:
        return False
    return True
