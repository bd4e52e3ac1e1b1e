"""What captions name: their noun phrases without the determiner, in lower case.

The phrases are those of the region recipe (`foveate.caption.vesl.phrases`), here without its limit of twenty. `phrase`
is the whole phrase ("old harbor lighthouse"), `head` its last word ("lighthouse").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from foveate.settings.errors import choose

KEYS = ("phrase", "head")
# Removed from the front of a phrase, as the goldens have it: narrower than what a phrase may start with.
LEADING = frozenset("a an the this that these those each every some any no another all both".split())


def entity(phrase: str, key: str = "phrase") -> str:
    """The entity that a phrase names, "" where nothing is left of it.

    >>> entity("The old harbor lighthouse"), entity("a white lighthouse", "head")
    ('old harbor lighthouse', 'lighthouse')
    """
    words = phrase.lower().split()
    if words and words[0] in LEADING:
        words = words[1:]
    return words[-1] if words and choose(key, KEYS, "entity key") == "head" else " ".join(words)


def entities(phrases: Iterable[Sequence[str]], key: str = "phrase") -> set[str]:
    """The different entities in the phrases of many captions."""
    return {found for caption in phrases for phrase in caption if (found := entity(phrase, key))}
