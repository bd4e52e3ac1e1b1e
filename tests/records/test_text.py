"""Sentences and words: each style's cut, and that no text is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.records.text import Style, find_sentence_ends, split_sentences, split_words


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("One", 1),
        ("It is 3.5 m high. It stands.", 2),
        ("Mr. Fox and Dr. J. Hare sit.", 1),
        ("Open at 9 a.m. on weekdays.", 1),
        ("Boats of Smith Inc. The sea is calm.", 2),
        ('He says "Stop!" and goes.', 2),
        ("What? Yes... no!", 3),
        ("犬がいる。空は青い。", 2),
    ],
)
def test_number_of_sentences(text: str, count: int) -> None:
    assert len(split_sentences(text)) == count


@given(st.text(max_size=200))
def test_prose_sentences_are_the_whole_text(text: str) -> None:
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())
    ends = find_sentence_ends(text)
    assert ends == sorted(set(ends))
    assert ends[-1:] == ([len(text.rstrip())] if text.strip() else [])


@pytest.mark.parametrize(
    ("text", "style", "sentences"),
    [
        # Each style as published numbers need it, on texts where they differ.
        ("Mr. Fox waits.", "prose", ["Mr. Fox waits."]),
        ("Mr. Fox waits.", "treebank", ["Mr.", "Fox waits."]),
        ("Mr. Fox waits.", "clauses", ["Mr. Fox waits"]),
        ('He says "Stop." He goes.', "prose", ['He says "Stop."', "He goes."]),
        ('He says "Stop." He goes.', "treebank", ['He says "Stop." He goes.']),
        ('He says "stop. now". He goes.', "clauses", ['He says "stop. now"', "He goes"]),
        ("She says no. He goes.", "prose", ["She says no. He goes."]),
        ("She says no. He goes.", "clauses", ["She says no", "He goes"]),
        ("Lamp no. 5 is lit.", "clauses", ["Lamp no. 5 is lit"]),
        ("Red; green\nblue.", "prose", ["Red; green\nblue."]),
        ("Red; green\nblue.", "clauses", ["Red", "green", "blue"]),
        ("It isn't. A dog.", "clauses", ["It isn't", "A dog"]),
        ("In the U.N. building. Wait ... what?", "clauses", ["In the U.N. building", "Wait", "what"]),
    ],
)
def test_styles_of_sentences(text: str, style: Style, sentences: list[str]) -> None:
    assert split_sentences(text, style=style) == sentences


def test_styles_of_words() -> None:
    assert split_words("It's 5 o'clock_now: GO-ON!") == ["it's", "5", "o'clock", "now", "go", "on"]
    assert split_words("you cannot go.", style="treebank") == ["you", "can", "not", "go", "."]
    assert split_words("about 3,5 % of U.S. co-ops", style="clauses") == ["about", "3,5", "%", "of", "U.S.", "co-ops"]
    assert split_words("RoundPointShovel_02", style="letters") == ["round", "point", "shovel"]
