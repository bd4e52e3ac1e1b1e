"""Draw scenes: cut-outs on a ground, with exact boxes, masks, relations, counts and captions.

`draw_scene` is a pure function of (seed, split, index, size): equal arguments give equal pixels.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from foveate.core.errors import UserError, choose
from foveate.core.seeds import generator
from foveate.records.boxes import Box, PixelBox
from foveate.records.builtin.phrases import names_a_side, singular
from foveate.records.masks import mask_bounds
from foveate.records.record import Caption
from foveate.records.text import split_words
from foveate_labs.worlds.builtin.concepts import SEEN, UNSEEN, UNSEEN_KIND
from foveate_labs.worlds.builtin.cutouts import Cutout
from foveate_labs.worlds.scenes import alt_text, language, pools
from foveate_labs.worlds.scenes.compose import Finish, Layer, compose, make_layer
from foveate_labs.worlds.scenes.grounds import Ground, draw_ground
from foveate_labs.worlds.scenes.relations import Relation, relate

UNSEEN_SHARE = 0.18  # of the objects of a test scene, and as many of unseen kinds
_MAX_THINGS = 5  # of different families in a scene
VISIBLE = 0.5  # objects with a smaller visible fraction are left out of the regions
_LONGEST = (0.18, 0.52)  # longest side of an object, as a fraction of the scene
_SMALL = (0.02, 0.06)  # of a small object
_SMALL_SHARE = 0.7  # of the things of a scene with small ones
_MIN_LABELED = 0.06  # shortest side of a region, as a fraction of the scene
_MIN_PIXELS = 6  # and of a small one
_MAX_SCALE = 1.7  # of a cut-out; more shows its pixels
_REPEATED, _ON_TOP, _TEXT = 0.07, 0.12, 0.08
_SIGN_WORDS = "open sale hello exit market menu stop hotel fresh today welcome music coffee 2024 42 50%".split()


@dataclass(frozen=True)
class SceneObject:
    """A placed object.

    Args:
        kind: "thing" (a named cut-out), "distractor" (unnamed) or "text" (drawn words).
        box: of the visible pixels; None if nothing is visible.
        mask_HW: the visible pixels.
        visible: their fraction of all its pixels, including those outside of the image.
        labeled: whether it is a region of the scene.
    """

    kind: str
    phrase: str
    concept: str
    slice: str
    cutout: str
    box: Box | None
    mask_HW: NDArray[np.bool_]
    visible: float
    labeled: bool


@dataclass(frozen=True)
class Scene:
    """A drawn scene: `objects` from bottom to top; `relations` refer to positions among `regions`.

    Args:
        kind: "things" (of `draw_scene`) or "counting" (of `draw_counting_scene`, where every number of copies from one
            to six is as likely).
    """

    image: Image.Image
    objects: tuple[SceneObject, ...]
    relations: tuple[Relation, ...]
    counts: dict[str, int]
    captions: tuple[Caption, ...]
    ground: str
    ground_kind: str
    kind: str = "things"

    @property
    def regions(self) -> tuple[SceneObject, ...]:
        return tuple(placed for placed in self.objects if placed.labeled)


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before composing; `cutouts[i]` and `texts[i]` belong to `layers[i]`.

    Args:
        min_side: shortest side of a region, as a fraction of the scene.
    """

    ground: Ground
    layers: tuple[Layer, ...]
    cutouts: tuple[Cutout | None, ...]
    texts: tuple[str, ...]
    finish: Finish
    min_side: float = _MIN_LABELED


def draw_scene(
    *, seed: int, split: str, index: int, size: int = 224, small: bool = False, names: frozenset[str] | None = None
) -> Scene:
    """Draw scene number `index` of a split.

    Training and validation scenes have seen concepts on training grounds; test scenes have concepts of all three slices
    on held-out grounds. At least one region is labeled.

    Args:
        seed: seed of the series.
        split: "train", "validation" or "test".
        size: side in pixels, at least 96.
        small: most things have 2 to 6 % of the side, which needs at least 448 pixels. Other scenes are unchanged.
        names: of the things that may be placed, all of them seen ones; None = all.

    Raises:
        UserError: the split or a name is unknown, fewer than ten families have these names, or the size is below 96,
            or 448 for small things.
    """
    choose(split, pools.SPLITS, "split")
    smallest = 448 if small else 96
    if size < smallest:
        kind = "scenes with small things" if small else "scenes"
        raise UserError(f"size: {kind} must be at least {smallest} pixels wide (got {size})")
    pool = None if names is None else pools.load_named_pool(names)
    # A scene has up to five things of different families, none of which its ground shows.
    if pool is not None and len(pool.families) < 2 * _MAX_THINGS:
        raise UserError(f"names: too few families (got {len(pool.families)}); expected at least {2 * _MAX_THINGS}")
    for attempt in range(100):
        # A stream of its own, so that scenes without small things stay as they are.
        rng = generator("small scene" if small else "scene", seed, split, index, attempt)
        scene = render(plan_scene(rng, split=split, size=size, small=small, pool=pool), rng)
        if scene.regions:
            return scene
    raise AssertionError("a hundred scenes without a visible object")


def plan_scene(
    rng: np.random.Generator, *, split: str, size: int, small: bool = False, pool: pools.Pool | None = None
) -> Plan:
    """Choose the ground, the objects and their positions; see `draw_scene`."""
    ground = draw_ground(rng, size=size, held_out=split == "test")
    members: list[tuple[Layer, Cutout | None, str]] = []
    things = _choose_things(rng, split, ground, pool)
    named = frozenset(singular(word) for cutout in things for word in split_words(cutout.name, style="letters"))
    for cutout in things:
        longest = _SMALL if small and rng.random() < _SMALL_SHARE else _LONGEST
        members.append((make_cutout_layer(rng, cutout, size, longest=longest), cutout, ""))
    distractors = pools.load_distractors(split)
    for _ in range(rng.choice(3, p=(0.45, 0.37, 0.18))):
        if rng.random() < 0.4:
            distractor = distractors[rng.integers(len(distractors))]
            members.append((make_cutout_layer(rng, distractor, size), distractor, ""))
        else:
            members.append((make_patch_layer(rng, size, held_out=split == "test", named=named), None, ""))
    if rng.random() < _TEXT:
        word = _SIGN_WORDS[rng.integers(len(_SIGN_WORDS))]
        members.append((_text_layer(rng, word, size), None, word))
    # Large objects lie below, so that small ones stay visible.
    members.sort(key=lambda member: -member[0].solid_hw.sum() * rng.uniform(0.6, 1.6))
    layers = _place_layers(rng, [layer for layer, _, _ in members], size)
    return Plan(
        ground,
        tuple(layers),
        tuple(c for _, c, _ in members),
        tuple(t for _, _, t in members),
        Finish.draw(rng),
        min_side=_MIN_PIXELS / size if small else _MIN_LABELED,
    )


def _choose_things(rng: np.random.Generator, split: str, ground: Ground, pool: pools.Pool | None) -> list[Cutout]:
    """Choose two to five named cut-outs of different families; sometimes one of them twice."""
    count, things = int(rng.integers(2, _MAX_THINGS + 1)), []
    while len(things) < count:
        if pool is None:
            slice_name = draw_slice(rng) if split == "test" else SEEN
            cutout = pools.load_pool(slice_name).draw(rng)
        else:
            cutout = pool.draw(rng)
        # A ground that shows the same thing would hold an unlabeled copy of it.
        on_ground = {singular(word) for word in split_words(cutout.name, style="letters")} & ground.shows
        if not on_ground and all(cutout.family != other.family for other in things):
            things.append(cutout)
    if count < _MAX_THINGS and rng.random() < _REPEATED:
        things.append(things[rng.integers(count)])
    return things


def draw_slice(rng: np.random.Generator) -> str:
    """Draw the slice of an object of a test scene."""
    share = rng.random()
    return UNSEEN if share < UNSEEN_SHARE else UNSEEN_KIND if share < 2 * UNSEEN_SHARE else SEEN


def make_cutout_layer(
    rng: np.random.Generator, cutout: Cutout, size: int, *, longest: tuple[float, float] = _LONGEST
) -> Layer:
    """Make a layer of a cut-out whose longest side is drawn from `longest`, as fractions of the scene."""
    low, high = (np.log(share * size) for share in longest)
    # Drawn log-uniformly, so that doubling the size is as likely at the small end as at the large one.
    # The bound on enlarging grows with the scene, so that sizes as fractions do not depend on its size.
    side = min(float(np.exp(rng.uniform(low, high))), _MAX_SCALE * max(cutout.width, cutout.height) * size / 224)
    flip = rng.random() < 0.5 and not names_a_side(cutout.name)
    return make_layer(rng, cutout.image(), longest=side, flip=flip, turn=float(rng.normal(0, 6)))


def make_patch_layer(rng: np.random.Generator, size: int, *, held_out: bool, named: frozenset[str]) -> Layer:
    """Cut a piece of another ground with a random outline: a pasted edge without a thing inside.

    Args:
        named: words of the named things of this scene; the piece must not show one.
    """
    side = int(size * rng.uniform(0.15, 0.4))
    ground = draw_ground(rng, size=side, held_out=held_out)
    while ground.shows & named:
        ground = draw_ground(rng, size=side, held_out=held_out)
    outline = Image.new("L", (side, side))
    pen = ImageDraw.Draw(outline)
    edge = side // 16
    shape = rng.integers(3)
    if shape == 0:
        pen.ellipse((edge, side * rng.uniform(0, 0.25), side - edge, side - edge), fill=255)
    elif shape == 1:
        box = (edge, side * rng.uniform(0, 0.3), side - edge, side - edge)
        pen.rounded_rectangle(box, radius=side * rng.uniform(0, 0.2), fill=255)
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(5, 10))))
        reach = side / 2 * rng.uniform(0.5, 0.98, len(angles))
        corners = np.stack([side / 2 + reach * np.cos(angles), side / 2 + reach * np.sin(angles)], -1)
        pen.polygon([(float(x), float(y)) for x, y in corners], fill=255)
    image = Image.fromarray(ground.pixels_HW3.astype(np.uint8)).convert("RGBA")
    image.putalpha(outline.filter(ImageFilter.GaussianBlur(0.6)))
    return make_layer(rng, image, longest=float(side), flip=False, turn=float(rng.normal(0, 6)))


def _text_layer(rng: np.random.Generator, word: str, size: int) -> Layer:
    font = ImageFont.load_default(size=int(size * rng.uniform(0.08, 0.16)))
    left, top, right, bottom = (int(edge) for edge in font.getbbox(word))
    image = Image.new("RGBA", (right - left + 8, bottom - top + 8))
    color = tuple(int(level) for level in rng.integers(0, 2) * 200 + rng.integers(0, 56, 3))
    ImageDraw.Draw(image).text((4 - left, 4 - top), word, font=font, fill=(*color, 255))
    return make_layer(rng, image, longest=float(max(image.size)), flip=False, turn=float(rng.normal(0, 4)))


def _place_layers(rng: np.random.Generator, layers: list[Layer], size: int) -> list[Layer]:
    """Position layers mostly free of each other, sometimes on top of one or slightly over the edge."""
    placed: list[Layer] = []
    for layer in layers:
        height, width = layer.rgba_hw4.shape[:2]
        allowed = 0.8 if rng.random() < _ON_TOP else 0.28
        hang = 0.1 if rng.random() < 0.3 else 0.0
        best: tuple[float, Layer] | None = None
        # The first of 24 positions that is free enough, else the least covered one.
        for across, down in rng.random((24, 2)):
            left = round(-hang * width + across * (size - width * (1 - 2 * hang)))
            top = round(-hang * height + down * (size - height * (1 - 2 * hang)))
            candidate = layer.at(left, top)
            covered = max((_compute_overlap(candidate, other) for other in placed), default=0.0)
            if best is None or covered < best[0]:
                best = covered, candidate
            if covered <= allowed:
                best = covered, candidate
                break
        assert best is not None
        placed.append(best[1])
    return placed


def _compute_overlap(a: Layer, b: Layer) -> float:
    """Return the intersection of two rectangles as a fraction of the smaller."""
    (ah, aw), (bh, bw) = a.rgba_hw4.shape[:2], b.rgba_hw4.shape[:2]
    width = min(a.left + aw, b.left + bw) - max(a.left, b.left)
    height = min(a.top + ah, b.top + bh) - max(a.top, b.top)
    return max(width, 0) * max(height, 0) / min(ah * aw, bh * bw)


def render(plan: Plan, rng: np.random.Generator) -> Scene:
    """Compose a plan and measure boxes and masks on the visible pixels; `rng` varies the captions."""
    image, owners_HW = compose(plan.ground.pixels_HW3, list(plan.layers), plan.finish)
    objects = [_object(plan, number, owners_HW) for number in range(len(plan.layers))]
    counts = Counter(placed.phrase for placed in objects if placed.kind == "thing" and placed.visible >= VISIBLE)
    # "Where is the cat?" has no answer if there are two: repeated things stay in the image without a label.
    objects = [replace(p, labeled=p.labeled and counts[p.phrase] == 1) for p in objects]
    regions = [placed for placed in objects if placed.labeled]
    relations = relate([placed.box for placed in regions if placed.box])
    text = next((p.phrase for p in objects if p.kind == "text" and p.visible > 0.9), "")
    things = [language.Thing(p.phrase, float(p.mask_HW.sum())) for p in regions]
    exact = language.exact_caption(counts, relations, things, plan.ground.description, text)
    alt = alt_text.draw_alt_text(
        rng, things or [language.Thing(phrase, 1.0) for phrase in counts], plan.ground.description
    )
    captions = (Caption(exact, "exact", "scenes"), Caption(alt.text, "alt", f"scenes: {alt.kind}"))
    return Scene(image, tuple(objects), relations, dict(counts), captions, plan.ground.name, plan.ground.kind)


def _object(plan: Plan, number: int, owners_HW: NDArray[np.int8]) -> SceneObject:
    cutout, text = plan.cutouts[number], plan.texts[number]
    mask_HW = owners_HW == number
    bounds = mask_bounds(mask_HW)
    size = len(owners_HW)
    box = Box.from_pixels(PixelBox(*bounds), size, size) if bounds else None
    visible = float(mask_HW.sum() / max(1, plan.layers[number].solid_hw.sum()))
    thing = cutout is not None and cutout.name != ""
    kind = "text" if text else "thing" if thing else "distractor"
    large_enough = bounds is not None and min(bounds[2] - bounds[0], bounds[3] - bounds[1]) >= size * plan.min_side
    return SceneObject(
        kind=kind,
        phrase=text or (cutout.name if cutout else ""),
        concept=cutout.concept if cutout else "",
        slice=cutout.slice if cutout and thing else "",
        cutout=cutout.id if cutout else "",
        box=box,
        mask_HW=mask_HW,
        visible=visible,
        labeled=thing and large_enough and visible >= VISIBLE,
    )
