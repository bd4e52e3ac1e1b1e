"""Photographs shipped with scikit-image and scikit-learn, as grounds of scenes.

They are split once: no photograph is used in both training and test scenes. scikit-image's are
in the public domain or CC0; scikit-learn's `china` (by danielbuechele) and `flower` (by vultilion) are CC-BY 2.0.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.resources import as_file, files

import numpy as np
from PIL import Image

_MAX_SIDE = 640


@dataclass(frozen=True)
class Photograph:
    """A photograph: its file, its description for captions, and words for things on it (never pasted on it)."""

    name: str
    package: str
    file: str
    description: str
    shows: frozenset[str] = frozenset()


def _make_photographs(package: str, *entries: tuple[str, str, str]) -> tuple[Photograph, ...]:
    return tuple(
        Photograph(file.split(".")[0], package, file, description, frozenset(shows.split()))
        for file, description, shows in entries
    )


# The order is part of the data: scenes draw photographs by their number.
TRAINING = (
    *_make_photographs(
        "skimage.data",
        ("astronaut.png", "a portrait of an astronaut", "astronaut woman flag rocket person face smile"),
        ("chelsea.png", "a cat's fur", "cat kitten eye nose"),
        ("motorcycle_left.png", "a garage with a motorcycle", "motorcycle bicycle scooter wheel"),
        ("ihc.png", "a stained tissue sample", ""),
        ("retina.jpg", "the back of an eye", "eye"),
        ("hubble_deep_field.jpg", "a sky full of galaxies", "star galaxy"),
        ("brick.png", "a brick wall", "brick wall"),
        ("grass.png", "grass", ""),
        ("camera.png", "a lawn with a photographer", "camera man person"),
        ("coins.png", "old coins", "coin"),
    ),
    *_make_photographs("sklearn.datasets.images", ("china.jpg", "a palace", "palace castle temple building")),
)
HELD_OUT = (
    *_make_photographs(
        "skimage.data",
        ("coffee.png", "a table with a coffee cup", "coffee cup beverage teacup spoon mug saucer"),
        ("rocket.jpg", "a launch pad at night", "rocket tower fire"),
        ("gravel.png", "gravel", "rock stone"),
        ("moon.png", "the surface of the moon", "moon"),
        ("clock_motion.png", "a blurred wall clock", "clock watch"),
        ("cell.png", "a cell under the microscope", ""),
    ),
    *_make_photographs(
        "sklearn.datasets.images", ("flower.jpg", "a flower in a garden", "flower blossom hyacinth tulip lotus")
    ),
)


@functools.lru_cache(maxsize=64)
def load(photograph: Photograph) -> Image.Image:
    """Load a photograph as RGB (gray ones too), at most 640 px wide or high; decoded once per process."""
    with as_file(files(photograph.package) / photograph.file) as path, Image.open(path) as opened:
        if opened.mode in ("I", "I;16", "F"):
            # Scaled here, because the conversion of Pillow would cut values above 255.
            values = np.asarray(opened, np.float64)
            opened = Image.fromarray((255 * (values - values.min()) / np.ptp(values)).astype(np.uint8))
        image = opened.convert("RGB")
    image.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
    return image


@functools.lru_cache(maxsize=64)
def is_gray(photograph: Photograph) -> bool:
    """Whether the photograph has no color of its own, so that a tint may be given to it."""
    pixels = np.asarray(load(photograph).resize((32, 32)), np.int16)
    return bool((np.ptp(pixels, axis=2) <= 2).all())
