"""Drawn grounds: patterns from a few pleasant colors. Some styles are for training, others only for tests."""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
