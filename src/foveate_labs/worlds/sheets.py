"""Draw text on an image with the exact box and letter height of every word: the ground of documents and screens."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foveate.core.errors import UserError
from foveate.records.boxes import PixelBox
from foveate_labs.worlds.builtin import find_font_folder

# Regular and bold; "" is the font that Pillow ships, which has one weight.
FONTS = {
    "sans": ("DejaVuSans", "DejaVuSans-Bold"),
    "serif": ("DejaVuSerif", "DejaVuSerif-Bold"),
    "mono": ("DejaVuSansMono", "DejaVuSansMono-Bold"),
    "pillow": ("", ""),
}
# For tests of reading alone: neither training nor documents and screens have this font.
UNSEEN_FONT = "stix"
_FILES = {**FONTS, UNSEEN_FONT: ("STIXGeneral", "STIXGeneralBol")}
_MAX_FONT_SIZE = 399
Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont


@functools.lru_cache(maxsize=256)
def load_font(name: str, size: int, *, bold: bool = False) -> Font:
    """Load a font of FONTS, or UNSEEN_FONT, at a size in pixels.

    Raises:
        UserError: matplotlib, which ships all but one, is not installed.
    """
    file = _FILES[name][bold]
    if not file:
        font = ImageFont.load_default(size=size)
        # For the type checker: with a size Pillow always returns this type.
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font
    return ImageFont.truetype(find_font_folder() / f"{file}.ttf", size)


@functools.lru_cache(maxsize=256)
def measure_letters(name: str, size: int, *, bold: bool = False) -> int:
    """Return the height of a capital letter in pixels."""
    _, top, _, bottom = load_font(name, size, bold=bold).getbbox("H")
    return int(bottom - top)


@functools.cache
def find_font_size(name: str, letter_height: int) -> int:
    """Return the smallest font size whose capitals are at least `letter_height` pixels high.

    Raises:
        UserError: the largest font is smaller.
    """
    # Searched for, because the ratio of size to height of capitals differs between fonts.
    for size in range(4, _MAX_FONT_SIZE + 1):
        if measure_letters(name, size) >= letter_height:
            return size
    largest = measure_letters(name, _MAX_FONT_SIZE)
    raise UserError(f"letter_height: expected at most {largest} pixels in the font {name!r} (got {letter_height})")


@dataclass(frozen=True, slots=True)
class Word:
    """A written word.

    Args:
        box: around its ink, in whole pixels.
        letter_height: of a capital letter of its font, in pixels.
        line: number of the text that it belongs to, in the order of drawing.
    """

    text: str
    box: PixelBox
    letter_height: int
    line: int


def enclose(word_boxes: Sequence[Word]) -> PixelBox:
    """Return the box around words."""
    boxes = [word.box for word in word_boxes]
    return PixelBox(
        min(box.x1 for box in boxes),
        min(box.y1 for box in boxes),
        max(box.x2 for box in boxes),
        max(box.y2 for box in boxes),
    )


class Sheet:
    """An image under construction, and the words written on it.

    Args:
        width, height: in pixels.
        font: a key of FONTS.
        size: font size of ordinary text in pixels.
    """

    def __init__(self, width: int, height: int, *, font: str, size: int, paper: Color, ink: Color) -> None:
        self.image = Image.new("RGB", (width, height), paper)
        self.pen = ImageDraw.Draw(self.image)
        self.font, self.size, self.paper, self.ink = font, size, paper, ink
        self.word_boxes: list[Word] = []
        self.lines = 0

    @property
    def leading(self) -> int:
        """Distance of two lines of ordinary text."""
        return round(1.5 * self.size)

    def measure(self, text: str, *, scale: float = 1.0, bold: bool = False) -> float:
        """Return the width of a text in pixels."""
        return load_font(self.font, round(self.size * scale), bold=bold).getlength(text)

    def write(
        self,
        x: float,
        y: float,
        text: str,
        *,
        align: str = "left",
        scale: float = 1.0,
        bold: bool = False,
        color: Color | None = None,
    ) -> tuple[Word, ...]:
        """Write a line of text and return its words.

        Args:
            x: its left end, middle or right end, by `align`.
            y: its base line.
            align: "left", "center" or "right".
            scale: of the font size.
        """
        size = round(self.size * scale)
        font = load_font(self.font, size, bold=bold)
        x -= {"left": 0.0, "center": 0.5, "right": 1.0}[align] * font.getlength(text)
        word_boxes = []
        position = 0
        for part in text.split():
            # Drawn word by word to get a box for each, at the position that it has in the whole line.
            position = text.index(part, position)
            # Whole pixels: Pillow draws at fractions, but its boxes do not know of them.
            corner = (round(x + font.getlength(text[:position])), round(y))
            self.pen.text(corner, part, font=font, fill=color or self.ink, anchor="ls")
            box = self._measure_ink(part, font, corner)
            letters = measure_letters(self.font, size, bold=bold)
            word_boxes.append(Word(part, box, letters, self.lines))
            position += len(part)
        self.lines += 1
        self.word_boxes += word_boxes
        return tuple(word_boxes)

    @staticmethod
    def _measure_ink(text: str, font: Font, corner: tuple[int, int]) -> PixelBox:
        # The mask that Pillow draws: its `textbbox` begins at the origin of the first letter, not at its ink.
        mask, offset = font.getmask2(text, mode="L", anchor="ls")
        left, top, right, bottom = mask.getbbox() or (0, 0, 1, 1)
        x, y = corner[0] + offset[0], corner[1] + offset[1]
        return PixelBox(float(x + left), float(y + top), float(x + right), float(y + bottom))

    def finish(self, rng: np.random.Generator, *, noise: float) -> Image.Image:
        """Return the image with a little noise, in gray levels."""
        pixels = np.asarray(self.image, np.int16)
        grain = rng.integers(-127, 128, pixels.shape[:2], np.int8)[..., None] * (noise / 127)
        return Image.fromarray((pixels + grain).round().clip(0, 255).astype(np.uint8))


def draw_colors(rng: np.random.Generator) -> tuple[Color, Color]:
    """Draw a light paper and a dark ink, or at times the reverse."""
    paper, ink = rng.integers(226, 256, 3), rng.integers(0, 70, 3)
    if rng.random() < 0.12:
        paper, ink = ink, paper
    return as_color(paper), as_color(ink)


def as_color(levels: Sequence[float] | np.ndarray) -> Color:
    """Return three levels as a color."""
    red, green, blue = (int(level) for level in levels)
    return red, green, blue


def mix(first: Color, second: Color, share: float) -> Color:
    """Return a color that has `share` of the second."""
    return as_color([a + share * (b - a) for a, b in zip(first, second, strict=True)])
