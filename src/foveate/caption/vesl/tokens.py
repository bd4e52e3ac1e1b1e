"""Sentences and words of a caption, cut as the Penn Treebank does it.

The golden's tokens are those of NLTK's word tokenizer; this is a small one of our own for the cases that captions have
(punctuation, quotes, clitics such as 's and n't), so that phrases need no extra. A test compares the two.
"""

from __future__ import annotations

import re

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
# A full stop stays with what it follows unless it ends the sentence (with a quote or bracket behind it).
_LAST_STOP = re.compile(r"(?<=[^.])\.(?=[\"'»”’)\]}>]*\s*$)")
_APART = re.compile(r"\.{2,}|--+|[;@#$%&?!\[\](){}<>\"“”«»…]|[,:](?!\d)|(?<!\d)[,:]|[‘’'`](?=\s|$)|(?<!\S)[‘’'`]")
_CLITIC = re.compile(r"(?<=\w)(n['’]t|['’](?:s|m|d|ll|re|ve))\b", re.IGNORECASE)
_JOINED = re.compile(r"\b(can|d|gim|gon|got|lem|wan)(not|['’]ye|me|na|ta)\b", re.IGNORECASE)
_JOINABLE = frozenset(("cannot", "d'ye", "d’ye", "gimme", "gonna", "gotta", "lemme", "wanna"))


def sentences(text: str) -> list[str]:
    """Parts of a text that end with ".", "!" or "?" and a space."""
    return [part for part in _SENTENCE_END.split(text.strip()) if part]


def words(sentence: str) -> list[str]:
    """The tokens of one sentence.

    >>> words("the city's tower, 3.5 m high, isn't lit.")
    ['the', 'city', "'s", 'tower', ',', '3.5', 'm', 'high', ',', 'is', "n't", 'lit', '.']
    """
    spaced = _LAST_STOP.sub(" . ", sentence)
    spaced = _APART.sub(lambda found: f" {found.group()} ", spaced)
    spaced = _CLITIC.sub(lambda found: f" {found.group()}", spaced)
    spaced = _JOINED.sub(_cut_joined, spaced)
    return spaced.split()


def _cut_joined(found: re.Match[str]) -> str:
    whole = found.group()
    return f"{found.group(1)} {found.group(2)}" if whole.lower() in _JOINABLE else whole
