"""Which frames of a clip to look at: SlowFast-LLaVA's rule, MM1.5's two, ours without repeats, a rate per second."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError, choose

SampleRule = Literal["official", "uniform_mid", "linspace", "midpoint", "fps"]
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
            "midpoint" (MM1.5: middle of equal parts; short clips repeat frames) or "fps".
        times: seconds of each of the `total` frames, for "fps".
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
    return _RULES[rule](total, num_frames)


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
}


def _sample_rate(times_N: np.ndarray, num_frames: int, fps: float) -> list[int]:
    """Return the frames on screen at every 1 / fps seconds from the first frame on, without repeats."""
    if not 0 < fps < float("inf"):
        raise UserError(f"fps: expected a rate above 0 (got {fps})")
    # The search below needs times that never decrease, which those of a caller may do.
    times_N = np.maximum.accumulate(times_N)
    length = times_N[-1] - times_N[0]
    # Of a frame that starts at 2.0000001 s the instant 2 s is meant: times come from fractions of a time base.
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
