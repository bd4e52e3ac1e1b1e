"""Group concepts that name almost the same thing, by names and code points, in two widths.

A *thing* is one concept in all its variants: the man, woman and person variants of an emoji, both styles of it, names
that differ in a color, a state, a side or a number ("closed book", "open book"; the faces of a clock), and known
synonyms. A *family* is wider: all things with the same head noun ("wine glass", "cocktail glass"). Clip art joins the
emoji with the same name. Only uninformative heads ("face", "hand", "sign", ...) join nothing.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from foveate.records.builtin import phrases, tables
from foveate.records.text import split_words

# Man, woman, adult; boy, girl, child; old man, old woman, older adult; baby.
_PEOPLE_CODES = {"1f468", "1f469", "1f9d1", "1f466", "1f467", "1f9d2", "1f474", "1f475", "1f9d3", "1f476"}
_MARKS = {"200d", "fe0f", "2640", "2642", "27a1"}  # joiner, variation, female, male, facing right
PEOPLE_WORDS = frozenset(
    "man men woman women person people boy girl adult child older male female bride father mother mx".split()
)
# Uninformative heads ("grinning face", "waving hand"): such names form families by their other words.
EMPTY_HEADS = frozenset(
    "face sign symbol hand suit index person man woman people gesture finger slide thing worker paper light".split()
)
VARIANT_WORDS = frozenset(
    "closed open lock oncoming red blue green orange yellow purple brown grey pink white black light left right "
    "leftwards rightwards up down upwards downwards first second third new full symbol sign facing small large "
    "big clock face horizontal vertical musical multiple".split()
)
_NUMERALS = frozenset("one two three four five six seven eight nine ten eleven twelve oclock thirty".split())
_SAME_THING = (  # synonyms that no rule joins
    ("runner", "woman running", "person running facing right", "running shirt with sash"),
    ("father christmas", "mother christmas", "mx claus"),
    ("prince", "princess", "person with crown", "crown"),
    ("bicyclist", "mountain bicyclist", "bicycle", "motorcycle", "woman biking", "woman mountain biking"),
    ("airplane", "small airplane", "airplane departure", "airplane arriving"),
    ("personal computer", "desktop computer"),
    ("mouse", "mouse face", "rat"),
    ("hamburger", "burger"),
    ("mobile phone", "telephone", "telephone receiver", "pager", "cell phone", "phone"),
    ("lady beetle", "ladybug"),
    ("honeybee", "bee"),
    ("dove", "bird"),
    ("rabbit", "bunny", "rabbit face"),
    ("cat", "kitten"),
    ("boar", "pig"),
    ("automobile", "car", "racing car", "pickup truck", "truck", "articulated lorry"),
    ("electric light bulb", "light bulb", "bulb"),
    ("shopping bags", "handbag", "purse"),
    ("paintbrush", "paint brush"),
    ("ice cream", "soft ice cream", "ice cream cone", "shaved ice"),
    ("shrimp", "fried shrimp"),
    ("firefighter", "fireman"),
    ("mermaid", "merman", "merperson"),
)


def concept_of_emoji(row: Mapping[str, Any]) -> str:
    """Return the concept of an emoji, shared by both styles: its phrase."""
    return phrases.emoji_phrase(row["name"])


def _code_key(unified: str) -> str:
    """Return the code points without gender, direction and joiners: equal for man, woman and person variants."""
    codes = [code for code in unified.lower().split("-") if code not in _MARKS]
    return "-".join("person" if code in _PEOPLE_CODES else code for code in codes)


def _name_key(concept: str) -> str:
    """Return the key of a family: the head noun, or the informative words if the head is generic."""
    head = phrases.head_noun(concept)
    informative = [
        phrases.singular(w) for w in split_words(concept, style="letters") if w not in VARIANT_WORDS | PEOPLE_WORDS
    ]
    if head in EMPTY_HEADS or head in PEOPLE_WORDS or not informative:
        return " ".join(informative) or head
    return head


class _Groups:
    """Union-find over concepts; a group is named by its alphabetically first member."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        root = name
        while self.parent.setdefault(root, root) != root:
            root = self.parent[root]
        self.parent[name] = root
        return root

    def join(self, members: Iterable[str]) -> None:
        first, *others = members
        for other in others:
            # The alphabetically first name is the root in any order of joins: slices are drawn by its hash.
            lower, higher = sorted((self.find(first), self.find(other)))
            self.parent[higher] = lower


def own_words(concept: str) -> frozenset[str]:
    """Return the singular words of a name without colors, states, sides, numbers, people and prepositions.

    >>> sorted(own_words("left-pointing magnifying glass")), sorted(own_words("woman farmer"))
    (['glass', 'magnifying', 'pointing'], ['farmer'])
    """
    empty = VARIANT_WORDS | PEOPLE_WORDS | _NUMERALS | phrases.SPLITTERS
    words_left = {phrases.singular(word) for word in split_words(concept, style="letters") if word not in empty}
    # An empty set would be a subset of every name, so such concepts keep their head noun ("man").
    return frozenset(words_left or {phrases.head_noun(concept)})


def _list_variants() -> list[list[str]]:
    """List groups of concepts that are one thing: by code points, by own words, by synonyms."""
    together: dict[str, list[str]] = defaultdict(list)
    for row in tables.rows("emoji"):
        concept = concept_of_emoji(row)
        code = _code_key(row["unified"])
        # Several people in one emoji: families and couples, all of which count as one thing.
        together["code family" if code.startswith("person-person") else f"code {code}"].append(concept)
        if concept.startswith(("family", "couple", "kiss between")) or "holding hands" in concept:
            together["code family"].append(concept)
    for concept in load_concepts():
        together[f"own {' '.join(sorted(own_words(concept)))}"].append(concept)
    present = set(load_concepts())
    # Names missing from the shipped tables are dropped: the first one could become the name of its group.
    return [*together.values(), *([m for m in same if m in present] for same in _SAME_THING)]


@functools.cache
def load_concepts() -> tuple[str, ...]:
    """Return all phrases of emoji and clip art, in alphabetical order."""
    emoji = {concept_of_emoji(row) for row in tables.rows("emoji")}
    return tuple(sorted(emoji | set(clipart_phrases().values())))


@functools.cache
def load_things() -> dict[str, str]:
    """Return {concept: name of the thing that it is a variant of}."""
    return _group_concepts(_list_variants())


@functools.cache
def load_families() -> dict[str, str]:
    """Return {concept: name of its family}; every thing is in one family."""
    heads: dict[str, list[str]] = defaultdict(list)
    for concept in load_concepts():
        heads[_name_key(concept)].append(concept)
    return _group_concepts([*heads.values(), *_list_variants()])


def _group_concepts(together: Iterable[list[str]]) -> dict[str, str]:
    groups = _Groups()
    for members in together:
        if members:
            groups.join(members)
    return {concept: groups.find(concept) for concept in load_concepts()}


@functools.cache
def clipart_phrases() -> dict[str, str]:
    """Return {key: phrase} for clip art images whose title names a thing in ordinary words."""
    clipart = tables.rows("clipart")
    vocabulary = phrases.ordinary_words(clipart, tables.rows("emoji"))
    named = ((row["key"], phrases.clipart_phrase(row, vocabulary)) for row in clipart)
    return {key: phrase for key, phrase in named if phrase}
