"""Exact search: blocks and parts never change an answer, ties go to the lower row, float16 is the stored vectors'."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from foveate.search import nearest as module
from foveate.search.nearest import nearest, rounding_slack


def made(seed: int, rows: int, width: int, dtype: type, *, values: int = 0) -> NDArray[np.floating]:
    """Unit vectors; of few different numbers each where `values` is given, so that many tie."""
    random = np.random.default_rng(seed)
    array = random.standard_normal((rows, width))
    if values:
        array = random.integers(-values, values + 1, (rows, width)).astype(np.float64)
        array[~array.any(axis=1)] = 1
    return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(dtype)


def brute_force(
    vectors: NDArray[np.floating], query: NDArray[np.float64], count: int, excluded: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    wide = vectors.astype(np.float64)
    unit = query / np.linalg.norm(query[None], axis=1)
    scores = (wide * unit).sum(axis=1) / np.sqrt((wide * wide).sum(axis=1))
    rows = np.setdiff1d(np.arange(len(vectors)), excluded)
    rows = rows[np.lexsort((rows, -scores[rows]))][:count]
    return scores[rows].clip(-1, 1), rows


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 700),
    width=st.integers(1, 40),
    queries=st.integers(1, 5),
    count=st.integers(1, 40),
    values=st.sampled_from([0, 1, 3]),
    dtype=st.sampled_from([np.float32, np.float16]),
    cuts=st.lists(st.integers(0, 700), max_size=4),
    gone=st.floats(0, 1),
)
def test_blocks_and_parts_give_what_brute_force_gives(
    seed: int,
    rows: int,
    width: int,
    queries: int,
    count: int,
    values: int,
    dtype: type,
    cuts: list[int],
    gone: float,
) -> None:
    vectors = made(seed, rows, width, dtype, values=values)
    asked = made(seed + 1, queries, width, np.float64, values=values) * 3.0
    excluded = np.flatnonzero(np.random.default_rng(seed + 2).random(rows) < gone)
    parts = np.split(vectors, sorted(min(cut, rows) for cut in cuts))
    scores, found = nearest(parts, asked, count=count, excluded=excluded)
    assert scores.shape == found.shape == (queries, min(count, rows - len(excluded)))
    for place in range(queries):
        expected_scores, expected = brute_force(vectors, asked[place], count, excluded)
        np.testing.assert_array_equal(found[place], expected)
        np.testing.assert_array_equal(scores[place], expected_scores)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_small_blocks_give_the_same(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, asked = made(0, 5000, 16, dtype, values=1), made(1, 9, 16, np.float64)
    whole = nearest([vectors], asked, count=30)
    monkeypatch.setattr(module, "_ROWS", {np.dtype(np.float32): 300, np.dtype(np.float16): 300})
    monkeypatch.setattr(module, "_QUERIES", 4)
    monkeypatch.setattr(module, "_RESCORE_ROWS", 7)
    for one, other in zip(whole, nearest([vectors], asked, count=30), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("rising", [True, False])
def test_the_order_of_the_rows_does_not_matter(rising: bool) -> None:
    vectors = made(0, 40_000, 8, np.float32)
    query = made(1, 1, 8, np.float64)
    order = np.argsort((vectors @ query[0]) * (1 if rising else -1))
    scores, rows = nearest([vectors[order]], query, count=50)
    assert set(order[rows[0]]) == set(nearest([vectors], query, count=50)[1][0])
    assert (np.diff(scores[0]) <= 0).all()


def test_equal_vectors_tie_and_come_in_order() -> None:
    vectors = np.tile(made(0, 1, 33, np.float32), (50_000, 1))
    scores, rows = nearest(np.array_split(vectors, 7), made(1, 2, 33, np.float64), count=25)
    np.testing.assert_array_equal(rows, np.tile(np.arange(25), (2, 1)))
    assert len(np.unique(scores[0])) == 1


def test_a_vector_finds_itself() -> None:
    vectors = made(0, 300, 24, np.float32)
    scores, rows = nearest([vectors], vectors[:40], count=1)
    np.testing.assert_array_equal(rows[:, 0], np.arange(40))
    np.testing.assert_allclose(scores, 1, atol=1e-7)
    assert scores.max() <= 1


@pytest.mark.parametrize(("dtype", "narrow"), [(np.float32, False), (np.float16, False), (np.float16, True)])
@pytest.mark.parametrize("width", [8, 192, 1024])
@pytest.mark.parametrize("queries", [3, 20])
def test_the_slack_covers_the_rounding(dtype: type, narrow: bool, width: int, queries: int) -> None:
    vectors, asked = made(0, 500, width, dtype), made(1, queries, width, np.float64)
    wide = vectors.astype(np.float64)
    true = (wide / np.linalg.norm(wide, axis=1, keepdims=True)) @ asked.T
    found = np.concatenate([scores for _, scores in module._scores([vectors], asked, narrow=narrow)])
    error = np.abs(found - true).max()
    assert 0 < error < rounding_slack(np.dtype(dtype), width, narrow=narrow) < 0.01


@pytest.mark.parametrize("queries", [1, 4, 5])
def test_a_read_only_map_of_float16_is_searched(queries: int, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    vectors, asked = made(0, 20_000, 48, np.float16), made(1, queries, 48, np.float64)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    scores, rows = nearest([mapped], asked, count=30)
    for place, query in enumerate(asked):
        expected_scores, expected = brute_force(vectors, query, 30, np.zeros(0, np.int64))
        np.testing.assert_array_equal(rows[place], expected)
        np.testing.assert_array_equal(scores[place], expected_scores)
    assert not recwarn.list


def test_without_float32_sums_the_vectors_are_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, asked = made(0, 3000, 32, np.float16), made(1, 1, 32, np.float64)
    whole = nearest([vectors], asked, count=20)
    assert module._sums_in_float32()
    monkeypatch.setattr(module, "_sums_in_float32", lambda: False)
    monkeypatch.setattr(module.torch, "mv", lambda *_: pytest.fail("products in float16"))
    for one, other in zip(whole, nearest([vectors], asked, count=20), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kernel", module._DOT_KERNELS)
@pytest.mark.parametrize("queries", [1, 4])
def test_every_kernel_finds_the_same(queries: int, kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, asked = made(0, 3000, 32, np.float32), made(1, queries, 32, np.float64)
    used: list[int] = []

    def count(block_BE: np.ndarray, query_E: np.ndarray) -> np.ndarray:
        used.append(len(block_BE))
        return kernel(block_BE, query_E)

    monkeypatch.setattr(module, "_faster_dots", lambda: count)
    scores, rows = nearest([vectors], asked, count=20)
    assert sum(used) == queries * len(vectors)
    for place, query in enumerate(asked):
        expected_scores, expected = brute_force(vectors, query, 20, np.zeros(0, np.int64))
        np.testing.assert_array_equal(rows[place], expected)
        np.testing.assert_array_equal(scores[place], expected_scores)


def test_the_faster_kernel_is_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def slow(block_BE: np.ndarray, query_E: np.ndarray) -> np.ndarray:
        calls.append("slow")
        time.sleep(0.02)
        return np.vecdot(block_BE, query_E)

    monkeypatch.setattr(module, "_DOT_KERNELS", (slow, np.vecdot))
    module._faster_dots.cache_clear()
    try:
        assert module._faster_dots() is np.vecdot
        tried = len(calls)
        assert module._faster_dots() is np.vecdot
        assert len(calls) == tried > 0
    finally:
        module._faster_dots.cache_clear()


def test_nothing_left() -> None:
    vectors = made(0, 3, 4, np.float32)
    for parts in ([], [vectors[:0]]):
        assert nearest(parts, vectors[:2], count=5)[0].shape == (2, 0)
    assert nearest([vectors], vectors[:1], count=5, excluded=np.arange(3))[1].shape == (1, 0)
