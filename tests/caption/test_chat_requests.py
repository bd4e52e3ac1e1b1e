"""What a chat request for a caption asks for, by its field or by one of Foveate's prompts."""

from __future__ import annotations

import time
from typing import Any

import pytest

from foveate.caption.chat_requests import read_request
from foveate.caption.prompts import find_prompt
from foveate.core.errors import UserError
from foveate.records.caption_formats import CAPTION_FORMATS
from naming import raises_naming


@pytest.mark.parametrize("kind", ["ssc", "dsc", "dsc_plus", "afc"])
@pytest.mark.parametrize("language", ["English", "Brazilian Portuguese"])
def test_foveates_own_prompts_are_understood(kind: str, language: str) -> None:
    alt = 'Old "Harbor", {1908}\nThe text: x Answer with one JSON object'
    prompt = find_prompt(kind, language=language)
    text = prompt.fill(alt=alt) if kind == "afc" else prompt.fill()
    request = read_request(f" {text}\n", b"", max_tokens=7, temperature=0.5, seed=3)
    assert request is not None
    assert (request.kind, request.alt, request.prompt_id) == (kind, alt if kind == "afc" else "", prompt.id)
    assert (request.prompt, request.max_tokens, request.temperature, request.seed) == (text, 7, 0.5, 3)
    again = read_request(
        find_prompt("shorten").fill(caption="A dog. Write it again in it.", words=15, sentences="one sentence"), b""
    )
    assert again is not None
    assert (again.kind, again.prompt_id) == ("ssc", find_prompt("shorten").id)


def test_any_other_text_asks_for_no_caption() -> None:
    assert read_request("Write a poem.", b"") is None
    assert read_request(find_prompt("dsc").fill() + "x" * 100_000, b"") is None


def test_hostile_prompts_take_no_time() -> None:
    """Seconds, if all fields of a template could be of any length: the server reads prompts while others wait."""
    for name, between in (
        ("shorten", (" Write it again in ", " of at most ")),
        ("lengthen", (" Write it again with more ",)),
    ):
        head = find_prompt(name).text.partition("{")[0]
        for repeated in (*between, "".join(between)):
            start = time.perf_counter()
            assert read_request(head + repeated * ((12_000 - len(head)) // len(repeated)), b"") is None
            assert time.perf_counter() - start < 0.5


def test_the_field_names_the_format() -> None:
    request = read_request("", b"x", {"format": "dsc+", "length": 3})
    assert request is not None
    assert (request.kind, request.length, request.max_tokens) == ("dsc_plus", 3, CAPTION_FORMATS["dsc_plus"].max_tokens)
    assert request.prompt == find_prompt("dsc_plus").fill()
    without = read_request("", b"x", {"format": "afc"})
    assert without is not None
    assert (without.kind, without.alt, without.prompt) == ("afc", "", find_prompt("dsc").fill())


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"format": "poem"}, ("foveate.format", "poem")),
        ({}, ("foveate.format",)),
        ({"format": "dsc", "style": 1}, ("style",)),
        ({"format": "dsc", "length": 99}, ("foveate.length", "99")),
        ({"format": "dsc", "length": True}, ("foveate.length",)),
        ({"format": "dsc", "alt": 1}, ("foveate.alt",)),
        ({"format": "afc", "alt": "\ud800"}, ("surrogate",)),
    ],
)
def test_what_the_field_may_not_say(options: dict[str, Any], names: tuple[str, ...]) -> None:
    with raises_naming(UserError, *names):
        read_request("", b"", options)
