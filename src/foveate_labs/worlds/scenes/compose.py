"""Compose cut-outs and patches on a ground, all by the same steps.

A cut-out is scaled, rotated, softened, slightly recolored and toned towards its surroundings. Unlabeled patches are
treated alike, so that a visible edge says nothing about whether there is a labeled thing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Floats = NDArray[np.floating]
SOLID = np.float32(0.3)  # alpha from which a pixel counts as covered: glass and bubbles belong to their thing


@dataclass(frozen=True)
class Layer:
    """A pasted image: premultiplied colors (0..255) and alpha (0..1), with its position.

    Args:
        left, top: in pixels; negative if it reaches over the edge.
        tone: how far its colors move towards the mean color below.
        shadow: how much it darkens the ground next to it.
    """

    rgba_hw4: Floats
    left: int
    top: int
    tone: float = 0.0
    shadow: float = 0.0

    @property
    def solid_hw(self) -> NDArray[np.bool_]:
        return self.rgba_hw4[..., 3] > SOLID

    def at(self, left: int, top: int) -> Layer:
        return Layer(self.rgba_hw4, left, top, self.tone, self.shadow)


@dataclass(frozen=True)
class Finish:
    """Final changes of the whole image: blur radius in pixels, noise in gray levels, brightness, contrast."""

    blur: float
    noise: float
    brightness: float
    contrast: float
    noise_seed: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Finish:
        return cls(
            blur=float(rng.uniform(0.3, 0.8)) if rng.random() < 0.3 else 0.0,
            noise=float(rng.uniform(0, 5)),
            brightness=float(rng.uniform(-12, 12)),
            contrast=float(rng.uniform(0.88, 1.08)),
            noise_seed=int(rng.integers(2**62)),
        )


def make_layer(rng: np.random.Generator, image: Image.Image, *, longest: float, flip: bool, turn: float) -> Layer:
    """Make a layer of an RGBA image, scaled to `longest` pixels, flipped, rotated by `turn` degrees and recolored."""
    scale = longest / max(image.size)
    size = (max(4, round(image.width * scale)), max(4, round(image.height * scale)))
    # Premultiplied ("RGBa") before resizing: else the color of transparent pixels bleeds into the edge.
    image = image.convert("RGBa").resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    soft = float(rng.uniform(0.2, 0.75)) if rng.random() < 0.75 else 0.0
    image = image.rotate(turn, Image.Resampling.BILINEAR, expand=True)
    if soft:
        # With a margin: at the border of the layer the softened edge would be cut off.
        padded = Image.new("RGBa", (image.width + 4, image.height + 4))
        padded.paste(image, (2, 2))
        image = padded.filter(ImageFilter.BoxBlur(soft))
    rgba = np.asarray(image, np.float32)
    alpha = rgba[..., 3:] / 255
    gain = rng.uniform(0.9, 1.1, 3).astype(np.float32) * np.float32(rng.uniform(0.82, 1.12))
    lift = np.float32(rng.uniform(-10, 14))
    # Premultiplied: a lift is scaled by alpha, and no color may exceed it.
    colors = (rgba[..., :3] * gain + lift * alpha).clip(0, 255 * alpha)
    tone, shadow = rng.uniform(0, 0.15), rng.uniform(0.15, 0.4) if rng.random() < 0.35 else 0.0
    return Layer(np.concatenate([colors, alpha], -1), 0, 0, float(tone), float(shadow))


def put_in_cell(rng: np.random.Generator, layer: Layer, cell: tuple[int, int], *, size: int, cells: int) -> Layer:
    """Position a layer at random inside a cell (row, column), or around its middle if it is larger.

    Args:
        size: side of the image in pixels. cells: rows and columns of the grid.
    """
    top, left = (
        (position + 0.5) * size / cells - side / 2 + rng.uniform(-0.5, 0.5) * max(size / cells - side, 0)
        for position, side in zip(cell, layer.rgba_hw4.shape[:2], strict=True)
    )
    return layer.at(round(left), round(top))


def _window(
    layer: Layer, shape: tuple[int, ...], dx: int = 0, dy: int = 0
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return (rows, columns) of the image (height, width, ...) and of the layer where they overlap."""
    height, width = layer.rgba_hw4.shape[:2]
    left, top = layer.left + dx, layer.top + dy
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + width, shape[1]), min(top + height, shape[0])
    # A layer off the image gives empty slices; a negative end would count from the other side.
    x2, y2 = max(x1, x2), max(y1, y2)
    return (slice(y1, y2), slice(x1, x2)), (slice(y1 - top, y2 - top), slice(x1 - left, x2 - left))


def paste(canvas_HW3: Floats, owners_HW: NDArray[np.int8], layer: Layer, number: int) -> None:
    """Paste a layer in place; `owners_HW` has the number of the top layer at each pixel (-1: ground)."""
    shape = canvas_HW3.shape
    if layer.shadow:
        offset = max(1, shape[0] // 90)
        target, source = _window(layer, shape, offset, offset)
        canvas_HW3[target] *= 1 - np.float32(layer.shadow) * layer.rgba_hw4[source][..., 3:]
    target, source = _window(layer, shape)
    part = layer.rgba_hw4[source]
    if not part.size:
        return
    alpha = part[..., 3:]
    beneath = canvas_HW3[target]
    colors = part[..., :3]
    if layer.tone:
        tone = np.float32(layer.tone)
        # A sixteenth of the pixels is enough for a mean color.
        colors = colors * (1 - tone) + beneath[::4, ::4].mean((0, 1)) * alpha * tone
    canvas_HW3[target] = beneath * (1 - alpha) + colors
    owners_HW[target][alpha[..., 0] > SOLID] = number


def compose(ground_HW3: Floats, layers: list[Layer], finish: Finish) -> tuple[Image.Image, NDArray[np.int8]]:
    """Return the finished RGB image and the number of the top layer at each pixel; later layers lie on top."""
    canvas = ground_HW3.copy()
    owners = np.full(canvas.shape[:2], -1, np.int8)
    for number, layer in enumerate(layers):
        paste(canvas, owners, layer, number)
    return apply_finish(canvas, finish), owners


def apply_finish(canvas_HW3: Floats, finish: Finish) -> Image.Image:
    """Apply contrast, brightness and noise in float, then round to 8 bits and blur."""
    levels = np.random.default_rng(finish.noise_seed).integers(-127, 128, canvas_HW3.shape[:2], np.int8)
    grain = levels * np.float32(np.sqrt(3) / 127)  # uniform with variance 1: much faster to draw than a normal
    center = np.float32(127.5)
    # In place: new arrays of this size cost more than the arithmetic.
    values = canvas_HW3 - center
    values *= np.float32(finish.contrast)
    values += center + np.float32(finish.brightness)
    values += (np.float32(finish.noise) * grain)[..., None]
    image = Image.fromarray(np.clip(values, 0, 255, out=values).astype(np.uint8))
    return image.filter(ImageFilter.BoxBlur(finish.blur)) if finish.blur else image
