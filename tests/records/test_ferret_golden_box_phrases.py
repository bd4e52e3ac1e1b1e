"""Phrases and boxes of answers, against apple/ml-ferret's stored results and against its parser on generated texts."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import foveate
from foveate.core.errors import UserError
from foveate.records.box_text import Parser, fold_phrase, parse_answers, parse_boxes, parse_regions, parse_streaming
from foveate.records.boxes import PixelBox
from naming import raises_naming

TEXTS = json.loads((Path(__file__).parents[1] / "goldens" / "ferret" / "box_text_parser.json").read_text())
_BOX = r"\[ ?\d{1,3} ?, ?\d{1,3} ?, ?\d{1,3} ?, ?\d{1,3} ?\]"
_PHRASE = r"(?!\s*(?:and|or|[-:(])\b)[^\[\].,;!?:()\n-]*\w[^\[\].,;!?:()\n-]*"
# Each box has a phrase of its own before it and a mark behind it, so that nothing has to be guessed.
_ANSWER = re.compile(rf"(?:{_PHRASE}{_BOX}\s*[.,;!?]\s*)+", re.IGNORECASE)


def corners(boxes: Any) -> list[list[float]]:
    return [[box.x1, box.y1, box.x2, box.y2] for box in boxes]


def is_well_formed(text: str) -> bool:
    boxes = [[int(number) for number in box.strip("[]").split(",")] for box in re.findall(_BOX, text)]
    return bool(_ANSWER.fullmatch(text)) and all(x1 <= x2 and y1 <= y2 for x1, y1, x2, y2 in boxes)


def check_equal_to_official(text: str, width: int, height: int) -> None:
    official = parse_streaming(text, width=width, height=height)
    robust = parse_regions(text, width=width, height=height, decoding="integer")
    assert [(entry.phrase, entry.region) for entry in robust.regions] == official
    assert not robust.problems


@pytest.mark.parametrize("case", TEXTS["decode"], ids=lambda case: f"{case['text'][:30]!r}-{case['w']}")
def test_official_boxes_of_the_golden(case: dict[str, Any]) -> None:
    parsed = parse_boxes(case["text"], (case["w"], case["h"]), parser="official")
    assert corners(parsed.boxes) == case["boxes"]
    merged: dict[str, list[Any]] = {}
    for phrase, box in zip(case["entities"], case["boxes"], strict=True):
        merged.setdefault(fold_phrase(phrase), []).append(box)
    assert corners(parsed.unnamed) == merged.pop("", [])
    assert {fold_phrase(entry.phrase): corners(entry.boxes) for entry in parsed.phrases} == merged
    assert bool(case["error"]) == any("official parser" in problem for problem in parsed.problems)
    if is_well_formed(case["text"]):
        check_equal_to_official(case["text"], case["w"], case["h"])


def test_some_texts_of_the_golden_are_well_formed() -> None:
    assert sum(is_well_formed(case["text"]) for case in TEXTS["decode"]) >= 8


def draw_text(rng: random.Random) -> str:
    pieces = []
    for _ in range(rng.randint(1, 4)):
        name = " ".join(
            rng.choices(("a", "the", "red", "dog", "man's", "hat", "of", "boats", "on"), k=rng.randint(1, 4))
        )
        (x1, x2), (y1, y2) = (sorted((rng.randrange(1000), rng.randrange(1000))) for _ in range(2))
        pieces.append(f"{name} [{x1}, {y1}, {x2}, {y2}]{rng.choice('.,;!?')} ")
    return "".join(pieces)


@pytest.mark.parametrize("count", [500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_robust_parser_equals_the_official_one_on_well_formed_texts(count: int) -> None:
    rng = random.Random(17)
    for _ in range(count):
        text = draw_text(rng)
        assert is_well_formed(text), text
        check_equal_to_official(text, rng.randint(1, 4000), rng.randint(1, 4000))


@pytest.mark.parametrize(
    ("answer", "boxes", "problem"),
    [
        ("dog [1, 2]", 0, "[1, 2]: a point"),
        ("dog [x, y, z, w]", 0, "[x, y, z, w]: not integers"),
        ("dog [900, 10, 100, 20]", 1, None),
        ("dog [[1,2,3,4]]", 1, None),
        ("dog [1, 2, 3, 4, 5]", 0, "[1, 2, 3, 4, 5]: 5 numbers"),
        ("dog [-1, 2, 3, 4]", 0, "[-1, 2, 3, 4]: out of range"),
        ("dog [1, 2, 3, 1001]", 0, "[1, 2, 3, 1001]: out of range"),
        ("dog [1, 2, 3, 4", 0, "[1, 2, 3, 4: not closed"),
        ("dog [" + "9" * 5000 + ", 2, 3, 4]", 0, "999"),
        ("", 0, None),
    ],
)
def test_bad_answers(answer: str, boxes: int, problem: str | None) -> None:
    parsed = foveate.parse_boxes(answer, (640, 480))
    assert len(parsed.boxes) == boxes
    assert all(0 <= box.x1 <= box.x2 <= 640 and 0 <= box.y1 <= box.y2 <= 480 for box in parsed.boxes)
    assert len(parsed.problems) == bool(problem)
    assert problem is None or parsed.problems[0].startswith(problem) or problem in parsed.problems[0][:10]
    # A phrase whose box cannot be read is not lost.
    assert bool(boxes) or not answer or parsed.unboxed[0] == "dog"


@pytest.mark.parametrize("digits", [400, 308, 5000])
def test_endless_numbers(digits: int) -> None:
    text = f"a cat [1, 2, 3, 4], dog [{'9' * digits}, 2, 3, 4]"
    official = parse_boxes(text, (4000, 480), parser="official")
    assert not official.boxes
    assert "official parser" in official.problems[-1]
    assert len(parse_boxes(text, (4000, 480)).boxes) == 1


def test_ten_thousand_boxes() -> None:
    parsed = parse_boxes("cat [1, 2, 3, 4] " * 10_000, (640, 480))
    assert len(parsed.boxes) == 10_000
    assert sum(len(entry.boxes) for entry in parsed.phrases) == 10_000


def test_equal_phrases_are_merged_and_nothing_is_dropped() -> None:
    text = "The dog [0, 0, 9, 9], the  dog! [10, 0, 19, 9]. [20, 0, 29, 9]. It is sunny; a cat"
    parsed = parse_boxes(text, (1000, 1000), requested=("a bird", "The Dog"))
    assert [(entry.phrase, len(entry.boxes)) for entry in parsed.phrases] == [("The dog", 1)]
    assert len(parsed.unnamed) == 2
    assert parsed.unboxed == ("the  dog", "It is sunny", "a cat", "a bird")
    assert parse_boxes("A dog [1, 1, 2, 2] and a  DOG [3, 3, 4, 4]", (9, 9)).phrases[0].boxes[1].x1 > 0
    with raises_naming(UserError, "0 x 5"):
        parse_boxes("", (0, 5))


_TEXT = st.text(alphabet="[]0123456789,.;- ab\n", max_size=60) | st.just(
    "a [1, 2, 3, 4], b [5, 6, 7, 8]; and [9, 9, 9, 1]"
)


@given(st.lists(_TEXT, max_size=6), st.sampled_from(("robust", "official")), st.data())
def test_many_answers_are_parsed_like_each_of_them(texts: list[str], parser: Parser, data: st.DataObject) -> None:
    sizes = [(data.draw(st.integers(1, 3000)), data.draw(st.integers(1, 3000))) for _ in texts]
    answers = parse_answers(texts, sizes, parser=parser)
    expected = [parse_boxes(text, size, parser=parser) for text, size in zip(texts, sizes, strict=True)]
    rows = [row for row, parsed in enumerate(expected) for _ in parsed.boxes]
    assert answers.rows_B.tolist() == rows
    assert answers.boxes_B4.tolist() == corners(box for parsed in expected for box in parsed.boxes)
    assert answers.counts_N.tolist() == [len(parsed.boxes) for parsed in expected]
    assert answers.problems == {row: parsed.problems for row, parsed in enumerate(expected) if parsed.problems}
    for row, parsed in enumerate(expected):
        phrases = [answers.phrases[index] for index in np.flatnonzero(answers.rows_B == row)]
        named = {fold_phrase(entry.phrase) for entry in parsed.phrases} | ({""} if parsed.unnamed else set())
        assert {fold_phrase(phrase) for phrase in phrases} == named
    plain = parse_answers(texts, sizes, parser=parser, phrases=False)
    assert plain.phrases == ()
    assert plain.boxes_B4.tolist() == answers.boxes_B4.tolist()


@pytest.mark.parametrize("count", [500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_fuzzed_answers_neither_crash_nor_hang(count: int) -> None:
    rng = random.Random(18)
    pieces = (
        "[",
        "]",
        "[[",
        ", ",
        ",",
        ".",
        " and ",
        "dog",
        "1",
        "999",
        "-3",
        "1e9",
        "nan",
        "\n",
        "\u0661",
        "[1, 2, 3, 4]",
        "é",
    )
    texts = ["".join(rng.choices(pieces, k=rng.randrange(40))) for _ in range(count)]
    sizes = [(rng.randint(1, 4000), rng.randint(1, 4000)) for _ in texts]
    for parser in ("robust", "official"):
        answers = parse_answers(texts, sizes, parser=parser)
        assert answers.counts_N.sum() == len(answers.boxes_B4) == len(answers.phrases) > count / 8
        assert np.isfinite(answers.boxes_B4).all()


def test_sizes_of_answers() -> None:
    assert parse_answers([], []).rows_B.tolist() == []
    assert parse_boxes("a [0, 0, 999, 999]", (10, 20), parser="official").boxes == (PixelBox(0, 0, 9, 19),)
    with raises_naming(UserError, "1 for 2"):
        parse_answers(["a", "b"], [(3, 4)])
