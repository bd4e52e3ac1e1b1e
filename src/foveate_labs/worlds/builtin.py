"""Drawings that ship inside the package: concepts, cut-outs, single objects, glyphs, and who may train on them."""

from __future__ import annotations

import functools
import importlib.util
import io
import string
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from foveate.core.errors import UserError, choose
from foveate.core.progress import track
from foveate.core.seeds import generator, uniform
from foveate.records.builtin import families
from foveate.records.builtin.families import EMPTY_HEADS, PEOPLE_WORDS, VARIANT_WORDS, own_words
from foveate.records.record import Caption
from foveate.records.text import split_words
from foveate.records.writer import CollectionWriter

# Slices of concepts: what training may know, decided once per concept, never per image.
#
# Three slices are reported separately (see `families` for things and families):
#
# seen: its images and its name are in training.
# unseen: neither an image nor the name of this thing is in training, in no variant and no style; but another thing of
#     its family is: cocktail glasses are trained on, and wine glasses are tested. This is the "novel" of benchmarks
#     with
#     novel classes.
# unseen kind: nothing of its whole family is in training; no training text has its head noun. Only uninformative heads
#     ("face", "hand", "sign", ...) are shared; there the other words distinguish the kinds.
#
# Families and things are drawn by `core.seeds.uniform("builtin concepts" or "builtin things", SEED, name)`: pure
# functions of the name, the same on every machine and in every version that keeps SEED and the shipped tables. A few
# families are never an unseen kind: those whose head noun is in the texts of more than EVERYWHERE clip art images
# ("flag", "flower", "tool"), since holding them out would hold out a third of the clip art, and those whose head noun
# is
# in the descriptions of scene grounds. A thing whose own words are part of the name of another ("glass") is never held
# out: hiding its name would hide its relatives.


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
    for row in families.rows("clipart"):
        texts = " ".join([row["title"], *row["keywords"], row["description"]])
        uses.update({families.singular(word) for word in split_words(texts, style="letters")})
    return uses


@functools.cache
def _unseen_kinds() -> frozenset[str]:
    """Return names of the families of which nothing is in training."""
    family_of = families.load_families()
    heads = {concept: families.head_noun(concept) for concept in family_of}
    everywhere = {family_of[c] for c, head in heads.items() if _uses()[head] > EVERYWHERE or head in _IN_SCENES}
    drawn = {f for f in family_of.values() if uniform("builtin concepts", SEED, f) < UNSEEN_KIND_SHARE}
    return frozenset(drawn - everywhere)


def _heads(*, unseen_kinds: bool) -> frozenset[str]:
    """Return head nouns of the concepts of unseen kinds, or of all others."""
    families_of_concepts = families.load_families().items()
    return frozenset(
        families.head_noun(c) for c, family in families_of_concepts if (family in _unseen_kinds()) == unseen_kinds
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
    drawn_twice = {families.load_things()[families.concept_of_emoji(row)] for row in families.rows("emoji")}
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
    text_words = {families.singular(word) for word in split_words(text, style="letters")}
    return any(name <= text_words for word in text_words for name in _hidden_names().get(word, ()))


def names_unseen_kind(text: str) -> bool:
    """Whether a text has a word that names an unseen kind."""
    return any(families.singular(word) in unseen_words() for word in split_words(text, style="letters"))


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


# The shipped images with transparency (cut-outs), each with the phrase that names it.


UNNAMED = ""


@dataclass(frozen=True)
class Cutout:
    """An image with alpha and its metadata.

    name: the phrase that says what it shows, or "" if its title says nothing that a reader would say.
    concept, thing, family: what is split into seen and unseen (see `concepts`); "" where there is no name.
    slice: "seen", "unseen", "unseen kind", "withheld", or "unnamed".
    source: "emoji" or "clipart"; style: "noto", "twemoji" or "clipart".
    covered: share of its pixels that are more than half opaque.
    """

    id: str
    name: str
    concept: str
    thing: str
    family: str
    slice: str
    category: str
    subcategory: str
    source: str
    style: str
    width: int
    height: int
    covered: float
    data: bytes = field(repr=False)

    def image(self) -> Image.Image:
        """Return the RGBA image, decoded once per process; do not change it in place."""
        return _decode(self.data)


# More than there are cut-outs, so none is decoded twice.
@functools.lru_cache(maxsize=8192)
def _decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGBA")


@functools.cache
def load_cutouts() -> tuple[Cutout, ...]:
    """Return all cut-outs, emoji first, in the order of the shipped tables; images are decoded lazily."""
    cutouts = []
    for row in families.rows("emoji"):
        cutouts.append(_cutout(row, families.concept_of_emoji(row), source="emoji", style=row["style"]))
    named = families.clipart_phrases()
    for row in families.rows("clipart"):
        cutouts.append(_cutout(row, named.get(row["key"], UNNAMED), source="clipart", style="clipart"))
    return tuple(cutouts)


def _cutout(row: dict, name: str, *, source: str, style: str) -> Cutout:
    return Cutout(
        id=row["key"],
        name=name,
        concept=name,
        thing=families.load_things()[name] if name else "",
        family=families.load_families()[name] if name else "",
        slice=concept_slice(name) if name else "unnamed",
        category=row["category"],
        subcategory=row["subcategory"],
        source=source,
        style=style,
        width=row["width"],
        height=row["height"],
        covered=row["covered"],
        data=row["image"],
    )


# Split the shipped single images into training and test.
#
# Emoji: by concept, both styles together; a concept is in the test part unless it is seen and its short names name
# nothing unseen. Clip art: by group of near-duplicates (equal titles apart from case and digits, or nearly equal
# images); a group is in the test part if one of its texts names something unseen, and so is a share of the other
# groups.


TRAIN, TEST = "train", "test"
CLIPART_TEST_SHARE = 0.03


@functools.cache
def clipart_groups() -> dict[str, str]:
    """Return {key of a clip art image: name of its group}, which is the first key of the group in the table."""
    return {row["key"]: row["group"] for row in families.rows("clipart")}


@functools.cache
def _splits() -> dict[str, str]:
    splits = {}
    for row in families.rows("emoji"):
        seen = concept_slice(families.concept_of_emoji(row)) == SEEN
        seen = seen and not any(mentions_unseen(name) for name in row["short_names"])
        splits[row["key"]] = TRAIN if seen else TEST
    groups, named = clipart_groups(), families.clipart_phrases()
    tested = set()
    for row in families.rows("clipart"):
        texts = " ".join([row["title"], *row["keywords"], row["description"]])
        phrase = named.get(row["key"])
        held = phrase is not None and concept_slice(phrase) != SEEN
        if held or mentions_unseen(texts):
            tested.add(groups[row["key"]])
    for key, group in groups.items():
        drawn = uniform("clipart test", SEED, group) < CLIPART_TEST_SHARE
        splits[key] = TEST if drawn or group in tested else TRAIN
    return splits


def assign_split(key: str) -> str:
    """Return "train" or "test" for a key of the shipped tables."""
    return _splits()[key]


# The collections `clipart` and `emoji`: the shipped images one by one, with the texts they came with.


LICENSES = {
    "clipart": "Open Clip Art, public domain",
    "emoji": "Noto Emoji Apache-2.0; Twemoji CC-BY-4.0 (Twitter, Inc. and other contributors)",
}
_FILLED = 0.8  # of the image's side
_ENLARGED = 1.8  # at most; more shows the pixels of small cut-outs


@dataclass(frozen=True)
class Single:
    """One image with its texts, ready for `CollectionWriter.add`."""

    key: str
    data: bytes
    captions: tuple[Caption, ...]
    labels: Mapping[str, str]
    group: str
    split: str


def build_clipart(target: Path, *, size: int = 160) -> None:
    """Write the 2,840 clip art images into the collection at `target`; images already in it are kept.

    Captions of kind "title", "keywords" (joined by ", ") and "description" are those of the source, unchanged.
    Labels: source, category, subcategory, style, and concept and slice where the title names a thing.
    Images stand on white, `size` pixels square, as JPEG.
    """
    _build(target, "clipart", size)


def build_emoji(target: Path, *, size: int = 160) -> None:
    """Write 1,412 concepts in two styles into the collection at `target`; images already in it are kept.

    Captions: "title" (the concept's name in lower case), "keywords" (short names). Labels: source, category,
    subcategory, style ("noto", "twemoji"), concept, slice. Images stand on a pale plain color, the other half
    on white, `size` pixels square, as JPEG.
    """
    _build(target, "emoji", size)


def _build(target: Path, source: str, size: int) -> None:
    with CollectionWriter(target, license=LICENSES[source], source=source) as writer:
        for single in track(
            load_single_objects(source, size=size), description=source, total=len(families.rows(source))
        ):
            writer.add(
                single.key,
                single.data,
                captions=single.captions,
                labels=single.labels,
                group=single.group,
                split=single.split,
            )


def load_single_objects(source: str, *, size: int = 160, keys: Set[str] | None = None) -> Iterator[Single]:
    """Yield all singles of "clipart" or "emoji", or those of some keys, in the order of the shipped table."""
    cutouts = _cutouts_by_id()
    for row in families.rows(source):
        if keys is not None and row["key"] not in keys:
            continue
        cutout = cutouts[row["key"]]
        captions = _emoji_captions(row) if source == "emoji" else _clipart_captions(row)
        labels = {"source": source, "category": row["category"], "subcategory": row["subcategory"]}
        labels |= {"style": cutout.style, "license": row["license"]}
        if cutout.concept:
            labels |= {"concept": cutout.concept, "slice": cutout.slice}
        # By thing, so that splits drawn by group keep both styles and all variants of an emoji together.
        group = f"emoji {cutout.thing}" if source == "emoji" else clipart_groups()[cutout.id]
        image = jpeg(render_alone(cutout, size=size))
        yield Single(cutout.id, image, captions, labels, group, assign_split(cutout.id))


@functools.cache
def _cutouts_by_id() -> dict[str, Cutout]:
    return {cutout.id: cutout for cutout in load_cutouts()}


def _clipart_captions(row: Mapping[str, Any]) -> tuple[Caption, ...]:
    texts = (
        ("title", row["title"]),
        ("keywords", ", ".join(filter(None, row["keywords"]))),
        ("description", row["description"]),
    )
    source = f"Open Clip Art, {row['package']}"
    return tuple(Caption(text, kind, source) for kind, text in texts if text)


def _emoji_captions(row: Mapping[str, Any]) -> tuple[Caption, ...]:
    names = ", ".join(name.replace("_", " ").replace("-", " ") for name in row["short_names"])
    title = families.concept_of_emoji(row)
    return Caption(title, "title", row["package"]), Caption(names, "keywords", row["package"])


def render_alone(cutout: Cutout, *, size: int) -> Image.Image:
    """Render a cut-out centered on a square, RGB: clip art on white, half of the emoji on a pale plain color."""
    color = (255, 255, 255)
    rng = generator("single", cutout.id)
    if cutout.source == "emoji" and rng.random() < 0.5:
        red, green, blue = (int(level) for level in rng.integers(190, 251, 3))
        color = (red, green, blue)
    image = cutout.image()
    scale = min(_FILLED * size / max(image.size), _ENLARGED)
    width, height = (max(1, round(side * scale)) for side in image.size)
    # Premultiplied before resizing: the color of transparent pixels would bleed into the edge.
    enlarged = image.convert("RGBa").resize((width, height), Image.Resampling.BICUBIC).convert("RGBA")
    ground = Image.new("RGB", (size, size), color)
    ground.paste(enlarged, ((size - width) // 2, (size - height) // 2), enlarged)
    return ground


def jpeg(image: Image.Image, *, exif: bytes = b"") -> bytes:
    """Encode as JPEG of quality 90, deterministic for one version of Pillow."""
    target = io.BytesIO()
    image.save(target, "JPEG", quality=90, exif=exif)
    return target.getvalue()


# The 36-glyph world: 0-9 and A-Z in five clean fonts and in five other, disturbed ones; drawn from a seed.
#
# A demonstration without downloads of a model that meets other data than it was trained on. The fonts are those that
# matplotlib ships (DejaVu, STIX, Computer Modern); matplotlib itself is not imported. Images are a pure function of
# (style, set, seed, number). Recipe: shared by the studies of calibration and of adaptation, measured in
# docs/studies/calibration.md.


CLASSES = tuple(string.digits + string.ascii_uppercase)
FONTS = {
    "source": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "cmss10"),
    "target": ("STIXGeneral", "STIXGeneralItalic", "STIXGeneralBolIta", "DejaVuSerif-BoldItalic", "cmti10"),
}
SIZE = 24
_CANVAS = 48  # twice the size: halved at the end, which smooths the edges, and with room for rotation

Style = Literal["source", "target"]


@dataclass(frozen=True)
class Glyphs:
    """Images [N, 1, 24, 24] float32, mostly within [-1, 1] and never clipped, and their classes [N]."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


def find_font_folder(folder: Path | None = None) -> Path:
    """Find the folder with the ten font files: `folder`, or that of an installed matplotlib.

    Raises:
        UserError: there is none, or a font is missing.
    """
    if folder is None:
        # Located, not imported: only its files are needed.
        spec = importlib.util.find_spec("matplotlib")
        if spec is None or spec.origin is None:
            raise UserError(
                "glyphs need the fonts that come with matplotlib, which is not installed; run "
                "`pip install 'foveate[glyphs]'`, or pass a folder with its font files"
            )
        folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    missing = [name for fonts in FONTS.values() for name in fonts if not (folder / f"{name}.ttf").is_file()]
    if missing:
        raise UserError(f"{folder}: font file {missing[0]}.ttf is missing ({len(missing)} of 10 are)")
    return folder


def load_glyphs(
    style: Style,
    name: str,
    *,
    per_class: int,
    seed: int = 0,
    classes: NDArray[np.int64] | None = None,
    fonts: Path | None = None,
) -> Glyphs:
    """Draw a set of images, class by class.

    Args:
        style: "source" is clean; "target" has other fonts, two lines across, blur, less contrast and more noise.
        name: name of the set, such as "train"; other names give other images.
        classes: indices into CLASSES; all 36 by default.
        fonts: see `find_font_folder`.

    Raises:
        UserError: the style is unknown, or there are no fonts.
    """
    choose(style, sorted(FONTS), "style of glyphs")
    folder = find_font_folder(fonts)
    class_numbers = np.arange(len(CLASSES)) if classes is None else np.asarray(classes, dtype=np.int64)
    labels = np.repeat(class_numbers, per_class)
    images = np.empty((len(labels), 1, SIZE, SIZE), dtype=np.float32)
    for row, label in enumerate(labels.tolist()):
        # By the number within the class: a larger set, or one of fewer classes, has the same images.
        random = generator("glyphs", style, name, seed, label, row % per_class)
        images[row, 0] = draw_glyph(CLASSES[label], style=style, random=random, folder=folder)
    return Glyphs(images, labels)


def draw_glyph(character: str, *, style: Style, random: np.random.Generator, folder: Path) -> NDArray[np.float32]:
    """Draw one image [24, 24], about -1 (ground) to 1 (ink)."""
    names = FONTS[style]
    font = _font(folder / f"{names[random.integers(len(names))]}.ttf", int(random.integers(28, 36)))
    image = Image.new("L", (_CANVAS, _CANVAS), 0)
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = pen.textbbox((0, 0), character, font=font)
    # By the ink's box, since fonts place a character at different heights.
    pen.text(((_CANVAS - left - right) / 2, (_CANVAS - top - bottom) / 2), character, fill=255, font=font)
    image = image.rotate(random.uniform(-12, 12), Image.Resampling.BILINEAR)
    shear, across, down = random.uniform(-0.15, 0.15), *random.uniform(-2, 2, 2)
    # Sheared around the middle row, so that the character stays inside.
    moved = (1, shear, across - shear * _CANVAS / 2, 0, 1, down)
    image = image.transform(image.size, Image.Transform.AFFINE, moved, Image.Resampling.BILINEAR)
    image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    if style == "source":
        values = np.asarray(image, dtype=np.float32) / 255
        noise = 0.03
    else:
        pen = ImageDraw.Draw(image)
        for _ in range(2):
            ends = [int(end) for end in random.integers(0, SIZE, 4)]
            pen.line(ends, fill=int(random.integers(90, 200)), width=1)
        image = image.filter(ImageFilter.GaussianBlur(0.6))
        values = np.asarray(image, dtype=np.float32) / 255 * np.float32(random.uniform(0.6, 1))
        noise = 0.12
    values = values + noise * random.standard_normal((SIZE, SIZE), dtype=np.float32)
    return (values * 2 - 1).astype(np.float32)


@functools.lru_cache(maxsize=256)
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)
