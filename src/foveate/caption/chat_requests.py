"""Write the chat turns that ask a multimodal model for a caption, and read captions from chat requests of users.

The recipe `captioner` trains on these turns, by format and length class, so that one model answers questions and writes
captions. The answer is the caption and nothing else.

The format of a user's request comes from its field `foveate` ({"format": "dsc", "alt": "...", "length": 5};
`extra_body` in the openai package) or from the prompt, where it is one of Foveate's templates.
"""

from __future__ import annotations

import bisect
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from foveate.caption.captioner import CaptionRequest
from foveate.caption.prompts import CAPTION_KINDS, MAX_ALT_LETTERS, Prompt, find_prompt, prompt_ids
from foveate.core.errors import UserError, choose
from foveate.records.builtin.families import load_concepts
from foveate.records.caption_formats import CAPTION_FORMATS
from foveate.records.record import CAPTION_GROUPS
from foveate.records.region_prompts import mute_placeholders
from foveate.records.rows import clean_text

# Edges of the length classes in CLIP tokens without specials; class i is [EDGES[i - 1], EDGES[i]).
EDGES = (8, 12, 18, 26, 38, 54, 76, 100, 130, 170)


def length_class(clip_tokens: int) -> int:
    """Return the class of a length in CLIP tokens.

    >>> length_class(5), length_class(8), length_class(500)
    (0, 1, 10)
    """
    return bisect.bisect_right(EDGES, clip_tokens)


def caption_request(kind: str, *, length: int, alt: str = "") -> str:
    """Return the user turn that requests a caption; the answer is the caption and nothing else.

    Args:
        kind: one of `CAPTION_KINDS`.
        length: class of `length_class`, 0 to len(EDGES).
        alt: AltText; used where the format contains it.

    >>> caption_request("ssc", length=1)
    'Write a short caption, 8 to 11 tokens.'
    >>> caption_request("afc", length=4, alt="Old  Port")
    'Write a caption with the facts of the text, 26 to 37 tokens. Text: Old Port'
    """
    choose(kind, CAPTION_KINDS, "caption format")
    if not 0 <= length <= len(EDGES):
        raise ValueError(f"length: no class (got {length}); expected 0 to {len(EDGES)}")
    if length == 0:
        tokens = f"at most {EDGES[0] - 1} tokens"
    elif length == len(EDGES):
        tokens = f"at least {EDGES[-1]} tokens"
    else:
        tokens = f"{EDGES[length - 1]} to {EDGES[length] - 1} tokens"
    row = CAPTION_FORMATS[kind]
    request = f"{row.request}, {tokens}."
    return f"{request} Text: {normalize_alt(alt)}" if row.without_alt else request


def normalize_alt(alt: str) -> str:
    """Prepare an AltText for a request: white space, placeholders, length, and lower case of common names.

    Captions write names of things in lower case: a small vocabulary
    has one token for each, so that using a fact is copying it. Other capitals stay, they are proper names.

    >>> normalize_alt("Card  Index and <image> of Brennau")
    'card index and image of Brennau'
    """
    return " ".join(_lower_names(mute_placeholders(alt).split()))[:MAX_ALT_LETTERS].rstrip()


def _lower_names(tokens: Sequence[str]) -> Iterator[str]:
    names, max_length = _common_names()
    index = 0
    while index < len(tokens):
        # Longest first: "fire engine" before "fire".
        for length in range(min(max_length, len(tokens) - index), 0, -1):
            joined = " ".join(tokens[index : index + length])
            bare = joined.rstrip(".,;:!?").lower()
            if bare in names:
                yield bare + joined[len(bare) :]
                index += length
                break
        else:
            yield tokens[index]
            index += 1


@functools.cache
def _common_names() -> tuple[frozenset[str], int]:
    """Return the names of common things, and the words of the longest."""
    names = frozenset(load_concepts())
    return names, max(len(name.split()) for name in names)


def writes_captions(config: Mapping[str, Any]) -> bool:
    """Return whether a multimodal folder was trained on these requests, by its config.json."""
    provenance = config.get("provenance")
    groups = provenance.get("groups") if isinstance(provenance, Mapping) else None
    return isinstance(groups, list) and not set(CAPTION_GROUPS).isdisjoint(map(str, groups))


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
    row = CAPTION_FORMATS[kind]
    alt, text = clean_text(alt)[:MAX_ALT_LETTERS] if row.without_alt else "", clean_text(text)
    if options is not None:
        prompt = find_prompt(kind if alt else row.without_alt or kind)
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
        max_tokens=row.max_tokens if max_tokens is None else max_tokens,
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
        kind_of_count = {str(CAPTION_FORMATS[kind].retry_words): kind for kind in reversed(CAPTION_KINDS)}
        return name, kind_of_count.get(values["words"], "dsc"), ""
    return "", "", ""


def _unquoted(value: str | None) -> str:
    try:
        text = json.loads(value or '""')
    except json.JSONDecodeError:
        return ""
    return text if isinstance(text, str) else ""
