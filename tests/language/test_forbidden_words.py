"""Forbidden words are never written, whatever tokens spell them; longer words that begin with one stay possible."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.paths import DATA
from foveate.language.forbidden_words import INVENTED_WORDS, ForbiddenWords, split_words
from foveate.language.vocabulary import WordTokenizer, read_tokenizer, train_tokenizer, wrap_tokenizer

PATTERN = re.compile(rf"(?<![a-z])({'|'.join(INVENTED_WORDS)})(?![a-z])", re.IGNORECASE)


@pytest.fixture(scope="module")
def mini() -> WordTokenizer:
    return read_tokenizer(DATA / "mini" / "tokenizer.json")


def forbid(tokenizer: WordTokenizer, *allowed: str) -> ForbiddenWords:
    return ForbiddenWords.create(INVENTED_WORDS, tokenizer, size=tokenizer.size, allowed=allowed)


def spell(words: ForbiddenWords, tokenizer: WordTokenizer, ids: Sequence[int], *, room: int = 64) -> bool:
    """Return whether all of these tokens, and the end mark behind them, may be written."""
    whole = [*ids, tokenizer.end]
    return all(id not in words.ban(whole[:number], room - number) for number, id in enumerate(whole))


@pytest.fixture(scope="module")
def pieces(mini: WordTokenizer) -> list[int]:
    """The tokens that are parts of the words."""
    return [id for id in range(mini.size) if any(mini.decode([id]).strip() in word for word in INVENTED_WORDS)]


@given(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_random_logits_never_write_one(mini: WordTokenizer, pieces: list[int], seed: int, length: int) -> None:
    """Only the pieces of the words are likely, so that without the mask nearly every text has one."""
    rng = np.random.default_rng(seed)
    words = forbid(mini)
    ids: list[int] = []
    while len(ids) < length and (not ids or ids[-1] != mini.end):
        logits_V = rng.normal(size=mini.size)
        logits_V[[*pieces, *mini.encode(" ,.-'\n")]] += 6
        logits_V[list(words.ban(ids, length - len(ids)))] = -np.inf
        ids.append(int(logits_V.argmax()))
    assert not PATTERN.search(mini.decode(ids)), mini.decode(ids)


def test_without_the_mask_such_texts_have_one(mini: WordTokenizer, pieces: list[int]) -> None:
    """The property above would hold for masks that ban nothing if texts of the pieces had no such word anyway."""
    rng = np.random.default_rng(0)
    assert PATTERN.search(mini.decode(rng.choice(pieces, 40).tolist()))


@pytest.mark.parametrize("word", INVENTED_WORDS)
def test_every_spelling_is_banned(mini: WordTokenizer, word: str) -> None:
    words = forbid(mini)
    for text in (
        word,
        f" {word}",
        f" a {word}.",
        f" {word}s {word}",
        word.upper(),
        word.title(),
        f" ({word})",
        f"{word}2",
    ):
        assert not spell(words, mini, mini.encode(text)), text
        letters = [id for letter in text for id in mini.encode(letter)]
        assert not spell(words, mini, letters), text
    # Where a limit ends the text, no end mark would tell.
    *ids, last = mini.encode(f" {word}")
    assert last in words.ban(ids, 1)


def test_words_that_hold_one_stay_possible(mini: WordTokenizer) -> None:
    words = forbid(mini, "kiva", "zuppa", "tomato")
    for text in (" tomato", " tomatoes", "tomato", " a tomato.", " kiva", " kiva, a tomato", " zuppa", " Kiva."):
        assert spell(words, mini, mini.encode(text)), text
    # Within a word, or at its end.
    for text in (" skiving", " azup", " bewugs", " automa", " wu", " gor", " zu p", " bekivzup"):
        assert spell(words, mini, mini.encode(text)), text
    # Of a name only where it can be written whole.
    assert not spell(words, mini, mini.encode(" kiv"))
    assert not spell(words, mini, mini.encode(" kivi"))
    assert not spell(words, mini, mini.encode(" kiva kiv"))
    assert not spell(words, mini, mini.encode(" kiva"), room=1)


def test_all_names_of_mini_stay_possible(mini: WordTokenizer) -> None:
    from foveate.core.files import read_json

    names = read_json(DATA / "mini" / "names.json")
    words = forbid(mini, *split_words(names))
    refused = [name for name in names if not spell(words, mini, mini.encode(f" {name}"))]
    assert not refused


def test_any_vocabulary() -> None:
    """A vocabulary that has learned the words with their signs, and spells others by bytes."""
    texts = ["a zup. two zups, zup-zup and kiv\u00e9 or kiv!"] * 50
    tokenizer = wrap_tokenizer(train_tokenizer(texts, size=600), source="test")
    words = forbid(tokenizer)
    for text in ("zup", "a zup.", "two zups, zup-zup", " kiv!", "kiv\u2014"):
        assert not spell(words, tokenizer, tokenizer.encode(text)), text
    for text in ("two zips", "a zu pot", "azup"):
        assert spell(words, tokenizer, tokenizer.encode(text)), text
