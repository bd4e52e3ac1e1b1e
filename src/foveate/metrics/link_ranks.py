"""Link prediction: the rank of the true candidate, with other true candidates left out (filtered), ties both ways."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError, choose

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
