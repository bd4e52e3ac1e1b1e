"""Mixtures of data groups: what the data cannot meet, the draws of a batch, resuming."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from foveate.core.errors import UserError
from foveate.training.loader import MixtureLoader, Source
from foveate.training.mixture_groups import (
    GroupMixture,
    batch_counts,
    mixture_shares,
    normalize_weights,
    plan_groups,
    solve_weights,
    weigh_sources,
)
from foveate.training.order import BLOCK, Draw, MixtureOrder
from naming import raises_naming

SMALL = {"general": 1.0, "math": 0.5}


class Rows:
    """Samples that are their source and row."""

    def __init__(self, name: str) -> None:
        self.name = name

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        return {"source": self.name, "row": row, "epoch": epoch}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {"samples": samples}


def order_of(shares: list[float], *, draw: Draw, batch_size: int = 0, seed: int = 0) -> MixtureOrder:
    rows = [np.arange(7 + index) for index in range(len(shares))]
    names = [f"group-{index}" for index in range(len(shares))]
    return MixtureOrder(rows, weights=shares, names=names, seed=seed, draw=draw, batch_size=batch_size)


@pytest.mark.parametrize(
    ("alpha", "w", "names"),
    [
        ({"general": 1, "math": -0.5}, (1, 0, 0), ("alpha", "math", "-0.5")),
        ({"general": 1, "math": float("nan")}, (1, 0, 0), ("math", "nan")),
        ({"genral": 1}, (1, 0, 0), ("general", "genral")),
        ({}, (1, 0, 0), ("general", "none")),
        ({"general": 0, "math": 1}, (1, 0, 0), ("general", "0")),
        ({"general": 1, "text": 1}, (1, 0, 0), ("text", "w")),
        ({"general": 1}, (0.8, -0.1, 0.1), ("w", "multi-image", "-0.1")),
        ({"general": 1}, (0, 0, 0), ("w",)),
        ({"general": 1}, (0.9, 0.1), ("w", "0.9")),
        ({"general": True}, (1, 0, 0), ("general", "True")),
    ],
)
def test_weights_that_make_no_mixture(alpha: dict, w: tuple, names: tuple) -> None:
    with raises_naming(UserError, *names):
        mixture_shares(alpha, w=w)


def test_shares_without_general_have_no_alpha() -> None:
    with raises_naming(UserError, "general"):
        solve_weights({"math": 0.5, "text": 0.5})
    with raises_naming(UserError, "share", "math", "-1"):
        solve_weights({"math": -1, "general": 2})
    with raises_naming(UserError, "weight", "none"):
        normalize_weights({})


def test_plan_counts_draws_and_passes_and_warns() -> None:
    mixture = GroupMixture(alpha=SMALL, w=(0.6, 0.0, 0.4), max_passes=2)
    sizes = {"general": 400, "math": 50, "text": 1000}
    with pytest.warns(UserWarning, match=r"'math'.*20\.0%.*4\.0 times.*50 samples") as caught:
        plans = {plan.name: plan for plan in plan_groups(mixture, sizes, samples=1000, batch_size=10)}
    assert len(caught) == 1
    assert plans["general"].draws == pytest.approx(400)
    assert plans["general"].passes == pytest.approx(1)
    assert plans["math"].passes == pytest.approx(4)
    assert plans["multi-image"].draws == plans["multi-image"].passes == 0


def test_plan_refuses_what_the_data_cannot_meet() -> None:
    mixture = GroupMixture(alpha=SMALL, w=(1.0, 0.0, 0.0))
    with raises_naming(UserError, "math", "33.3%", "Did you mean 'maths'"):
        plan_groups(mixture, {"general": 10, "maths": 0}, samples=10, batch_size=2)
    with raises_naming(UserError, "code", "12", "alpha.code"):
        plan_groups(mixture, {"general": 10, "math": 10, "code": 12}, samples=10, batch_size=2)
    fixed = GroupMixture(alpha=SMALL, w=(0.98, 0.01, 0.01), draw="fixed")
    sizes = {"general": 10, "math": 10, "multi-image": 10, "text": 10}
    with raises_naming(UserError, "multi-image", "1.00%", "batch of 8"):
        plan_groups(fixed, sizes, samples=16, batch_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan_groups(GroupMixture(alpha=SMALL | {"code": 0.0}, w=(1, 0, 0)), sizes, samples=16, batch_size=8)


@pytest.mark.parametrize("draw", ["even", "multinomial"])
def test_draws_pass_a_chi_square_test(draw: Draw) -> None:
    shares = list(GroupMixture().shares().values())
    order = order_of(shares, draw=draw)
    drawn = np.bincount(order.batch(0, batch_size=100_000)[:, 0], minlength=len(shares))
    assert chisquare(drawn, np.asarray(shares) * 100_000).pvalue > 1e-3
    # The same test refuses a mixture that is a little different.
    other = np.asarray(shares) * np.where(np.arange(len(shares)) == 3, 1.15, 1)
    assert chisquare(drawn, other / other.sum() * 100_000).pvalue < 1e-3


def test_multinomial_batches_vary_as_independent_draws() -> None:
    order = order_of([0.3, 0.7], draw="multinomial")
    counts = (order.batch(0, batch_size=100_000)[:, 0] == 0).reshape(2000, 50).sum(1)
    assert counts.var() == pytest.approx(50 * 0.3 * 0.7, rel=0.12)
    even = order_of([0.3, 0.7], draw="even")
    spread = (even.batch(0, batch_size=100_000)[:, 0] == 0).reshape(2000, 50).sum(1)
    assert spread.var() < 1


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0.05, 5), min_size=1, max_size=4), st.integers(20, 60), st.integers(0, 3))
def test_fixed_batches_have_the_golden_counts(weights: list[float], batch_size: int, seed: int) -> None:
    shares = normalize_weights({str(index): weight for index, weight in enumerate(weights)})
    counts = list(batch_counts(shares, batch_size=batch_size).values())
    if 0 in counts:
        with raises_naming(UserError, f"group-{counts.index(0)}"):
            order_of(weights, draw="fixed", batch_size=batch_size, seed=seed)
        return
    order = order_of(weights, draw="fixed", batch_size=batch_size, seed=seed)
    for step in (0, 1, 17):
        drawn = order.batch(step, batch_size=batch_size)
        assert np.bincount(drawn[:, 0], minlength=len(weights)).tolist() == counts


@pytest.mark.parametrize("draw", ["even", "multinomial", "fixed"])
def test_every_draw_is_resumable_and_passes_over_whole_sources(draw: Draw) -> None:
    shares, batch_size = [0.2, 0.3, 0.5], 20
    order = order_of(shares, draw=draw, batch_size=batch_size)
    steps = [order.batch(step, batch_size=batch_size) for step in range(60)]
    resumed = order_of(shares, draw=draw, batch_size=batch_size)
    far = BLOCK * 3 // batch_size
    assert (resumed.batch(far, batch_size=batch_size) == order.batch(far, batch_size=batch_size)).all()
    for step in (59, 3):
        assert (resumed.batch(step, batch_size=batch_size) == steps[step]).all()
    halves = [order.batch(5, batch_size=batch_size, rank=rank, world_size=2) for rank in range(2)]
    assert (np.concatenate(halves) == steps[5]).all()
    drawn = np.concatenate(steps)
    for source, rows in enumerate(order.rows):
        of_source = drawn[drawn[:, 0] == source]
        for epoch in range(len(of_source) // len(rows)):
            assert sorted(of_source[of_source[:, 2] == epoch, 1]) == sorted(rows)


def test_multinomial_goes_on_over_blocks_without_losing_a_row() -> None:
    order = order_of([0.4, 0.6], draw="multinomial")
    around = np.concatenate([order.batch(step, batch_size=4096) for step in range(14, 18)])  # block 0 ends at step 16
    of_first = around[around[:, 0] == 0]
    passes, counts = np.unique(of_first[:, 2], return_counts=True)
    assert (np.diff(passes) == 1).all()
    assert set(counts[1:-1].tolist()) == {7}


def test_sources_share_their_group_by_size() -> None:
    def source(name: str, size: int) -> Source:
        return Source(name, Rows(name), np.arange(size))

    mixture = GroupMixture(alpha={"general": 1.0, "math": 1.0, "code": 0.0}, w=(0.5, 0.0, 0.5), draw="fixed")
    groups = {"general": [source("a", 30), source("b", 10)], "math": [source("c", 5)], "text": [source("d", 9)]}
    sources = weigh_sources(groups | {"code": [source("e", 3)]}, mixture)
    assert {item.name: item.weight for item in sources} == pytest.approx(
        {"a": 0.1875, "b": 0.0625, "c": 0.25, "d": 0.5}
    )
    loader = MixtureLoader(sources, batch_size=16, seed=1, workers=0, draw=mixture.draw)
    drawn = [sample["source"] for batch in loader.batches(0, 3) for sample in batch["samples"]]
    assert {name: drawn.count(name) for name in "abcd"} == {"a": 9, "b": 3, "c": 12, "d": 24}
    assert loader.describe()["draw"] == "fixed"
    assert "draw" not in MixtureLoader(sources, batch_size=16, seed=1, workers=0).describe()
