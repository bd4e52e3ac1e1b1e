"""Batches mixed from several sources: shares, whole passes, ranks, resuming."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.training.loader import BadSample, Loader, MixtureLoader, Source
from foveate.training.order import BLOCK, MixtureOrder
from naming import raises_naming


def order_of(sizes: list[int], weights: list[float], *, seed: int = 0) -> MixtureOrder:
    rows = [np.arange(size) * 3 + 100 * index for index, size in enumerate(sizes)]
    names = [f"source-{index}" for index in range(len(sizes))]
    return MixtureOrder(rows, weights=weights, names=names, seed=seed)


MIXTURES = st.lists(st.tuples(st.integers(1, 40), st.floats(0.01, 10)), min_size=1, max_size=5)


@settings(deadline=None, max_examples=40)
@given(mixture=MIXTURES, seed=st.integers(0, 3), samples=st.integers(1, 3000))
def test_every_stretch_has_the_shares(mixture: list[tuple[int, float]], seed: int, samples: int) -> None:
    sizes, weights = map(list, zip(*mixture, strict=True))
    order = order_of(sizes, weights, seed=seed)
    drawn = order.batch(0, batch_size=samples)
    for source, weight in enumerate(weights):
        expected = samples * weight / sum(weights)
        # One for the random offset within its slot, and the rounding of weights to 1/65536.
        assert abs((drawn[:, 0] == source).sum() - expected) <= 1 + samples / BLOCK + len(weights)


def test_a_block_has_the_shares_exactly() -> None:
    drawn = order_of([7, 100], [1.0, 3.0]).batch(2, batch_size=BLOCK)
    assert np.bincount(drawn[:, 0]).tolist() == [BLOCK // 4, BLOCK * 3 // 4]


@settings(deadline=None, max_examples=40)
@given(mixture=MIXTURES, seed=st.integers(0, 3), batch_size=st.integers(1, 64))
def test_a_pass_of_a_source_has_every_row_once(mixture: list[tuple[int, float]], seed: int, batch_size: int) -> None:
    sizes, weights = map(list, zip(*mixture, strict=True))
    order = order_of(sizes, weights, seed=seed)
    drawn = np.concatenate([order.batch(step, batch_size=batch_size) for step in range(40)])
    for source, rows in enumerate(order.rows):
        of_source = drawn[drawn[:, 0] == source]
        assert (np.diff(of_source[:, 2]) >= 0).all()
        for epoch in range(len(of_source) // len(rows)):
            assert sorted(of_source[of_source[:, 2] == epoch, 1]) == sorted(rows)


@settings(deadline=None)
@given(step=st.integers(0, 30_000), seed=st.integers(0, 2))
def test_one_two_and_four_ranks_have_the_same_global_batch(step: int, seed: int) -> None:
    order = order_of([5, 11, 40], [0.2, 1.0, 3.0], seed=seed)
    whole = order.batch(step, batch_size=16)
    for world_size in (1, 2, 4):
        parts = [order.batch(step, batch_size=16, rank=rank, world_size=world_size) for rank in range(world_size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_order_is_a_function_of_seed_and_step_and_not_of_the_index_of_a_source() -> None:
    """Over the edge of a block, too, and in whatever order steps are asked for."""
    first, later = order_of([50, 9], [1, 2]), order_of([50, 9], [1, 2])
    steps = [BLOCK // 48, BLOCK // 48 + 1, 3, BLOCK // 24]
    expected = {step: first.batch(step, batch_size=48) for step in steps}
    for step in reversed(steps):
        np.testing.assert_array_equal(later.batch(step, batch_size=48), expected[step])
    assert not np.array_equal(order_of([50, 9], [1, 2], seed=1).batch(3, batch_size=48), expected[3])
    rows = [np.arange(50), np.arange(50)]
    drawn = MixtureOrder(rows, weights=[1, 1], names=["a", "b"], seed=0).batch(0, batch_size=100)
    assert drawn[drawn[:, 0] == 0, 1].tolist() != drawn[drawn[:, 0] == 1, 1].tolist()


def test_order_stays_the_same_over_versions() -> None:
    drawn = order_of([4, 6], [1, 2]).batch(1, batch_size=4)
    assert drawn.tolist() == [[0, 6, 0], [1, 100, 0], [1, 112, 0], [0, 3, 0]]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_are_positive_numbers(weight: float) -> None:
    with raises_naming(UserError, "source-1", weight):
        order_of([3, 3], [1.0, weight])


def test_a_source_needs_rows_and_a_weight_that_is_seen() -> None:
    with raises_naming(UserError, "source-0"):
        order_of([0, 3], [1, 1])
    with raises_naming(UserError, "source-1", "1e-09", BLOCK):
        order_of([3, 3], [1.0, 1e-9])


class Named:
    """Samples name their data set; rows in `bad` cannot be read."""

    def __init__(self, name: str, bad: tuple[int, ...] = ()) -> None:
        self.name, self.bad = name, bad

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        if row in self.bad:
            raise BadSample(f"image-{row}", "cut off")
        return {"from": self.name, "row": row, "epoch": epoch}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {"samples": [tuple(sample.values()) for sample in samples]}


def sources(*, weight: float = 2.0, bad: tuple[int, ...] = ()) -> list[Source]:
    return [
        Source("web", Named("web"), np.arange(30), 1.0),
        Source("scenes", Named("scenes", bad), np.arange(5), weight),
    ]


def read(loader: Loader, start: int = 0, stop: int = 8) -> list[list[tuple[str, int, int]]]:
    return [batch["samples"] for batch in loader.batches(start, stop)]


@pytest.mark.parametrize("workers", [0, 3])
def test_a_mixture_is_loaded_and_resumed_by_its_step(workers: int) -> None:
    whole = read(MixtureLoader(sources(), batch_size=6, seed=1, workers=workers))
    assert {name for batch in whole for name, _, _ in batch} == {"web", "scenes"}
    assert read(MixtureLoader(sources(), batch_size=6, seed=1), 5) == whole[5:]
    ranks = [read(MixtureLoader(sources(), batch_size=6, seed=1, rank=rank, world_size=2)) for rank in range(2)]
    assert [first + second for first, second in zip(*ranks, strict=True)] == whole


def test_a_bad_sample_is_replaced_by_one_of_its_own_source() -> None:
    loader = MixtureLoader(sources(bad=(2,)), batch_size=6, seed=1, max_bad_fraction=0.5)
    good = read(MixtureLoader(sources(), batch_size=6, seed=1))
    drawn = read(loader)
    assert [[name for name, _, _ in batch] for batch in drawn] == [[name for name, _, _ in batch] for batch in good]
    assert loader.bad_samples == {"scenes/image-2": "cut off"}
    assert ("scenes", 2) not in {sample[:2] for batch in drawn for sample in batch}


def test_other_weights_or_rows_are_other_data() -> None:
    described = MixtureLoader(sources(), batch_size=6, seed=1).describe()
    assert described == MixtureLoader(sources(), batch_size=6, seed=1).describe()
    assert described != MixtureLoader(sources(weight=3.0), batch_size=6, seed=1).describe()
    fewer = [*sources()[:1], Source("scenes", Named("scenes"), np.arange(4), 2.0)]
    assert described != MixtureLoader(fewer, batch_size=6, seed=1).describe()
