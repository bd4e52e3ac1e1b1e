"""Which concepts are seen in training and which are not: decided once for the concept, never for a picture.

The unit that is drawn is a *family* of concepts that name almost the same thing: the man, woman and person
variants of an emoji, both styles of it, names that differ in a colour or a state ("closed book", "open book"),
and names with the same head noun ("wine glass", "cocktail glass"). Clip art joins the family of the emoji that
shares its head noun. So no phrase of an unseen concept has its head noun in a training phrase; only heads that say
little ("face", "hand", "sign", ...) are shared, there the other words tell seen from unseen.

A family is unseen if `settings.seeds.uniform("builtin concepts", SEED, family)` is below UNSEEN_SHARE: a pure
function of its name, the same on every machine and in every version that keeps SEED and the shipped tables. A few
families are seen in any case: those whose head noun stands in the texts of more than EVERYWHERE clip art pictures
("flag", "flower", "tool"), because holding them out would hold out a third of the clip art.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from foveate.records.builtin import phrases, tables
from foveate.settings.seeds import uniform

SEED = 1
UNSEEN_SHARE = 0.2
EVERYWHERE = 30
SEEN, UNSEEN, WITHHELD = "seen", "unseen", "withheld"

_PEOPLE_CODES = {"1f468", "1f469", "1f9d1", "1f466", "1f467", "1f9d2", "1f474", "1f475", "1f9d3", "1f476"}
_MARKS = {"200d", "fe0f", "2640", "2642", "27a1"}  # joiner, variation, female, male, facing right
_PEOPLE_WORDS = frozenset(
    "man men woman women person people boy girl adult child older male female bride father mother mx".split()
)
# Heads that say little ("grinning face", "waving hand"): such names are families by their other words.
_EMPTY_HEADS = frozenset(
    "face sign symbol hand suit index person man woman people gesture finger slide thing worker paper light".split()
)
_VARIANT_WORDS = frozenset(
    "closed open lock oncoming red blue green orange yellow purple brown grey pink white black light left right "
    "leftwards rightwards up down upwards downwards first second third new full symbol sign facing small large "
    "big clock face horizontal vertical musical multiple".split()
)
_SAME_FAMILY = (  # names that no rule brings together
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
    """The concept an emoji shows, shared by both styles: its phrase."""
    return phrases.emoji_phrase(row["name"])


def _code_key(unified: str) -> str:
    """Code points without gender, direction and joiners: equal for man, woman and person variants."""
    codes = [code for code in unified.lower().split("-") if code not in _MARKS]
    return "-".join("person" if code in _PEOPLE_CODES else code for code in codes)


def _name_keys(concept: str) -> list[str]:
    """What a concept shares with others of its family: its head noun, or the words that tell it apart."""
    head = phrases.head_noun(concept)
    kept = [phrases.singular(w) for w in phrases.words(concept) if w not in _VARIANT_WORDS | _PEOPLE_WORDS]
    if head in _EMPTY_HEADS or head in _PEOPLE_WORDS or not kept:
        return [" ".join(kept) or head]
    return [head]


class _Families:
    """Union-find over concepts; a family is named by its alphabetically first member."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        root = name
        while self.parent.setdefault(root, root) != root:
            root = self.parent[root]
        self.parent[name] = root
        return root

    def join(self, one: str, other: str) -> None:
        first, second = sorted((self.find(one), self.find(other)))
        self.parent[second] = first


@functools.cache
def families() -> dict[str, str]:
    """Concept (a phrase of an emoji or of clip art) -> name of its family."""
    together: dict[str, list[str]] = defaultdict(list)
    for row in tables.rows("emoji"):
        concept = concept_of_emoji(row)
        code = _code_key(row["unified"])
        together["code family" if code.startswith("person-person") else f"code {code}"].append(concept)
        if concept.startswith(("family", "couple", "kiss between")) or "holding hands" in concept:
            together["code family"].append(concept)
        for key in _name_keys(concept):
            together[f"name {key}"].append(concept)
    for phrase in clipart_phrases().values():
        for key in _name_keys(phrase):
            together[f"name {key}"].append(phrase)
    present = {concept for members in together.values() for concept in members}
    found = _Families()
    for members in [*together.values(), *([m for m in same if m in present] for same in _SAME_FAMILY)]:
        for member in members:
            found.join(members[0], member)
    return {concept: found.find(concept) for concept in sorted(present)}


@functools.cache
def clipart_phrases() -> dict[str, str]:
    """Key of a clip art picture -> its phrase, for those whose title names a thing in ordinary words."""
    clipart = tables.rows("clipart")
    vocabulary = phrases.ordinary_words(clipart, tables.rows("emoji"))
    named = ((row["key"], phrases.clipart_phrase(row, vocabulary)) for row in clipart)
    return {key: phrase for key, phrase in named if phrase}


@functools.cache
def _slices() -> dict[str, str]:
    uses: Counter[str] = Counter()
    for row in tables.rows("clipart"):
        texts = " ".join([row["title"], *row["keywords"], row["description"]])
        uses.update({phrases.singular(word) for word in phrases.words(texts)})
    found: dict[str, str] = {}
    for concept, family in families().items():
        drawn = UNSEEN if uniform("builtin concepts", SEED, family) < UNSEEN_SHARE else SEEN
        everywhere = uses[phrases.head_noun(concept)] > EVERYWHERE
        found[family] = SEEN if everywhere or found.get(family) == SEEN else drawn
    return found


def family_slice(family: str) -> str:
    """ "seen" or "unseen" for a family."""
    return _slices()[family]


def telling_heads(slices: Collection[str] = (SEEN, UNSEEN)) -> frozenset[str]:
    """Head nouns (singular) of the concepts of these slices, without those that say little."""
    common = _EMPTY_HEADS | _PEOPLE_WORDS | _VARIANT_WORDS
    return (
        frozenset(
            phrases.head_noun(concept) for concept, family in families().items() if family_slice(family) in slices
        )
        - common
    )


@functools.cache
def unseen_words() -> frozenset[str]:
    """Head nouns (singular) of unseen concepts and of no seen one: what training texts must not say."""
    return telling_heads([UNSEEN]) - telling_heads([SEEN])


def mentions_unseen(text: str) -> bool:
    """Whether a text has a word that names an unseen concept."""
    return any(phrases.singular(word) in unseen_words() for word in phrases.words(text))


def concept_slice(concept: str) -> str:
    """ "seen", "unseen", or "withheld": of a seen family, but its phrase has the name of an unseen thing in it.

    Withheld concepts ("boy with trumpet" when trumpets are unseen) are used neither in training nor in tests.
    """
    if family_slice(families()[concept]) == UNSEEN:
        return UNSEEN
    return WITHHELD if mentions_unseen(concept) else SEEN
