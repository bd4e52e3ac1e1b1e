"""Data of the study `mllm`: small worlds of few names, which minutes of training suffice for.

Two series of images. Scenes: two to four things on the grounds of `records.scenes`, one in each quarter. Pages: a thing
and a word on paper, of sizes over an octave or three. The first parts of a conversation's id say what is asked, whether
there are two answers, and a part of the questions ("small", "large").
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from foveate.core import seeds
from foveate.language.forbidden_words import INVENTED_WORDS
from foveate.records.boxes import Box, PixelBox
from foveate.records.conversations import Conversation, Turn
from foveate.records.record import Region
from foveate_labs.captions.scene_captions import render as render_caption
from foveate_labs.captions.scene_truth import parse_scene_truth
from foveate_labs.worlds.asked_images import AskedImage, Position, write_asked_images
from foveate_labs.worlds.builtin import SEEN, Cutout, jpeg
from foveate_labs.worlds.questions import PLACES
from foveate_labs.worlds.scenes.compose import Finish, Layer, make_layer
from foveate_labs.worlds.scenes.counting import load_countable
from foveate_labs.worlds.scenes.grounds import draw_ground
from foveate_labs.worlds.scenes.language import NUMERALS
from foveate_labs.worlds.scenes.scene import Scene, ScenePlan, make_cutout_layer, render
from foveate_labs.worlds.scenes.scene_collection import LICENSE, make_scene_row
from foveate_labs.worlds.screens.questions import draw_asked_screen
from foveate_labs.worlds.sheets import find_font_size, load_font

SEED = 16  # of all series
NUM_NAMES = 40
SCENE, PAGE = 224, 256  # longer sides in pixels
_THING, _SIGN = (0.24, 0.46), 0.5  # longest side of a thing, as a share of a scene; share of scenes with a word
# Drawn uniformly in the logarithm, so that SMALL_THING and SMALL_LETTER cut the draws about in half.
_THING_PIXELS, _LETTER_PIXELS = (14.0, 110.0), (5.0, 30.0)  # on pages
# An episode shows two earlier images of each of its names; before this index a name has fewer.
EXAMPLES = 2 * NUM_NAMES  # images of one thing that no episode asks about
SMALL_THING, SMALL_LETTER = 40, 12  # below, a thing or a capital letter of a page is small
_SHAPES = ((PAGE, PAGE), (PAGE, PAGE // 2), (PAGE // 2, PAGE))  # width and height of pages
CAPTION_PROMPTS = {
    "alt": "Write an alt-text.",
    "ssc": "Describe the image in a sentence.",
    "dsc_plus": "Describe the image in detail.",
}


@functools.cache
def load_things() -> tuple[tuple[Cutout, ...], ...]:
    """Return the cut-outs of each name: single words, of different families, with several cut-outs."""
    families = load_countable(SEEN).families
    usable = [c for family in families for c in family[:1] if len(c) > 1 and c[0].name.isalpha()]
    ordered = sorted(usable, key=lambda cutouts: seeds.uniform("study mllm", cutouts[0].name))
    return tuple(ordered[:NUM_NAMES])


def _choose_things(split: str, index: int) -> tuple[list[int], np.random.Generator]:
    """Choose the names of scene `index`, by themselves: a later scene is compared with it without drawing it."""
    rng = seeds.generator("study mllm things", SEED, split, index)
    count = int(rng.integers(2, 5))
    return [int(number) for number in rng.permutation(NUM_NAMES)[:count]], rng


def _name(number: int) -> str:
    return load_things()[number][0].name


class _Questions:
    """Conversations about one image, with ids that say what is asked."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.conversations: list[Conversation] = []

    def ask(
        self,
        kind: str,
        prompt: str,
        answer: str,
        *,
        group: str = "general",
        part: str = "all",
        two_answers: bool = False,
        images: tuple[str, ...] = (),
        box: PixelBox | None = None,
    ) -> None:
        """Add a question; `box` is that of its `<region>`, in the prompt or in the answer."""
        images = images or (self.key,)
        way = "two-answers" if two_answers else "open"
        regions = (box,) if box else ()
        in_prompt = "<region>" in prompt
        turns = (
            Turn("user", prompt if "<image>" in prompt else f"<image>\n{prompt}", regions if in_prompt else ()),
            Turn("assistant", answer, () if in_prompt else regions),
        )
        # The id is read by `measures_of`, and by the suite `scenes`, which gives two answers a chance of .5.
        id = f"{kind}/{way}/{part}/{self.key}/{len(self.conversations)}"
        self.conversations.append(Conversation(id, images, turns, group, "study mllm"))


def draw_asked_scene(position: Position, *, formats: Sequence[str] = ()) -> list[AskedImage]:
    """Draw a scene and ask about it; in training also for captions of `formats`, keys of CAPTION_PROMPTS."""
    split, index = position
    indices, rng = _choose_things(split, index)
    cutouts = [load_things()[number][int(rng.integers(len(load_things()[number])))] for number in indices]
    # A sign stands in a quarter of its own, and four things leave none.
    word = PLACES[int(rng.integers(len(PLACES)))] if rng.random() < _SIGN and len(indices) < 4 else ""
    ground = draw_ground(rng, size=SCENE, held_out=split == "test")
    layers = [make_cutout_layer(rng, cutout, SCENE, longest=_THING) for cutout in cutouts]
    layers += [_draw_sign(rng, word)] if word else []
    quarters = rng.permutation(4)[: len(layers)]
    layers = [_put_in_quarter(rng, layer, divmod(int(q), 2)) for layer, q in zip(layers, quarters, strict=True)]
    sources = (*cutouts, None) if word else tuple(cutouts)
    texts = ("",) * len(cutouts) + ((word,) if word else ())
    scene = render(ScenePlan(ground, tuple(layers), sources, texts, Finish.draw(rng)), rng)
    key = scene_key(position)
    row = make_scene_row(scene, key=key, split=split)
    questions = _Questions(key)
    _ask_scene(questions, scene, indices, word, position, rng)
    # Drawn after the questions, which are thus the same in collections with and without captions.
    if formats and split == "train":
        truth = parse_scene_truth({"key": key, **row.extra["scenes"][0]})
        alt = next(caption.text for caption in row.captions if caption.kind == "alt")
        for kind in formats:
            text = alt if kind == "alt" else render_caption(kind, truth, alt=alt, rng=rng).text
            # They get a group of their own, so that a stage can be trained on them alone.
            questions.ask(f"caption-{kind}", CAPTION_PROMPTS[kind], text, group="text")
    extra = {"scenes": row.extra["scenes"]}
    return [AskedImage(key, row.data, row.captions, row.regions, row.labels, extra, tuple(questions.conversations))]


def scene_key(position: Position) -> str:
    """Return the key of a scene without drawing it."""
    return f"scene-{position[0]}-{position[1]:06d}"


def _draw_sign(rng: np.random.Generator, word: str) -> Layer:
    width = int(rng.uniform(70, 104))
    font = load_font("sans", find_font_size("sans", 24), bold=True)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(word))
    image = Image.new("RGBA", (right - left + 8, bottom - top + 8), (255, 255, 255, 255))
    ImageDraw.Draw(image).text((4 - left, 4 - top), word, font=font, fill=(20, 20, 20, 255))
    return make_layer(rng, image, longest=float(width), flip=False, turn=0.0)


def _put_in_quarter(rng: np.random.Generator, layer: Layer, quarter: tuple[int, int]) -> Layer:
    half = SCENE // 2
    top, left = (
        position * half + rng.uniform(0, max(half - side, 1))
        for position, side in zip(quarter, layer.rgba_hw4.shape[:2], strict=True)
    )
    return layer.at(round(left), round(top))


def _ask_scene(
    questions: _Questions, scene: Scene, indices: list[int], word: str, position: Position, rng: np.random.Generator
) -> None:
    split, index = position
    names = [_name(number) for number in indices]
    boxes = {
        placed.phrase: PixelBox(*(float(round(edge * SCENE)) for edge in placed.box.to_array()))
        for placed in scene.objects
        if placed.kind == "thing" and placed.box
    }
    for name in names:
        questions.ask("name", "What is <region>?", name, group="refer-ground", box=boxes[name])
        questions.ask("where", f"Where is the {name}?", "<region>", group="refer-ground", box=boxes[name])
    absent = [number for number in range(NUM_NAMES) if number not in indices]
    # Yes and no with even odds: a constant answer is right half of the time.
    for _ in range(2):
        truth = bool(rng.random() < 0.5)
        stated = _name(int(rng.choice(indices if truth else absent)))
        questions.ask("is_there", f"Is there a {stated}?", "yes" if truth else "no", two_answers=True)
    first, second = names[:2]
    centers = [(boxes[name].x1 + boxes[name].x2, boxes[name].y1 + boxes[name].y2) for name in (first, second)]
    for axis, sides in enumerate((("left", "right"), ("above", "below"))):
        # Clear cases only: things in one row of quarters are neither above nor below each other.
        if abs(centers[0][axis] - centers[1][axis]) > SCENE / 4:
            side = sides[centers[0][axis] > centers[1][axis]]
            prompt = f"Is the {first} {sides[0]} or {sides[1]}, seen from the {second}?"
            questions.ask("position", prompt, side, two_answers=True)
    questions.ask("count", "How many things are there?", NUMERALS[len(names)])
    if word:
        questions.ask("read", "Which word is written?", word, group="text-rich")
    if index:
        _ask_pair(questions, indices, position, rng)


def _ask_pair(questions: _Questions, indices: list[int], position: Position, rng: np.random.Generator) -> None:
    """Ask which of this scene and the one before it shows a thing that the other does not."""
    split, index = position
    others, _ = _choose_things(split, index - 1)
    in_first = bool(rng.random() < 0.5)
    only = sorted(set(others) - set(indices) if in_first else set(indices) - set(others))
    if not only:
        return
    prompt = f"<image>\n<image>\nWhich image shows a {_name(int(rng.choice(only)))}, the first or the second?"
    images = (scene_key((split, index - 1)), questions.key)
    answer = "first" if in_first else "second"
    questions.ask("which_image", prompt, answer, group="multi-image", two_answers=True, images=images)


def build_scenes(target: Path, *, train: int, test: int, formats: Sequence[str] = ()) -> None:
    """Write scenes with questions, and captions of `formats`, into a collection; existing ones are not drawn again."""
    _build(target, functools.partial(draw_asked_scene, formats=tuple(formats)), scene_key, train, test, "scenes")


def draw_asked_page(position: Position) -> list[AskedImage]:
    """Draw a page with a thing in one half and a word in the other, and ask about both."""
    split, index = position
    rng = seeds.generator("study mllm page", SEED, split, index)
    width, height = _SHAPES[int(rng.integers(len(_SHAPES)))]
    paper = np.array([rng.integers(185, 256) for _ in range(3)], dtype=np.float32)
    grain = rng.normal(0, 4, (height, width, 1)).astype(np.float32)
    page = Image.fromarray((paper + grain).clip(0, 255).astype(np.uint8))
    variants = load_things()[int(rng.integers(NUM_NAMES))]
    cutout = variants[int(rng.integers(len(variants)))]
    word = PLACES[int(rng.integers(len(PLACES)))]
    # Split along the longer side: both halves are at least 128 pixels wide and high, enough for any thing.
    across = width >= height if width != height else bool(rng.random() < 0.5)
    middle = (width if across else height) // 2
    halves = [(0, 0, middle, height), (middle, 0, width, height)]
    halves = halves if across else [(0, 0, width, middle), (0, middle, width, height)]
    if rng.random() < 0.5:
        halves.reverse()
    side = _draw_log(rng, _THING_PIXELS)
    scale = side / max(cutout.width, cutout.height)
    thing = cutout.image().resize((max(4, round(cutout.width * scale)), max(4, round(cutout.height * scale))))
    thing_box = _paste(rng, page, thing, halves[0])
    letter = round(_draw_log(rng, _LETTER_PIXELS))
    sign = _write_word(word, letter, int(rng.integers(0, 90)), max_width=halves[1][2] - halves[1][0] - 2)
    word_box = _paste(rng, page, sign, halves[1])
    key = _page_key(position)
    questions = _Questions(key)
    size = "small" if side < SMALL_THING else "large"
    questions.ask("shown", "What is shown?", cutout.name, part=size)
    letters = "small" if letter < SMALL_LETTER else "large"
    questions.ask("written", "Which word is written?", word, part=letters, group="text-rich")
    questions.ask("place", f"Where is the {cutout.name}?", "<region>", part=size, group="refer-ground", box=thing_box)
    regions = (
        Region(Box.from_pixels(thing_box, width, height), cutout.name, label=cutout.concept),
        Region(Box.from_pixels(word_box, width, height), word, label="word"),
    )
    labels = {"thing": str(round(side)), "letter_height": str(letter)}
    return [AskedImage(key, jpeg(page), regions=regions, labels=labels, conversations=tuple(questions.conversations))]


def _page_key(position: Position) -> str:
    return f"page-{position[0]}-{position[1]:06d}"


def _draw_log(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(*np.log(bounds))))


def _write_word(word: str, letter_height: int, ink: int, *, max_width: int) -> Image.Image:
    """Write a word on nothing; a word that is too wide for its half is written smaller."""
    font = load_font("sans", find_font_size("sans", letter_height))
    left, top, right, bottom = (int(edge) for edge in font.getbbox(word))
    image = Image.new("RGBA", (right - left, bottom - top), (ink, ink, ink, 0))
    ImageDraw.Draw(image).text((-left, -top), word, font=font, fill=(ink, ink, ink, 255))
    image.thumbnail((max_width, image.height))
    return image


def _paste(
    rng: np.random.Generator, page: Image.Image, image: Image.Image, area: tuple[int, int, int, int]
) -> PixelBox:
    """Paste an image at random into an area (x1, y1, x2, y2), and return the box of what is seen of it."""
    x1, y1, x2, y2 = area
    left = x1 + int(rng.integers(max(1, x2 - x1 - image.width)))
    top = y1 + int(rng.integers(max(1, y2 - y1 - image.height)))
    page.paste(image, (left, top), image)
    # A pixel counts as visible above an alpha of .3, as in `records.scenes.compose` (SOLID).
    bounds = image.getchannel("A").point(lambda alpha: 255 * (alpha > 76)).getbbox() or (0, 0, *image.size)
    edges = [bounds[0] + left, bounds[1] + top, bounds[2] + left, bounds[3] + top]
    limits = (page.width, page.height) * 2
    return PixelBox(*(float(min(edge, limit)) for edge, limit in zip(edges, limits, strict=True)))


def build_pages(target: Path, *, train: int, test: int) -> None:
    """Write pages with questions into a collection; existing ones are not drawn again."""
    _build(target, draw_asked_page, _page_key, train, test, "pages")


def draw_asked_thing(position: Position) -> list[AskedImage]:
    """Draw one thing on a ground; behind the first images, ask what it is called by four labeled examples.

    Thing `i` has name `i` modulo NUM_NAMES, so that the images of a name are known without drawing them.
    """
    split, index = position
    rng = seeds.generator("study mllm thing", SEED, split, index)
    variants = load_things()[index % NUM_NAMES]
    cutout = variants[int(rng.integers(len(variants)))]
    ground = draw_ground(rng, size=SCENE, held_out=split == "test")
    layer = make_cutout_layer(rng, cutout, SCENE, longest=(0.4, 0.7))
    top, left = (int(rng.uniform(0, max(SCENE - side, 1))) for side in layer.rgba_hw4.shape[:2])
    scene = render(ScenePlan(ground, (layer.at(left, top),), (cutout,), ("",), Finish.draw(rng)), rng)
    key = _thing_key(position)
    row = make_scene_row(scene, key=key, split=split)
    questions = _Questions(key)
    if index >= EXAMPLES:
        _ask_episode(questions, position, rng)
    return [
        AskedImage(key, row.data, row.captions, row.regions, row.labels, conversations=tuple(questions.conversations))
    ]


def _thing_key(position: Position) -> str:
    return f"thing-{position[0]}-{position[1]:06d}"


def _ask_episode(questions: _Questions, position: Position, rng: np.random.Generator) -> None:
    """Ask with four examples of two new words; in the test again with labels at random: nothing can be read off."""
    split, index = position
    name = index % NUM_NAMES
    other = (name + int(rng.integers(1, NUM_NAMES))) % NUM_NAMES
    # Two examples of each name in random order: neither count nor position gives the answer away.
    classes = [int(number) % 2 for number in rng.permutation(4)]
    # Different images of each: twice the same one would show its label.
    rounds = [list(rng.permutation(index // NUM_NAMES)[:2]) for _ in range(2)]
    images = [_thing_key((split, int(rounds[of].pop()) * NUM_NAMES + (name, other)[of])) for of in classes]
    # Drawn anew, so that a word means nothing beyond its episode.
    new_words = [INVENTED_WORDS[int(number)] for number in rng.permutation(len(INVENTED_WORDS))[:2]]
    random_labels = [new_words[int(rng.integers(2))] for _ in range(4)]
    for kind, labels in (
        ("episode", [new_words[of] for of in classes]),
        *((("shuffled", random_labels),) if split == "test" else ()),
    ):
        examples = "".join(f"<image>\nThis is a {label}.\n" for label in labels)
        questions.ask(
            kind, f"{examples}<image>\nWhat is this?", new_words[0], group="multi-image", two_answers=True,
            images=(*images, questions.key),
        )  # fmt: skip


def build_episodes(target: Path, *, train: int, test: int) -> None:
    """Write images of one thing with few-shot episodes about them into a collection."""
    _build(target, draw_asked_thing, _thing_key, EXAMPLES + train, EXAMPLES + test, "episodes")


def draw_named_screen(position: Position) -> list[AskedImage]:
    """Draw a screen of `records.screens`; ids of its questions begin with their form."""
    (image,) = draw_asked_screen(position, seed=SEED, size=320)
    conversations = []
    for number, talk in enumerate(image.conversations):
        kind = talk.source.partition(": ")[2].partition(":")[0].replace(" ", "_")
        way = "two-answers" if kind in ("state", "is_there") else "open"
        id = f"{'widget_there' if kind == 'is_there' else kind}/{way}/all/{image.key}/{number}"
        conversations.append(Conversation(id, talk.images, talk.turns, talk.group, talk.source, talk.answers))
    # Most texts of widgets occur once; their types are names that can be learned.
    regions = tuple(replace(region, phrase=region.label) for region in image.regions)
    return [replace(image, regions=regions, extra={}, conversations=tuple(conversations))]


def _screen_key(position: Position) -> str:
    return f"screen-{position[0]}-{SEED}-{position[1]:06d}"


def build_screens(target: Path, *, train: int, test: int) -> None:
    """Write screens with questions into a collection; existing ones are not drawn again."""
    _build(target, draw_named_screen, _screen_key, train, test, "screens")


def _build(
    target: Path,
    draw: Callable[[Position], list[AskedImage]],
    make_key: Callable[[Position], str],
    train: int,
    test: int,
    source: str,
) -> None:
    counts = {"train": train, "test": test}
    # One process: a study shares its machine, and a killed one leaves no others behind.
    write_asked_images(target, draw, make_key, counts=counts, source=source, license=LICENSE, workers=1)


BUILDERS = {"scenes": build_scenes, "pages": build_pages, "episodes": build_episodes, "screens": build_screens}
