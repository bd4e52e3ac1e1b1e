"""Images of a run folder as data URIs, and boxes drawn over them as SVG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from markupsafe import Markup, escape
from PIL import Image

from foveate.core.errors import UserError
from foveate.records.images import BadImage, decode


@dataclass(frozen=True, slots=True)
class InlineImage:
    """An image inside the page: `src` is a data URI; width and height in pixels."""

    src: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Overlay:
    """A box over an image: (x1, y1, x2, y2) in [0, 1]; `style` is a class name of the style sheet."""

    box: tuple[float, float, float, float]
    style: str = "head"
    label: str = ""


def resolve_inside(folder: Path, relative: str) -> Path:
    """Return the path of a file inside `folder`.

    Raises:
        UserError: `relative` leads out of the folder.
    """
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        # A run folder may come from somebody else: its result must not read files of this machine into a page.
        raise UserError(f"result.json names the file '{relative}', which lies outside its run folder")
    return path


def open_image(path: Path, *, longest_side: int) -> Image.Image:
    """Open an image as RGB on white, upright, with its longest side at most `longest_side` pixels.

    Raises:
        UserError: the file is missing or is no image.
    """
    if not path.is_file():
        raise UserError(f"the image '{path.name}' that result.json names is missing from {path.parent}")
    try:
        return decode(path.read_bytes(), longest_side=longest_side)
    except BadImage as error:
        raise UserError(f"the image '{path.name}' that result.json names cannot be read: {error}") from None


def data_uri(image: Image.Image, *, quality: int = 82) -> str:
    """Encode an image as a base64 WebP data URI."""
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


class RunImages:
    """Load images of a run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def image(self, relative: str, *, longest_side: int = 420) -> InlineImage:
        """Return an image of the run folder, scaled down to `longest_side` pixels."""
        path = resolve_inside(self.folder, relative)
        state = path.stat() if path.is_file() else None
        return _load_inline(path, longest_side, state and (state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=512)
def _load_inline(path: Path, longest_side: int, state: tuple[int, int] | None) -> InlineImage:
    # Decoding and encoding are the costly part of a page, which may show an image several times (slides, answers, hits)
    # and is built twice: for the file and for the terminal. `state` tells another file of the same name.
    image = open_image(path, longest_side=longest_side)
    return InlineImage(src=data_uri(image), width=image.width, height=image.height)


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))


def overlay_svg(overlays: Sequence[Overlay], *, width: int, height: int) -> Markup:
    """Draw normalized boxes as one SVG that lies exactly over a width x height image; empty without a box."""
    if not overlays:
        return Markup("")
    parts = [
        f'<svg class="boxes" viewBox="0 0 {width} {height}" preserveAspectRatio="xMidYMid meet"'
        f' aria-hidden="true" focusable="false"><g transform="scale({width} {height})">'
    ]
    for number, overlay in enumerate(overlays):
        x1, y1, x2, y2 = (_clip(value) for value in overlay.box)
        shape = f'x="{x1:.4f}" y="{y1:.4f}" width="{x2 - x1:.4f}" height="{y2 - y1:.4f}"'
        # Twice, a dark halo under a colored line: visible on any background.
        parts.append(
            f'<g class="box box-{escape(overlay.style)}" data-box="{number}">'
            f'<rect class="halo" {shape}/><rect class="line" {shape}/></g>'
        )
    parts.append("</g></svg>")
    return Markup("".join(parts))


def corner_style(box: tuple[float, float, float, float], image: InlineImage) -> str:
    """Return CSS left and top of a box's first corner in an image that is letterboxed into a square tile."""
    longest = max(image.width, image.height)
    edges = []
    for value, side in ((box[0], image.width), (box[1], image.height)):
        share = side / longest
        # At most .92: a label that starts at the right edge would leave the tile.
        edges.append(100 * ((1 - share) / 2 + min(_clip(value), 0.92) * share))
    return f"left:{edges[0]:.2f}%;top:{edges[1]:.2f}%"
