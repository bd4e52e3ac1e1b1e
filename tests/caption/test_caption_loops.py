"""What counts as a loop of a caption: never an exact text, always a repeated sentence."""

from __future__ import annotations

import pytest
from made_scenes import scenes

from foveate.caption.evaluate import is_looping
from foveate.caption.response_parser import parse_caption, serialize
from foveate.records.text import split_sentences
from foveate_labs.captions.sources import write_formats


def test_exact_captions_are_no_loops() -> None:
    texts = [text for truth, _ in scenes(60) if truth.things for text in write_formats(truth).values()]
    assert len(texts) > 150
    assert not any(map(is_looping, texts))


def test_a_repeated_sentence_is_a_loop() -> None:
    for truth, _ in scenes(10):
        if truth.things:
            text = write_formats(truth)["dsc"]
            assert is_looping(f"{text} {split_sentences(text)[0].upper()}")


@pytest.mark.parametrize(
    ("text", "looping"),
    [
        ("", False),
        ("An ant above the ant above the ant above the ant above the ant.", True),
        ("The ant is left of the cat. The cat is left of the ant.", False),
    ],
)
def test_words_count_within_a_sentence(text: str, looping: bool) -> None:
    assert is_looping(text) == looping


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("a cat cat cat cat cat", "error:repeated"),
        ("The, the; THE the. the dog", "error:repeated"),
        ("A photo.<script>alert(1)</script>", "error:markup"),
        ("<svg onload=x>", "error:markup"),
        ("a very very very very old boat", "ok"),
        ("the letters a < b and the word script", "ok"),
    ],
)
def test_words_without_end_and_code_are_no_captions(text: str, status: str) -> None:
    assert parse_caption(serialize(text)).status == status
