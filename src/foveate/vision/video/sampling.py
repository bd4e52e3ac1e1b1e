"""Choose frames of a clip: by position or time, with the rules of several papers, or by what they show."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError, choose

SampleRule = Literal["official", "uniform_mid", "linspace", "midpoint", "by_number", "fps"]
# As in the papers: SlowFast-LLaVA (arXiv 2407.15841) and MM1.5 (arXiv 2409.20566).
NUM_FRAMES = 50
MM15_NUM_FRAMES = 24
_TIME = re.compile(r"(?:(?:(\d{1,4}):)?(\d{1,2}):)?(\d{1,7}(?:\.\d{1,9})?)", re.ASCII)


def sample(
    total: int,
    num_frames: int = NUM_FRAMES,
    *,
    rule: SampleRule = "official",
    times: Sequence[float] | None = None,
    fps: float | None = None,
) -> list[int]:
    """Return the indices of the frames to look at, in order.

    Args:
        total: frames of the clip, counted by decoding.
        num_frames: most frames to return; the rules of MM1.5 return exactly as many.
        rule: "official" (SlowFast-LLaVA: borders of equal parts rounded half to even, then their middle; a clip no
            longer than `num_frames` repeats a frame and never shows its last), "uniform_mid" (middle of equal parts,
            no repeats), "linspace" (MM1.5: from the first frame to the last, truncated; short clips repeat frames),
            "midpoint" (MM1.5: middle of equal parts; short clips repeat frames), "by_number" ("official" whatever the
            times are) or "fps".
        times: seconds of each of the `total` frames. Where they are uneven, the parts are equal in time and not in
            frames; "fps" needs them.
        fps: frames per second of the clip for "fps"; lowered where it would give more than `num_frames`.

    Source: SlowFast-LLaVA (arXiv 2407.15841), `dataset.py`; MM1.5 (arXiv 2409.20566), section on video. MM1.5 does not
        state its rule: both are decisions.

    Raises:
        UserError: a clip without frames, no frame to return, an unknown rule, or "fps" without times or rate.

    Example:
        >>> sample(10, 4)
        [1, 3, 5, 8]
        >>> sample(10, 4, rule="linspace")
        [0, 3, 6, 9]
        >>> sample(3, 4, rule="midpoint")
        [0, 1, 1, 2]
        >>> sample(4, rule="fps", fps=1, times=[0.0, 0.5, 1.0, 1.5])
        [0, 2]
        >>> sample(6, 3, times=[0.0, 0.1, 0.2, 0.3, 5.0, 10.0])
        [3, 3, 4]
    """
    choose(rule, get_args(SampleRule), "rule of sampling")
    if total < 1 or num_frames < 1:
        raise UserError(f"video: {num_frames} of {total} frames requested; expected at least 1 of each")
    if (rule == "fps") != (fps is not None):
        raise UserError(f"fps: rule '{rule}' (got {fps}); expected a rate with rule 'fps', and with no other")
    if rule == "fps":
        if times is None or len(times) != total:
            raise UserError(
                f"times: expected one for each of {total} frames (got {0 if times is None else len(times)})"
            )
        return _sample_rate(np.asarray(times, dtype=np.float64), num_frames, float(fps or 0))
    positions = _RULES[rule](total, num_frames)
    if times is None or rule == "by_number" or len(times) != total:
        return positions
    placed = _place_in_time(positions, np.asarray(times, dtype=np.float64))
    # Where all frames fit, "uniform_mid" shows each of them once.
    return placed if rule != "uniform_mid" else positions if total <= num_frames else sorted(set(placed))


def _place_in_time(positions: list[int], times_N: np.ndarray) -> list[int]:
    """Return the frames on screen when those of a clip of even rate, with as many frames and seconds, would be.

    Where frames are numbers of an even rate already, positions stay: half of a step covers what containers round.
    """
    times_N = np.maximum.accumulate(times_N)
    even_N = np.linspace(times_N[0], times_N[-1], len(times_N))
    step = (times_N[-1] - times_N[0]) / max(1, len(times_N) - 1)
    if step == 0 or np.abs(times_N - even_N).max() <= step / 2:
        return positions
    return (np.searchsorted(times_N, even_N[positions] + 1e-6, side="right") - 1).tolist()


def _sample_official(total: int, num_frames: int) -> list[int]:
    count = min(total, num_frames)
    part = (total - 1) / count
    # Python rounds half to even, as numpy does in the official code; the product is the same float64.
    borders = [round(part * index) for index in range(count + 1)]
    return [(low + high) // 2 for low, high in zip(borders[:-1], borders[1:], strict=True)]


def _sample_uniform_mid(total: int, num_frames: int) -> list[int]:
    return _sample_midpoint(total, min(total, num_frames))


# Integers in MM1.5's rules: a quotient of floats may end just below a whole number and be truncated to one frame less.
def _sample_midpoint(total: int, num_frames: int) -> list[int]:
    return [(2 * index + 1) * total // (2 * num_frames) for index in range(num_frames)]


def _sample_linspace(total: int, num_frames: int) -> list[int]:
    return [index * (total - 1) // max(1, num_frames - 1) for index in range(num_frames)]


_RULES: dict[str, Callable[[int, int], list[int]]] = {
    "official": _sample_official,
    "uniform_mid": _sample_uniform_mid,
    "linspace": _sample_linspace,
    "midpoint": _sample_midpoint,
    "by_number": _sample_official,
}


def _sample_rate(times_N: np.ndarray, num_frames: int, fps: float) -> list[int]:
    """Return the frames on screen at every 1 / fps seconds from the first frame on, without repeats."""
    if not 0 < fps < float("inf"):
        raise UserError(f"fps: expected a rate above 0 (got {fps})")
    # The search below needs times that never decrease, which those of a caller may do.
    times_N = np.maximum.accumulate(times_N)
    length = times_N[-1] - times_N[0]
    # Round to the time base: a frame at 2.0000001 s is the frame at 2 s.
    count = int(min(length * fps + 1e-6, num_frames)) + 1
    step = 1 / fps
    if count > num_frames:
        count, step = num_frames, length / max(1, num_frames - 1)
    instants = times_N[0] + step * np.arange(count)
    return sorted(set((np.searchsorted(times_N, instants + 1e-6, side="right") - 1).tolist()))


def parse_time(text: str) -> float:
    """Parse a time of a clip to seconds: "80", "80.5", "1:20" or "1:02:03.5".

    Raises:
        UserError: another form, or minutes or seconds behind a colon of 60 or more.

    >>> parse_time("1:20")
    80.0
    """
    match = _TIME.fullmatch(text.strip())
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    if match is None or (match[2] and seconds >= 60) or (match[1] and minutes >= 60):
        raise UserError(f"time: cannot be read (got '{text}'); expected seconds, M:SS or H:MM:SS, such as 80 or 1:20")
    return 3600 * hours + 60 * minutes + seconds


def format_time(seconds: float) -> str:
    """Format seconds as M:SS.d, or H:MM:SS.d from an hour on.

    >>> format_time(80.25), format_time(3599.97)
    ('1:20.2', '1:00:00.0')
    """
    # Rounded before it is split: 59.97 s must not become "0:60.0".
    tenths = round(seconds * 10)
    sign, tenths = ("-", -tenths) if tenths < 0 else ("", tenths)
    minutes, rest = divmod(tenths, 600)
    head = f"{minutes // 60}:{minutes % 60:02d}" if minutes >= 60 else f"{minutes}"
    return f"{sign}{head}:{rest // 10:02d}.{rest % 10}"


def float_linspace(end: int, steps: int) -> NDArray[np.float32]:
    """Return `torch.linspace(0, end, steps)` of the CPU, bit by bit.

    Official indices are truncations and roundings of it, so its last bits matter: it counts up from the start and,
    from the middle on, down from the end, with fused multiply-adds. Products of two float32 are exact in float64.
    """
    if steps == 1:
        return np.zeros(1, np.float32)
    step = float(np.float32(end) / np.float32(steps - 1))
    index = np.arange(steps, dtype=np.float64)
    return np.where(index < steps // 2, step * index, end - step * (steps - 1 - index)).astype(np.float32)


def slow_positions(num_frames: int, num_slow: int) -> tuple[int, ...]:
    """Choose the slow frames evenly, the first one first; frames repeat where there are fewer.

    Source: `prepare_slowfast` of the official code, on the CPU.

    >>> slow_positions(50, 10)
    (0, 5, 10, 15, 20, 25, 30, 35, 40, 45)
    """
    # Truncated float32, not floor(k T / S): 622 of the 38,400 pairs of T <= 300 and S <= 128 differ.
    return tuple(float_linspace(num_frames, num_slow + 1)[:-1].astype(int).tolist())


# Choose frames by what they show: even, covering, at changes, or like a question. Deterministic.


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
    # Covering measures distances from selected frames, so it needs one to start from.
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
