"""The rule splitter: what it keeps together, how it resolves "it", and that nothing breaks it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.caption.splitter import count, normalize_assertion, split


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The tower is round. It has a red roof.", ["The tower is round", "The tower has a red roof"]),
        ("The dog sits and barks.", ["The dog sits", "The dog barks"]),
        ("The room is large and empty.", ["The room is large", "The room is empty"]),
        ("The table is made of glass and wood.", ["The table is made of glass and wood"]),
        ("There is a fork and knife, a cat and an owl.",
         ["There is a fork and knife", "There is a cat", "There is an owl"]),
        ("The child on the left wears a coat, a hat and gloves, and throws a ball.",
         ["The child on the left wears a coat, a hat and gloves", "The child on the left throws a ball"]),
        ("The sign says \"stop. now\". A car waits.", ["The sign says \"stop. now\"", "A car waits"]),
        ("There is a man gesturing no. There is a cat.", ["There is a man gesturing no", "There is a cat"]),
        ("Lamp no. 5 is lit.", ["Lamp no. 5 is lit"]),
        ("First line\nSecond line", ["First line", "Second line"]),
    ],
)  # fmt: skip
def test_split(text: str, wanted: list[str]) -> None:
    assert [one.replace('" ', '"').replace(' "', ' "') for one in split(text)] == wanted


def test_tags_of_a_tagger_decide() -> None:
    # "saunters" is in no list, so only a tagger knows that it is a verb.
    text = "The cat saunters and the dog saunters"
    tags = {"saunters": "VBZ", "cat": "NN", "dog": "NN", "the": "DT", "and": "CC"}
    assert count(text) == 1
    assert count(text, tagger=lambda words: [tags[word] for word in words]) == 2


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_split_into_different_assertions(text: str) -> None:
    found = split(text)
    assert all(found)
    assert len({normalize_assertion(one) for one in found}) == len(found)


@given(
    st.lists(st.sampled_from(["A cat sits on a mat.", "The sky is blue!", "There is a dog.", "It is old."]), max_size=6)
)
def test_more_text_never_gives_fewer_assertions(parts: list[str]) -> None:
    counts = [count(" ".join(parts[:end])) for end in range(len(parts) + 1)]
    assert counts == sorted(counts)
