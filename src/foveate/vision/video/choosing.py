"""Choose frames by what they show: even, covering, at changes, or like a question. Deterministic."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError, choose
from foveate.vision.video.sampling import sample

ChoiceRule = Literal["even", "cover", "change", "query"]

# Encoders return float32: two distances that differ by less than this part of the longest vector differ by rounding
# alone, and another processor, which rounds differently, would choose other frames.
TOLERANCE = 2 * float(np.finfo(np.float32).eps)


def choose_frames(
    vectors_TD: ArrayLike, num_frames: int, rule: ChoiceRule = "cover", *, query_D: ArrayLike | None = None
) -> list[int]:
    """Return the indices of `num_frames` of T frames, in order; all of them where there are no more.

    Distances that differ by rounding alone (2.4e-7 of the longest vector) are equal; the earlier of equal frames wins.

    Args:
        vectors_TD: a vector for each frame, from any encoder: its image embedding, or the mean of its tokens.
        rule: "even" (by position alone, `sample` with its rule "official", which repeats a frame of short clips),
            "cover" (the first frame, then always the one farthest from all selected before), "change" (the frames that
            differ most from the one before; equal changes are decided as by "cover") or "query" (cosine with `query_D`,
            with at least ceil(T / (4 num_frames)) frames between two, fewer where they do not fit).
        query_D: embedding of the question in the space of `vectors_TD`, for "query".

    Raises:
        UserError: vectors of another shape or not finite, no frame to choose, or a query that is missing or not needed.

    Example:
        >>> choose_frames([[0.0], [0.1], [5.0], [5.1], [9.0]], 3)
        [0, 2, 4]
        >>> choose_frames([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], 1, "query", query_D=[0.0, 2.0])
        [1]
    """
    choose(rule, get_args(ChoiceRule), "choice of frames")
    vectors = np.asarray(vectors_TD, dtype=np.float64)
    if vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
        raise UserError(f"vectors: expected finite numbers [frames, width] (got shape {list(vectors.shape)})")
    if num_frames < 1:
        raise UserError(f"frames: {num_frames} to choose; expected at least 1")
    if (rule == "query") != (query_D is not None):
        got = "none" if query_D is None else "one"
        raise UserError(f"query: rule '{rule}' (got {got}); expected an embedding with rule 'query', and with no other")
    total = len(vectors)
    # Before the shortcut for short clips: for them this rule repeats a frame, as the official sampler does.
    if rule == "even":
        return sample(total, num_frames)
    if num_frames >= total:
        return list(range(total))
    if rule == "query":
        return _choose_like(vectors, num_frames, np.asarray(query_D, dtype=np.float64))
    if rule == "change":
        return _choose_changes(vectors, num_frames)
    return _choose_covering(vectors, num_frames, [0], range(total))


def _choose_covering(
    vectors_TD: NDArray[np.float64], num_frames: int, selected: list[int], candidates: range | list[int]
) -> list[int]:
    """Add candidates to `selected`, always the one farthest from its nearest selected frame, up to `num_frames`."""
    # Vectors with a common offset lose digits in differences.
    centered_TD = vectors_TD - vectors_TD.mean(0)
    scale = _measure_scale(vectors_TD)
    distances_T = np.full(len(vectors_TD), np.inf)
    allowed_T = np.zeros(len(vectors_TD), dtype=bool)
    allowed_T[candidates] = True
    selected = list(selected)
    newest = selected
    while True:
        for index in newest:
            distances_T = np.minimum(distances_T, np.linalg.norm(centered_TD - centered_TD[index], axis=1))
            allowed_T[index] = False
        if len(selected) == num_frames:
            return sorted(selected)
        # Those taken are ranked below all others, which are at least 0 away. argmin returns the first of equal ranks.
        ranks_T = _rank(np.where(allowed_T, distances_T, -2 * TOLERANCE * scale - 1), scale)
        newest = [int(ranks_T.argmin())]
        selected += newest


def _choose_changes(vectors_TD: NDArray[np.float64], num_frames: int) -> list[int]:
    scale = _measure_scale(vectors_TD)
    # The first frame follows none: any change stands above it.
    first = -2 * TOLERANCE * scale - 1
    changes_T = np.concatenate([[first], np.linalg.norm(np.diff(vectors_TD, axis=0), axis=1)])
    ranks_T = _rank(changes_T, scale)
    threshold = np.sort(ranks_T)[num_frames - 1]
    above, equal = np.flatnonzero(ranks_T < threshold).tolist(), np.flatnonzero(ranks_T == threshold).tolist()
    return _choose_covering(vectors_TD, num_frames, above or equal[:1], equal)


def _choose_like(vectors_TD: NDArray[np.float64], num_frames: int, query_D: NDArray[np.float64]) -> list[int]:
    total = len(vectors_TD)
    if query_D.shape != vectors_TD.shape[1:] or not np.isfinite(query_D).all():
        raise UserError(f"query: shape {list(query_D.shape)}; expected [{vectors_TD.shape[1]}] as the frames' vectors")
    norms_T = np.linalg.norm(vectors_TD, axis=1) * np.linalg.norm(query_D)
    # A frame whose vector is 0 is like nothing, and comes last.
    scores_T = np.divide(vectors_TD @ query_D, norms_T, out=np.full(total, -1.0), where=norms_T > 0)
    order = np.argsort(_rank(scores_T, 1.0), kind="stable").tolist()
    selected: list[int] = []
    # The gap shrinks until enough frames fit; at 0 any do.
    for between in range(-(-total // (4 * num_frames)), -1, -1):
        for index in order:
            if len(selected) < num_frames and all(abs(index - other) > between for other in selected):
                selected.append(index)
    return sorted(selected)


def _measure_scale(vectors_TD: NDArray[np.float64]) -> float:
    """Return the length of the longest vector: rounding errors grow with the values, not with their differences."""
    return float(np.linalg.norm(vectors_TD, axis=1).max())


def _rank(scores_T: NDArray[np.float64], scale: float) -> NDArray[np.int64]:
    """Rank scores, 0 for the highest; neighbors in that order that differ by rounding alone share a rank."""
    order = np.argsort(-scores_T, kind="stable")
    gaps = -np.diff(scores_T[order], prepend=scores_T[order[0]])
    ranks_T = np.empty(len(scores_T), dtype=np.int64)
    ranks_T[order] = np.cumsum(gaps > TOLERANCE * scale)
    return ranks_T
