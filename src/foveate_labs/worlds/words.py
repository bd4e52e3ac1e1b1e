"""Written words: scenes with words pasted on them, and the box of each, to learn reading and to measure it.

Words of tests are in no training, as are their scenes, grounds and one of their fonts. An image of a test has one word,
or none: then the right answer is that there is nothing to read.
"""

from __future__ import annotations

import functools
import math
import string
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from foveate.core.seeds import generator, pick, uniform
from foveate.multimodal.written_words import NOTHING_TO_READ
from foveate.records.boxes import Box
from foveate.records.conversations import IMAGE, Conversation, Turn
from foveate.records.record import Region
from foveate.vision.minilm import package_folder
from foveate.vision.text_reader import WRITTEN
from foveate_labs.worlds.asked_images import AskedImage, Position, write_asked_images
from foveate_labs.worlds.builtin import jpeg
from foveate_labs.worlds.scenes.scene import draw_scene
from foveate_labs.worlds.scenes.scene_collection import LICENSE
from foveate_labs.worlds.sheets import FONTS, UNSEEN_FONT, find_font_size, load_font

SIZE = 224
LENGTHS = (3, 7)  # of words, in letters
HEIGHTS = (12, 44)  # of capitals in training, in pixels
MAX_WORDS = 5  # of an image of training
# Kinds of the images of a test: heights of capitals, whether the font is that of no training.
KINDS = {
    "20 to 40 pixels": ((20, 40), False),
    "12 to 20 pixels": ((12, 20), False),
    "unseen font": ((20, 40), True),
    "no word": None,
}
HELD_OUT_SHARE = 0.1
IMAGES_A_GROUND = 8
QUESTION = "What does the sign say?"
_ARTICLES = frozenset(("the", "and"))
_TRIES_FOR_A_PLACE, _TRIES_FOR_AN_INK = 12, 50
_MIN_CONTRAST = 80  # of the mean of an ink's three channels to that of its ground, of 255
Edges = tuple[int, int, int, int]


class Written(NamedTuple):
    """A word of an image; `box` in pixels around its ink."""

    text: str
    box: Edges


@functools.cache
def list_words(*, held_out: bool) -> tuple[str, ...]:
    """List the words of tests, a tenth, or those of training: whole words of MiniLM's vocabulary."""
    vocabulary = (package_folder() / "vocab.txt").read_text(encoding="utf-8").split()
    letters = set(string.ascii_lowercase)
    words = {word for word in vocabulary if LENGTHS[0] <= len(word) <= LENGTHS[1] and set(word) <= letters}
    # Answers are compared without articles.
    return tuple(
        word for word in sorted(words - _ARTICLES) if (uniform("read words", 1, word) < HELD_OUT_SHARE) == held_out
    )


@functools.lru_cache(maxsize=2)
def draw_ground(seed: int, split: str, index: int) -> NDArray[np.uint8]:
    """Draw a scene [224, 224, 3] without a word."""
    # Most scenes have none; each index has numbers of its own to look among.
    for attempt in range(100):
        scene = draw_scene(seed=seed, split=split, index=100 * index + attempt, size=SIZE)
        if all(placed.kind != "text" for placed in scene.objects):
            break
    return np.asarray(scene.image.convert("RGB"), np.uint8)


def draw_word(rng: np.random.Generator, *, held_out: bool) -> str:
    """Draw a word; one in five of training is letters at random, so that letters are read and not known words."""
    if held_out or rng.random() < 0.8:
        return pick(rng, list_words(held_out=held_out))
    letters = rng.integers(26, size=int(rng.integers(LENGTHS[0], LENGTHS[1] + 1)))
    return "".join(string.ascii_lowercase[letter] for letter in letters)


def paste_word(
    rng: np.random.Generator,
    canvas_HW3: NDArray[np.uint8],
    word: str,
    heights: tuple[int, int],
    *,
    font: str,
    taken: Sequence[Edges] = (),
) -> Written | None:
    """Write a word on an image, which is changed, or on a plate; None without room or contrast.

    Args:
        heights: bounds of the height of a capital, in pixels. font: as of `load_font`.
        taken: boxes of other words, which are left alone.
    """
    lowest, highest = map(math.log, heights)
    height = round(math.exp(rng.uniform(lowest, highest)))
    face = load_font(font, find_font_size(font, height), bold=bool(rng.random() < 0.4))
    case = rng.random()
    text = word if case < 0.5 else word.capitalize() if case < 0.7 else word.upper()
    left, top, right, bottom = (int(edge) for edge in face.getbbox(text))
    pad = int(height * rng.uniform(0.1, 0.5))
    image = Image.new("RGBA", (right - left + 2 * pad, bottom - top + 2 * pad))
    has_plate = rng.random() < 0.5
    if max(image.size) > min(canvas_HW3.shape[:2]) - 4:
        return None
    for _ in range(_TRIES_FOR_A_PLACE):
        room = np.subtract(canvas_HW3.shape[1::-1], image.size)
        x, y = (int(rng.integers(0, side + 1)) for side in room)
        box = (x, y, x + image.width, y + image.height)
        if all(box[2] <= o[0] or o[2] <= box[0] or box[3] <= o[1] or o[3] <= box[1] for o in taken):
            break
    else:
        return None
    region = canvas_HW3[y : box[3], x : box[2]]
    ground = region.mean()
    if has_plate:
        paper = rng.integers(0, 256, 3)
        ImageDraw.Draw(image).rectangle((0, 0, *image.size), fill=(*map(int, paper), 255))
        ground = paper.mean()
    for _ in range(_TRIES_FOR_AN_INK):
        ink = rng.integers(0, 256, 3)
        if abs(ink.mean() - ground) > _MIN_CONTRAST:
            break
    else:
        return None
    ImageDraw.Draw(image).text((pad - left, pad - top), text, font=face, fill=(*map(int, ink), 255))
    pixels = np.asarray(image, np.float32)
    alpha = pixels[..., 3:] / 255
    region[:] = (region * (1 - alpha) + pixels[..., :3] * alpha).round().clip(0, 255)
    return Written(word, (x + pad, y + pad, box[2] - pad, box[3] - pad))


def draw_written(*, seed: int, split: str, index: int) -> AskedImage:
    """Draw an image with words: up to five of training; one of a test, or none, by KINDS."""
    rng = generator("written words", seed, split, index)
    canvas = draw_ground(seed, split, index // IMAGES_A_GROUND).copy()
    if rng.random() < 0.5:
        canvas = canvas[:, ::-1].copy()
    written: list[Written] = []
    fonts, held_out = tuple(FONTS), split != "train"
    key = make_key((split, index), seed=seed)
    kind = "training"
    if split == "train":
        for _ in range(int(rng.integers(MAX_WORDS + 1))):
            word, taken = draw_word(rng, held_out=False), [word.box for word in written]
            pasted = paste_word(rng, canvas, word, HEIGHTS, font=pick(rng, fonts), taken=taken)
            written += [] if pasted is None else [pasted]
    else:
        kind, drawn = list(KINDS.items())[index % len(KINDS)]
        # A long word of large letters has no room; another one has.
        while drawn is not None and not written:
            heights, is_unseen = drawn
            font = UNSEEN_FONT if is_unseen else pick(rng, fonts)
            pasted = paste_word(rng, canvas, draw_word(rng, held_out=held_out), heights, font=font)
            written += [] if pasted is None else [pasted]
    conversations = []
    if len(written) <= 1:
        answer = written[0].text if written else NOTHING_TO_READ
        turns = (Turn("user", f"{IMAGE}\n{QUESTION}"), Turn("assistant", answer))
        id = f"read/{kind}/seen/{key}"
        conversations.append(Conversation(id, (key,), turns, group="text-rich", source="words: read"))
    regions = tuple(Region(Box(*(edge / SIZE for edge in word.box)), word.text, label=WRITTEN) for word in written)
    return AskedImage(
        key, jpeg(Image.fromarray(canvas)), regions=regions, labels={"kind": kind}, conversations=tuple(conversations)
    )


def make_key(position: Position, *, seed: int) -> str:
    """Return the key of an image by its split and its number."""
    split, index = position
    return f"words-{split}-{seed}-{index:06d}"


def _draw(position: Position, *, seed: int) -> Sequence[AskedImage]:
    split, index = position
    return [draw_written(seed=seed, split=split, index=index)]


def build_words(
    target: Path, *, train: int, validation: int = 0, test: int = 0, seed: int = 0, workers: int = 1
) -> None:
    """Write images with words into the collection at `target`; existing ones are not drawn again.

    Args:
        train, validation, test: number of images of each split. seed: of the series.
        workers: processes that draw; the result does not depend on it.
    """
    counts = {"train": train, "validation": validation, "test": test}
    draw, name = partial(_draw, seed=seed), partial(make_key, seed=seed)
    write_asked_images(target, draw, name, counts=counts, source="words", license=LICENSE, workers=workers)
