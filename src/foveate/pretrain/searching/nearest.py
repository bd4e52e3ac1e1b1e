"""The stored vectors nearest to a query: exact, in blocks, with an order that no block size and no library changes.

A first pass in float32 (of float16 vectors with a few queries: in float16) finds who can be among the nearest at all:
everyone whose score is within its rounding error of the k-th best. Only they are scored again, in float64 and always in
the same way, and sorted: ties, which the last bits of a matrix product would break by chance, go to the lower row.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from foveate.core.errors import UserError

# Queries scored at a time, and numbers in one block of scores: 8 MB in float32.
_QUERIES, _SCORES = 256, 2**21
_ROWS = {np.dtype(np.float32): 16384, np.dtype(np.float16): 8192}
# Up to so many queries are multiplied one after the other, float32 vectors by NumPy's dot product of rows, which is
# faster than its matrix product there, and float16 vectors as they are: that reads half of the bytes. More pay for the
# matrix product, and for making float16 vectors float32 once.
_FEW = 4
# Candidates scored again at a time.
_AGAIN = 8192


def nearest(
    parts: Sequence[NDArray[np.floating]],
    queries_QE: NDArray[np.floating],
    *,
    count: int,
    excluded: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The `count` rows of highest cosine with each query, best first, equal scores by row.

    Args:
        parts: unit-length vectors [n, E], float32 or float16, in memory or memory-mapped; row numbers run on.
        queries_QE: any length, not zero.
        excluded: row numbers that may not be answers, ascending.

    Returns:
        Cosines [Q, K] in [-1, 1] and row numbers [Q, K]; K = count, or as many rows as there are. The cosines are
        those of the stored vectors, computed in float64.

    Raises:
        UserError: the stored vectors are no numbers, so that fewer than `count` rows have a cosine.
    """
    queries = np.asarray(queries_QE, dtype=np.float64)
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    gone = np.zeros(0, np.int64) if excluded is None else excluded
    count = min(count, sum(map(len, parts)) - len(gone))
    scores, rows = np.zeros((len(queries), max(0, count))), np.zeros((len(queries), max(0, count)), np.int64)
    if count < 1:
        return scores, rows
    for start in range(0, len(queries), _QUERIES):
        chunk = queries[start : start + _QUERIES]
        for place, found in enumerate(_candidates(parts, chunk, count, gone)):
            best, chosen = ranked(parts, chunk[place], found, count=count) if len(found) else (np.zeros(0), found)
            if len(best) < count or not np.isfinite(best).all():
                raise UserError("the embeddings are damaged: some of them are no numbers; make the index anew")
            scores[start + place], rows[start + place] = best, chosen
    return scores, rows


def ranked(
    parts: Sequence[NDArray[np.floating]], query_E: NDArray[np.float64], rows_C: NDArray[np.int64], *, count: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cosines of the given rows with a unit-length query in float64: the best `count`, equal scores by row."""
    rows = np.sort(rows_C)
    scores = np.concatenate([_cosines(parts, query_E, rows[at : at + _AGAIN]) for at in range(0, len(rows), _AGAIN)])
    if len(scores) > count:  # whatever ties with the last place stays in until rows decide
        kept = scores >= np.partition(scores, len(scores) - count)[len(scores) - count]
        scores, rows = scores[kept], rows[kept]
    order = np.argsort(-scores, kind="stable")[:count]
    return scores[order].clip(-1.0, 1.0), rows[order]


def rounding_slack(dtype: np.dtype, width: int, *, narrow: bool = False) -> float:
    """How far the first product of a stored vector with a query may be from their true cosine.

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
    """For each query the rows that can be among its nearest."""
    number, width = queries_QE.shape
    narrow = number <= _FEW and _sums_in_float32()
    slacks = (rounding_slack(part.dtype, width, narrow=narrow and part.dtype == np.float16) for part in parts)
    kept = _Kept(number, count, np.float32(2 * max(slacks)))
    seen, next_tightening = 0, 0
    for first, scores_BQ in _scores(parts, queries_QE, narrow=narrow):
        if len(excluded):
            inside = excluded[np.searchsorted(excluded, first) : np.searchsorted(excluded, first + len(scores_BQ))]
            scores_BQ[inside - first] = -np.inf
        kept.add(first, scores_BQ)
        seen += len(scores_BQ)
        if seen >= next_tightening or kept.held > kept.most:
            kept.tighten()
            next_tightening = 2 * seen
    return kept.rows_of_each()


def _scores(
    parts: Sequence[NDArray[np.floating]], queries_QE: NDArray[np.float64], *, narrow: bool
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The first row number of each block, and the products [B, Q] of its vectors with the queries."""
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
    """The product [B, Q], column by column."""
    queries_QE = np.ascontiguousarray(table_EQ.T)
    if hasattr(np, "vecdot"):  # NumPy 2
        columns = [np.vecdot(block_BE, query_E) for query_E in queries_QE]
    else:
        columns = [np.einsum("be,e->b", block_BE, query_E) for query_E in queries_QE]
    return np.stack(columns, axis=1)


def _tensor(part: NDArray[np.floating]) -> torch.Tensor:
    """The array as a tensor on the same memory; it is never written to, so a read-only mapping is fine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(np.asarray(part))


@functools.cache
def _openmp() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")


@contextmanager
def _one_thread() -> Iterator[None]:
    """A product of a block with a query takes less time than waiting for other threads to end their share of it."""
    with _openmp().limit(limits=1):
        yield


@functools.cache
def _sums_in_float32() -> bool:
    """Whether this PyTorch takes the sums of float16 products in float32 on this processor, as it does by default.

    In float16 the sum below would stay at 2048, above which 1 is lost.
    """
    ones = torch.ones(2, 4096, dtype=torch.float16)
    return bool((torch.mv(ones, ones[0]) == 4096).all())


class _Kept:
    """Rows that may still be among the nearest of each query, and the score from which on a row may."""

    def __init__(self, queries: int, count: int, margin: np.float32) -> None:
        self.queries, self.count, self.margin = queries, count, margin
        self.from_Q = np.full(queries, -np.inf, np.float32)
        self.held, self.most = 0, max(2**18, 8 * queries * count)
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []

    def add(self, first: int, scores_BQ: NDArray[np.float32]) -> None:
        """Takes in a block of scores, whose first row number is `first`."""
        passing = np.flatnonzero(scores_BQ >= self.from_Q)
        size = len(scores_BQ)
        if len(passing) > 8 * self.count * self.queries and size > self.count:
            # The block alone says that most cannot be among the nearest: its k-th best is a floor.
            kth_Q = np.partition(scores_BQ, size - self.count, axis=0)[size - self.count]
            self.from_Q = np.maximum(self.from_Q, kth_Q - self.margin)
            passing = np.flatnonzero(scores_BQ >= self.from_Q)
        if len(passing):
            row, query = np.divmod(passing, self.queries)
            score = scores_BQ.ravel()[passing]
            there = score > -np.inf
            self._parts.append((query[there], row[there] + first, score[there]))
            self.held += int(there.sum())

    def tighten(self) -> None:
        """Raises the floors to the k-th best of what is held, and lets go of what is below."""
        query, row, score = self._joined()
        order = np.lexsort((-score, query))
        query, row, score = query[order], row[order], score[order]
        ends = np.searchsorted(query, np.arange(self.queries), side="right")
        starts = np.searchsorted(query, np.arange(self.queries), side="left")
        full = ends - starts >= self.count
        kth = score[starts[full] + self.count - 1]
        self.from_Q[full] = np.maximum(self.from_Q[full], kth - self.margin)
        kept = score >= self.from_Q[query]
        self._parts = [(query[kept], row[kept], score[kept])]
        # With many equal vectors much has to stay: the next look comes when as much again is there.
        self.held = int(kept.sum())
        self.most = max(2**18, 8 * self.queries * self.count, 2 * self.held)

    def _joined(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        if not self._parts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
        query, row, score = (np.concatenate(columns) for columns in zip(*self._parts, strict=True))
        return query, row, score

    def rows_of_each(self) -> list[NDArray[np.int64]]:
        """The rows of each query that remain."""
        self.tighten()
        query, row, _ = self._joined()
        return np.split(row, np.searchsorted(query, np.arange(1, self.queries)))


def _cosines(
    parts: Sequence[NDArray[np.floating]], query_E: NDArray[np.float64], rows_C: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Cosines in float64: each row by itself and summed in one fixed order, so that equal vectors tie exactly."""
    vectors_CE = take(parts, rows_C).astype(np.float64)
    dots_C = (vectors_CE * query_E).sum(axis=1)
    return dots_C / np.sqrt((vectors_CE * vectors_CE).sum(axis=1))


def take(parts: Sequence[NDArray[np.floating]], rows_C: NDArray[np.int64]) -> NDArray[np.floating]:
    """The vectors [C, E] of ascending row numbers."""
    edges = np.searchsorted(rows_C, np.cumsum([0, *map(len, parts)]))
    first, found = 0, []
    for part, start, stop in zip(parts, edges[:-1], edges[1:], strict=True):
        if stop > start:
            found.append(part[rows_C[start:stop] - first])
        first += len(part)
    return np.concatenate(found)
