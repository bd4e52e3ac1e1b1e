"""The small vocabulary: names are tokens, parts of combined names are tokens, any text is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from foveate.language.vocabulary import SPECIALS, train_tokenizer, wrap_tokenizer

COLORS, FORMS = ("red", "green", "blue", "pink", "gray"), ("disc", "square", "star", "ring", "cross")
NAMES = [f"{color} {form}" for color in COLORS for form in FORMS] + ["fire engine", "car", "grinning face"]
TEXTS = [f" Where is the {name}?" for name in NAMES] + [" a cartoon", " two stars"]
TOKENIZER = wrap_tokenizer(train_tokenizer(TEXTS, size=500, names=NAMES * 2), source="test")


def test_a_name_is_one_token_and_a_combined_name_one_for_each_part() -> None:
    assert len(TOKENIZER.encode(" fire engine")) == 1
    assert len(TOKENIZER.encode(" grinning face")) == 1
    red, disc = TOKENIZER.encode(" red disc")
    assert TOKENIZER.encode(" red star")[0] == red
    assert TOKENIZER.encode(" pink disc")[1] == disc


def test_a_name_with_which_a_longer_word_begins_is_spelled() -> None:
    (car,) = TOKENIZER.encode(" car")[:1]
    assert car != TOKENIZER.backend.token_to_id(" car")


@given(st.text(max_size=40))
def test_any_text_is_kept(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    # A user who writes the name of a mark writes text.
    assert not set(TOKENIZER.encode(f"<user>{text}")) & {TOKENIZER.special[name] for name in SPECIALS}
