"""Pools of cut-outs that scenes of a split may contain."""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from foveate.core.errors import UserError, choose, nearest
from foveate.records.builtin import families
from foveate.records.text import split_words
from foveate_labs.worlds import builtin
from foveate_labs.worlds.builtin import Cutout, load_cutouts

SPLITS = ("train", "validation", "test")
_FULL = 0.97  # an image that is opaque up to its edges is a tile, not a cut-out
# Signs, buttons and patterns: nothing in these folders looks like a named thing.
_DISTRACTOR_FOLDERS = ("signs_and_symbols", "computer/buttons", "special", "shapes", "decorations", "geography")


@dataclass(frozen=True)
class Pool:
    """Named cut-outs by family and concept, drawn in this order so that large families do not dominate."""

    families: tuple[tuple[tuple[Cutout, ...], ...], ...]

    def draw(self, rng: np.random.Generator) -> Cutout:
        family = self.families[rng.integers(len(self.families))]
        concept = family[rng.integers(len(family))]
        return concept[rng.integers(len(concept))]

    def restrict(self, names: frozenset[str]) -> Pool:
        """Return the pool of the cut-outs with these names.

        Raises:
            UserError: a name that no cut-out has, with the nearest one.
        """
        known = {cutout.name for family in self.families for concept in family for cutout in concept}
        for name in sorted(names - known):
            raise UserError(f"names: no such thing (got {name!r}){nearest(name, known)}")
        named = [
            [tuple(cutout for cutout in concept if cutout.name in names) for concept in family]
            for family in self.families
        ]
        families = (tuple(concept for concept in family if concept) for family in named)
        return Pool(tuple(family for family in families if family))


def is_cut_out(cutout: Cutout) -> bool:
    """Whether an image has an outline and is wide enough to be recognized at a small size."""
    thin = min(cutout.width, cutout.height) / max(cutout.width, cutout.height) < 0.3
    return not thin and 0.18 < cutout.covered < _FULL


@functools.cache
def load_pool(slice_name: str) -> Pool:
    """Load the pool of "seen", "unseen" or "unseen kind" named cut-outs.

    Seen ones are those whose single image is in the training split: clip art that is held out as a single image is in
    no scene.
    """
    families: dict[str, dict[str, list[Cutout]]] = defaultdict(lambda: defaultdict(list))
    split = "train" if slice_name == builtin.SEEN else "test"
    for cutout in load_cutouts():
        if cutout.slice == slice_name and builtin.assign_split(cutout.id) == split and is_cut_out(cutout):
            families[cutout.family][cutout.concept].append(cutout)
    # Sorted, because draws take families by their number.
    return Pool(tuple(tuple(tuple(c) for c in family.values()) for _, family in sorted(families.items())))


@functools.cache
def load_named_pool(names: frozenset[str]) -> Pool:
    """Load the pool of "seen" cut-outs with these names; see `Pool.restrict`."""
    return load_pool(builtin.SEEN).restrict(names)


@functools.cache
def load_distractors(split: str) -> tuple[Cutout, ...]:
    """Load unnamed images that may be in a scene without a label, by their split as single images.

    Validation scenes use those of training. Images whose title or keywords name a concept are in no scene: they would
    be unlabeled images of a named thing.
    """
    choose(split, SPLITS, "split")
    titles = {row["key"]: " ".join([row["title"], *row["keywords"]]) for row in families.rows("clipart")}
    known = builtin.informative_heads()
    held_out = split == "test"
    unnamed = []
    for cutout in load_cutouts():
        if cutout.slice != "unnamed" or not cutout.subcategory.startswith(_DISTRACTOR_FOLDERS):
            continue
        title_words = {families.singular(word) for word in split_words(titles[cutout.id], style="letters")}
        if (builtin.assign_split(cutout.id) == "test") == held_out and not title_words & known:
            unnamed.append(cutout)
    return tuple(unnamed)
