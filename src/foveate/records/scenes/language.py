"""Exact captions of scenes: things, counts, one relation, text and ground."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foveate.records.builtin.phrases import head_noun, singular
from foveate.records.scenes.relations import Relation
from foveate.records.text import split_words

_NUMERALS = ("no", "one", "two", "three", "four", "five", "six")
_RELATION_PHRASES = {
    "left of": "to the left of",
    "above": "above",
    "inside": "inside the outline of",
    "overlapping": "overlapping",
}
_NO_ARTICLE = frozenset(
    "bread butter bacon corn rice garlic money wood cooking fire water milk cheese soup food".split()
)
_FIRST_WORDS_WITHOUT_ARTICLE = frozenset("father mother mx two three a an the mount hot-springs".split())


@dataclass(frozen=True)
class Thing:
    """A thing to mention: its phrase and its area in pixels."""

    phrase: str
    size: float


@functools.lru_cache(maxsize=16_384)
def is_plural(phrase: str) -> bool:
    """Whether the head noun is plural ("carrots", "clinking glasses")."""
    named = split_words(phrase, style="letters")
    return head_noun(phrase) not in named and any(singular(word) == head_noun(phrase) for word in named)


@functools.lru_cache(maxsize=16_384)
def add_article(phrase: str) -> str:
    """Add an indefinite article where the noun takes one.

    >>> add_article("owl"), add_article("chopsticks"), add_article("unicorn face")
    ('an owl', 'chopsticks', 'a unicorn face')
    """
    first = split_words(phrase, style="letters")[0]
    if is_plural(phrase) or first in _FIRST_WORDS_WITHOUT_ARTICLE or phrase in _NO_ARTICLE:
        return phrase
    # By sound: a unicorn, a euro, but an x-ray.
    vowel = phrase[0] in "aeiou" and not phrase.startswith(("uni", "eu", "one"))
    return f"{'an' if vowel or phrase.startswith('x-') else 'a'} {phrase}"


def format_count(phrase: str, count: int) -> str:
    """Name one thing with its article, or several as "two pictures of a ...".

    >>> format_count("red apple", 2), format_count("slice of pizza", 3)
    ('two pictures of a red apple', 'three pictures of a slice of pizza')
    """
    return add_article(phrase) if count == 1 else f"{_NUMERALS[count]} pictures of {add_article(phrase)}"


def join_phrases(parts: Sequence[str]) -> str:
    """Join phrases as "a", "a and b" or "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def exact_caption(
    counts: Mapping[str, int],
    relations: Sequence[Relation],
    things: Sequence[Thing],
    ground: str,
    text: str = "",
) -> str:
    """Write one true sentence: a relation between two things, then the others with their counts, the ground.

    Args:
        counts: every visible thing.
        things: the labeled ones, to which the positions in `relations` refer.
        text: a word that is written in the scene.
    """
    rest = dict(counts)
    parts = []
    stated = max(relations, key=lambda r: things[r.first].size + things[r.second].size, default=None)
    if stated is not None:
        first, second = things[stated.first].phrase, things[stated.second].phrase
        parts.append(f"{add_article(first)} {_RELATION_PHRASES[stated.name]} {add_article(second)}")
        # Labeled things occur once in a scene, so no count is lost.
        rest = {phrase: count for phrase, count in rest.items() if phrase not in (first, second)}
    parts.extend(format_count(phrase, count) for phrase, count in rest.items())
    if text:
        parts.append(f'the word "{text}"')
    sentence = f"{join_phrases(parts)} on {ground}"
    return sentence[0].upper() + sentence[1:]
