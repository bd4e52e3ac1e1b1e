"""Grounds of scenes: crops of shipped photographs and drawn patterns, from the pool of a split."""

from __future__ import annotations

import colorsys
import functools
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import UserError
from foveate.records.builtin.photographs import PHOTOGRAPHS

# Photographs as grounds of scenes: those that ship, scikit-learn's two, and two that only scikit-image's package has.
#
# They are split once: no photograph is used in both training and test scenes. Those that ship are in the public domain
# or CC0; scikit-learn's `china` (by danielbuechele) and `flower` (by vultilion) are CC-BY 2.0. Of the other two,
# `moon` states no origin and `motorcycle_left` is Middlebury's, so neither is given on.


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
TRAINING_PHOTOGRAPHS = (
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
HELD_OUT_PHOTOGRAPHS = (
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
    with _find(photograph) as path, Image.open(path) as opened:
        if opened.mode in ("I", "I;16", "F"):
            # Scaled here, because the conversion of Pillow would cut values above 255.
            values = np.asarray(opened, np.float64)
            opened = Image.fromarray((255 * (values - values.min()) / np.ptp(values)).astype(np.uint8))
        image = opened.convert("RGB")
    image.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
    return image


def _find(photograph: Photograph) -> AbstractContextManager[Path]:
    """Find the file of a photograph: a shipped one, else that of its package."""
    for shipped in PHOTOGRAPHS:
        if photograph.file == shipped.source:
            return nullcontext(shipped.path)
    if importlib.util.find_spec(photograph.package.partition(".")[0]) is None:
        raise UserError(
            f"scenes show the photograph {photograph.file} of scikit-image, which is not installed: run "
            "`pip install 'foveate[scenes]'`"
        )
    return as_file(files(photograph.package) / photograph.file)


@functools.lru_cache(maxsize=64)
def is_gray(photograph: Photograph) -> bool:
    """Whether the photograph has no color of its own, so that a tint may be given to it."""
    pixels = np.asarray(load(photograph).resize((32, 32)), np.int16)
    return bool((np.ptp(pixels, axis=2) <= 2).all())


# Drawn grounds: patterns from a few pleasant colors. Some styles are for training, others only for tests.


Floats = NDArray[np.floating]


def palette(rng: np.random.Generator, count: int) -> Floats:
    """Draw `count` colors (count, 3) in 0..255 that go together: near hues, at times an opposite one."""
    base = rng.random()
    hues = (base + rng.normal(0, 0.06, count) + 0.5 * (rng.random(count) < 0.18)) % 1
    saturations, values = rng.uniform(0.08, 0.62, count), rng.uniform(0.35, 0.98, count)
    colors = [colorsys.hsv_to_rgb(*hsv) for hsv in zip(hues, saturations, values, strict=True)]
    return 255 * np.array(colors, np.float32)


@functools.lru_cache(maxsize=8)
def _axes(size: int) -> tuple[Floats, Floats]:
    line = np.arange(size, dtype=np.float32) / size
    return line[None, :], line[:, None]


def _turned(rng: np.random.Generator, size: int) -> tuple[Floats, Floats]:
    x, y = _axes(size)
    angle = rng.uniform(0, np.pi)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cosine + y * sine, y * cosine - x * sine


def _mix(weight: Floats, low: Floats, high: Floats) -> Floats:
    return low + weight[..., None] * (high - low)


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> Floats:
    """Draw smooth noise in 0..1: random values on a coarse grid, enlarged."""
    coarse = Image.fromarray(rng.random((cells, cells), np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 1)


def gradient(rng: np.random.Generator, size: int) -> Floats:
    along, _ = _turned(rng, size)
    # To 0..1 at every angle: a diagonal is longer than a side.
    weight = (along - along.min()) / np.ptp(along)
    return _mix(weight, *palette(rng, 2))


def stripes(rng: np.random.Generator, size: int) -> Floats:
    along, _ = _turned(rng, size)
    wave = np.sin(along * np.float32(2 * np.pi * rng.uniform(3, 14)) + np.float32(rng.uniform(0, 6)))
    # A steep wave that is cut off has sharp edges, a flat one soft edges.
    return _mix((wave * np.float32(rng.choice([1.5, 6.0])) * 0.5 + 0.5).clip(0, 1), *palette(rng, 2))


def checkers(rng: np.random.Generator, size: int) -> Floats:
    along, across = _turned(rng, size)
    count = np.float32(rng.uniform(3, 10))
    odd = (np.floor(along * count) + np.floor(across * count)) % 2
    return _mix(odd, *palette(rng, 2))


def noise(rng: np.random.Generator, size: int) -> Floats:
    weight = 0.6 * smooth_noise(rng, size, 5) + 0.4 * smooth_noise(rng, size, int(rng.integers(12, 40)))
    return _mix(weight, *palette(rng, 2))


def blobs(rng: np.random.Generator, size: int) -> Floats:
    colors = palette(rng, 3)
    cells = int(rng.integers(4, 9))
    # Steep, so that noise above .55 becomes a patch with a narrow edge.
    first, second = ((40 * (smooth_noise(rng, size, cells) - 0.55)).clip(0, 1) for _ in range(2))
    return _mix(second, _mix(first, colors[0], colors[1]), colors[2])


def triangles(rng: np.random.Generator, size: int) -> Floats:
    along, across = _turned(rng, size)
    count = np.float32(rng.uniform(3, 8))
    u, v = along * count % 1, across * count % 1
    # Both diagonals of a cell: of its four triangles two share a color.
    return palette(rng, 3)[(u > v).astype(np.int8) + (u + v > 1)]


def mosaic(rng: np.random.Generator, size: int) -> Floats:
    """Color each pixel by the nearest of a few random points."""
    x, y = _axes(size)
    points = rng.random((int(rng.integers(6, 16)), 2), np.float32)
    distances = np.stack([(x - px) ** 2 + (y - py) ** 2 for px, py in points])
    return palette(rng, len(points))[distances.argmin(0)]


def rings(rng: np.random.Generator, size: int) -> Floats:
    x, y = _axes(size)
    px, py = rng.random(2, np.float32)
    wave = np.sin(np.sqrt((x - px) ** 2 + (y - py) ** 2) * np.float32(2 * np.pi * rng.uniform(2, 9)))
    return _mix((wave * np.float32(rng.choice([1.0, 5.0])) * 0.5 + 0.5).clip(0, 1), *palette(rng, 2))


def dots(rng: np.random.Generator, size: int) -> Floats:
    along, across = _turned(rng, size)
    count = np.float32(rng.uniform(4, 11))
    distance = np.hypot(along * count % 1 - 0.5, across * count % 1 - 0.5)
    return _mix(((np.float32(rng.uniform(0.15, 0.35)) - distance) * 12 + 0.5).clip(0, 1), *palette(rng, 2))


def plaid(rng: np.random.Generator, size: int) -> Floats:
    x, y = _axes(size)
    colors = palette(rng, 3)
    count = np.float32(rng.uniform(3, 8))
    bands = [np.broadcast_to(0.5 * (axis * count % 1 < 0.4), (size, size)).astype(np.float32) for axis in (x, y)]
    return _mix(bands[1], _mix(bands[0], colors[0], colors[1]), colors[2])


Style = Callable[[np.random.Generator, int], Floats]
TRAINING: dict[str, tuple[Style, str]] = {
    "gradient": (gradient, "a plain ground"),
    "stripes": (stripes, "a striped ground"),
    "checkers": (checkers, "a chequered ground"),
    "noise": (noise, "a cloudy ground"),
    "blobs": (blobs, "a ground with patches"),
    "triangles": (triangles, "a ground of triangles"),
}
HELD_OUT: dict[str, tuple[Style, str]] = {
    "mosaic": (mosaic, "a mosaic"),
    "rings": (rings, "a ground of rings"),
    "dots": (dots, "a dotted ground"),
    "plaid": (plaid, "plaid cloth"),
}


PHOTOGRAPH_SHARE = 0.6


@dataclass(frozen=True)
class Ground:
    """The background of a scene.

    Args:
        pixels_HW3: float32 in 0..255.
        kind: "photo" or "drawn".
        name: of the photograph or drawn style.
        description: phrase for captions.
        shows: words for things on it; no cut-out of such a name is pasted.
    """

    pixels_HW3: NDArray[np.floating]
    kind: str
    name: str
    description: str
    shows: frozenset[str] = frozenset()


def list_ground_names(*, held_out: bool) -> frozenset[str]:
    """Return the names of all grounds of one pool; the two pools have none in common."""
    images = HELD_OUT_PHOTOGRAPHS if held_out else TRAINING_PHOTOGRAPHS
    styles = HELD_OUT if held_out else TRAINING
    return frozenset({image.name for image in images} | set(styles))


def draw_ground(rng: np.random.Generator, *, size: int, held_out: bool) -> Ground:
    """Draw a ground from the training or held-out pool, `size` pixels square."""
    # The order of draws is part of the data: every call of `rng` changes all scenes after it.
    if rng.random() < PHOTOGRAPH_SHARE:
        pool = HELD_OUT_PHOTOGRAPHS if held_out else TRAINING_PHOTOGRAPHS
        return _crop_photograph(rng, pool[rng.integers(len(pool))], size)
    styles = HELD_OUT if held_out else TRAINING
    name = sorted(styles)[rng.integers(len(styles))]
    draw, description = styles[name]
    pixels = draw(rng, size)
    if rng.random() < 0.5:  # else drawn grounds are so clean that an object is the only texture
        light = noise(rng, size).mean(-1, keepdims=True)
        pixels = pixels * (0.8 + 0.4 * light / 255)
    return Ground(pixels.astype(np.float32, copy=False).clip(0, 255), "drawn", name, description)


def _crop_photograph(rng: np.random.Generator, photograph: Photograph, size: int) -> Ground:
    image = load(photograph)
    side = min(image.size) * rng.uniform(0.4, 1.0)
    left, top = (image.width - side) * rng.random(), (image.height - side) * rng.random()
    corners = (left, top, left + side, top + side)
    crop = image.resize((size, size), Image.Resampling.BILINEAR, box=corners, reducing_gap=2.0)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(crop, np.float32)
    if is_gray(photograph) and rng.random() < 0.85:
        low, high = palette(rng, 2)
        dark = np.minimum(low, high) * np.float32(0.45)
        pixels = dark + pixels[..., :1] / 255 * (np.maximum(low, high) - dark)
    elif rng.random() < 0.2:
        pixels = pixels[..., ::-1] if rng.random() < 0.3 else pixels.mean(-1, keepdims=True).repeat(3, -1)
    gain = rng.uniform(0.85, 1.15, 3).astype(np.float32) * np.float32(rng.uniform(0.85, 1.2))
    return Ground((pixels * gain).clip(0, 255), "photo", photograph.name, photograph.description, photograph.shows)
