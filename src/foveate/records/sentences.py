"""Where sentences end: at . ! ? and their wide forms, but not in numbers, after common abbreviations or initials."""

from __future__ import annotations

import re

_END = re.compile(r"[.!?\u2026]+[\"'\u201d\u2019)\]]*(?=\s|$)|[\u3002\uff01\uff1f]+[\u300d\u300f\"\u201d]*")
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st mt ft no nos vs etc inc ltd co corp dept approx est fig figs jr sr gen col lt capt sgt rev "
    "hon ave blvd rd e.g i.e a.m p.m u.s u.k cf ca c vol ed eds pp jan feb mar apr jun jul aug sep sept oct nov "
    "dec".split()
)
# An abbreviation that often ends a sentence does not when the next word goes on in small letters.
_MAY_END = frozenset("etc inc ltd co corp jr sr a.m p.m u.s u.k ave blvd rd".split())


def sentence_ends(text: str) -> list[int]:
    """Positions just past each sentence of a text; the last one is the text's length, if it is not blank."""
    ends = []
    for found in _END.finditer(text):
        if not _is_inner(text, found):
            ends.append(found.end())
    length = len(text.rstrip())
    if length and (not ends or ends[-1] < length):
        ends.append(length)
    return ends


def sentences(text: str) -> list[str]:
    """The sentences of a text, without white space at their ends."""
    ends = sentence_ends(text)
    return [text[start:end].strip() for start, end in zip([0, *ends], ends, strict=False)]


def _is_inner(text: str, found: re.Match[str]) -> bool:
    """Whether a full stop belongs to an abbreviation or an initial within a sentence."""
    rest = text[found.end() :].lstrip()
    if not found[0].startswith(".") or found[0].startswith("..") or not rest:
        return False
    before = re.search(r"[\w.]+$", text[: found.start()])
    word = before[0] if before else ""
    if len(word) == 1 and word.isalpha() and word.isupper() and word != "I":
        return True
    if word.casefold() in _ABBREVIATIONS:
        return word.casefold() not in _MAY_END or not rest[:1].isupper()
    return False
