"""Scenes for counting: one to six copies of one or two cut-outs or colored shapes, on the grounds of other scenes.

Every number is as likely for every thing, and the sizes do not depend on it, so that nothing but the copies themselves
says how many there are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from foveate.core.errors import UserError, choose
from foveate.core.seeds import generator
from foveate.records.builtin.families import PEOPLE_WORDS
from foveate.records.text import singular, split_words
from foveate_labs.worlds.builtin import SEEN, UNSEEN, Cutout
from foveate_labs.worlds.scenes import pools
from foveate_labs.worlds.scenes.compose import Finish, Layer, put_in_cell
from foveate_labs.worlds.scenes.grounds import Ground, draw_ground
from foveate_labs.worlds.scenes.language import is_countable
from foveate_labs.worlds.scenes.scene import Scene, ScenePlan, draw_slice, make_cutout_layer, make_patch_layer, render
from foveate_labs.worlds.scenes.shapes import list_shapes

MAX_COPIES = 6
_SHAPE_SHARE = 0.5  # of the things
_UNSEEN_SHAPES = 0.25  # of the shapes of test scenes
_SECOND, _PATCH = 0.65, 0.3  # how often there is a second thing, and an unlabeled patch
_LONGEST = (0.12, 0.2)  # longest side of a copy, as a fraction of the scene: fits a cell of the grid
_CELLS = 4  # a side: 16 cells for at most 12 copies and a patch


def draw_counting_scene(*, seed: int, split: str, index: int, size: int = 224) -> Scene:
    """Draw counting scene number `index` of a split: one or two kinds of things, each one to six times.

    No copy covers another. Grounds and cut-outs of the splits are those of `draw_scene`; test scenes also have
    combinations of color and shape that no training scene has.

    Args:
        seed: seed of the series.
        split: "train", "validation" or "test".
        index: number in the series.
        size: side in pixels, at least 96.

    Raises:
        UserError: the split is unknown, or the size is below 96.
    """
    choose(split, pools.SPLITS, "split")
    if size < 96:
        raise UserError(f"size: scenes must be at least 96 pixels wide (got {size})")
    rng = generator("counting scene", seed, split, index)
    ground = draw_ground(rng, size=size, held_out=split == "test")
    things = draw_things(rng, split, ground, count=2 if rng.random() < _SECOND else 1)
    copies = [(thing, int(rng.integers(1, MAX_COPIES + 1))) for thing in things]
    return draw_copies(rng, split, ground, copies, size=size)


def draw_things(
    rng: np.random.Generator, split: str, ground: Ground, *, count: int, shape_share: float = _SHAPE_SHARE
) -> list[Cutout]:
    """Draw different things that can be counted and that `ground` does not show."""
    things: list[Cutout] = []
    while len(things) < count:
        if rng.random() < shape_share:
            thing = draw_shape(rng, split)
        else:
            thing = load_countable(draw_slice(rng) if split == "test" else SEEN).draw(rng)
        # Two shapes may share a form or a color, two cut-outs not a family: a second truck would be counted as a car.
        clash = any(thing.name == other.name or {thing.family, thing.source} == {other.family} for other in things)
        clash = clash or any(thing.family == other.family and thing.source != "shapes" for other in things)
        if not clash and not named_words([thing]) & ground.shows:
            things.append(thing)
    return things


def draw_shape(rng: np.random.Generator, split: str) -> Cutout:
    """Draw a colored shape; test scenes also have combinations that no training scene has."""
    shapes = list_shapes(UNSEEN if split == "test" and rng.random() < _UNSEEN_SHAPES else SEEN)
    return shapes[rng.integers(len(shapes))]


def named_words(cutouts: Sequence[Cutout]) -> frozenset[str]:
    """Return the singular words of the names of cut-outs."""
    return frozenset(singular(word) for cutout in cutouts for word in split_words(cutout.name, style="letters"))


@functools.cache
def load_countable(slice_name: str) -> pools.Pool:
    """Load the pool of a slice without cut-outs whose name is a plural, a mass or a person."""
    families = (
        tuple(concept for concept in family if is_countable(concept[0].name) and not _names_person(concept[0].name))
        for family in pools.load_pool(slice_name).families
    )
    return pools.Pool(tuple(family for family in families if family))


def _names_person(name: str) -> bool:
    return not PEOPLE_WORDS.isdisjoint(split_words(name, style="letters"))


def draw_copies(
    rng: np.random.Generator,
    split: str,
    ground: Ground,
    copies: Sequence[tuple[Cutout, int]],
    *,
    size: int,
    absent: frozenset[str] = frozenset(),
) -> Scene:
    """Draw a scene with the given number of copies of each thing, at random cells of a grid.

    Args:
        copies: pairs of a thing and its number, together at most 15.
        absent: words for things that an unlabeled patch must not show either.
    """
    members: list[tuple[Layer, Cutout | None]] = []
    for cutout, count in copies:
        members += [(make_cutout_layer(rng, cutout, size, longest=_LONGEST), cutout) for _ in range(count)]
    if rng.random() < _PATCH:
        named = named_words([cutout for cutout, _ in copies]) | absent
        patch = make_patch_layer(rng, size, held_out=split == "test", named=named)
        # Inserted first, so that it lies below: a patch may be larger than its cell and must not cover a copy.
        members.insert(0, (patch, None))
    cells = rng.permutation(_CELLS * _CELLS)[: len(members)]
    layers = [
        put_in_cell(rng, layer, divmod(int(cell), _CELLS), size=size, cells=_CELLS)
        for (layer, _), cell in zip(members, cells, strict=True)
    ]
    plan = ScenePlan(ground, tuple(layers), tuple(c for _, c in members), ("",) * len(members), Finish.draw(rng))
    return replace(render(plan, rng), kind="counting")
