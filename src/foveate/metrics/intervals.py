"""Confidence intervals: bootstrap over images for one model, t-intervals over training seeds, Wilson's for shares.

Regions of one image are not independent, so the bootstrap draws whole images (a cluster bootstrap) and
takes percentiles. The two kinds answer different questions: another test set, or another training run.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

from foveate.core.errors import UserError
from foveate.core.results import Value
from foveate.core.seeds import generator

Groups = Sequence[Hashable] | NDArray[Any]

# Numbers drawn at a time: bounds the memory of many resamples over many images.
_DRAWS_PER_CHUNK = 4_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its confidence interval; `low` and `high` are None if the data do not allow one."""

    value: float
    low: float | None
    high: float | None
    n: int  # samples (or seeds) behind the value
    level: float = 0.95

    def to_value(self) -> Value:
        """Return it as a cell of a table in result.json; the level, which all tables share, stays behind."""
        return Value(value=self.value, low=self.low, high=self.high, n=self.n)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f} [no interval, n={self.n}]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def _checked(values_N: ArrayLike, level: float) -> NDArray[np.float64]:
    values = np.asarray(values_N, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise UserError(f"an interval needs a list of at least one value (got shape {list(values.shape)})")
    if not np.isfinite(values).all():
        raise UserError(f"value {int(np.flatnonzero(~np.isfinite(values))[0])} is not a finite number")
    _check_level(level)
    return values


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UserError(
            f"confidence level: out of range (got {level}); expected a number between 0 and 1, such as 0.95"
        )


def _cluster_of(groups_N: Groups | None, rows: int) -> NDArray[np.int64]:
    """Return the cluster number of each row, 0..G-1, in order of appearance."""
    if groups_N is None:
        return np.arange(rows)
    if len(groups_N) != rows:
        raise UserError(f"groups: {len(groups_N)} for {rows} values; expected one for each")
    # In order of appearance, not sorted: image keys of mixed types cannot be compared.
    number_of: dict[Hashable, int] = {}
    return np.array([number_of.setdefault(group, len(number_of)) for group in groups_N], dtype=np.int64)


def _percentiles(draws: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(draws, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def bootstrap_interval(
    values_N: ArrayLike,
    *,
    seed: object,
    groups_N: Groups | None = None,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Return the mean of per-sample values with a percentile bootstrap interval.

    Args:
        values_N: one finite number per sample (1 or 0 for hits).
        seed: the same seed and data give the same interval.
        groups_N: the cluster of each sample, such as its image key; whole clusters are drawn.
        resamples: bootstrap draws.
        level: share of such intervals that hold the true mean, in the limit of many clusters.

    Raises:
        UserError: no values, a value that is not finite, or a setting out of range.

    Example:
        >>> hits, images = [1, 1, 0, 1, 1, 0], ["a", "a", "a", "b", "b", "c"]
        >>> interval = bootstrap_interval(hits, seed=0, groups_N=images)
        >>> interval.n, interval.low <= interval.value <= interval.high
        (6, True)
    """
    values = _checked(values_N, level)
    if resamples < 1:
        raise UserError(f"bootstrap resamples: out of range (got {resamples}); expected 1 or more")
    cluster_N = _cluster_of(groups_N, len(values))
    # Sums and counts per cluster: a resample then costs G numbers and not N.
    sums_G, counts_G = np.bincount(cluster_N, weights=values), np.bincount(cluster_N)
    clusters = len(sums_G)
    if clusters < 2:
        return Interval(float(values.mean()), None, None, len(values), level)
    random = generator("bootstrap", seed)
    means = []
    # Bounds memory: resamples times clusters can be large.
    chunk = max(1, _DRAWS_PER_CHUNK // clusters)
    for first in range(0, resamples, chunk):
        drawn_SG = random.integers(0, clusters, size=(min(chunk, resamples - first), clusters))
        # A ratio of sums, since resamples have different numbers of samples.
        means.append(sums_G[drawn_SG].sum(1) / counts_G[drawn_SG].sum(1))
    return Interval(float(values.mean()), *_percentiles(np.concatenate(means), level), len(values), level)


def bootstrap_statistic(
    statistic: Callable[[NDArray[np.int64]], float],
    *,
    rows: int,
    seed: object,
    groups_N: Groups | None = None,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Return a bootstrap interval of a statistic that is not a mean of per-sample values (such as mAcc).

    Args:
        statistic: from row numbers (with repeats) to a number.
        rows: number of samples.
    """
    _check_level(level)
    if rows < 1 or resamples < 1:
        raise UserError(f"bootstrap needs at least 1 sample and 1 resample (got {rows} and {resamples})")
    cluster_N = _cluster_of(groups_N, rows)
    value = float(statistic(np.arange(rows)))
    clusters = int(cluster_N.max()) + 1
    if clusters < 2:
        return Interval(value, None, None, rows, level)
    # Row numbers of each cluster, in order.
    members = np.split(np.argsort(cluster_N, kind="stable"), np.cumsum(np.bincount(cluster_N))[:-1])
    random = generator("bootstrap", seed)
    draws = [
        statistic(np.concatenate([members[cluster] for cluster in random.integers(0, clusters, clusters)]))
        for _ in range(resamples)
    ]
    return Interval(value, *_percentiles(np.array(draws), level), rows, level)


def paired_difference(
    first_N: ArrayLike,
    second_N: ArrayLike,
    *,
    seed: object,
    groups_N: Groups | None = None,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Return the mean of `first - second` over the same samples; see `bootstrap_interval`.

    Two models on one test set err on the same hard samples, so this is sharper than two separate intervals.

    Example:
        >>> str(paired_difference([1, 1, 1, 1], [0, 0, 0, 0], seed=0))
        '1.000 [1.000, 1.000]'
    """
    first, second = _checked(first_N, level), _checked(second_N, level)
    if len(first) != len(second):
        raise UserError(f"a paired difference needs the same samples (got {len(first)} and {len(second)} values)")
    return bootstrap_interval(first - second, seed=seed, groups_N=groups_N, resamples=resamples, level=level)


def seed_interval(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Return the mean over training seeds with Student's t-interval (n - 1 degrees of freedom); none for one seed.

    Example:
        >>> str(seed_interval([0.50, 0.52, 0.54]))
        '0.520 [0.470, 0.570]'
    """
    checked = _checked(values, level)
    mean, n = float(checked.mean()), len(checked)
    if n < 2:
        return Interval(mean, None, None, n, level)
    half = float(stdtrit(n - 1, (1 + level) / 2)) * float(checked.std(ddof=1)) / n**0.5
    return Interval(mean, mean - half, mean + half, n, level)


def wilson_interval(hits: int, n: int, *, level: float = 0.95) -> Interval | None:
    """Return a share with Wilson's score interval, which holds for few samples and shares near 0 or 1; None for n = 0.

    Args:
        hits: out of `n` independent samples.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Example:
        >>> str(wilson_interval(9, 10))
        '0.900 [0.596, 0.982]'
    """
    _check_level(level)
    if not 0 <= hits <= n:
        raise UserError(f"hits: out of range (got {hits} of {n} samples)")
    if n == 0:
        return None
    share, z = hits / n, float(ndtri((1 + level) / 2))
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    # At a share of 0 or 1 one end is exactly that, but for rounding.
    return Interval(share, 0.0 if hits == 0 else center - half, 1.0 if hits == n else center + half, n, level)


def accuracy_interval(correct_N: ArrayLike, *, level: float = 0.95) -> Interval:
    """Return the share of independent samples that are right with Wilson's interval.

    A bootstrap of samples that are all right would claim 1 to 1.

    Raises:
        UserError: no values, or one that is neither 0 nor 1.

    Example:
        >>> str(accuracy_interval([True, True]))
        '1.000 [0.342, 1.000]'
    """
    correct = _checked(correct_N, level)
    if not np.isin(correct, (0, 1)).all():
        raise UserError("an accuracy needs values that are 0 or 1")
    interval = wilson_interval(int(correct.sum()), len(correct), level=level)
    assert interval is not None, "there is a value"
    return interval


def interval_by_slice(
    values_N: ArrayLike,
    slices_N: Sequence[str] | NDArray[np.str_],
    *,
    seed: object,
    groups_N: Groups | None = None,
    resamples: int = 1000,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Return the `bootstrap_interval` of each slice (such as `seen`, `unseen`, or a box size), by slice name."""
    values, slices = _checked(values_N, level), np.asarray(slices_N)
    if len(slices) != len(values):
        raise UserError(f"slices: {len(slices)} for {len(values)} values; expected one for each")
    cluster_N = _cluster_of(groups_N, len(values))
    return {
        str(name): bootstrap_interval(
            values[slices == name],
            seed=seed,
            groups_N=cluster_N[slices == name].tolist(),
            resamples=resamples,
            level=level,
        )
        for name in np.unique(slices)
    }
