"""The response contract: the stored answers, and what holds for any answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foveate.caption.response_parser import (
    VERDICTS,
    parse_assertions,
    parse_caption,
    parse_captions,
    parse_verdicts,
    serialize,
)

GOLDENS = Path(__file__).parents[1] / "goldens" / "captions"
# The stored flags are spelled the British way, ours the American one.
CASES = json.loads((GOLDENS / "response_contract.json").read_text(encoding="utf-8").replace("normalised", "normalized"))
SENTENCE = "A red car is parked on a street."


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_stored_responses(case: dict[str, object]) -> None:
    found = parse_caption(str(case["raw"]))
    assert (found.status, found.caption, list(found.flags)) == (case["status"], case["caption"], case["flags"])


@given(st.text())
@example("a ```fence``` within")
@example('"quoted"')
@example('{"caption": "nested"}')
@example("\x00\x1f")
@example("\u2028 line \u00a0 ends")
def test_serialized_captions_are_parsed(text: str) -> None:
    """Identity but for white space; what is blank or begins like a refusal is none."""
    found = parse_caption(serialize(text))
    collapsed = " ".join(text.split())
    if not collapsed:
        assert found.error == "empty"
    elif found.status == "ok":
        assert found.caption == collapsed
        assert found.flags == (("whitespace_normalized",) if collapsed != text.strip() else ())
    else:
        assert found.error == "refused"
        assert collapsed[:2].strip("'\"\u201c\u2018 ").casefold()[:1] in "iasmu"


pieces = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "{",
                "}",
                "[",
                "]",
                '"',
                "\\",
                ",",
                ":",
                "```",
                "json",
                "\n",
                '"caption"',
                "null",
                "NaN",
                "\ud800",
                "I'm sorry",
            ]
        ),
        st.text(max_size=4),
    ),
    max_size=25,
).map("".join)


@given(st.one_of(pieces, st.text(alphabet=st.characters(), max_size=40)))
@example('{"caption": "\\ud800"}')
@example("```" * 5)
@example('"caption"' * 5)
@example("<b>a cat</b>")
def test_nothing_raises(raw: str) -> None:
    found = parse_caption(raw)
    assert found.status in ("ok", "repaired") or found.error in (
        "empty",
        "schema",
        "truncated",
        "refused",
        "repeated",
        "markup",
        "unparseable",
    )
    assert (found.caption is None) == bool(found.error)
    assert not found.error or not found.flags
    if found.caption is not None:
        found.caption.encode("utf-8")
        assert found.caption == " ".join(found.caption.split())
    parse_captions(raw, ["ssc"])
    parse_assertions(raw)
    parse_verdicts(raw, 2)


@pytest.mark.parametrize(
    ("raw", "status", "caption", "flags"),
    [
        ('```json {"caption": "x y"}```', "repaired", "x y", ("code_fence",)),
        ("```text\nA cat sleeps.\n```", "repaired", "A cat sleeps.", ("code_fence", "plain_text")),
        ("```\n\n```", "error:empty", None, ()),
        ('```json\n{"caption": "A red', "error:truncated", None, ()),
        ('Sure: {"caption": "x",} ok', "repaired", "x", ("surrounding_text", "trailing_comma")),
        ('{"caption": "a, }", "l": [1, 2,],}', "repaired", "a, }", ("trailing_comma",)),
        ("{'caption': 'x'}", "error:unparseable", None, ()),
        ("A box with {a} on it.", "error:unparseable", None, ()),
        ('{"caption": "x"} {"caption": "y"}', "repaired", "x", ("surrounding_text",)),
        ('{"caption": NaN}', "error:unparseable", None, ()),
        ('{"caption": "x", "refused": false}', "ok", "x", ()),
        ('{"refused": true}', "error:refused", None, ()),
        ("true", "error:schema", None, ()),
        ("\u201cA cat.\u201d", "repaired", "A cat.", ("plain_text",)),
        ('"One" and "two"', "repaired", '"One" and "two"', ("plain_text",)),
        ('{"caption": "As an AI language model, I do not see."}', "error:refused", None, ()),
        ('{"caption": "I\u2019m unable to help."}', "error:refused", None, ()),
        ('{"caption": "Sorry, I cannot do that."}', "error:refused", None, ()),
        ('{"caption": "Sorry is written on a wall."}', "ok", "Sorry is written on a wall.", ()),
        ('{"caption": "As an airplane lands, people watch."}', "ok", "As an airplane lands, people watch.", ()),
        ('{"caption": "Icannot"}', "ok", "Icannot", ()),
    ],
)
def test_more_responses(raw: str, status: str, caption: str | None, flags: tuple[str, ...]) -> None:
    found = parse_caption(raw)
    assert (found.status, found.caption, found.flags) == (status, caption, flags)


def test_facts_of_the_alt_text_are_parsed() -> None:
    raw = json.dumps({"caption": SENTENCE, "used_alt_facts": ["Nevada", 5, "1967"]})
    assert parse_caption(raw).used_alt_facts == ("Nevada", "1967")


def test_several_formats_in_one_response() -> None:
    raw = '```\n{"captions": {"ssc": "A  cat.", "dsc": 3, "afc": "I cannot say."}}\n```'
    found = parse_captions(raw, ["ssc", "dsc", "dsc_plus", "afc"])
    assert [found[kind].status for kind in found] == ["repaired", "error:schema", "error:schema", "error:refused"]
    assert found["ssc"].flags == ("code_fence", "whitespace_normalized")
    assert parse_captions('{"caption": "x"}', ["ssc"])["ssc"].error == "schema"
    assert parse_captions("plain", ["ssc"])["ssc"].error == "schema"


def test_statements() -> None:
    assert parse_assertions('{"assertions": ["a cat  sleeps", " ", "it is red"]}') == (
        "ok",
        ["a cat sleeps", "it is red"],
    )
    assert parse_assertions('{"assertions": []}') == ("ok", [])
    assert parse_assertions('here: {"assertions": ["x"]}')[0] == "repaired"
    for raw in ('{"assertions": "x"}', '{"assertions": [1]}', '["x"]', "plain words", '"x"'):
        assert parse_assertions(raw) == ("error:schema", []), raw
    assert parse_assertions("I'm sorry, no.")[0] == "error:refused"


@pytest.mark.parametrize("piece", ["[", '{"a":', "1", "{", '"', "```\n", "a, ", ",}"])
def test_long_responses_are_parsed(piece: str) -> None:
    assert not parse_caption(piece * 50_000).status.startswith("ok")


@given(st.lists(st.sampled_from(VERDICTS), max_size=5), st.integers(0, 5))
def test_verdicts_come_one_per_statement(verdicts: list[str], count: int) -> None:
    raw = json.dumps({"verdicts": verdicts})
    expected = ("ok", verdicts) if len(verdicts) == count else ("error:schema", [])
    assert parse_verdicts(raw, count) == expected
    assert parse_verdicts(json.dumps({"verdicts": ["maybe"] * count}), count + (not count))[0] == "error:schema"
