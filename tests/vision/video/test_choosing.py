"""Frames chosen by what they show: each rule against a slow definition, ties, spacing, hostile input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from foveate.core.errors import UserError
from foveate.vision.video.sampling import choose_frames, sample
from naming import raises_naming

# Small integers make ties frequent and distances exact.
VECTORS = st.integers(1, 14).flatmap(lambda total: arrays(np.float64, (total, 2), elements=st.integers(-3, 3)))


def _cover(vectors: np.ndarray, num_frames: int, start: list[int], candidates: list[int]) -> list[int]:
    selected = list(start)
    while len(selected) < num_frames:
        rest = [index for index in candidates if index not in selected]
        nearest = [min(np.linalg.norm(vectors[index] - vectors[other]) for other in selected) for index in rest]
        selected.append(rest[int(np.argmax(np.round(nearest, 9)))])
    return sorted(selected)


@given(VECTORS, st.integers(1, 16), st.sampled_from(["even", "cover", "change"]))
def test_rules_against_their_definition(vectors: np.ndarray, num_frames: int, rule: str) -> None:
    frames = choose_frames(vectors, num_frames, rule)  # type: ignore[arg-type]
    total = len(vectors)
    if rule == "even":
        assert frames == sample(total, num_frames)
        return
    assert len(frames) == len(set(frames)) == min(total, num_frames)
    if num_frames >= total:
        assert frames == list(range(total))
    elif rule == "cover":
        assert frames == _cover(vectors, num_frames, [0], list(range(total)))
    else:
        changes = [-1.0, *np.linalg.norm(vectors[1:] - vectors[:-1], axis=1)]
        assert sorted(changes[index] for index in frames) == sorted(changes)[-num_frames:]
        changes = np.round(changes, 9).tolist()
        limit = sorted(changes)[-num_frames]
        above = [index for index in range(total) if changes[index] > limit]
        equal = [index for index in range(total) if changes[index] == limit]
        assert frames == _cover(vectors, num_frames, above or equal[:1], equal)


@given(VECTORS, st.integers(1, 16))
def test_query_takes_the_best_frames_apart_from_one_another(vectors: np.ndarray, num_frames: int) -> None:
    total, query = len(vectors), np.array([2.0, 1.0])
    frames = choose_frames(vectors, num_frames, "query", query_D=query)
    assert len(set(frames)) == len(frames) == min(total, num_frames)
    norms = np.linalg.norm(vectors, axis=1)
    scores = np.where(norms > 0, vectors @ query / np.maximum(norms, 1e-9) / np.linalg.norm(query), -1.0)
    if num_frames < total:
        assert max(scores[frames]) == pytest.approx(scores.max())
    longest = np.stack([[1.0, 0.0]] * 40)
    longest[20:24] = [2.0, 1.0]
    # ceil(40 / 8) frames between two: of four equally good neighbors the first is taken, then the earliest elsewhere.
    assert choose_frames(longest, 2, "query", query_D=query) == [0, 20]


@pytest.mark.parametrize("rule", ["cover", "change", "query"])
@given(vectors=VECTORS, num_frames=st.integers(1, 16), seed=st.integers(0, 99))
def test_rounding_of_another_processor_changes_no_choice(
    rule: str, vectors: np.ndarray, num_frames: int, seed: int
) -> None:
    noise = np.random.default_rng(seed).uniform(-1e-9, 1e-9, vectors.shape)
    query = {"query_D": np.array([2.0, 1.0])} if rule == "query" else {}
    frames = choose_frames(vectors, num_frames, rule, **query)  # type: ignore[arg-type]
    assert choose_frames(vectors * (1 + noise), num_frames, rule, **query) == frames  # type: ignore[arg-type]


def test_ties_go_to_the_earlier_frame() -> None:
    # Two processors disagreed about this one: their products round differently.
    vectors = [[-1, -1], [0, -1], [1, -1], [-1, 0], [-1, -1]]
    assert choose_frames(vectors, 3, "change") == [1, 2, 3]


def test_cover_finds_what_even_frames_miss() -> None:
    vectors = np.zeros((50, 4))
    vectors[23] = 1.0
    assert 23 in choose_frames(vectors, 2, "cover")
    assert 23 not in choose_frames(vectors, 10, "even")
    assert choose_frames(vectors, 2, "change") == [23, 24]
    # A common offset changes nothing.
    assert choose_frames(vectors + 1e6, 2, "cover") == [0, 23]


def test_float16_vectors_are_computed_in_float64() -> None:
    vectors = np.array([[0.0], [300.0], [-300.0]], dtype=np.float16)  # squares overflow float16
    assert choose_frames(vectors, 2, "cover") == [0, 1]


def test_hostile_vectors_are_refused() -> None:
    for vectors in ([], [1.0, 2.0], [[float("nan")]], [[]]):
        with raises_naming(UserError, "vectors"):
            choose_frames(vectors, 1)
    with raises_naming(UserError, "frames", 0):
        choose_frames([[1.0]], 0)
    with raises_naming(UserError, "covr", "cover"):
        choose_frames([[1.0]], 1, "covr")  # type: ignore[arg-type]
    for options in ({"rule": "query"}, {"rule": "cover", "query_D": [1.0]}, {"rule": "query", "query_D": [1.0, 2.0]}):
        with raises_naming(UserError, "query"):
            choose_frames([[1.0], [2.0]], 1, **options)
