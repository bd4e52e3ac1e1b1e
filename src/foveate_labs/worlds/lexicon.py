"""Words for generated documents and screens, from the names of the built-in cut-outs; some are only for tests."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from foveate.core.seeds import uniform
from foveate.records.builtin.families import load_concepts
from foveate_labs.worlds.builtin.concepts import SEEN, concept_slice

HELD_OUT_SHARE = 0.2
FIRST_NAMES = (
    "Anna Ben Clara David Elena Felix Greta Hugo Ida Jonas Karla Leo Mira Nils Olga Paul Rosa Simon Tara Uwe".split()
)
LAST_NAMES = (
    "Adler Baker Costa Dahl Ek Fischer Gomez Hale Ivanov Jansen Keller Lind Moreau Novak Okoye Perez Quinn".split()
)
PLACES = (
    "Harbor Garden Mill Bridge Corner Station Market Castle Forest River Hill Meadow Tower Valley Island Lake".split()
)
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
VERBS = "finds carries paints sells follows repairs borrows hides counts brings watches orders".split()
ADJECTIVES = "old new quiet heavy small bright broken clean early narrow open plain round sharp warm late".split()


@functools.cache
def list_nouns(*, held_out: bool) -> tuple[str, ...]:
    """List single words for things, of training or of tests."""
    nouns = [name for name in load_concepts() if name.isalpha() and len(name) <= 11 and concept_slice(name) == SEEN]
    return tuple(name for name in sorted(nouns) if is_held_out(name) == held_out)


def is_held_out(word: str) -> bool:
    """Whether documents of training never have this word."""
    return uniform("document words", 1, word.lower()) < HELD_OUT_SHARE


def pick_some(rng: np.random.Generator, items: Sequence[str], count: int) -> list[str]:
    """Draw different texts in random order."""
    return [items[int(index)] for index in rng.permutation(len(items))[:count]]


def split_names(names: Sequence[str], *, held_out: bool) -> list[str]:
    """Return the names of training or of tests."""
    return [name for name in names if is_held_out(name) == held_out]
