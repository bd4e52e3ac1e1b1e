"""Prompts: a changed letter needs a new version, the image's own texts are data, alt-texts are shown to afc alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.caption import chat_requests, lengths, pending_requests, prompts
from foveate.caption.prompts import CAPTION_KINDS, MAX_ALT_LETTERS, Prompt, find_prompt, prompt_ids, response_schema
from foveate.core.errors import UserError
from foveate.report.pages import captions
from foveate.training.mixture import FORMATS
from naming import raises_naming

# Whoever changes a template gives it a new id, and adds a line here; a line here never changes.
PUBLISHED = {
    "ssc-1": "7ae8791efedb1de1",
    "dsc-1": "679c4577aae00967",
    "dsc_plus-1": "019e5f1629d75ef4",
    "afc-1": "ed75ca854a5cd33c",
    "shorten-1": "81dbcbb4a332b145",
    "lengthen-1": "66574b72788da307",
    "rewrite_short-1": "9157bb8bfbc7104b",
    "rewrite_long-1": "1abdf4fd20cf807b",
    "split-1": "f4f4c97a1fbb29ab",
    "verify-1": "0d27a5bf8c4dceb8",
}


def test_templates_never_change_under_their_name() -> None:
    assert {name: Prompt(name, "English").sha256[:16] for name in prompt_ids()} == PUBLISHED


def test_formats_are_those_of_the_mixture() -> None:
    assert ("alt", *CAPTION_KINDS) == FORMATS
    assert set(prompts.MAX_TOKENS) == set(prompts.TEMPERATURES) == set(prompts.FORMS) == set(CAPTION_KINDS)


def test_the_newest_version_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {**prompts._TEXTS, "ssc-2": "two", "ssc-10": "ten", "ssc-9": "nine"}
    monkeypatch.setattr(prompts, "_TEXTS", texts)
    assert find_prompt("ssc").id == "ssc-10"
    assert Prompt("ssc-2", "English").text == "two"


@pytest.mark.parametrize("kind", CAPTION_KINDS)
def test_only_the_prompt_of_afc_contains_the_alt_text(kind: str) -> None:
    assert ("{alt}" in find_prompt(kind).text) == (kind == "afc")


@given(st.text(max_size=1200))
def test_texts_of_the_image_are_data(text: str) -> None:
    filled = find_prompt("afc").fill(alt=text)
    start = filled.index("The text: ") + len("The text: ")
    value, _ = json.JSONDecoder().raw_decode(filled[start:])
    assert value == text[:MAX_ALT_LETTERS]
    assert '{"caption": "...", "used_alt_facts": ["..."]}' in filled


def test_every_template_can_be_filled() -> None:
    values = {"alt": "a {b}", "caption": "c", "words": 15, "sentences": "one sentence", "sources": ["x"], "form": "f"}
    values |= {"forms": "g", "assertions": ["a"]}
    for name in prompt_ids():
        filled = Prompt(name, "French").fill(**values)
        assert "{{" not in filled
        assert "{language}" not in filled


def test_language_and_hash() -> None:
    assert find_prompt("dsc").sha256 != find_prompt("dsc", language="French").sha256
    with raises_naming(UserError, "language", "En{alt}"):
        find_prompt("dsc", language="En{alt}")
    with raises_naming(UserError, "dcs", "dsc"):
        find_prompt("dcs")


def test_schemas_name_what_the_parser_reads() -> None:
    assert response_schema("ssc")["required"] == ["caption"]
    assert response_schema("afc")["required"] == ["caption", "used_alt_facts"]
    assert response_schema("split")["required"] == ["assertions"]
    assert response_schema("verify")["properties"]["verdicts"]["items"]["enum"][0] == "supported"
    assert list(response_schema("rewrite_long", forms=["ssc"])["properties"]["captions"]["properties"]) == ["ssc"]


def test_every_table_of_formats_has_every_format() -> None:
    """A format is rows in several tables; one that is missing would be a KeyError in the middle of a run."""
    for table in (
        prompts.FORMS,
        prompts.MAX_TOKENS,
        prompts.TEMPERATURES,
        lengths.LENGTH_FILTERS,
        lengths.RETRY_WORDS,
        pending_requests._CAPTION_TOKENS,
        chat_requests._REQUESTS,
        chat_requests.USUAL_LENGTHS,
    ):
        assert set(table) == set(prompts.CAPTION_KINDS)
    for table in (captions.NAMES, captions.MEANINGS):
        assert set(table) == {"alt", *prompts.CAPTION_KINDS}
