"""Confidence intervals: formulas against scipy, coverage on simulated data, clusters, pairs."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from foveate.core.errors import UserError
from foveate.metrics.classification import mean_class_accuracy
from foveate.metrics.intervals import (
    Interval,
    bootstrap_interval,
    bootstrap_statistic,
    interval_by_slice,
    paired_difference,
    seed_interval,
)
from naming import raises_naming


def width(interval: Interval) -> float:
    assert interval.low is not None
    assert interval.high is not None
    return interval.high - interval.low


def holds(interval: Interval, truth: float) -> bool:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= truth <= interval.high


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_seed_interval_is_scipys_t_interval(level: float) -> None:
    values = [0.51, 0.48, 0.55, 0.50, 0.47]
    interval = seed_interval(values, level=level)
    low, high = stats.t.interval(level, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (interval.value, interval.low, interval.high) == pytest.approx((np.mean(values), low, high))
    assert interval.n == 5


def test_seed_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = [holds(seed_interval(rng.normal(0.5, 0.1, 3)), 0.5) for _ in range(2000)]
    assert 0.93 < np.mean(covered) < 0.97


def test_bootstrap_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).normal(0.3, 0.2, 200)
    mine = bootstrap_interval(values, seed=0, resamples=4000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)
    assert mine.value == pytest.approx(values.mean())
    assert mine.n == 200


def test_bootstrap_over_clusters_covers_the_truth_and_over_samples_does_not() -> None:
    """Regions of one image share its luck: 40 images of 5 regions with a common part."""
    rng = np.random.default_rng(2)
    images = np.repeat(np.arange(40), 5)
    by_image, by_region = [], []
    for trial in range(300):
        values = rng.normal(0, 1, 40)[images] + rng.normal(0, 0.5, 200)
        by_image.append(holds(bootstrap_interval(values, seed=trial, groups_N=images, resamples=300), 0))
        by_region.append(holds(bootstrap_interval(values, seed=trial, resamples=300), 0))
    assert 0.88 < np.mean(by_image) < 0.98
    assert np.mean(by_region) < 0.75


def test_same_seed_same_interval_whatever_the_names_of_the_groups() -> None:
    values = np.random.default_rng(3).random(30)
    groups = [f"image-{row // 3}" for row in range(30)]
    first = bootstrap_interval(values, seed=7, groups_N=groups)
    assert first == bootstrap_interval(values, seed=7, groups_N=np.arange(30) // 3)
    assert first != bootstrap_interval(values, seed=8, groups_N=groups)


def test_paired_difference_is_sharper_than_two_intervals() -> None:
    rng = np.random.default_rng(4)
    hardness = rng.normal(0, 1, 300)
    first, second = hardness + 0.1 + rng.normal(0, 0.1, 300), hardness + rng.normal(0, 0.1, 300)
    paired = paired_difference(first, second, seed=0)
    assert holds(paired, 0.1)
    assert width(paired) < width(bootstrap_interval(first, seed=0)) / 3


def test_statistic_that_is_no_mean() -> None:
    rng = np.random.default_rng(5)
    values = rng.random(60)
    groups = np.arange(60) // 2
    as_mean = bootstrap_statistic(lambda rows: float(values[rows].mean()), rows=60, seed=1, groups_N=groups)
    direct = bootstrap_interval(values, seed=1, groups_N=groups)
    assert (as_mean.low, as_mean.high) == pytest.approx((direct.low, direct.high), abs=1e-12)
    truth, predictions = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    interval = bootstrap_statistic(
        lambda rows: mean_class_accuracy(predictions[rows], truth[rows]), rows=60, seed=1, resamples=200
    )
    assert holds(interval, interval.value)


def test_slices() -> None:
    values = np.array([1.0, 0, 1, 1, 0, 0])
    parts = interval_by_slice(
        values, ["seen", "seen", "unseen", "seen", "unseen", "alone"], seed=0, groups_N=list("aabbcc")
    )
    assert list(parts) == ["alone", "seen", "unseen"]
    assert parts["seen"].value == pytest.approx(2 / 3)
    assert parts["seen"].n == 3
    assert parts["alone"].low is None


def test_too_little_data_gives_no_interval() -> None:
    for interval in (
        bootstrap_interval([0.5], seed=0),
        bootstrap_interval([0.4, 0.6], seed=0, groups_N=["a", "a"]),
        bootstrap_statistic(lambda rows: 0.5, rows=2, seed=0, groups_N=["a", "a"]),
        seed_interval([0.5]),
    ):
        assert (interval.value, interval.low, interval.high) == (0.5, None, None)
        assert "no interval" in str(interval)
    assert json.loads(json.dumps(dataclasses.asdict(seed_interval([0.5]))))["low"] is None
    assert str(Interval(0.5, 0.25, 0.75, 10)) == "0.500 [0.250, 0.750]"
    assert Interval(0.5, 0.25, 0.75, 10).to_value().to_json() == {"value": 0.5, "low": 0.25, "high": 0.75, "n": 10}


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="at least one value"):
        bootstrap_interval([], seed=0)
    with raises_naming(UserError, "1"):
        bootstrap_interval([0.1, np.nan], seed=0)
    with raises_naming(UserError, "1"):
        bootstrap_interval([0.1, 0.2], seed=0, groups_N=["a"])
    with raises_naming(UserError, "95"):
        seed_interval([0.1, 0.2], level=95)
    with pytest.raises(UserError, match="resamples"):
        bootstrap_interval([0.1, 0.2], seed=0, resamples=0)
    with pytest.raises(UserError, match="same samples"):
        paired_difference([0.1], [0.1, 0.2], seed=0)
    with raises_naming(UserError, "1"):
        interval_by_slice([0.1, 0.2], ["a"], seed=0)
