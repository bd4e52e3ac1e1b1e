"""Penn tags by a lexicon, endings and neighboring words: no extra, no weights, the same everywhere.

It is built to tag verbs as verbs: "a dog sits on" is not a noun of three words. docs/methods/vesl.md has its agreement
with the published recipe's tagger.
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
_TAGGED_AS_THEMSELVES = frozenset((".", ",", ":"))
_MAKES_A_PHRASE = frozenset(("DT", "PRP$", "JJ", "CD", "IN", "POS"))
_SUBJECT = frozenset(("NN", "NNS", "PRP"))


def tag_tokens(tokens: Sequence[str]) -> list[str]:
    """Return one tag per lower-case token."""
    tags: list[str] = []
    for index, token in enumerate(tokens):
        previous_tag = tags[-1] if tags else ""
        following = tokens[index + 1] if index + 1 < len(tokens) else ""
        tags.append(_tag(token, previous_tag, tokens[index - 1] if index else "", following))
    return tags


def _tag(token: str, before: str, word_before: str, after: str) -> str:
    """Tag one token.

    Args:
        before: tag of the token before. word_before, after: the neighboring tokens, "" at the ends.
    """
    if _PUNCTUATION.fullmatch(token):
        return _tag_punctuation(token)
    if token == "'s" and before in ("NN", "NNS"):
        # "the dog's ear" against "the dog's asleep".
        return "POS" if _in_noun_phrase(after) else "VBZ"
    if token == "that" and before in _SUBJECT:  # "a dog that sits": a relative pronoun, no determiner
        return "WDT"
    if token in CLOSED:
        return CLOSED[token]
    if _NUMBER.fullmatch(token):
        return "CD"
    if is_adverb(token):
        return "RB"
    # "a traffic light", "the town square": an adjective that stands where a noun is needed.
    if token in NOMINAL and before in ("NN", "DT", "PRP$", "JJ") and not _in_noun_phrase(after):
        return "NN"
    return _tag_verb(token, before, word_before, after) or _tag_noun(token)


def _tag_punctuation(token: str) -> str:
    if token in (".", "!", "?"):
        return "."
    if token in (";", "...", "-", "--", "–", "—"):
        return ":"
    return token if token in _TAGGED_AS_THEMSELVES else "SYM"


def _tag_noun(token: str) -> str:
    if is_adjective(token):
        return "JJ"
    # Not "bus", "glass", "tennis": -ss, -is and -us are singular.
    return "NNS" if re.search(r"(?<![siu])s$", token) and len(token) > 3 else "NN"


def _in_noun_phrase(word: str) -> bool:
    """Whether a word may continue the noun phrase of the word before it."""
    return bool(word) and word not in CLOSED and not _PUNCTUATION.fullmatch(word) and not is_adverb(word)


def _tag_verb(token: str, before: str, word_before: str, after: str) -> str:
    """Return a verb's tag, "JJ" for a participle used as an adjective, or "" where the token is no verb here."""
    if token.endswith("ing") and len(token) > 5:
        return _tag_ing(token, before, after)
    # "a parked car" (adjective) against "a car parked on" (participle after its noun).
    participle = token in PARTICIPLES or (token.endswith("ed") and len(token) > 4)
    if participle and not is_adjective(token):
        if before in ("NN", "NNS", "PRP", "VBZ", "VBP", "VBD", "VB", "RB", "MD") and not (
            before == "RB" and _in_noun_phrase(after)
        ):
            return "VBN"
        return "JJ" if _in_noun_phrase(after) else "VBN"
    if before == "MD" or (before == "TO" and (token in BASE_FORMS)):
        return "VB" if token in BASE_FORMS or not is_adjective(token) else ""
    if token in PAST_FORMS and before in _SUBJECT:
        return "VBD"
    if token in THIRD_FORMS and before in ("NN", "PRP", "NNS", "RB", "WDT", "WP", "CC"):
        if token in THIRD_ONLY or before in ("PRP", "WDT", "WP"):
            return "VBZ"
        # A verb needs an object or a place after it: "a red car passes a house", but "lemon slices and asparagus".
        ends = not after or CLOSED.get(after) == "CC" or _PUNCTUATION.fullmatch(after) is not None
        return "VBZ" if not ends and (not _in_noun_phrase(after) or _starts_phrase(after)) else ""
    if token in BASE_FORMS and before in ("NNS", "PRP", "WDT", "WP") and word_before != "it":
        return "VBP"
    return ""


def _starts_phrase(word: str) -> bool:
    """Whether a word is likely to start a noun phrase rather than to continue one: an adjective or a plural."""
    return is_adjective(word) or re.search(r"(?<![siu])s$", word) is not None or word in BASE_FORMS


def _tag_ing(token: str, before: str, after: str) -> str:
    """Tag a word in -ing: noun or adjective after a determiner, a verb form after its subject."""
    if before in ("DT", "PRP$", "JJ", "POS", "CD"):
        return "JJ" if _in_noun_phrase(after) else "NN"
    if before in ("NN", "NNS", "PRP", "VBZ", "VBP", "VBD", "RB", ""):
        return "VBG"
    return "VBG" if not _in_noun_phrase(after) or before == "CC" else "JJ"


class RuleTagger(Tagger):
    """The rules of `tag_tokens`."""

    name, version = "rules", "2"  # 2: double quotes, curly apostrophes, inner clitics as in the Treebank

    def tokens(self, sentence: str) -> list[str]:
        # Web texts have curly apostrophes, which the Treebank's tokenizer takes for quotation marks: "city ’ s".
        return split_words(sentence.replace("’", "'"), style="treebank")

    def tags(self, tokens: Sequence[str]) -> list[str]:
        return tag_tokens(tokens)


def open_tagger(settings: PhraseSettings) -> TaggerPhrases:
    """Open the published chunker over the rules' tags."""
    return TaggerPhrases(RuleTagger(), settings)


TAGGER = open_tagger
