"""Colored shapes as cut-outs: a circle, a star, ... in named colors that stay apart after recoloring."""

from __future__ import annotations

import functools
import io
import math

import numpy as np
from PIL import Image, ImageDraw

from foveate.core.seeds import uniform
from foveate_labs.worlds.builtin import SEEN, UNSEEN, Cutout

# Bright enough or dark enough that a gain of 0.74 to 1.23 and a lift of 14 (see `compose`) lead to no other color.
COLORS = {
    "red": (222, 30, 32),
    "orange": (250, 138, 20),
    "yellow": (250, 226, 40),
    "green": (36, 160, 60),
    "blue": (34, 84, 222),
    "purple": (128, 48, 172),
    "pink": (252, 152, 196),
    "brown": (108, 62, 26),
    "black": (18, 18, 20),
    "white": (252, 252, 252),
    "gray": (118, 118, 118),
}
_HELD_OUT_SHARE = 0.15  # of the combinations: no training scene and no training text has them
_SIDE, _SCALE, _MARGIN = 96, 4, 5


def _polygon(corners: int, *, turn: float = 0.0, inner: float | None = None) -> list[tuple[float, float]]:
    """Return the corners of a regular polygon of radius 1, the first at the top; a star if `inner` is its radius."""
    count = corners if inner is None else 2 * corners
    radii = [1.0 if inner is None or i % 2 == 0 else inner for i in range(count)]
    angles = [turn + 2 * math.pi * i / count for i in range(count)]
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for radius, angle in zip(radii, angles, strict=True)]


_ARM = 0.34
_POLYGONS = {
    "square": _polygon(4, turn=math.pi / 4),
    "triangle": _polygon(3),
    "star": _polygon(5, inner=0.42),
    "diamond": [(0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)],
    "hexagon": _polygon(6),
    "cross": [
        *((-_ARM, -1.0), (_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM)),
        *((_ARM, 1.0), (-_ARM, 1.0), (-_ARM, _ARM), (-1.0, _ARM), (-1.0, -_ARM), (-_ARM, -_ARM)),
    ],
}
SHAPES = ("circle", "ring", *_POLYGONS)


@functools.cache
def load_shapes() -> dict[str, Cutout]:
    """Return {name: cut-out} of all shapes in all colors; combinations that training never has are "unseen"."""
    cutouts = {}
    for shape in SHAPES:
        for color in COLORS:
            name = f"{color} {shape}"
            held_out = uniform("colored shapes", 1, name) < _HELD_OUT_SHARE
            cutouts[name] = _make_cutout(name, shape, color, UNSEEN if held_out else SEEN)
    return cutouts


@functools.cache
def list_shapes(slice_name: str) -> tuple[Cutout, ...]:
    """Return the shapes of slice "seen" or "unseen"."""
    return tuple(cutout for cutout in load_shapes().values() if cutout.slice == slice_name)


def _make_cutout(name: str, shape: str, color: str, slice_name: str) -> Cutout:
    # Drawn four times as large and averaged, because Pillow draws polygons without smooth edges.
    outline = Image.new("L", (_SIDE * _SCALE, _SIDE * _SCALE))
    pen, radius = ImageDraw.Draw(outline), _SIDE * _SCALE / 2
    if shape in _POLYGONS:
        pen.polygon([(radius + radius * x, radius + radius * y) for x, y in _POLYGONS[shape]], fill=255)
    else:
        pen.ellipse((0, 0, 2 * radius - 1, 2 * radius - 1), fill=255)
    if shape == "ring":
        pen.ellipse((0.55 * radius, 0.55 * radius, 1.45 * radius, 1.45 * radius), fill=0)
    image = Image.new("RGBA", (_SIDE, _SIDE), COLORS[color])
    image.putalpha(outline.resize((_SIDE, _SIDE), Image.Resampling.BOX))
    left, top, right, bottom = image.getchannel("A").getbbox() or (0, 0, _SIDE, _SIDE)
    # A transparent margin: a shape that touches the edge of its image would get steps when it is turned.
    image = image.crop((left - _MARGIN, top - _MARGIN, right + _MARGIN, bottom + _MARGIN))
    data = io.BytesIO()
    image.save(data, "PNG")
    covered = float((np.asarray(image)[..., 3] > 127).mean())
    return Cutout(
        id=f"shape/{name}",
        name=name,
        concept=name,
        thing=name,
        family=shape,
        slice=slice_name,
        category="shapes",
        subcategory=shape,
        source="shapes",
        style="shapes",
        width=image.width,
        height=image.height,
        covered=covered,
        data=data.getvalue(),
    )
