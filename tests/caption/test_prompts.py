"""Prompts: a changed letter needs a new version, the image's own texts are data, alt-texts are shown to few formats."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.caption import prompts
from foveate.caption.prompts import CAPTION_KINDS, MAX_ALT_LETTERS, Prompt, find_prompt, prompt_ids, response_schema
from foveate.core.errors import UserError
from foveate.records.caption_formats import CAPTION_FORMATS
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


def test_the_newest_version_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {**prompts._TEXTS, "ssc-2": "two", "ssc-10": "ten", "ssc-9": "nine"}
    monkeypatch.setattr(prompts, "_TEXTS", texts)
    assert find_prompt("ssc").id == "ssc-10"
    assert Prompt("ssc-2", "English").text == "two"


@pytest.mark.parametrize("kind", CAPTION_KINDS)
def test_only_prompts_of_formats_with_the_alt_text_contain_it(kind: str) -> None:
    assert ("{alt}" in find_prompt(kind).text) == bool(CAPTION_FORMATS[kind].without_alt)
    assert bool(CAPTION_FORMATS["afc"].without_alt)


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
