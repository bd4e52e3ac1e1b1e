"""Accuracy on seen against absent classes over gamma: the exact curve, its area (AUSUC), the best gammas.

The curve is piecewise constant. It changes where gamma passes a sample's gap (`calibration.Gaps`), so one sort gives
all of it: O(N log N), instead of evaluating every gamma on all logits. Source: calibrated stacking
(Chao et al. 2016) and "Fine-Tuning is Fine, if Calibrated" (arXiv 2409.16223).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError, choose
from foveate.metrics.calibration import Gaps, logit_gaps
from foveate.metrics.class_groups import ABSENT, SEEN, ClassGroups

TIES = ("smallest", "official")


@dataclass(frozen=True, slots=True)
class Curve:
    """Hits in each open interval of gamma: interval k lies between breaks k-1 and k; the outer two are unbounded.

    Attributes:
        breaks_K: distinct gaps, rising.
        seen_hits, absent_hits, all_hits: samples answered right in each of the K + 1 intervals.
        seen_count, absent_count, count: samples with label in S, in U, all.
        resolution: of the logits, see `calibration.Gaps`.
    """

    breaks_K: NDArray[np.float64]
    seen_hits: NDArray[np.int64]
    absent_hits: NDArray[np.int64]
    all_hits: NDArray[np.int64]
    seen_count: int
    absent_count: int
    count: int
    resolution: float = 0.0

    @property
    def gammas(self) -> NDArray[np.float64]:
        """Return a gamma inside each interval: the midpoint, or 1 beyond the outermost breaks. [K + 1], ascending."""
        breaks = self.breaks_K
        middle = breaks[:-1] + (breaks[1:] - breaks[:-1]) / 2
        # For large logits a step of 1 would be lost in their rounding.
        step = max(1.0, self.resolution)
        return np.concatenate([[_beyond(breaks[0], -step)], middle, [_beyond(breaks[-1], step)]])

    @property
    def attainable(self) -> NDArray[np.bool_]:
        """Whether a gamma reaches each interval in floating point: False where two breaks are all but equal."""
        return np.concatenate([[True], np.diff(self.breaks_K) > self.resolution, [True]])

    def seen(self) -> NDArray[np.float64]:
        """Return Acc_{S/Y} in percent by interval, never rising. Raises UserError without samples of S."""
        return 100 * self.seen_hits / self._needed(self.seen_count, "seen")

    def absent(self) -> NDArray[np.float64]:
        """Return Acc_{U/Y} in percent by interval, never falling. Raises UserError without samples of U."""
        return 100 * self.absent_hits / self._needed(self.absent_count, "absent")

    def overall(self) -> NDArray[np.float64]:
        """Return Acc_{Y/Y} in percent by interval."""
        return 100 * self.all_hits / self.count

    def interval(self, number: int) -> tuple[float, float]:
        """Return the open interval; outer ends are infinite."""
        low = -np.inf if number == 0 else self.breaks_K[number - 1]
        high = np.inf if number == len(self.breaks_K) else self.breaks_K[number]
        return float(low), float(high)

    def at(self, gammas: ArrayLike) -> NDArray[np.int64]:
        """Return the interval of each gamma; on a break the one below, where that sample still ties."""
        return np.searchsorted(self.breaks_K, np.asarray(gammas, dtype=np.float64), side="left")

    def _needed(self, count: int, which: str) -> int:
        if count == 0:
            raise UserError(
                f"no sample has {'an absent' if which == 'absent' else 'a seen'} class as its label: "
                f"accuracy on {which} classes, and the area under the curve, are undefined"
            )
        return count


def _beyond(edge: float, step: float) -> float:
    """Step beyond an outermost break, or to the next float if the step is lost in rounding."""
    moved = edge + step
    return float(moved if moved != edge else np.nextafter(edge, step * np.inf))


def build_curve(gaps: Gaps) -> Curve:
    """Build the exact curve from the gaps of all samples."""
    breaks, place_N = np.unique(gaps.gap_N, return_inverse=True)
    is_seen, is_absent = gaps.group_N == SEEN, gaps.group_N == ABSENT

    # Samples right without gamma are lost where gamma passes their gap.
    def leaving(chosen_N: NDArray[np.bool_]) -> NDArray[np.int64]:
        lost_K = np.bincount(place_N[chosen_N], minlength=len(breaks))
        return int(chosen_N.sum()) - np.concatenate([[0], np.cumsum(lost_K)])

    # Samples of U are won there.
    def entering(chosen_N: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(np.bincount(place_N[chosen_N], minlength=len(breaks)))])

    absent_hits = entering(gaps.absent_right_N)
    return Curve(
        breaks,
        seen_hits=leaving(gaps.other_right_N & is_seen),
        absent_hits=absent_hits,
        all_hits=leaving(gaps.other_right_N) + absent_hits,
        seen_count=int(is_seen.sum()),
        absent_count=int(is_absent.sum()),
        count=len(place_N),
        resolution=gaps.resolution,
    )


def su_curve(logits_NC: ArrayLike, labels_N: ArrayLike, groups: ClassGroups, *, what: str = "logits") -> Curve:
    """Build the exact curve of logits. Raises as `calibration.logit_gaps`.

    Example:
        >>> groups = ClassGroups.of([0, 1], classes=3)
        >>> curve = su_curve([[2.0, 1.0, 0.0], [1.0, 0.0, 0.5]], [0, 2], groups)
        >>> curve.seen().tolist(), curve.absent().tolist()
        ([100.0, 100.0, 0.0], [0.0, 100.0, 100.0])
    """
    return build_curve(logit_gaps(logits_NC, labels_N, groups, what=what))


def area(seen_P: ArrayLike, absent_P: ArrayLike) -> float:
    """Return the trapezoid area under accuracies in percent, in ascending or descending gamma; in [0, 1]."""
    x, y = np.asarray(seen_P, dtype=np.float64) / 100, np.asarray(absent_P, dtype=np.float64) / 100
    return abs(float(((x[:-1] - x[1:]) * (y[:-1] + y[1:]) / 2).sum()))


def ausuc(
    logits_NC: ArrayLike, labels_N: ArrayLike, groups: ClassGroups, *, grid: Literal["exact", "official"] = "exact"
) -> float:
    """Return the area under Acc_{U/Y} against Acc_{S/Y}, in [0, 1].

    Args:
        grid: "official" takes the points of the public code (`official_grid`) ordered by gamma. Its own sort by
            accuracy is unstable, so its last digits depend on the machine.

    Raises:
        UserError: as `logit_gaps`; no sample of S or of U.

    Example:
        >>> groups = ClassGroups.of([0, 1], classes=3)
        >>> ausuc([[2.0, 1.0, 0.0], [1.0, 0.0, 0.5]], [0, 2], groups)
        1.0
    """
    choose(grid, ("exact", "official"), "grid")
    curve = su_curve(logits_NC, labels_N, groups)
    seen, absent = curve.seen(), curve.absent()
    if grid == "official":
        on_grid = curve.at(official_grid(logits_NC, labels_N, groups))
        return area(seen[on_grid], absent[on_grid])
    return area(seen, absent)


def official_grid(logits_NC: ArrayLike, labels_N: ArrayLike, groups: ClassGroups) -> NDArray[np.float64]:
    """Return the gammas that the public code evaluates, ascending.

    Midpoints of successive gaps between S and U, apart for gaps below and above 0, and one step of 1 beyond each end;
    columns of R are ignored, and the interval around 0 has no point unless all gaps lie on one side of it.
    """
    picked = np.sort(np.concatenate([groups.seen, groups.absent]))
    logits = np.asarray(logits_NC)[:, picked]
    within = ClassGroups.of(
        np.searchsorted(picked, groups.seen), absent=np.searchsorted(picked, groups.absent), classes=len(picked)
    )
    # Labels of R have no column here; gaps do not depend on labels.
    gap = np.unique(logit_gaps(logits, np.zeros(len(logits), dtype=np.int64), within).gap_N)
    below, above = gap[gap < 0], gap[gap >= 0]
    down = np.concatenate([[below[0] - 1], (below[1:] + below[:-1]) / 2]) if len(below) else np.zeros(1)
    up = np.concatenate([(above[1:] + above[:-1]) / 2, [above[-1] + 1]]) if len(above) else np.zeros(1)
    return np.concatenate([down, up])


@dataclass(frozen=True, slots=True)
class Choice:
    """A gamma selected on a curve.

    Attributes:
        gamma: the interval's midpoint; its finite end minus or plus 1 where it is unbounded.
        interval: any gamma strictly inside does the same.
        overall, seen, absent: accuracies there in percent; None without such samples.
        tied: how many intervals are as good.
    """

    gamma: float
    interval: tuple[float, float]
    overall: float
    seen: float | None
    absent: float | None
    tied: int


def select_gamma(
    curve: Curve, *, threshold: float | None = None, tie: Literal["smallest", "official"] = "smallest"
) -> Choice | None:
    """Select the gamma of best Acc_{Y/Y} with Acc_{U/Y} of at least `threshold` percent; None if there is none.

    Intervals between gaps that rounding cannot tell apart are left out: no gamma keeps what they promise.

    Args:
        tie: among equally good intervals the one of smallest gamma, or, as the public code, of largest.

    Raises:
        UserError: a threshold without samples of U.

    Example:
        >>> groups = ClassGroups.of([0, 1], classes=3)
        >>> choice = select_gamma(su_curve([[2.0, 1.0, 0.0], [1.0, 0.0, 0.5]], [0, 2], groups))
        >>> choice.gamma, choice.overall
        (1.25, 100.0)
    """
    choose(tie, TIES, "rule for ties")
    allowed = curve.attainable
    if threshold is not None:
        allowed &= curve.absent() >= threshold
    if not allowed.any():
        return None
    # -1 loses even against an interval without any hit.
    hits = np.where(allowed, curve.all_hits, -1)
    best = np.flatnonzero(hits == hits.max())
    number = int(best[0] if tie == "smallest" else best[-1])
    return Choice(
        gamma=float(curve.gammas[number]),
        interval=curve.interval(number),
        overall=float(curve.overall()[number]),
        seen=float(curve.seen()[number]) if curve.seen_count else None,
        absent=float(curve.absent()[number]) if curve.absent_count else None,
        tied=len(best),
    )


def select_on_grid(curve: Curve, gammas: ArrayLike, *, threshold: float | None = None) -> Choice | None:
    """Select a gamma as `select_gamma` by the official rule, but only from `gammas`, such as `official_grid`."""
    grid = np.sort(np.asarray(gammas, dtype=np.float64))
    intervals = curve.at(grid)
    hits = (
        curve.all_hits[intervals]
        if threshold is None
        # -1 hits, below any count: no gamma whose absent classes fall short can win.
        else np.where(curve.absent()[intervals] >= threshold, curve.all_hits[intervals], -1)
    )
    if hits.max() < 0:
        return None
    best = np.flatnonzero(hits == hits.max())
    # The official loop keeps the last of equal gammas, the largest.
    index = int(intervals[best[-1]])
    return Choice(
        gamma=float(grid[best[-1]]),
        interval=curve.interval(index),
        overall=float(curve.overall()[index]),
        seen=float(curve.seen()[index]) if curve.seen_count else None,
        absent=float(curve.absent()[index]) if curve.absent_count else None,
        tied=len(best),
    )


def best_intervals(curve: Curve) -> tuple[float, list[tuple[float, float]]]:
    """Return gamma*: the best Acc_{Y/Y} in percent on these samples, and all intervals that attain it, ascending.

    An oracle: it uses the labels of the samples that it is evaluated on. Intervals as in `select_gamma`.
    """
    hits = np.where(curve.attainable, curve.all_hits, -1)
    best = np.flatnonzero(hits == hits.max())
    return float(curve.overall()[best[0]]), [curve.interval(int(number)) for number in best]
