"""The chat turn that asks for a caption, and how a folder says that it was trained on it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.caption.chat_requests import EDGES, caption_request, length_class, normalize_alt, writes_captions
from foveate.caption.prompts import CAPTION_KINDS, MAX_ALT_LETTERS
from foveate.core.errors import UserError
from foveate.records.caption_formats import CAPTION_FORMATS
from foveate.records.conversations import IMAGE, REGION
from foveate.records.record import CAPTION_GROUPS, GROUPS
from naming import raises_naming


def test_each_format_and_length_class_has_a_request_of_its_own() -> None:
    requests = {caption_request(kind, length=length) for kind in CAPTION_KINDS for length in range(len(EDGES) + 1)}
    assert len(requests) == len(CAPTION_KINDS) * (len(EDGES) + 1)


@pytest.mark.parametrize("kind", CAPTION_KINDS)
def test_the_usual_length_of_a_format_passes_its_filter(kind: str) -> None:
    limits = CAPTION_FORMATS[kind].lengths
    assert any(
        length_class(tokens) == CAPTION_FORMATS[kind].length_class
        for tokens in range(limits.min_tokens, limits.max_tokens + 1)
    )


@given(st.integers(0, 400))
def test_a_request_names_the_range_that_holds_the_length(clip_tokens: int) -> None:
    text = caption_request("dsc", length=length_class(clip_tokens))
    bounds = [int(piece) for piece in text.replace(".", " ").split() if piece.isdigit()]
    if len(bounds) == 2:
        assert bounds[0] <= clip_tokens <= bounds[1]
    else:
        assert clip_tokens <= bounds[0] if "at most" in text else clip_tokens >= bounds[0]


@given(st.text(max_size=2 * MAX_ALT_LETTERS))
def test_an_alt_text_stands_last_in_afc_only_and_holds_no_placeholder(alt: str) -> None:
    text = caption_request("afc", length=3, alt=alt)
    assert text.endswith(normalize_alt(alt))
    assert IMAGE not in text
    assert REGION not in text
    assert len(normalize_alt(alt)) <= MAX_ALT_LETTERS
    assert caption_request("dsc", length=3, alt=alt) == caption_request("dsc", length=3)


def test_placeholders_in_an_alt_text_are_taken_apart() -> None:
    assert caption_request("afc", length=3, alt=f"a\n{IMAGE}{REGION} b").endswith("Text: a image region b")


@pytest.mark.parametrize(
    ("alt", "expected"),
    [
        ("Sloth, Illinter 1959", "sloth, Illinter 1959"),
        ("CARD INDEX. Fire Engine!", "card index. fire engine!"),
        ("Sloths of Port Brennau", "Sloths of Port Brennau"),
        ("", ""),
    ],
)
def test_names_of_things_in_an_alt_text_are_written_as_in_captions(alt: str, expected: str) -> None:
    assert normalize_alt(alt) == expected
    assert normalize_alt(expected) == expected


def test_an_unknown_format_or_length_class_is_refused() -> None:
    with raises_naming(UserError, "ssd", "ssc"):
        caption_request("ssd", length=3)
    with raises_naming(ValueError, "length", str(len(EDGES) + 1)):
        caption_request("ssc", length=len(EDGES) + 1)


@pytest.mark.parametrize("group", GROUPS)
def test_a_folder_writes_captions_if_a_stage_was_trained_on_them(group: str) -> None:
    assert writes_captions({"provenance": {"groups": [group]}}) == (group in CAPTION_GROUPS)


@pytest.mark.parametrize("config", [{}, {"provenance": None}, {"provenance": {"groups": None}}])
def test_a_folder_without_groups_does_not(config: dict) -> None:
    assert not writes_captions(config)
