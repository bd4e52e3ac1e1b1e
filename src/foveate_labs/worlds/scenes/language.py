"""Exact captions of scenes: things, counts, one relation, text and ground."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foveate.records.boxes import Box
from foveate.records.builtin.families import SPLITTERS, head_noun
from foveate.records.text import singular, split_words

# Relations between the boxes of a scene: left of, above, inside, overlapping.


RELATIONS = ("left of", "above", "inside", "overlapping")
_CLEAR = 0.02  # a gap between boxes from which one is beside the other
_TOUCH = 0.10  # share of the smaller box that must be shared to overlap
_INSIDE = 0.95


@dataclass(frozen=True)
class Relation:
    """`first` and `second` are positions in the list of boxes: boxes[first] is `name` boxes[second]."""

    first: int
    name: str
    second: int


def shared_area(a: Box, b: Box) -> float:
    """Return the area of the intersection, as a fraction of the image."""
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    return max(width, 0.0) * max(height, 0.0)


def relate(boxes: Sequence[Box]) -> tuple[Relation, ...]:
    """Find all relations that hold, ordered by pair.

    - left of, above: a clear gap between the boxes on that axis, and their extents on the other axis meet.
    - inside: at least 95 % of the first box lies in the second.
    - overlapping: at least 10 % of the smaller is shared, and neither is inside the other (given once, lower position
      first).
    """
    relations = []
    for i, a in enumerate(boxes):
        for j, b in enumerate(boxes):
            if i == j:
                continue
            shared = shared_area(a, b)
            same_rows = min(a.y2, b.y2) > max(a.y1, b.y1)
            same_columns = min(a.x2, b.x2) > max(a.x1, b.x1)
            if same_rows and a.x2 + _CLEAR <= b.x1:
                relations.append(Relation(i, "left of", j))
            if same_columns and a.y2 + _CLEAR <= b.y1:
                relations.append(Relation(i, "above", j))
            if shared >= _INSIDE * a.area and a.area < b.area:
                relations.append(Relation(i, "inside", j))
            elif i < j and _TOUCH * min(a.area, b.area) <= shared < _INSIDE * min(a.area, b.area):
                relations.append(Relation(i, "overlapping", j))
    return tuple(relations)


NUMERALS = ("no", "one", "two", "three", "four", "five", "six")
_RELATION_PHRASES = {
    "left of": "to the left of",
    "above": "above",
    "inside": "inside the outline of",
    "overlapping": "overlapping",
}
_NO_ARTICLE = frozenset(
    "bread butter bacon corn rice garlic money wood cooking fire water milk cheese soup food".split()
)
_PLURALS = {
    "elf": "elves",
    "foot": "feet",
    "goose": "geese",
    "knife": "knives",
    "leaf": "leaves",
    "mango": "mangoes",
    "moose": "moose",
    "mouse": "mice",
    "ox": "oxen",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "tooth": "teeth",
    **{name: name for name in ("deer", "fish", "jellyfish", "sheep", "shrimp", "squid", "blowfish")},
}
# Names of more than one thing, of no thing, or of a sort of which nobody counts copies.
_NOT_COUNTABLE = frozenset(
    "and one two three four five six thirty oclock pair bunch family couple facing playing pointing covering symbol "
    "rice spaghetti popcorn lightning luggage canned prints print departure laughing shaking exhaling held washing "
    "food throwing".split()
)
_THINGS_IN_ING = frozenset("building dumpling earring king ring seedling sling spring string wedding wing".split())
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


def _find_head(phrase: str) -> int:
    """Return the position of the head noun among the words of a phrase that are split by spaces."""
    # Not `split_words`, which would split hyphenated words that the plural must keep.
    named = phrase.split()
    return next((i - 1 for i, word in enumerate(named) if word in SPLITTERS and i > 0), len(named) - 1)


@functools.lru_cache(maxsize=16_384)
def is_countable(phrase: str) -> bool:
    """Whether a phrase names one thing of which there can be several ("cat", "slice of pizza"; not "carrots")."""
    named = split_words(phrase, style="letters")
    return not (
        phrase in _NO_ARTICLE
        or named[0] in _FIRST_WORDS_WITHOUT_ARTICLE
        or not _NOT_COUNTABLE.isdisjoint(named)
        or any(singular(word) != word for word in named)
        # A head noun in -ing mostly names an activity, not a thing.
        or any(word.endswith("ing") and word not in _THINGS_IN_ING for word in [phrase.split()[_find_head(phrase)]])
    )


@functools.lru_cache(maxsize=16_384)
def pluralize(phrase: str) -> str:
    """Put the head noun of a countable phrase into the plural.

    >>> pluralize("slice of pizza"), pluralize("red berry"), pluralize("paint brush"), pluralize("maple leaf")
    ('slices of pizza', 'red berries', 'paint brushes', 'maple leaves')
    """
    named, head = phrase.split(), _find_head(phrase)
    word = named[head]
    if word in _PLURALS:
        plural = _PLURALS[word]
    elif word.endswith("man"):
        plural = f"{word[:-3]}men"
    elif word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        plural = f"{word[:-1]}ies"
    else:
        plural = f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"
    return " ".join([*named[:head], plural, *named[head + 1 :]])


def format_count(phrase: str, count: int) -> str:
    """Name one thing with its article, or several as "two pictures of a ...".

    >>> format_count("red apple", 2), format_count("slice of pizza", 3)
    ('two pictures of a red apple', 'three pictures of a slice of pizza')
    """
    return add_article(phrase) if count == 1 else f"{NUMERALS[count]} pictures of {add_article(phrase)}"


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


def be(name: str) -> str:
    """Return the verb of a name: "is", or "are" of a plural."""
    return "are" if is_plural(name) else "is"


def describe_count(name: str, count: int) -> dict[str, str]:
    """Return the fields of a question about a number of things: their plural, their number in words, and the verb."""
    several = pluralize(name)
    n_xs = f"{NUMERALS[count]} {name if count == 1 else several}"
    return {"xs": several, "n_xs": n_xs, "are_n": "is" if count == 1 else "are"}
