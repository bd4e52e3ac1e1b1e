"""Draws are pure functions of their names, the same on every machine and in every version."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core import seeds
from foveate.core.errors import UserError


def test_pinned_values() -> None:
    """These may never change: resumed runs and published splits depend on them."""
    assert seeds.uniform("a", 1, "b") == 0.5919518338773163
    assert seeds.integer("regions", 0, 7, "key") == 8_274_179_948_648_408_909
    np.testing.assert_array_equal(seeds.generator("view", 0, 3, "key").integers(0, 1000, 5), [273, 924, 202, 437, 308])


def test_uniform_is_the_documented_hash() -> None:
    digest = hashlib.blake2b(b"a|1|b").digest()
    assert seeds.uniform("a", 1, "b") == int.from_bytes(digest[:8], "big") / 2**64


@given(st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4))
def test_ranges_and_repeatability(parts: list[object]) -> None:
    value = seeds.uniform(*parts)
    assert 0 <= value < 1
    assert value == seeds.uniform(*parts)
    assert 0 <= seeds.integer(*parts) < 2**63
    assert seeds.generator(*parts).random() == seeds.generator(*parts).random()


def test_neighbors_are_independent() -> None:
    rows = np.array([[seeds.uniform("x", row, epoch) for epoch in range(200)] for row in range(200)])
    assert abs(rows.mean() - 0.5) < 0.01
    assert abs(rows.var() - 1 / 12) < 0.005
    for shifted in (rows[1:, :], rows[:, 1:]):
        here = rows[: shifted.shape[0], : shifted.shape[1]]
        assert abs(np.corrcoef(here.ravel(), shifted.ravel())[0, 1]) < 0.02
    draws = np.array([seeds.generator("y", row).random(2) for row in range(2000)])
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.07
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.07


def test_the_global_state_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    seeds.generator("x").random(10)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_a_draw_keeps_the_order_of_its_things() -> None:
    names = [f"question {number}" for number in range(100)]
    for seed in range(5):
        positions = seeds.draw(names, 20, "questions", seed, what="question")
        assert positions == sorted(positions)
        assert len(set(positions)) == 20
    assert seeds.draw(names, None, "questions", 0, what="question") == list(range(100))


def test_things_of_one_id_are_refused() -> None:
    with pytest.raises(UserError, match="question 'a': 2 questions have this id"):
        seeds.draw(["a", "b", "a"], 1, "questions", 0, what="question")
