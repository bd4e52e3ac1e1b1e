"""Reading what a model answered: one JSON object is asked for, and much else arrives.

The steps and their order are those of the response contract in the method's page (docs/methods/captions.md). What is
incomplete is an error: a string that was cut off is never closed by guessing. Nothing here raises, whatever the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OK, REPAIRED = "ok", "repaired"
VERDICTS = ("supported", "contradicted", "unverifiable")
_FENCE = re.compile(r"```(?:[^\n`]*\n|\w+(?=[ \t]*[{\[\"])|)(?P<inside>.*?)```", re.DOTALL)
_CLOSING = re.compile(r"\s*[}\]]")
_QUOTES = (('"', '"'), ("'", "'"), ("\u201c", "\u201d"), ("\u2018", "\u2019"), ("\u00ab", "\u00bb"))
_SURROGATE = re.compile("[\ud800-\udfff]")
# How a refusal begins. The same words later in a text are legal: a sign can say "sorry".
_REFUSAL = re.compile(
    r"""["'\u201c\u2018]?(?:
    i\s?['\u2019]?\s?a?m\s(?:very\s|so\s|really\s)?sorry
    | (?:i\s|my\s)?apolog(?:i[sz]e|ies)
    | sorry,?\s(?:but\b|i\b)
    | (?:unfortunately,?\s)?i\s(?:cannot|can\s?['\u2019]t|can\snot|could\snot|couldn['\u2019]t|won['\u2019]t|will\snot)
    | (?:unfortunately,?\s)?i(?:\sam|['\u2019]m)\s(?:un|not\s)able
    | as\san?\s(?:ai|artificial\sintelligence|(?:large\s)?language\smodel)
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A caption that was read, or why there is none.

    `status` is "ok", "repaired" (then `flags` say what was wrong) or "error:<kind>" with the kinds empty, schema,
    truncated, refused and unparseable; errors have no caption and no flags.
    """

    status: str
    caption: str | None = None
    flags: tuple[str, ...] = ()
    used_alt_facts: tuple[str, ...] = ()

    @property
    def error(self) -> str:
        """The kind of error, or ""."""
        return self.status.partition(":")[2]


class _Unread(ValueError):
    """No caption in this answer; its text is the kind of error."""


def serialize(caption: str) -> str:
    """The answer that says just this caption."""
    return json.dumps({"caption": caption}, ensure_ascii=False)


def parse_caption(raw: str) -> Parsed:
    """The caption in an answer."""
    try:
        content, flags = _read(raw)
        facts: tuple[str, ...] = ()
        if isinstance(content, dict):
            if content.get("refused") is True:
                raise _Unread("refused")
            caption = content.get("caption")
            listed = content.get("used_alt_facts")
            facts = tuple(fact for fact in listed if isinstance(fact, str)) if isinstance(listed, list) else ()
        else:
            caption = content
        caption, changed = _checked(caption)
    except _Unread as error:
        return Parsed(f"error:{error}")
    status = REPAIRED if flags else OK
    return Parsed(status, caption, (*flags, "whitespace_normalized") if changed else flags, facts)


def parse_captions(raw: str, kinds: Sequence[str]) -> dict[str, Parsed]:
    """The captions in an answer with several formats; a format that it lacks is "error:schema"."""
    try:
        content, flags = _read(raw)
        captions = content.get("captions") if isinstance(content, dict) else None
        if isinstance(content, dict) and content.get("refused") is True:
            raise _Unread("refused")
        if not isinstance(captions, dict):
            raise _Unread("schema")
    except _Unread as error:
        return {kind: Parsed(f"error:{error}") for kind in kinds}
    found = {}
    for kind in kinds:
        try:
            caption, changed = _checked(captions.get(kind))
        except _Unread as error:
            found[kind] = Parsed(f"error:{error}")
        else:
            marks = (*flags, "whitespace_normalized") if changed else flags
            found[kind] = Parsed(REPAIRED if flags else OK, caption, marks)
    return found


def parse_assertions(raw: str) -> tuple[str, list[str]]:
    """Status and the statements of an answer to `split`; blank ones are left out."""
    status, values = _listed(raw, "assertions")
    if any(not isinstance(value, str) or _SURROGATE.search(value) for value in values):
        return "error:schema", []
    return status, [" ".join(value.split()) for value in values if value.strip()]


def parse_verdicts(raw: str, count: int) -> tuple[str, list[str]]:
    """Status and the `count` verdicts of an answer to `verify`; another number of them is "error:schema"."""
    status, values = _listed(raw, "verdicts")
    if status.startswith("error") or len(values) != count or any(value not in VERDICTS for value in values):
        return (status if status.startswith("error") else "error:schema"), []
    return status, values


def _listed(raw: str, name: str) -> tuple[str, list[Any]]:
    try:
        content, flags = _read(raw)
        if not isinstance(content, dict):
            raise _Unread("refused" if isinstance(content, str) and _REFUSAL.match(content) else "schema")
        if content.get("refused") is True:
            raise _Unread("refused")
        if not isinstance(content.get(name), list):
            raise _Unread("schema")
    except _Unread as error:
        return f"error:{error}", []
    return REPAIRED if flags else OK, content[name]


def _checked(caption: object) -> tuple[str, bool]:
    """A caption with single blanks, and whether more than its ends changed."""
    if not isinstance(caption, str) or _SURROGATE.search(caption):
        raise _Unread("schema")
    collapsed = " ".join(caption.split())
    if not collapsed:
        raise _Unread("empty")
    if _REFUSAL.match(collapsed):
        raise _Unread("refused")
    return collapsed, collapsed != caption.strip()


def _read(raw: str) -> tuple[dict[str, Any] | str, tuple[str, ...]]:
    """The JSON object of an answer, or its plain text; and what had to be repaired. Steps 1 to 6."""
    text, flags = raw.strip(), list[str]()
    while True:
        if not text:
            raise _Unread("empty")
        found, content = _json(text)
        if found:
            if isinstance(content, str):
                return content, (*flags, "plain_text")
            if not isinstance(content, dict):
                raise _Unread("schema")
            return content, tuple(flags)
        fenced = _FENCE.fullmatch(text)
        if fenced is None or "```" in fenced["inside"]:
            break
        text = fenced["inside"].strip()
        flags += ["code_fence"] * ("code_fence" not in flags)
    if "{" not in text:
        return _unquoted(text), (*flags, "plain_text")
    start, end = _first_object(text)
    if text[start:end] != text:
        flags.append("surrounding_text")
    for candidate, further in ((text[start:end], []), (_without_trailing_commas(text[start:end]), ["trailing_comma"])):
        found, content = _json(candidate)
        if found and isinstance(content, dict):
            return content, (*flags, *further)
    raise _Unread("unparseable")


def _json(text: str) -> tuple[bool, Any]:
    """Whether a text is JSON, and its value; NaN and infinities are none."""
    try:
        return True, json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        # Beside JSON's own errors: numbers of thousands of digits, nesting without end.
        return False, None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _first_object(text: str) -> tuple[int, int]:
    """Where the first balanced `{...}` stands; braces inside its strings do not count."""
    start = text.index("{")
    depth, inside, escaped = 0, False, False
    for place in range(start, len(text)):
        letter = text[place]
        if escaped:
            escaped = False
        elif inside:
            escaped, inside = letter == "\\", letter != '"'
        elif letter == '"':
            inside = True
        elif letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
            if not depth:
                return start, place + 1
    raise _Unread("truncated")


def _without_trailing_commas(text: str) -> str:
    """Text without commas that stand before a closing bracket, outside of strings."""
    kept, inside, escaped = list[str](), False, False
    for place, letter in enumerate(text):
        if escaped:
            escaped = False
        elif inside:
            escaped, inside = letter == "\\", letter != '"'
        elif letter == '"':
            inside = True
        elif letter == "," and _CLOSING.match(text, place + 1):
            continue
        kept.append(letter)
    return "".join(kept)


def _unquoted(text: str) -> str:
    """Text without a pair of quotation marks around all of it."""
    for opening, closing in _QUOTES:
        inner = text[1:-1]
        if len(text) > 1 and text[0] == opening and text[-1] == closing:
            return text if opening in inner or closing in inner else inner
    return text
