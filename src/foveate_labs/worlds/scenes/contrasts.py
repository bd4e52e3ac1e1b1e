"""Names that a scene could have and has not: near misses and far ones, so that wording tells nothing about the answer.

A question with two answers is made from a pair: a name x that the scene shows and a contrast y. A coin decides which of
the two is asked about. As the draw of y from x is symmetric among names that scenes show equally often, each name
is asked about as often where it is shown as where it is not.
"""

from __future__ import annotations

import functools
from collections import defaultdict

import numpy as np

from foveate.records.builtin import families
from foveate.records.builtin.families import PEOPLE_WORDS, VARIANT_WORDS, own_words
from foveate.records.text import singular, split_words
from foveate_labs.worlds.scenes import grounds, pools
from foveate_labs.worlds.scenes.counting import load_countable
from foveate_labs.worlds.scenes.grounds import list_ground_names
from foveate_labs.worlds.scenes.scene import Scene, SceneObject
from foveate_labs.worlds.scenes.shapes import COLORS, SHAPES, list_shapes, load_shapes

_NEAR = 0.6  # share of contrasts from the same family or category
_COLOR_WORDS = frozenset(COLORS) | {"grey"}


@functools.lru_cache(maxsize=16_384)
def singular_words(name: str) -> frozenset[str]:
    """Return the singular words of a name."""
    return frozenset(singular(word) for word in split_words(name, style="letters"))


def split_color(name: str) -> tuple[str, str] | None:
    """Split "red apple" into its color and the rest; None if it does not begin with a color.

    >>> split_color("red apple"), split_color("orange")
    (('red', 'apple'), None)
    """
    color, _, rest = name.partition(" ")
    return (color, rest) if color in _COLOR_WORDS and rest else None


@functools.lru_cache(maxsize=65_536)
def excludes(name: str, other: str) -> bool:
    """Whether an image of `name` cannot be called `other`, nor the other way round."""
    colors = split_color(name), split_color(other)
    # Checked before the rules below, which take things that differ only in color for one thing.
    if colors[0] and colors[1] and colors[0][1] == colors[1][1]:
        return colors[0][0] != colors[1][0]
    if _is_part(singular_words(name), singular_words(other)):
        return False
    if name in load_shapes() or other in load_shapes():
        return True
    things = families.load_things()
    return things[name] != things[other] and not _is_part(own_words(name), own_words(other))


def _is_part(first: frozenset[str], second: frozenset[str]) -> bool:
    return first <= second or second <= first


@functools.cache
def _load_pool(kind: str, slice_name: str) -> pools.Pool:
    return load_countable(slice_name) if kind == "counting" else pools.load_pool(slice_name)


@functools.cache
def _group_names(kind: str, slice_name: str) -> dict[str, tuple[str, ...]]:
    """Return {name: names of its group}: its family, or the single things of its category."""
    groups: dict[str, list[str]] = defaultdict(list)
    for family in _load_pool(kind, slice_name).families:
        names = [concept[0].name for concept in family]
        # Names of equal odds stay together: a family's share is divided among its names.
        groups[family[0][0].family if len(names) > 1 else f"category {family[0][0].subcategory}"] += names
    return {name: tuple(names) for names in groups.values() for name in names}


def draw_name(rng: np.random.Generator, kind: str, name: str, slice_name: str) -> str | None:
    """Draw another name from the slice of `name`, near or far, by a symmetric rule; None if that leads out of it."""
    if name in load_shapes():
        if rng.random() >= _NEAR:
            names = [cutout.name for cutout in list_shapes(slice_name)]
            return names[int(rng.integers(len(names)))]
        color, shape = name.split()
        near = [f"{c} {shape}" for c in COLORS if c != color] + [f"{color} {s}" for s in SHAPES if s != shape]
        other = near[int(rng.integers(len(near)))]
        # Not drawn again: names at the edge of the slice would become more frequent than the others.
        return other if load_shapes()[other].slice == slice_name else None
    if rng.random() >= _NEAR:
        return _load_pool(kind, slice_name).draw(rng).name
    group = [other for other in _group_names(kind, slice_name)[name] if other != name]
    return group[int(rng.integers(len(group)))] if group else None


def draw_contrast(rng: np.random.Generator, scene: Scene, placed: SceneObject) -> str | None:
    """Draw a name that nothing in `scene` has instead of that of `placed`; None if the draw does not serve.

    None is also returned if the name of `placed` could not have been drawn in turn: another draw would make some names
    more frequent in true statements than in false ones.
    """
    name = draw_name(rng, scene.kind, placed.phrase, placed.slice)
    if name is None or says_nothing(name) or says_nothing(placed.phrase):
        return None
    others = {thing.phrase for thing in scene.objects if thing.kind == "thing"}
    if not all(excludes(other, name) for other in others):
        return None
    ambiguous = list_shown_words(scene)
    return None if ambiguous & (singular_words(name) | singular_words(placed.phrase)) else name


def draw_color_contrast(rng: np.random.Generator, scene: Scene, placed: SceneObject) -> str | None:
    """Draw another color of the same thing as `placed` that scenes may have; None if the draw does not serve."""
    colors = list_colors(scene.kind, placed)
    split = split_color(placed.phrase)
    if split is None or len(colors) < 2:
        return None
    if placed.phrase in load_shapes():
        color = list(COLORS)[int(rng.integers(len(COLORS)))]
        # None instead of another draw, as in `draw_name`.
        return color if color in colors and color != split[0] else None
    others = [color for color in colors if color != split[0]]
    return others[int(rng.integers(len(others)))]


@functools.cache
def _list_colors(kind: str, slice_name: str, base: str) -> tuple[str, ...]:
    names = {cutout.name for cutout in list_shapes(slice_name)}
    if base not in SHAPES:
        names = {concept[0].name for family in _load_pool(kind, slice_name).families for concept in family}
    colors = [split_color(name) for name in sorted(names)]
    return tuple(split[0] for split in colors if split and split[1] == base)


def list_colors(kind: str, placed: SceneObject) -> tuple[str, ...]:
    """List the colors in which scenes of `kind` may show the thing of `placed`; () if its name has no color."""
    split = split_color(placed.phrase)
    return _list_colors(kind, placed.slice, split[1]) if split else ()


def says_nothing(name: str) -> bool:
    """Whether a name fits too many images to be false of one: "man", "adult"."""
    return singular_words(name) <= PEOPLE_WORDS | VARIANT_WORDS


@functools.cache
def _collect_shown(held_out: bool) -> frozenset[str]:
    images = grounds.HELD_OUT_PHOTOGRAPHS if held_out else grounds.TRAINING_PHOTOGRAPHS
    return frozenset().union(*(image.shows for image in images))


def list_shown_words(scene: Scene) -> frozenset[str]:
    """Return words for things that the ground of a scene, or a patch of another ground, may show."""
    by_ground = {image.name: image.shows for image in (*grounds.TRAINING_PHOTOGRAPHS, *grounds.HELD_OUT_PHOTOGRAPHS)}
    on_ground = by_ground.get(scene.ground, frozenset())
    # Which ground a patch is from is not recorded, so it may show whatever any ground of its pool shows.
    has_patch = any(placed.kind == "distractor" and not placed.cutout for placed in scene.objects)
    return on_ground | _collect_shown(scene.ground in list_ground_names(held_out=True)) if has_patch else on_ground
