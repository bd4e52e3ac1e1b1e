"""Draw scenes: cut-outs on a ground, with exact boxes, masks, relations, counts and captions.

`draw_scene` is a pure function of (seed, split, index, size): equal arguments give equal pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from foveate.core.errors import UserError, choose
from foveate.core.seeds import generator
from foveate.records.boxes import Box, PixelBox
from foveate.records.builtin.families import head_noun, names_a_side
from foveate.records.record import Caption
from foveate.records.shapes import mask_bounds
from foveate.records.text import singular, split_words
from foveate_labs.worlds.builtin import SEEN, UNSEEN, UNSEEN_KIND, Cutout
from foveate_labs.worlds.scenes import language, pools
from foveate_labs.worlds.scenes.compose import Finish, Layer, compose, make_layer
from foveate_labs.worlds.scenes.grounds import Ground, draw_ground
from foveate_labs.worlds.scenes.language import Relation, Thing, relate

# Generate noisy alt-texts, modeled on the real titles of Open Clip Art.
#
# Measured on the 6,841 public-domain images of Debian's openclipart 0.18:
#   58 % carry a title that names a batch ("gramastar", "Part of the Flat Icon Collection ...", "Various Cliparts").
# The 2,880 whose title is their own:
#   41 % are one word; 32 % have no capital letter; 21 % are file names or numbered ("arrow-right-purple", "horse#1",
#   "48_ports_switch"); 14 % are Italian or French; 3 % name the author ("Clipart by Nicu Buculei - bee");
#   a few are wrong (an apple titled "... - pear"); all have keywords, 3.8 on average, often a folder ("food") or a
#   leak of the tool that wrote them ("hash", in 7 %); 37 % have a description, in 6 % of titles an address or a hash.
#
# Scenes use these rates with two exceptions: batch titles are rarer (8 %), since a few thousand scenes would teach
# little
# otherwise, and half of the plain titles name more than one thing, since a scene has more than one.


RATES = {
    "partial": 0.28,  # one thing, mostly the largest; sometimes a single word of its name
    "list": 0.20,  # most things, in any order
    "keywords": 0.15,
    "file name": 0.15,
    "other language": 0.10,
    "batch": 0.08,
    "credit": 0.03,
    "wrong": 0.01,
}
_CREATORS = ("Anna B.", "j.miller", "Tomas K", "studio_nine", "M. Rossi", "pixelfarm", "Lena", "open desk")
_BATCHES = (
    "Various Cliparts",
    "scene collection",
    "Part of the Scene Collection (Wed Aug 25 23:29:46 2004)",
    "untitled",
    "new drawing",
    "my pictures",
    "card",
)
_FOLDER_WORDS = ("hash", "unsorted", "clipart", "color", "image", "cartoon", "symbol", "misc")
_WRONG = ("pear", "logo", "portrait", "map of Europe", "old house", "flag", "blue button", "sunset", "lamp")
_FRAMES = (
    "disegno di {}",
    "{} con altre cose",
    "dessin {}",
    "image de {}",
    "dibujo de {}",
    "{} y otras cosas",
    "Bild mit {}",
)
# Italian, French, Spanish, German for words that many names end in.
_TRANSLATED = {
    "apple": "mela pomme manzana Apfel",
    "ball": "palla ballon pelota Ball",
    "bird": "uccello oiseau pájaro Vogel",
    "boat": "barca bateau barco Boot",
    "book": "libro livre libro Buch",
    "bottle": "bottiglia bouteille botella Flasche",
    "bus": "autobus autobus autobús Bus",
    "cake": "torta gâteau pastel Kuchen",
    "car": "macchina voiture coche Auto",
    "cat": "gatto chat gato Katze",
    "chair": "sedia chaise silla Stuhl",
    "clock": "orologio horloge reloj Uhr",
    "cup": "tazza tasse taza Tasse",
    "dog": "cane chien perro Hund",
    "egg": "uovo oeuf huevo Ei",
    "eye": "occhio oeil ojo Auge",
    "face": "faccia visage cara Gesicht",
    "fish": "pesce poisson pez Fisch",
    "flower": "fiore fleur flor Blume",
    "glass": "bicchiere verre vaso Glas",
    "guitar": "chitarra guitare guitarra Gitarre",
    "hammer": "martello marteau martillo Hammer",
    "hand": "mano main mano Hand",
    "hat": "cappello chapeau sombrero Hut",
    "heart": "cuore coeur corazón Herz",
    "horse": "cavallo cheval caballo Pferd",
    "house": "casa maison casa Haus",
    "key": "chiave clé llave Schlüssel",
    "knife": "coltello couteau cuchillo Messer",
    "leaf": "foglia feuille hoja Blatt",
    "man": "uomo homme hombre Mann",
    "monkey": "scimmia singe mono Affe",
    "moon": "luna lune luna Mond",
    "mountain": "montagna montagne montaña Berg",
    "mouse": "topo souris ratón Maus",
    "pen": "penna stylo pluma Stift",
    "pig": "maiale cochon cerdo Schwein",
    "rabbit": "coniglio lapin conejo Hase",
    "ring": "anello bague anillo Ring",
    "shoe": "scarpa chaussure zapato Schuh",
    "star": "stella étoile estrella Stern",
    "sun": "sole soleil sol Sonne",
    "train": "treno train tren Zug",
    "tree": "albero arbre árbol Baum",
    "umbrella": "ombrello parapluie paraguas Schirm",
    "woman": "donna femme mujer Frau",
}


@dataclass(frozen=True)
class AltText:
    """A text and the kind of noise it has, a key of RATES."""

    text: str
    kind: str


def draw_alt_text(rng: np.random.Generator, things: Sequence[Thing], ground: str) -> AltText:
    """Draw a noisy text about `things` (at least one), with the kinds and rates of RATES."""
    kind = list(RATES)[rng.choice(len(RATES), p=list(RATES.values()))]
    # With noise on the sizes: people mostly name the largest thing, not always.
    ordered = sorted(things, key=lambda thing: -thing.size * rng.uniform(0.5, 1.5))
    main = ordered[0].phrase
    phrases = [thing.phrase for thing in ordered]
    text = _WRITERS[kind](rng, main, phrases, ground)
    # The other kinds have a case of their own, such as IMG_0042.
    return AltText(_vary_case(rng, text) if kind in ("partial", "list", "wrong") else text, kind)


def _choose(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _vary_case(rng: np.random.Generator, text: str) -> str:
    style = rng.random()
    # A third stays without a capital letter, as 32 % of the real titles.
    return text if style < 0.33 else text.title() if style < 0.6 else text[:1].upper() + text[1:]


def _partial(rng: np.random.Generator, main: str, phrases: Sequence[str], ground: str) -> str:
    text = head_noun(main) if rng.random() < 0.2 else main
    return f"{text} on {ground}" if rng.random() < 0.1 else text


def _list(rng: np.random.Generator, main: str, phrases: Sequence[str], ground: str) -> str:
    listed = list(phrases) if rng.random() < 0.6 else list(phrases[: max(1, len(phrases) - 1)])
    joint = (", ", " and ", " & ", " - ")[rng.choice(4, p=(0.5, 0.35, 0.08, 0.07))]
    return joint.join(listed)


def _keywords(rng: np.random.Generator, main: str, phrases: Sequence[str], ground: str) -> str:
    keywords = [head_noun(phrase) if rng.random() < 0.4 else phrase for phrase in phrases[: int(rng.integers(1, 4))]]
    keywords += [_choose(rng, _FOLDER_WORDS) for _ in range(rng.integers(1, 3))]
    return ", ".join(keywords[index] for index in rng.permutation(len(keywords)))


def _file_name(rng: np.random.Generator, main: str, phrases: Sequence[str], ground: str) -> str:
    number = int(rng.integers(1, 1000))
    if rng.random() < 0.3:
        return f"{_choose(rng, ('img', 'IMG', 'scan', 'picture', 'DSC'))}_{number:04d}.{_choose(rng, ('png', 'jpg'))}"
    joined = _choose(rng, ("_", "-")).join(main.replace("'", "").replace(":", "").replace(",", "").split())
    return joined + _choose(rng, ("", f"_{number % 10:02d}", f"#{number}", ".png", f"{number % 5}", "_bw"))


def _other_language(rng: np.random.Generator, main: str, phrases: Sequence[str], ground: str) -> str:
    for phrase in phrases:
        if head_noun(phrase) in _TRANSLATED:
            return _choose(rng, _TRANSLATED[head_noun(phrase)].split())
    # For names without a translation: words of another language around the English name.
    return _choose(rng, _FRAMES).format(main)


def _batch(rng: np.random.Generator, main: str, phrases: Sequence[str], ground: str) -> str:
    return _choose(rng, _BATCHES)


def _credit(rng: np.random.Generator, main: str, phrases: Sequence[str], ground: str) -> str:
    return f"Clipart by {_choose(rng, _CREATORS)} - {main}"


def _wrong(rng: np.random.Generator, main: str, phrases: Sequence[str], ground: str) -> str:
    return _choose(rng, _WRONG)


_WRITERS = {
    "partial": _partial,
    "list": _list,
    "keywords": _keywords,
    "file name": _file_name,
    "other language": _other_language,
    "batch": _batch,
    "credit": _credit,
    "wrong": _wrong,
}


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
class ScenePlan:
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
) -> ScenePlan:
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
    return ScenePlan(
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


def render(plan: ScenePlan, rng: np.random.Generator) -> Scene:
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
    alt = draw_alt_text(rng, things or [language.Thing(phrase, 1.0) for phrase in counts], plan.ground.description)
    captions = (Caption(exact, "exact", "scenes"), Caption(alt.text, "alt", f"scenes: {alt.kind}"))
    return Scene(image, tuple(objects), relations, dict(counts), captions, plan.ground.name, plan.ground.kind)


def _object(plan: ScenePlan, number: int, owners_HW: NDArray[np.int8]) -> SceneObject:
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
