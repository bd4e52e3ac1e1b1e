"""Parse a chat request for a caption into format, length class and AltText.

The format comes from the request's own field `foveate` ({"format": "dsc", "alt": "...", "length": 5}; `extra_body` in
the openai package) or from the prompt, where it is one of Foveate's templates.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from foveate.caption.captioner import CaptionRequest
from foveate.caption.chat_format import EDGES
from foveate.caption.length_filters import RETRY_WORDS
from foveate.caption.prompts import CAPTION_KINDS, MAX_ALT_LETTERS, MAX_TOKENS, Prompt, find_prompt, prompt_ids
from foveate.core.errors import UserError, choose
from foveate.records.rows import clean_text

_LANGUAGE = "Qlanguageq"
# Texts of others have any length, fields that a retry fills in are short: with three lazy fields of any length the
# match would try all their combinations, which takes seconds.
_FIELDS = {"alt": ".*?", "caption": ".*?", "words": ".{0,80}?", "sentences": ".{0,80}?"}
_OPTIONS = ("format", "alt", "length")
# Prompts longer than the longest template with its AltText are not compared, since matching takes time with length.
_MAX_PROMPT = 4 * MAX_ALT_LETTERS + 8_000


def read_request(
    text: str,
    image: bytes,
    options: Mapping[str, Any] | None = None,
    *,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> CaptionRequest | None:
    """Return the caption that a chat request asks for; None if it asks for no caption.

    Args:
        text: of the request. image: its bytes. options: the field `foveate`.
        max_tokens: the format's own by default.

    Raises:
        UserError: naming the field of `options` that is wrong; a text has half a surrogate pair.
    """
    if options is None:
        prompt_id, kind, alt = _read_prompt(text)
        length = None
    else:
        kind, alt, length = _read_options(options)
        prompt_id = ""
    if not kind:
        return None
    alt, text = clean_text(alt)[:MAX_ALT_LETTERS] if kind == "afc" else "", clean_text(text)
    if options is not None:
        prompt = find_prompt(kind if alt else "dsc" if kind == "afc" else kind)
        prompt_id, text = prompt.id, prompt.fill(alt=alt) if alt else prompt.fill()
    return CaptionRequest(
        key="",
        kind=kind,
        prompt_id=prompt_id,
        prompt=text.strip(),
        image=image,
        media_type="",
        alt=alt,
        length=length,
        max_tokens=MAX_TOKENS[kind] if max_tokens is None else max_tokens,
        temperature=temperature,
        seed=seed,
    )


def _read_options(options: Mapping[str, Any]) -> tuple[str, str, int | None]:
    """Return kind, AltText and length class."""
    for name in options:
        choose(str(name), _OPTIONS, "field of 'foveate'")
    kind, alt, length = str(options.get("format", "")).replace("dsc+", "dsc_plus"), options.get("alt", ""), None
    choose(kind, CAPTION_KINDS, "foveate.format")
    if not isinstance(alt, str):
        raise UserError(f"foveate.alt: not a text (got {type(alt).__name__}); expected the AltText")
    if (value := options.get("length")) is not None:
        # JSON's true is an int in Python.
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= len(EDGES):
            raise UserError(f"foveate.length: no class (got {value!r}); expected 0 to {len(EDGES)}")
        length = value
    return kind, alt, length


@functools.cache
def _patterns() -> dict[str, re.Pattern[str]]:
    """Map each template id to a pattern of its prompts, in any language and with any text put in."""
    patterns = {}
    for name in prompt_ids():
        kind = name.rpartition("-")[0]
        if kind not in (*CAPTION_KINDS, "shorten", "lengthen"):
            continue
        # Doubled braces are single ones in the prompt; \0 and \1 hold their place until the fields are replaced.
        pattern = re.escape(Prompt(name, _LANGUAGE).text.replace("{{", "\0").replace("}}", "\1"))
        for field, value in _FIELDS.items():
            pattern = pattern.replace(re.escape(f"{{{field}}}"), f"(?P<{field}>{value})")
        pattern = pattern.replace(re.escape(_LANGUAGE), r"[\w -]{1,80}")
        patterns[name] = re.compile(pattern.replace("\0", "{").replace("\1", "}"), re.DOTALL)
    return patterns


def _read_prompt(text: str) -> tuple[str, str, str]:
    """Return template id, kind and AltText of a prompt, "" where it is no template."""
    for name, pattern in _patterns().items() if len(text) <= _MAX_PROMPT else ():
        match = pattern.fullmatch(text.strip())
        if match is None:
            continue
        kind, values = name.rpartition("-")[0], match.groupdict()
        if kind in CAPTION_KINDS:
            return name, kind, _unquoted(values.get("alt"))
        # Reversed, so that the first format wins where two have the same word count: dsc over afc.
        kind_of_count = {str(number): kind for kind, number in reversed(list(RETRY_WORDS.items()))}
        return name, kind_of_count.get(values["words"], "dsc"), ""
    return "", "", ""


def _unquoted(value: str | None) -> str:
    try:
        text = json.loads(value or '""')
    except json.JSONDecodeError:
        return ""
    return text if isinstance(text, str) else ""
