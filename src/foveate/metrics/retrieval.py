"""Retrieval: recall at k with ties counted by their expectation, and filtered ranks of link prediction.

Captions repeat, so candidates tie exactly. Breaking ties by position rewards whoever comes first in the file;
here the default is the *expected* recall when tied candidates stand in random order, which needs no random
numbers. A row may have several right candidates (two regions with the same phrase); the best-ranked counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError, choose

TIE_RULES = ("average", "optimistic")
# Rows of similarities held at once: 256 x 20,000 float64 numbers are 40 MB.
ROWS_PER_CHUNK = 256

# One right candidate per row [N], several per row (sequence of N index arrays), a bool mask [N, M] (an
# array, or nested lists), or None: row i is right for candidate i. Lists of 0 and 1 are indices, not a mask.
Positives = NDArray[Any] | Sequence[int] | Sequence[Sequence[int]] | Sequence[NDArray[Any]] | None


class Ranks(NamedTuple):
    """Rank of the best right candidate of each row: all that recall at any k needs."""

    better_N: NDArray[np.int64]  # candidates that score strictly higher
    tied_N: NDArray[np.int64]  # candidates that score the same, itself included
    tied_positives_N: NDArray[np.int64]  # how many of the tied ones are right, at least 1

    def recall(self, k: int, *, ties: str = "average") -> tuple[float, NDArray[np.float64]]:
        """Return recall at k in [0, 1]: the mean, and the value of each row (a fraction if ties straddle k)."""
        if k < 1:
            raise UserError(f"k of recall at k: out of range (got {k}); expected 1 or more")
        choose(ties, TIE_RULES, "tie rule")
        per_sample_N = (self.better_N < k).astype(np.float64)
        if ties == "average":
            per_sample_N *= _chance_of_a_hit(k - self.better_N, self.tied_N, self.tied_positives_N)
        return float(per_sample_N.mean()), per_sample_N


def _chance_of_a_hit(
    places_N: NDArray[np.int64], tied_N: NDArray[np.int64], positives_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the chance that one of `positives` among `tied` candidates in random order is in the first `places`.

    1 - C(tied - positives, places) / C(tied, places); for one positive this is clip(places / tied, 0, 1).
    """
    places_N = np.clip(places_N, 0, tied_N)
    miss_N = np.ones(len(tied_N))
    # A product of at most `positives` factors instead of two binomials, which overflow for thousands of ties.
    for drawn in range(int(positives_N.max(initial=0))):
        left_N = np.maximum(tied_N - drawn, 1)
        factor_N = np.maximum(tied_N - places_N - drawn, 0) / left_N
        miss_N *= np.where(drawn < positives_N, factor_N, 1.0)
    return 1.0 - miss_N


class _FlatPositives(NamedTuple):
    """Right candidates of all rows in one list: those of row i are columns[starts[i] : starts[i + 1]]."""

    starts: NDArray[np.int64]
    columns: NDArray[np.int64]

    @classmethod
    def of(cls, positives: Positives, rows: int, candidates: int) -> _FlatPositives:
        if rows == 0 or candidates == 0:
            raise UserError(
                f"retrieval needs queries and candidates, at least one of each (got {rows} and {candidates})"
            )
        if positives is None:
            if rows != candidates:
                raise UserError(f"{rows} queries and {candidates} candidates: say which candidates are right")
            return cls(np.arange(rows + 1), np.arange(rows))
        if len(positives) != rows:
            raise UserError(f"right candidates: {len(positives)} entries for {rows} queries; expected one for each")
        mask_NM = _as_mask(positives, rows, candidates)
        if mask_NM is not None:
            counts, columns = mask_NM.sum(1), np.nonzero(mask_NM)[1]
        else:
            # A candidate listed twice is one candidate.
            lists = [np.unique(np.atleast_1d(np.asarray(row))) for row in positives]
            counts = np.array([len(row) for row in lists])
            columns = np.concatenate(lists)
        if (counts == 0).any():
            raise UserError(f"query {int(np.argmin(counts))} has no right candidate")
        starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        outside = np.flatnonzero((columns < 0) | (columns >= candidates))
        if len(outside):
            row = int(np.searchsorted(starts, outside[0], side="right")) - 1
            raise UserError(f"query {row}: candidate {columns[outside[0]]} is not in 0 to {candidates - 1}")
        return cls(starts, columns.astype(np.int64))


def _as_mask(positives: NDArray[Any] | Sequence[Any], rows: int, candidates: int) -> NDArray[np.bool_] | None:
    """Return right candidates given as truth values, an array or rows of them; None for indices.

    Raises:
        UserError: truth values of another shape, or for some queries only.
    """
    if isinstance(positives, np.ndarray) and positives.dtype == np.bool_ and positives.shape == (rows, candidates):
        return positives  # not copied: it may be large
    entries = [np.asarray(row) for row in positives]
    # Read as indices, False and True would be the candidates 0 and 1.
    if not any(entry.dtype == np.bool_ for entry in entries):
        return None
    for row, entry in enumerate(entries):
        if entry.dtype != np.bool_ or entry.shape != (candidates,):
            raise UserError(
                f"mask: wrong shape or type for query {row} (got {entry.dtype} {list(entry.shape)}); expected "
                f"[{rows}, {candidates}] truth values"
            )
    return np.stack(entries)


def _rank_chunk(
    sim_CM: NDArray[Any], first_row: int, positives: _FlatPositives, copies_M: NDArray[np.float64] | None
) -> Ranks:
    """Count for a block of rows; `copies_M` is the number of identical candidates of each column."""
    unusable = np.flatnonzero(np.isnan(sim_CM).any(1))
    if len(unusable):
        raise UserError(f"query {first_row + int(unusable[0])}: a similarity is NaN")
    starts = positives.starts[first_row : first_row + len(sim_CM) + 1]
    columns = positives.columns[starts[0] : starts[-1]]
    starts = starts - starts[0]
    row_of = np.repeat(np.arange(len(sim_CM)), np.diff(starts))
    scores = sim_CM[row_of, columns]
    # Only the best right candidate counts for recall; reduceat takes ragged lists without a loop.
    best_C = np.maximum.reduceat(scores, starts[:-1])
    tied_positives_C = np.add.reduceat((scores == best_C[row_of]).astype(np.int64), starts[:-1])
    # Exact comparison on purpose: near-ties are real differences, true ties are bit-equal (see below).
    better_CM, tied_CM = sim_CM > best_C[:, None], sim_CM == best_C[:, None]
    if copies_M is None:
        better_C, tied_C = better_CM.sum(1), tied_CM.sum(1)
    else:
        # A product with float64 counts is exact up to 2^53; BLAS has none for integers.
        better_C, tied_C = np.rint(better_CM @ copies_M), np.rint(tied_CM @ copies_M)
    return Ranks(better_C.astype(np.int64), tied_C.astype(np.int64), tied_positives_C)


def _joined(chunks: list[Ranks]) -> Ranks:
    return Ranks(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))


def rank_positives(sim_NM: ArrayLike, positives: Positives = None) -> Ranks:
    """Rank the right candidates in a similarity matrix: rows are queries, columns candidates.

    Args:
        positives: which candidates are right; see `Positives`.

    Raises:
        UserError: a row without right candidate, an index out of range, a NaN.
    """
    sim = np.asarray(sim_NM)
    if sim.ndim != 2:
        raise UserError(f"similarities: wrong shape (got {list(sim.shape)}); expected [N, M]")
    flat = _FlatPositives.of(positives, *sim.shape)
    # In parts: the masks of better and of tied candidates would each be as large as the whole matrix.
    firsts = range(0, len(sim), ROWS_PER_CHUNK)
    return _joined([_rank_chunk(sim[first : first + ROWS_PER_CHUNK], first, flat, None) for first in firsts])


def rank_positives_from_embeddings(
    queries_NE: ArrayLike,
    candidates_ME: ArrayLike,
    positives: Positives = None,
    *,
    rows_per_chunk: int = ROWS_PER_CHUNK,
) -> Ranks:
    """Rank by cosine similarity as `rank_positives` does, without the whole [N, M] matrix in memory.

    Candidates with bit-equal embeddings are scored once, so that they tie exactly: a matrix product may give
    equal columns last bits that differ. Encode each phrase once, so that equal phrases have equal embeddings.

    Args:
        queries_NE, candidates_ME: embeddings, any length (they are normalized in float64).
        rows_per_chunk: rows of similarities computed at a time.

    Raises:
        UserError: as `rank_positives`; also an embedding that is zero or not finite, named by its row.
    """
    queries, candidates = normalize(queries_NE, what="query"), np.asarray(candidates_ME)
    if candidates.ndim != 2 or candidates.shape[1] != queries.shape[1]:
        raise UserError(
            f"queries and candidates: wrong shapes (got {list(queries.shape)} and {list(candidates.shape)}); expected "
            "[N, E] and [M, E] with the same E"
        )
    flat = _FlatPositives.of(positives, len(queries), len(candidates))
    # On the raw rows: their bit-equality is what the caller controls.
    first_of, group_M = _equal_rows(candidates)
    distinct_UE = normalize(candidates, what="candidate")[first_of]
    copies_U = np.bincount(group_M, minlength=len(first_of)).astype(np.float64)
    flat = _FlatPositives(flat.starts, group_M[flat.columns])
    chunks = []
    for first in range(0, len(queries), max(1, rows_per_chunk)):
        sim_CU = queries[first : first + max(1, rows_per_chunk)] @ distinct_UE.T
        chunks.append(_rank_chunk(sim_CU, first, flat, copies_U))
    return _joined(chunks)


def _equal_rows(array_ME: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first row of each set of bit-equal rows [U], and the set of each row [M]."""
    # Bytes as dictionary keys: linear time, where np.unique(axis=0) sorts rows.
    array = np.ascontiguousarray(array_ME) + 0.0  # -0.0 becomes 0.0
    seen: dict[bytes, int] = {}
    group_M = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in array], dtype=np.int64)
    return np.unique(group_M, return_index=True)[1].astype(np.int64), group_M


def normalize(embeddings_NE: ArrayLike, *, what: str = "embedding") -> NDArray[np.float64]:
    """Scale rows to unit length in float64, shape [N, E].

    Raises:
        UserError: naming the first row that is not finite or has no length.
    """
    embeddings = np.asarray(embeddings_NE, dtype=np.float64)
    if embeddings.ndim != 2:
        raise UserError(f"{what} array: wrong shape (got {list(embeddings.shape)}); expected [N, E]")
    length_N1 = np.linalg.norm(embeddings, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(length_N1[:, 0]) & (length_N1[:, 0] > 0)))
    if len(bad):
        raise UserError(f"{what} {int(bad[0])}: its embedding is zero or not finite")
    return embeddings / length_N1


def recall_at_k(
    sim_NM: ArrayLike, positives: Positives = None, *, k: int, ties: str = "average"
) -> tuple[float, NDArray[np.float64]]:
    """Return recall at k of a similarity matrix (rows are queries): the mean, and the value of each row, in [0, 1].

    Args:
        positives: right candidates: a column per row, a sequence of column lists, a bool mask (an array, or nested
            lists), or None for the diagonal. Integers are always columns: [0, 1] is no mask but the first
            two. A row is a hit when its best-ranked right candidate is among the first k.
        ties: `average`: expected recall under random tie order, clip((k - #better) / #tied, 0, 1) for one
            right candidate; `optimistic`: ties go to the right candidate.

    Raises:
        UserError: see `rank_positives`; an unknown tie rule; k below 1.

    >>> recall_at_k(np.array([[0.9, 0.9, 0.1], [0.2, 0.8, 0.1], [0.5, 0.4, 0.3]]), k=1)[1].tolist()
    [0.5, 1.0, 0.0]
    """
    return rank_positives(sim_NM, positives).recall(k, ties=ties)


def recall_from_embeddings(
    queries_NE: ArrayLike,
    candidates_ME: ArrayLike,
    positives: Positives = None,
    *,
    k: int,
    ties: str = "average",
    rows_per_chunk: int = ROWS_PER_CHUNK,
) -> tuple[float, NDArray[np.float64]]:
    """Return `recall_at_k` under cosine similarity, in row chunks; for several k, rank once: `Ranks.recall`.

    Example:
        >>> images, texts = np.eye(3), np.eye(3)[[0, 2, 1]]
        >>> round(recall_from_embeddings(images, texts, k=1)[0], 3)
        0.333
    """
    ranks = rank_positives_from_embeddings(queries_NE, candidates_ME, positives, rows_per_chunk=rows_per_chunk)
    return ranks.recall(k, ties=ties)


def positives_by_label(
    query_labels: Sequence[Hashable], candidate_labels: Sequence[Hashable]
) -> list[NDArray[np.int64]]:
    """Return the right candidates of each query: all with the same label (phrase, class, image key)."""
    columns: dict[Hashable, list[int]] = defaultdict(list)
    for column, label in enumerate(candidate_labels):
        columns[label].append(column)
    # All queries of a label share one array: copies would grow with the square of the label's members.
    arrays = {label: np.array(positions, dtype=np.int64) for label, positions in columns.items()}
    return [arrays.get(label, np.zeros(0, dtype=np.int64)) for label in query_labels]


def within_group_accuracy(
    queries_NE: ArrayLike,
    candidates_NE: ArrayLike,
    groups_N: Sequence[Hashable],
    *,
    labels_N: Sequence[Hashable] | None = None,
) -> tuple[float, NDArray[np.float64], float]:
    """Return the accuracy of picking the right candidate of the query's group, such as the boxes of its image.

    Args:
        queries_NE, candidates_NE: row i of one belongs to row i of the other; cosine similarity.
        groups_N: for instance the image key of each row.
        labels_N: rows of one group with equal labels (phrases) are right for one another.

    Returns:
        The mean (ties averaged), the value of each row, and the mean that a random choice would reach.
    """
    queries, candidates = normalize(queries_NE, what="query"), normalize(candidates_NE, what="candidate")
    if not len(queries) == len(candidates) == len(groups_N) or len(queries) == 0:
        raise UserError(
            "queries, candidates and groups: expected equally many, at least one "
            f"(got {len(queries)}, {len(candidates)} and {len(groups_N)})"
        )
    labels = labels_N if labels_N is not None else range(len(queries))
    per_sample_N, chance_N = np.zeros(len(queries)), np.zeros(len(queries))
    members: dict[Hashable, list[int]] = defaultdict(list)
    for row, group in enumerate(groups_N):
        members[group].append(row)
    for rows in members.values():
        group_labels = [labels[row] for row in rows]
        ranks = rank_positives_from_embeddings(
            queries[rows], candidates[rows], positives_by_label(group_labels, group_labels)
        )
        per_sample_N[rows] = ranks.recall(1)[1]
        chance_N[rows] = [group_labels.count(label) / len(group_labels) for label in group_labels]
    return float(per_sample_N.mean()), per_sample_N, float(chance_N.mean())


# Link prediction: the rank of the true candidate, with other true candidates left out (filtered), ties both ways.


RankKind = Literal["optimistic", "realistic", "pessimistic"]
RANK_KINDS: tuple[RankKind, ...] = get_args(RankKind)


class LinkRanks(NamedTuple):
    """Ranks of the true candidates, from 1.

    Attributes:
        optimistic_N: the true candidate stands before those of equal score. pessimistic_N: behind them.
        num_candidates_N: that were left after filtering, the true one included.
    """

    optimistic_N: NDArray[np.int64]
    pessimistic_N: NDArray[np.int64]
    num_candidates_N: NDArray[np.int64]

    def ranks(self, kind: RankKind = "realistic") -> NDArray[np.float64]:
        """Return one rank for each row; "realistic" is the mean of the other two."""
        choose(kind, RANK_KINDS, "kind of rank")
        weight = {"optimistic": 0.0, "realistic": 0.5, "pessimistic": 1.0}[kind]
        return (1 - weight) * self.optimistic_N + weight * self.pessimistic_N

    def mean_rank(self, kind: RankKind = "realistic") -> float:
        """Return the arithmetic mean of ranks."""
        return float(self.ranks(kind).mean())

    def mean_reciprocal_rank(self, kind: RankKind = "realistic") -> float:
        """Return MRR, the mean of 1 / rank."""
        return float((1 / self.ranks(kind)).mean())

    def hits_at(self, k: int, kind: RankKind = "realistic") -> float:
        """Return the share of rows whose true candidate is among the first `k`."""
        return float((self.ranks(kind) <= k).mean())


def link_ranks(
    scores_NC: ArrayLike, targets_N: ArrayLike, known_NC: ArrayLike | None = None, *, tie: float = 0.0
) -> LinkRanks:
    """Rank the true candidate of each row by descending score.

    Args:
        scores_NC: higher is better.
        targets_N: index of the true candidate.
        known_NC: whether a candidate is true as well and therefore left out; the target itself never is.
        tie: scores that differ by no more are equal. Give a little more than 0 where a product is rounded otherwise
            than its twin.

    Raises:
        UserError: shapes disagree, a score is NaN, or a target is no candidate.

    Source: Bordes et al. 2013 (filtered setting); Berrendorf et al. 2020 (realistic rank), as in PyKEEN.

    Example:
        >>> ranks = link_ranks([[0.9, 0.5, 0.1], [0.3, 0.3, 0.1]], [0, 1])
        >>> ranks.ranks().tolist(), ranks.hits_at(1)
        ([1.0, 1.5], 0.5)
    """
    scores, targets = np.asarray(scores_NC), np.asarray(targets_N)
    candidates_NC = np.ones(scores.shape, np.bool_) if known_NC is None else ~np.asarray(known_NC, np.bool_)
    if scores.ndim != 2 or targets.shape != scores.shape[:1] or candidates_NC.shape != scores.shape:
        raise UserError(
            f"link ranks: wrong shapes (got scores {list(scores.shape)}, targets {list(targets.shape)}, known "
            f"{list(candidates_NC.shape)}); expected [N, C], [N], [N, C]"
        )
    if np.isnan(scores).any():
        raise UserError(f"link ranks: row {int(np.isnan(scores).any(1).argmax())} has a score that is not a number")
    outside_N = (targets < 0) | (targets >= scores.shape[1])
    if outside_N.any():
        row = int(outside_N.argmax())
        raise UserError(
            f"link ranks: row {row} has no such target (got {targets[row]}); expected 0 to {scores.shape[1] - 1}"
        )
    rows = np.arange(len(targets))
    true_N1 = scores[rows, targets][:, None]
    candidates_NC = candidates_NC.copy()
    # The filter lists all true candidates, so the target, too; without it there would be nothing to rank.
    candidates_NC[rows, targets] = True
    better_N = ((scores > true_N1 + tie) & candidates_NC).sum(1)
    # This count includes the target itself, so it is already the pessimistic rank, from 1.
    not_worse_N = ((scores >= true_N1 - tie) & candidates_NC).sum(1)
    return LinkRanks(better_N + 1, not_worse_N, candidates_NC.sum(1))
