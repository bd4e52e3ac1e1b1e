"""The shipped images with transparency (cut-outs), each with the phrase that names it."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass, field

from PIL import Image

from foveate.records.builtin import families, tables
from foveate_labs.worlds.builtin import concepts

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
    for row in tables.rows("emoji"):
        cutouts.append(_cutout(row, families.concept_of_emoji(row), source="emoji", style=row["style"]))
    named = families.clipart_phrases()
    for row in tables.rows("clipart"):
        cutouts.append(_cutout(row, named.get(row["key"], UNNAMED), source="clipart", style="clipart"))
    return tuple(cutouts)


def _cutout(row: dict, name: str, *, source: str, style: str) -> Cutout:
    return Cutout(
        id=row["key"],
        name=name,
        concept=name,
        thing=families.load_things()[name] if name else "",
        family=families.load_families()[name] if name else "",
        slice=concepts.concept_slice(name) if name else "unnamed",
        category=row["category"],
        subcategory=row["subcategory"],
        source=source,
        style=style,
        width=row["width"],
        height=row["height"],
        covered=row["covered"],
        data=row["image"],
    )
