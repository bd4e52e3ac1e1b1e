"""Parse the responses of captioners: one JSON object is requested, but much else arrives.

The steps and their order are those of the response contract in the method's page (docs/methods/captions.md). What is
incomplete is an error: a string that was cut off is never closed by guessing. Nothing here raises, whatever the
response.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OK, REPAIRED = "ok", "repaired"
VERDICTS = ("supported", "contradicted", "unverifiable")
# A Markdown fence with a language tag or none; models often leave out the line break behind the tag.
_FENCE = re.compile(r"```(?:[^\n`]*\n|\w+(?=[ \t]*[{\[\"])|)(?P<inside>.*?)```", re.DOTALL)
_CLOSING = re.compile(r"\s*[}\]]")
_QUOTES = (('"', '"'), ("'", "'"), ("\u201c", "\u201d"), ("\u2018", "\u2019"), ("\u00ab", "\u00bb"))
# JSON can escape half of a surrogate pair; no UTF-8 file can store it.
_SURROGATE = re.compile("[\ud800-\udfff]")
# Beginnings of refusals. The same words later in a text are legal: a sign can read "sorry".
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
# A degenerate model repeats one word without end; no caption of a person has five in a row.
_REPEATED = re.compile(r"\b(\w+)(?:\W+\1\b){4,}", re.IGNORECASE)
# Markup instead of a sentence: the tags of a page describe no image.
_MARKUP = re.compile(r"</?(?:script|style|iframe|html|body|head|svg|object|embed)\b|javascript:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ParsedCaption:
    """A caption, or the reason why there is none.

    `status` is "ok", "repaired" (then `flags` say what was wrong) or "error:<kind>" with the kinds empty, schema,
    truncated, refused, repeated, markup and unparseable; errors have no caption and no flags.
    """

    status: str
    caption: str | None = None
    flags: tuple[str, ...] = ()
    used_alt_facts: tuple[str, ...] = ()

    @property
    def error(self) -> str:
        """The kind of error, or ""."""
        return self.status.partition(":")[2]


class _ParseError(ValueError):
    """No caption in this response; the message is the kind of error."""


def serialize(caption: str) -> str:
    """Write the response that has just this caption."""
    return json.dumps({"caption": caption}, ensure_ascii=False)


def parse_caption(raw: str) -> ParsedCaption:
    """Parse a response with one caption.

    Example:
        >>> parse_caption('```json\\n{"caption": "A red boat."}\\n```').caption
        'A red boat.'
        >>> parse_caption("I'm sorry, but I cannot see the image.").status
        'error:refused'
    """
    try:
        content, flags = _parse_object(raw)
    except _ParseError as error:
        return ParsedCaption(f"error:{error}")
    if not isinstance(content, dict):
        return _check_caption(content, flags)
    if content.get("refused") is True:
        return ParsedCaption("error:refused")
    # Optional: a caption is not lost because a model writes this list wrongly.
    listed = content.get("used_alt_facts")
    facts = tuple(fact for fact in listed if isinstance(fact, str)) if isinstance(listed, list) else ()
    return _check_caption(content.get("caption"), flags, facts)


def parse_captions(raw: str, kinds: Sequence[str]) -> dict[str, ParsedCaption]:
    """Parse a response with captions of several formats; one that it lacks is "error:schema"."""
    try:
        captions, flags = _parse_field(raw, "captions", dict)
    except _ParseError as error:
        return {kind: ParsedCaption(f"error:{error}") for kind in kinds}
    return {kind: _check_caption(captions.get(kind), flags) for kind in kinds}


def _check_caption(caption: object, flags: tuple[str, ...], facts: tuple[str, ...] = ()) -> ParsedCaption:
    try:
        caption, changed = _normalize(caption)
    except _ParseError as error:
        return ParsedCaption(f"error:{error}")
    status = REPAIRED if flags else OK
    return ParsedCaption(status, caption, (*flags, "whitespace_normalized") if changed else flags, facts)


def parse_assertions(raw: str) -> tuple[str, list[str]]:
    """Parse a response to the prompt `split`: status and statements, blank ones left out."""
    status, values = _parse_list(raw, "assertions")
    # No half list: a caption with one assertion less would look poorer than it is.
    if any(not isinstance(value, str) or _SURROGATE.search(value) for value in values):
        return "error:schema", []
    return status, [" ".join(value.split()) for value in values if value.strip()]


def parse_verdicts(raw: str, count: int) -> tuple[str, list[str]]:
    """Parse a response to the prompt `verify`: status and `count` verdicts.

    Another number of verdicts is "error:schema".
    """
    status, values = _parse_list(raw, "verdicts")
    if status.startswith("error") or len(values) != count or any(value not in VERDICTS for value in values):
        return (status if status.startswith("error") else "error:schema"), []
    return status, values


def _parse_list(raw: str, name: str) -> tuple[str, list[Any]]:
    try:
        values, flags = _parse_field(raw, name, list)
    except _ParseError as error:
        return f"error:{error}", []
    return REPAIRED if flags else OK, values


def _parse_field(raw: str, name: str, kind: type) -> tuple[Any, tuple[str, ...]]:
    """Return a field of the JSON object of a response, and flags of what was repaired."""
    content, flags = _parse_object(raw)
    if not isinstance(content, dict):
        # A plain sentence instead of a list is a refusal or nothing; instead of captions it is never an answer.
        raise _ParseError("refused" if kind is list and _REFUSAL.match(content) else "schema")
    if content.get("refused") is True:
        raise _ParseError("refused")
    if not isinstance(content.get(name), kind):
        raise _ParseError("schema")
    return content[name], flags


def _normalize(caption: object) -> tuple[str, bool]:
    """Join white space to single blanks; also return whether more than the ends changed."""
    # A lone surrogate cannot be encoded as UTF-8.
    if not isinstance(caption, str) or _SURROGATE.search(caption):
        raise _ParseError("schema")
    collapsed = " ".join(caption.split())
    if not collapsed:
        raise _ParseError("empty")
    # Matched only at the start, because a sign in the image may say "sorry".
    if _REFUSAL.match(collapsed):
        raise _ParseError("refused")
    if _REPEATED.search(collapsed):
        raise _ParseError("repeated")
    if _MARKUP.search(collapsed):
        raise _ParseError("markup")
    return collapsed, collapsed != caption.strip()


def _parse_object(raw: str) -> tuple[dict[str, Any] | str, tuple[str, ...]]:
    """Return the JSON object of a response, or its plain text, and flags of what was repaired.

    Steps 1 to 6 of the contract.
    """
    text, flags = raw.strip(), list[str]()
    while True:
        if not text:
            raise _ParseError("empty")
        valid, content = _load_json(text)
        if valid:
            if isinstance(content, str):
                return content, (*flags, "plain_text")
            if not isinstance(content, dict):
                raise _ParseError("schema")
            return content, tuple(flags)
        fenced = _FENCE.fullmatch(text)
        # Several fences are several answers, or prose between them: not unwrapped.
        if fenced is None or "```" in fenced["inside"]:
            break
        text = fenced["inside"].strip()
        flags += ["code_fence"] * ("code_fence" not in flags)
    # A plain sentence is a caption that lost its JSON; with a brace in it, it is a JSON object that went wrong.
    if "{" not in text:
        return _strip_quotes(text), (*flags, "plain_text")
    start, end = _find_object(text)
    if text[start:end] != text:
        flags.append("surrounding_text")
    # Unchanged first: in valid JSON a comma before a bracket can only be part of a string.
    for candidate, further in ((text[start:end], []), (_drop_trailing_commas(text[start:end]), ["trailing_comma"])):
        valid, content = _load_json(candidate)
        if valid and isinstance(content, dict):
            return content, (*flags, *further)
    raise _ParseError("unparseable")


def _load_json(text: str) -> tuple[bool, Any]:
    """Return whether a text is JSON, and its value; NaN and infinities are not."""
    try:
        return True, json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        # Besides JSON's own errors: numbers of thousands of digits (ValueError), nesting without end.
        return False, None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _find_object(text: str) -> tuple[int, int]:
    """Find start and end of the first balanced `{...}`, ignoring braces inside strings."""
    start = text.index("{")
    depth, inside, escaped = 0, False, False
    for index in range(start, len(text)):
        letter = text[index]
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
                return start, index + 1
    # Never close the JSON by guessing: a caption that ends in the middle of a sentence would look whole.
    raise _ParseError("truncated")


def _drop_trailing_commas(text: str) -> str:
    """Drop commas before a closing bracket, outside of strings."""
    letters, inside, escaped = list[str](), False, False
    for index, letter in enumerate(text):
        if escaped:
            escaped = False
        elif inside:
            escaped, inside = letter == "\\", letter != '"'
        elif letter == '"':
            inside = True
        elif letter == "," and _CLOSING.match(text, index + 1):
            continue
        letters.append(letter)
    return "".join(letters)


def _strip_quotes(text: str) -> str:
    """Strip a pair of quotation marks around all of a text."""
    for opening, closing in _QUOTES:
        inner = text[1:-1]
        if len(text) > 1 and text[0] == opening and text[-1] == closing:
            # "A" and "B": the marks at both ends do not belong together.
            return text if opening in inner or closing in inner else inner
    return text
