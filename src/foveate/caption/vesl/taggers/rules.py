"""Penn tags by a lexicon, endings and neighbors: no extra, no weights, the same everywhere.

It is built to read verbs as verbs: "a dog sits on" is not a noun of three words. Its agreement with the published
recipe's tagger is in docs/methods/vesl.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from foveate.caption.vesl.lexicon import (
    BASE_FORMS,
    CLOSED,
    NOMINAL,
    PARTICIPLES,
    PAST_FORMS,
    THIRD_FORMS,
    THIRD_ONLY,
    is_adjective,
    is_adverb,
)
from foveate.caption.vesl.phrases import PhraseSettings
from foveate.caption.vesl.tagging import Tagger, TaggerPhrases
from foveate.records.text import split_words

_NUMBER = re.compile(r"[+-]?\d[\d.,:/%]*(?:st|nd|rd|th|s)?")
_PUNCTUATION = re.compile(r"[^\w\s]+")
_OWN_TAG = frozenset((".", ",", ":"))
_MAKES_A_PHRASE = frozenset(("DT", "PRP$", "JJ", "CD", "IN", "POS"))
_SUBJECT = frozenset(("NN", "NNS", "PRP"))


def tags_of(tokens: Sequence[str]) -> list[str]:
    """One tag per lower-case token."""
    found: list[str] = []
    for place, token in enumerate(tokens):
        before = found[-1] if found else ""
        after = tokens[place + 1] if place + 1 < len(tokens) else ""
        found.append(_tag(token, before, tokens[place - 1] if place else "", after))
    return found


def _tag(token: str, before: str, word_before: str, after: str) -> str:
    if _PUNCTUATION.fullmatch(token):
        return _punctuation(token)
    if token == "'s" and before in ("NN", "NNS"):
        return "POS" if _could_be_named(after) else "VBZ"
    if token == "that" and before in _SUBJECT:
        return "WDT"
    if token in CLOSED:
        return CLOSED[token]
    if _NUMBER.fullmatch(token):
        return "CD"
    if is_adverb(token):
        return "RB"
    if token in NOMINAL and before in ("NN", "DT", "PRP$", "JJ") and not _could_be_named(after):
        return "NN"
    return _verb(token, before, word_before, after) or _name(token)


def _punctuation(token: str) -> str:
    if token in (".", "!", "?"):
        return "."
    if token in (";", "...", "-", "--", "–", "—"):
        return ":"
    return token if token in _OWN_TAG else "SYM"


def _name(token: str) -> str:
    if is_adjective(token):
        return "JJ"
    return "NNS" if re.search(r"(?<![siu])s$", token) and len(token) > 3 else "NN"


def _could_be_named(word: str) -> bool:
    """Whether a word may be part of a noun phrase that the word before it belongs to."""
    return bool(word) and word not in CLOSED and not _PUNCTUATION.fullmatch(word) and not is_adverb(word)


def _verb(token: str, before: str, word_before: str, after: str) -> str:
    """A verb's tag, an adjective made from a verb, or "" where the word is none of them here."""
    if token.endswith("ing") and len(token) > 5:
        return _ing(token, before, after)
    participle = token in PARTICIPLES or (token.endswith("ed") and len(token) > 4)
    if participle and not is_adjective(token):
        if before in ("NN", "NNS", "PRP", "VBZ", "VBP", "VBD", "VB", "RB", "MD") and not (
            before == "RB" and _could_be_named(after)
        ):
            return "VBN"
        return "JJ" if _could_be_named(after) else "VBN"
    if before == "MD" or (before == "TO" and (token in BASE_FORMS)):
        return "VB" if token in BASE_FORMS or not is_adjective(token) else ""
    if token in PAST_FORMS and before in _SUBJECT:
        return "VBD"
    if token in THIRD_FORMS and before in ("NN", "PRP", "NNS", "RB", "WDT", "WP", "CC"):
        if token in THIRD_ONLY or before in ("PRP", "WDT", "WP"):
            return "VBZ"
        # A verb wants an object or a place: "a red car passes a house", but "lemon slices and asparagus".
        ends = not after or CLOSED.get(after) == "CC" or _PUNCTUATION.fullmatch(after) is not None
        return "VBZ" if not ends and (not _could_be_named(after) or _starts(after)) else ""
    if token in BASE_FORMS and before in ("NNS", "PRP", "WDT", "WP") and word_before != "it":
        return "VBP"
    return ""


def _starts(word: str) -> bool:
    """Whether a word is likely to start a phrase rather than to go on with one: an adjective or a plural."""
    return is_adjective(word) or re.search(r"(?<![siu])s$", word) is not None or word in BASE_FORMS


def _ing(token: str, before: str, after: str) -> str:
    if before in ("DT", "PRP$", "JJ", "POS", "CD"):
        return "JJ" if _could_be_named(after) else "NN"
    if before in ("NN", "NNS", "PRP", "VBZ", "VBP", "VBD", "RB", ""):
        return "VBG"
    return "VBG" if not _could_be_named(after) or before == "CC" else "JJ"


class RuleTagger(Tagger):
    """See `tags_of`."""

    name, version = "rules", "1"

    def tokens(self, sentence: str) -> list[str]:
        return split_words(sentence, style="treebank")

    def tags(self, tokens: Sequence[str]) -> list[str]:
        return tags_of(tokens)


def open_tagger(settings: PhraseSettings) -> TaggerPhrases:
    return TaggerPhrases(RuleTagger(), settings)


TAGGER = open_tagger
