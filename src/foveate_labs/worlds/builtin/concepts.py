"""Slices of concepts: what training may know, decided once per concept, never per image.

Three slices are reported separately (see `families` for things and families):

seen: its images and its name are in training.
unseen: neither an image nor the name of this thing is in training, in no variant and no style; but another thing of
    its family is: cocktail glasses are trained on, and wine glasses are tested. This is the "novel" of benchmarks with
    novel classes.
unseen kind: nothing of its whole family is in training; no training text has its head noun. Only uninformative heads
    ("face", "hand", "sign", ...) are shared; there the other words distinguish the kinds.

Families and things are drawn by `core.seeds.uniform("builtin concepts" or "builtin things", SEED, name)`: pure
functions of the name, the same on every machine and in every version that keeps SEED and the shipped tables. A few
families are never an unseen kind: those whose head noun is in the texts of more than EVERYWHERE clip art images
("flag", "flower", "tool"), since holding them out would hold out a third of the clip art, and those whose head noun is
in the descriptions of scene grounds. A thing whose own words are part of the name of another ("glass") is never held
out: hiding its name would hide its relatives.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict

from foveate.core.seeds import uniform
from foveate.records.builtin import families, phrases, tables
from foveate.records.builtin.families import EMPTY_HEADS, PEOPLE_WORDS, VARIANT_WORDS, own_words
from foveate.records.text import split_words

SEED = 1
UNSEEN_KIND_SHARE = 0.13  # of the families
UNSEEN_SHARE = 0.35  # of the things that have a relative and a name of their own
EVERYWHERE = 30
_IN_SCENES = frozenset("brick card coin star wall".split())  # on the grounds of training scenes, or in batch titles
SEEN, UNSEEN, UNSEEN_KIND, WITHHELD = "seen", "unseen", "unseen kind", "withheld"


@functools.cache
def _uses() -> Counter[str]:
    """Count the clip art images whose texts have a word (singular)."""
    uses: Counter[str] = Counter()
    for row in tables.rows("clipart"):
        texts = " ".join([row["title"], *row["keywords"], row["description"]])
        uses.update({phrases.singular(word) for word in split_words(texts, style="letters")})
    return uses


@functools.cache
def _unseen_kinds() -> frozenset[str]:
    """Return names of the families of which nothing is in training."""
    family_of = families.load_families()
    heads = {concept: phrases.head_noun(concept) for concept in family_of}
    everywhere = {family_of[c] for c, head in heads.items() if _uses()[head] > EVERYWHERE or head in _IN_SCENES}
    drawn = {f for f in family_of.values() if uniform("builtin concepts", SEED, f) < UNSEEN_KIND_SHARE}
    return frozenset(drawn - everywhere)


def _heads(*, unseen_kinds: bool) -> frozenset[str]:
    """Return head nouns of the concepts of unseen kinds, or of all others."""
    families_of_concepts = families.load_families().items()
    return frozenset(
        phrases.head_noun(c) for c, family in families_of_concepts if (family in _unseen_kinds()) == unseen_kinds
    )


@functools.cache
def informative_heads() -> frozenset[str]:
    """Return head nouns (singular) of all concepts, without uninformative ones."""
    return (_heads(unseen_kinds=True) | _heads(unseen_kinds=False)) - (EMPTY_HEADS | PEOPLE_WORDS | VARIANT_WORDS)


@functools.cache
def unseen_words() -> frozenset[str]:
    """Return head nouns (singular) of unseen kinds alone: words that training texts must not have."""
    # A head noun that trained concepts share cannot be held out.
    return (_heads(unseen_kinds=True) & informative_heads()) - _heads(unseen_kinds=False)


@functools.cache
def _names_of_things() -> dict[str, frozenset[frozenset[str]]]:
    """Return {thing: sets of own words of its variants}."""
    names: dict[str, set[frozenset[str]]] = defaultdict(set)
    for concept, thing in families.load_things().items():
        names[thing].add(own_words(concept))
    return {thing: frozenset(sets) for thing, sets in names.items()}


def _things_within_others() -> set[str]:
    """Return the things with a name whose words are all in a name of another thing: "apple" is in "apple pie"."""
    names_by_word: dict[str, list[tuple[str, frozenset[str]]]] = defaultdict(list)
    for thing, names in _names_of_things().items():
        for name in names:
            # A name without own words is within all others, so it is looked for among all of them.
            for word in (*name, ""):
                names_by_word[word].append((thing, name))
    return {
        thing
        for thing, names in _names_of_things().items()
        for name in names
        # Only names with its rarest word can have all of its words.
        for other, another in min((names_by_word[word] for word in (*name, "")), key=len)
        if thing != other and name <= another
    }


@functools.cache
def _unseen_things() -> frozenset[str]:
    """Return names of the things that are held out of trained families."""
    members: dict[str, set[str]] = defaultdict(set)
    for concept, thing in families.load_things().items():
        members[families.load_families()[concept]].add(thing)
    within = _things_within_others()
    # The trained relative must be an emoji: clip art may be held out for other reasons.
    drawn_twice = {families.load_things()[families.concept_of_emoji(row)] for row in tables.rows("emoji")}
    held_out: set[str] = set()
    for family, things in members.items():
        if family in _unseen_kinds():
            continue
        lots = {thing: uniform("builtin things", SEED, thing) for thing in sorted(things)}
        drawn = {thing for thing, lot in lots.items() if lot < UNSEEN_SHARE and thing not in within}
        relatives = sorted(things & drawn_twice, key=lots.__getitem__)
        if relatives:
            # The relative with the highest lot stays, so that each family is trained on.
            held_out |= drawn - {relatives[-1]}
    return frozenset(held_out)


@functools.cache
def _hidden_names() -> dict[str, tuple[frozenset[str], ...]]:
    """Return {word: names of unseen things that have it}, each name under its rarest word."""
    names_by_word: dict[str, list[frozenset[str]]] = defaultdict(list)
    for thing in sorted(_unseen_things()):
        for name in sorted(_names_of_things()[thing], key=sorted):
            names_by_word[min(sorted(name), key=lambda word: _uses()[word])].append(name)
    return {word: tuple(names) for word, names in names_by_word.items()}


def names_unseen_thing(text: str) -> bool:
    """Whether a text has all the words of the name of an unseen thing, in any order."""
    text_words = {phrases.singular(word) for word in split_words(text, style="letters")}
    return any(name <= text_words for word in text_words for name in _hidden_names().get(word, ()))


def names_unseen_kind(text: str) -> bool:
    """Whether a text has a word that names an unseen kind."""
    return any(phrases.singular(word) in unseen_words() for word in split_words(text, style="letters"))


def mentions_unseen(text: str) -> bool:
    """Whether a text names an unseen thing or kind, which no training text may."""
    return names_unseen_kind(text) or names_unseen_thing(text)


def concept_slice(concept: str) -> str:
    """Return "seen", "unseen", "unseen kind" or "withheld".

    Withheld concepts contain the name of an unseen one ("boy with trumpet" if trumpets are an unseen kind); they are
    used neither in training nor in tests.
    """
    if families.load_families()[concept] in _unseen_kinds():
        return UNSEEN_KIND
    if names_unseen_kind(concept):
        return WITHHELD
    if families.load_things()[concept] in _unseen_things():
        return UNSEEN
    return WITHHELD if names_unseen_thing(concept) else SEEN
