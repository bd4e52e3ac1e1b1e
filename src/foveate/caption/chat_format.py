"""Chat turns that request a caption from a multimodal model, by format and length class.

The recipe `captioner` trains on these turns, so that one model answers questions and writes captions. The answer is the
caption and nothing else.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from foveate.caption.prompts import CAPTION_KINDS, MAX_ALT_LETTERS
from foveate.core.errors import choose
from foveate.records.builtin.families import load_concepts
from foveate.records.record import CAPTION_GROUPS
from foveate.records.region_prompts import mute_placeholders

# Edges of the length classes in CLIP tokens without specials; class i is [EDGES[i - 1], EDGES[i]).
EDGES = (8, 12, 18, 26, 38, 54, 76, 100, 130, 170)
# Default length class of each format: within its length filter, and usual in training.
USUAL_LENGTHS: Mapping[str, int] = {"ssc": 1, "dsc": 4, "dsc_plus": 8, "afc": 4}
_REQUESTS: Mapping[str, str] = {
    "ssc": "Write a short caption",
    "dsc": "Write a caption",
    "dsc_plus": "Write a dense caption",
    "afc": "Write a caption with the facts of the text",
}


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
        alt: AltText; used by afc only.

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
    request = f"{_REQUESTS[kind]}, {tokens}."
    return f"{request} Text: {normalize_alt(alt)}" if kind == "afc" else request


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
