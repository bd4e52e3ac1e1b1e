"""Draw the ground of a scene: a crop of a photograph or a drawn pattern, from the pool of its split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate_labs.worlds.scenes import drawn_grounds, photographs

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
    images = photographs.HELD_OUT if held_out else photographs.TRAINING
    styles = drawn_grounds.HELD_OUT if held_out else drawn_grounds.TRAINING
    return frozenset({image.name for image in images} | set(styles))


def draw_ground(rng: np.random.Generator, *, size: int, held_out: bool) -> Ground:
    """Draw a ground from the training or held-out pool, `size` pixels square."""
    # The order of draws is part of the data: every call of `rng` changes all scenes after it.
    if rng.random() < PHOTOGRAPH_SHARE:
        pool = photographs.HELD_OUT if held_out else photographs.TRAINING
        return _crop_photograph(rng, pool[rng.integers(len(pool))], size)
    styles = drawn_grounds.HELD_OUT if held_out else drawn_grounds.TRAINING
    name = sorted(styles)[rng.integers(len(styles))]
    draw, description = styles[name]
    pixels = draw(rng, size)
    if rng.random() < 0.5:  # else drawn grounds are so clean that an object is the only texture
        light = drawn_grounds.noise(rng, size).mean(-1, keepdims=True)
        pixels = pixels * (0.8 + 0.4 * light / 255)
    return Ground(pixels.astype(np.float32, copy=False).clip(0, 255), "drawn", name, description)


def _crop_photograph(rng: np.random.Generator, photograph: photographs.Photograph, size: int) -> Ground:
    image = photographs.load(photograph)
    side = min(image.size) * rng.uniform(0.4, 1.0)
    left, top = (image.width - side) * rng.random(), (image.height - side) * rng.random()
    corners = (left, top, left + side, top + side)
    crop = image.resize((size, size), Image.Resampling.BILINEAR, box=corners, reducing_gap=2.0)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(crop, np.float32)
    if photographs.is_gray(photograph) and rng.random() < 0.85:
        low, high = drawn_grounds.palette(rng, 2)
        dark = np.minimum(low, high) * np.float32(0.45)
        pixels = dark + pixels[..., :1] / 255 * (np.maximum(low, high) - dark)
    elif rng.random() < 0.2:
        pixels = pixels[..., ::-1] if rng.random() < 0.3 else pixels.mean(-1, keepdims=True).repeat(3, -1)
    gain = rng.uniform(0.85, 1.15, 3).astype(np.float32) * np.float32(rng.uniform(0.85, 1.2))
    return Ground((pixels * gain).clip(0, 255), "photo", photograph.name, photograph.description, photograph.shows)
