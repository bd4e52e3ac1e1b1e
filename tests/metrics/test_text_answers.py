"""Scores of written answers against the official evaluators' own results, and hand-made cases of their rules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.metrics.text_answers import (
    anls,
    edit_distance,
    exact_match,
    normalize_textvqa,
    normalize_vqa,
    parse_choice,
    parse_pope,
    parse_yes_no,
    relaxed_accuracy,
    vqa_accuracy,
    yes_no_metrics,
)
from naming import raises_naming

GOLDENS = Path(__file__).parents[1] / "goldens" / "text_answers"


def golden(name: str) -> list[dict[str, Any]]:
    return json.loads((GOLDENS / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("name", "normalize", "score"),
    [
        ("vqa", normalize_vqa, vqa_accuracy),
        ("textvqa", normalize_textvqa, lambda a, r: vqa_accuracy(a, r, rule="textvqa")),
        ("anls", None, anls),
        ("relaxed", None, relaxed_accuracy),
    ],
)
def test_scores_equal_the_official_evaluator(
    name: str, normalize: Callable[[str], str] | None, score: Callable[..., float]
) -> None:
    for case in golden(name):
        assert score(case["answer"], case["references"]) == pytest.approx(case["score"], abs=1e-9), case
        if normalize:
            assert normalize(case["answer"]) == case["normalized"], case


def test_leaving_one_person_out() -> None:
    scores = [vqa_accuracy("cat", ["cat"] * count + ["dog"] * (10 - count)) for count in range(5)]
    # One match: the person who gave it is left out once; two: (8 * 2/3 + 2 * 1/3) / 10; three: (7 + 3 * 2/3) / 10.
    assert scores == pytest.approx([0, 0.3, 0.6, 0.9, 1])


def test_anls_threshold_is_a_right_answer() -> None:
    assert anls("ab", ["abcd"]) == 0.5
    assert anls("a", ["abc"]) == 0
    assert anls("", [""]) == 1


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert edit_distance(a, a) == 0
    assert edit_distance(a, b) == edit_distance(b, a) >= abs(len(a) - len(b))
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert edit_distance(a, b) <= max(len(a), len(b))


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "nan%"])
def test_numbers_that_are_none_match_no_number(text: str) -> None:
    assert relaxed_accuracy(text, ["5"]) == 0
    assert relaxed_accuracy(text, [text]) == 1


def test_exact_match_ignores_case_space_and_a_last_stop() -> None:
    assert exact_match(" Red  apple.", ["a red apple", "red apple"]) == 1
    assert exact_match("redapple", ["red apple"]) == 0
    assert exact_match("3.5", ["35"]) == 0


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("B", 1),
        ("(b)", 1),
        ("b.", 1),
        ("C) the third", 2),
        ("A. cat", 0),
        ("The answer is B.", 1),
        ("I think the answer: (C) bird", 2),
        ("Answer: option A", 0),
        ("dog", 1),
        ("A big dog.", 1),
        # Not letters: articles, words, letters that have no choice, two texts at once.
        ("A dog is there", None),
        ("The answer is a dog", None),
        ("E", None),
        ("The answer is Bob", None),
        ("cat or dog", None),
        ("", None),
    ],
)
def test_parse_choice(answer: str, index: int | None) -> None:
    choices = ["cat", "a big dog" if "big" in answer else "dog", "bird"]
    assert parse_choice(answer, choices) == index


def test_equal_choices_are_named_by_letter_only() -> None:
    assert parse_choice("same", ["same", "same"]) is None
    assert parse_choice("B", ["same", "same"]) == 1


@pytest.mark.parametrize(
    ("answer", "strict", "pope"),
    [
        ("Yes", True, True),
        ("no, there is not", False, False),
        ("There is not a dog.", None, False),
        ("It is there. No dog, though.", None, True),
        ("Nobody", None, True),
        ("", None, True),
        ("**Yes**, two", True, True),
    ],
)
def test_yes_and_no(answer: str, strict: bool | None, pope: bool) -> None:
    assert parse_yes_no(answer) is strict
    assert parse_pope(answer) is pope


def test_yes_no_metrics_by_hand() -> None:
    metrics = yes_no_metrics([True, True, False, None, False], [True, False, False, True, True])
    assert metrics == {"accuracy": 0.4, "precision": 0.5, "recall": 1 / 3, "f1": 0.4, "yes_share": 0.4}
    assert yes_no_metrics([None], [False]) == {
        "accuracy": 0.0, "precision": None, "recall": None, "f1": None, "yes_share": 0.0
    }  # fmt: skip


def test_hostile_input_is_named() -> None:
    for score in (anls, vqa_accuracy, relaxed_accuracy, exact_match):
        with raises_naming(UserError, "references", "[]"):
            score("x", [])
        with raises_naming(UserError, "references", "'text'"):
            score("x", "text")
    with raises_naming(UserError, "choices", "27"):
        parse_choice("A", ["x"] * 27)
    with raises_naming(UserError, "2", "1"):
        yes_no_metrics([True, False], [True])
