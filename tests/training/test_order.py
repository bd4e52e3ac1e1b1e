from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.training.order import batch_rows
from naming import raises_naming


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 5), epochs=st.integers(1, 3))
def test_each_epoch_visits_each_row_exactly_once(count: int, batch_size: int, seed: int, epochs: int) -> None:
    rows = np.arange(count) * 7 + 3
    steps = -(-count * epochs // batch_size)
    drawn = np.concatenate([batch_rows(s, rows=rows, batch_size=batch_size, seed=seed) for s in range(steps)])
    for epoch in range(epochs):
        assert sorted(drawn[drawn[:, 1] == epoch, 0][:count]) == sorted(rows)
    assert (np.diff(drawn[:, 1]) >= 0).all()


@given(world_size=st.sampled_from([1, 2, 3, 6]), step=st.integers(0, 30), count=st.integers(1, 20))
def test_ranks_partition_a_global_batch_that_does_not_depend_on_their_number(
    world_size: int, step: int, count: int
) -> None:
    rows = np.arange(count)
    whole = batch_rows(step, rows=rows, batch_size=12, seed=1)
    parts = [
        batch_rows(step, rows=rows, batch_size=12, seed=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_order_is_a_function_of_the_step_alone() -> None:
    rows = np.arange(100)
    late = batch_rows(57, rows=rows, batch_size=8, seed=2)
    for step in range(57):
        batch_rows(step, rows=rows, batch_size=8, seed=2)
    np.testing.assert_array_equal(batch_rows(57, rows=rows, batch_size=8, seed=2), late)


def test_order_differs_between_epochs_and_seeds() -> None:
    rows = np.arange(50)
    orders = {tuple(batch_rows(step, rows=rows, batch_size=50, seed=seed)[:, 0]) for step in (0, 1) for seed in (0, 1)}
    assert len(orders) == 4


def test_order_stays_the_same_over_versions() -> None:
    drawn = batch_rows(1, rows=np.arange(10), batch_size=4, seed=0)
    assert drawn.dtype == np.int64
    assert drawn.tolist() == [[3, 0], [1, 0], [5, 0], [2, 0]]


def test_uneven_batch_and_no_rows_are_refused() -> None:
    with raises_naming(UserError, "batch_size", "10", "4", "8"):
        batch_rows(0, rows=np.arange(5), batch_size=10, seed=0, rank=0, world_size=4)
    with raises_naming(UserError, "rows"):
        batch_rows(0, rows=np.arange(0), batch_size=10, seed=0)
