"""Photographs that ship: fourteen of scikit-image's samples that their authors put in the public domain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from foveate.core.errors import choose
from foveate.core.paths import DATA

FOLDER = DATA / "photographs"


@dataclass(frozen=True)
class ShippedPhotograph:
    """A photograph that ships.

    Attributes:
        name: it is asked for by this. source: its file in scikit-image. description: what it shows.
        author: who made it, and where it was published. license: by which it may be given on.
    """

    name: str
    source: str
    description: str
    author: str
    license: str = "CC0-1.0"

    @property
    def file(self) -> str:
        """Name of its file: JPEG files keep their bytes, all others are lossless WebP."""
        return self.source if self.source.endswith(".jpg") else f"{self.name}.webp"

    @property
    def path(self) -> Path:
        """Its file."""
        return FOLDER / self.file


_PUBLIC_DOMAIN = "public domain"
PHOTOGRAPHS = (
    ShippedPhotograph("astronaut", "astronaut.png", "a portrait of an astronaut", "NASA", _PUBLIC_DOMAIN),
    ShippedPhotograph("cat", "chelsea.png", "a ginger cat", "Stefan van der Walt"),
    ShippedPhotograph("coffee", "coffee.png", "a cup of coffee on a table", "Rachel Michetti"),
    ShippedPhotograph("rocket", "rocket.jpg", "a rocket that takes off at night", "SpaceX", _PUBLIC_DOMAIN),
    ShippedPhotograph("camera", "camera.png", "a photographer on a lawn", "Lav Varshney"),
    ShippedPhotograph("clock", "clock_motion.png", "a blurred wall clock", "Stefan van der Walt", _PUBLIC_DOMAIN),
    ShippedPhotograph("coins", "coins.png", "Greek coins from Pompeii", "Brooklyn Museum", _PUBLIC_DOMAIN),
    ShippedPhotograph("galaxies", "hubble_deep_field.jpg", "a sky full of galaxies", "NASA", _PUBLIC_DOMAIN),
    ShippedPhotograph("retina", "retina.jpg", "the back of an eye", "Mikael Häggström"),
    ShippedPhotograph("tissue", "ihc.png", "a stained tissue sample", "CMMI", _PUBLIC_DOMAIN),
    ShippedPhotograph("cell", "cell.png", "a cell under the microscope", "Paul Müller and others"),
    ShippedPhotograph("brick", "brick.png", "a brick wall", "CC0Textures, Bricks25"),
    ShippedPhotograph("grass", "grass.png", "grass", "Linolafett, DeviantArt"),
    ShippedPhotograph("gravel", "gravel.png", "gravel", "CC0Textures, Gravel04"),
)


def find_photograph(name: str) -> ShippedPhotograph:
    """Return the shipped photograph of a name.

    Raises:
        UserError: none has this name.

    Examples:
        >>> find_photograph("cat").description
        'a ginger cat'
    """
    names = {photograph.name: photograph for photograph in PHOTOGRAPHS}
    return names[choose(name, names, "photograph")]


def open_photograph(name: str) -> Image.Image:
    """Return the pixels of a shipped photograph, RGB.

    Raises:
        UserError: none has this name.
    """
    with Image.open(find_photograph(name).path) as opened:
        return opened.convert("RGB")
