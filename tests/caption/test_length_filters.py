"""Length filters: the window is never exceeded, no sentence is cut, and each flag for what it stands for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foveate.caption.lengths import (
    FLAGS,
    apply_length_filter,
    choose_retry,
    copies_alt,
    count_clip_tokens,
    find_content_flags,
    is_non_english,
    leaks_prompt,
    pick_better,
    repeats,
)
from foveate.caption.prompts import CAPTION_KINDS, find_prompt
from foveate.records.caption_formats import CAPTION_FORMATS
from foveate.records.captions import is_usable_alt_text, select_alt_text
from foveate.records.record import Caption
from foveate.records.text import find_sentence_ends, split_sentences

RECORDS = json.loads((Path(__file__).parents[1] / "goldens" / "captions" / "records.json").read_text(encoding="utf-8"))
SHORT = "A dog runs on grass."
LONG = " ".join(["A brown dog runs over the wet green grass of a wide park."] * 8)
ENDLESS = "A dog and " + "a cat and " * 40 + "a cow."

captions = st.one_of(
    st.text(max_size=200),
    st.lists(
        st.sampled_from(["A dog runs.", "The sky is blue!", "cat", "3.5 m", "Mr. Fox", "日本語。", "😀", "(see it?)"]),
        max_size=60,
    ).map(" ".join),
    st.lists(st.sampled_from(["dog", "cat", "lighthouse", "extraordinarily", "żółć"]), max_size=200).map(" ".join),
)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["id"])
def test_good_captions_pass(record: dict[str, str]) -> None:
    for kind in sorted(record.keys() & set(CAPTION_KINDS)):
        caption = record[kind]
        assert not choose_retry(kind, caption)
        assert apply_length_filter(kind, caption).flags == ()
        assert apply_length_filter(kind, caption).caption == caption
        assert find_content_flags(caption, prompt=find_prompt(kind).text, alt=record["alt"]) == ()


@settings(deadline=None)
@given(st.sampled_from(["dsc", "afc"]), captions)
@example("dsc", LONG)
@example("dsc", ENDLESS)
def test_a_descriptive_caption_fits_clip_with_its_special_tokens(kind: str, caption: str) -> None:
    filtered = apply_length_filter(kind, caption)
    assert count_clip_tokens(filtered.caption) + 2 <= 77
    assert bool(filtered.error) == (not filtered.caption and count_clip_tokens(caption) > 75)


@settings(deadline=None)
@given(st.sampled_from(CAPTION_KINDS), captions)
def test_nothing_is_cut_but_after_a_sentence(kind: str, caption: str) -> None:
    filtered = apply_length_filter(kind, caption)
    if filtered.error:
        assert count_clip_tokens(split_sentences(caption)[0]) > 75
        return
    assert caption.startswith(filtered.caption)
    assert filtered.caption == caption or len(filtered.caption) in find_sentence_ends(caption)
    assert (filtered.caption != caption) == ("cut_at_sentence" in filtered.flags)
    if "cut_at_sentence" in filtered.flags:
        limit = CAPTION_FORMATS[kind].lengths.max_tokens
        assert count_clip_tokens(caption) > limit
        longer = [end for end in find_sentence_ends(caption) if end > len(filtered.caption)]
        assert count_clip_tokens(caption[: longer[0]]) > limit  # the last end that fits
    assert set(filtered.flags) <= set(FLAGS)


@pytest.mark.parametrize(
    ("kind", "caption", "purpose", "flags"),
    [
        ("ssc", SHORT, "", ()),
        ("ssc", "Dog.", "", ("too_short",)),
        ("ssc", f"{SHORT} {SHORT}", "shorten", ("too_long",)),
        ("ssc", ENDLESS, "shorten", ("too_long",)),
        ("dsc", SHORT, "", ("too_short",)),
        ("dsc", LONG, "shorten", ("cut_at_sentence",)),
        ("afc", LONG, "shorten", ("cut_at_sentence",)),
        ("dsc_plus", SHORT, "lengthen", ("too_short",)),
        ("dsc_plus", LONG, "", ()),
        ("dsc_plus", " ".join([LONG] * 4), "", ("too_long",)),
    ],
)
def test_lengths_by_format(kind: str, caption: str, purpose: str, flags: tuple[str, ...]) -> None:
    assert choose_retry(kind, caption) == purpose
    assert apply_length_filter(kind, caption).flags == flags


def test_a_first_sentence_that_does_not_fit_is_an_error() -> None:
    assert apply_length_filter("dsc", ENDLESS).error == "too_long"
    assert apply_length_filter("dsc", f"{ENDLESS} {SHORT}").error == "too_long"


@pytest.mark.parametrize(
    ("kind", "first", "second", "better"),
    [
        ("ssc", f"{SHORT} {SHORT}", SHORT, 1),
        ("ssc", ENDLESS, ENDLESS + " And so on.", 0),
        ("dsc_plus", SHORT, LONG, 1),
        ("dsc_plus", LONG, SHORT, 0),
        ("dsc", LONG, "A brown dog runs over the wet green grass of a wide park in the rain.", 1),
        ("dsc_plus", LONG, LONG + " The end.", 1),
    ],
)
def test_the_better_of_two_versions(kind: str, first: str, second: str, better: int) -> None:
    assert pick_better(kind, first, second) == (first, second)[better]


def test_content() -> None:
    assert repeats("a red car and a red car and a red car and a red car")
    assert not repeats("a red car and a blue car and a green car")
    assert copies_alt("1967 Corvina GT coupe!", "1967 corvina gt COUPE")
    assert not copies_alt("a car", "")
    assert not copies_alt("A black car of 1967 on a road", "1967 Corvina GT coupe")
    prompt = find_prompt("dsc").text
    assert leaks_prompt("Describe this picture in 2 to 4 short sentences.", prompt)
    assert leaks_prompt('A cat. "caption": "A cat."', prompt)
    assert not leaks_prompt("A picture of two short dogs that are under a bench.", prompt)
    assert find_content_flags("Ein Hund steht auf der Wiese vor dem Haus", prompt=prompt) == ("non_english",)
    assert find_content_flags("Ein Hund steht auf der Wiese vor dem Haus", prompt=prompt, english=False) == ()


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        ("Un perro está en el parque con una pelota.", True),
        ("Un chien court dans un jardin.", True),
        ("Un cane che corre nel parco con una palla", True),
        ("Um cachorro em um parque com uma bola", True),
        ("Een hond loopt op het gras bij het huis", True),
        ("一只狗在公园里", True),
        ("Собака бежит по траве", True),
        ("A dog called Müller in a café in São Paulo", False),
        ("A sign says \u201c日本\u201d above the door of a small shop", False),
        ("Two dogs", False),
        ("Red car, blue sky, green grass, white house", False),
        ("123 + 456", False),
    ],
)
def test_the_rule_for_other_languages(text: str, foreign: bool) -> None:
    assert is_non_english(text) == foreign


@pytest.mark.parametrize(
    ("alt", "says_something"),
    [
        ("", False),
        ("IMG_2041.jpg", False),
        ("DSC01234", False),
        ("P1010023", False),
        ("my summer holiday.png", True),
        ("image", False),
        ("A picture of the", False),
        ("Stock photo 12", False),
        ("https://example.org/a b", True),
        ("https://example.org/a", False),
        ("2024-01-01", False),
        ("Mount Fuji", True),
        ("图片 山", True),
        ("old boat", True),
    ],
)
def test_usable_alt_texts(alt: str, says_something: bool) -> None:
    assert is_usable_alt_text(alt) == says_something


def test_the_first_text_of_the_best_kind_is_the_alt_text() -> None:
    texts = [Caption("k", "keywords"), Caption(" ", "alt"), Caption("t", "title"), Caption("s", "ssc")]
    assert select_alt_text(texts) == "t"
    assert select_alt_text(texts, ["keywords", "title"]) == "k"
    assert select_alt_text(texts, ["alt"]) == ""
