"""The 36-glyph world: 0-9 and A-Z in five clean fonts and in five other, disturbed ones; drawn from a seed.

A demonstration without downloads of a model that meets other data than it was trained on. The fonts are those that
matplotlib ships (DejaVu, STIX, Computer Modern); matplotlib itself is not imported. Images are a pure function of
(style, set, seed, number). Recipe: shared by the studies of calibration and of adaptation, measured in
docs/studies/calibration.md.
"""

from __future__ import annotations

import functools
import importlib.util
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from foveate.core.errors import UserError, choose
from foveate.core.seeds import generator

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
