"""From cut-outs, patches and a ground to pixels. Everything that is pasted goes through the same path.

A cut-out is scaled, turned, softened, recolored a little and toned towards its surroundings; an unlabeled
patch is treated alike, so that a visible edge says nothing about whether there is a labeled thing.
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
    """What is pasted: premultiplied colors (0..255) and alpha (0..1), with its place in the scene.

    left, top may be negative: a layer may hang over the edge. `tone` draws its colors towards the mean of what
    lies beneath, `shadow` darkens the ground beside it.
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
    """What is done to the whole image last: blur radius in pixels, noise in gray levels, brightness, contrast."""

    blur: float
    noise: float
    brightness: float
    contrast: float
    noise_seed: int

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Finish:
        return cls(
            blur=float(rng.uniform(0.3, 0.8)) if rng.random() < 0.3 else 0.0,
            noise=float(rng.uniform(0, 5)),
            brightness=float(rng.uniform(-12, 12)),
            contrast=float(rng.uniform(0.88, 1.08)),
            noise_seed=int(rng.integers(2**62)),
        )


def turned_layer(rng: np.random.Generator, image: Image.Image, *, longest: float, flip: bool, turn: float) -> Layer:
    """A layer from an RGBA image: longest side in pixels, mirrored or not, turned by degrees, slightly recolored."""
    scale = longest / max(image.size)
    size = (max(4, round(image.width * scale)), max(4, round(image.height * scale)))
    image = image.convert("RGBa").resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    soft = float(rng.uniform(0.2, 0.75)) if rng.random() < 0.75 else 0.0
    image = image.rotate(turn, Image.Resampling.BILINEAR, expand=True)
    if soft:
        padded = Image.new("RGBa", (image.width + 4, image.height + 4))
        padded.paste(image, (2, 2))
        image = padded.filter(ImageFilter.BoxBlur(soft))
    rgba = np.asarray(image, np.float32)
    alpha = rgba[..., 3:] / 255
    gain = rng.uniform(0.9, 1.1, 3).astype(np.float32) * np.float32(rng.uniform(0.82, 1.12))
    lift = np.float32(rng.uniform(-10, 14))
    colors = (rgba[..., :3] * gain + lift * alpha).clip(0, 255 * alpha)
    tone, shadow = rng.uniform(0, 0.15), rng.uniform(0.15, 0.4) if rng.random() < 0.35 else 0.0
    return Layer(np.concatenate([colors, alpha], -1), 0, 0, float(tone), float(shadow))


def _window(layer: Layer, size: int, dx: int = 0, dy: int = 0) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """(rows, columns) of the image and of the layer where both have pixels."""
    height, width = layer.rgba_hw4.shape[:2]
    left, top = layer.left + dx, layer.top + dy
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + width, size), min(top + height, size)
    x2, y2 = max(x1, x2), max(y1, y2)
    return (slice(y1, y2), slice(x1, x2)), (slice(y1 - top, y2 - top), slice(x1 - left, x2 - left))


def paste(canvas_HW3: Floats, owners_HW: NDArray[np.int8], layer: Layer, number: int) -> None:
    """Puts the layer on the canvas, in place; owners_HW says which layer is uppermost at each pixel (-1: ground)."""
    size = canvas_HW3.shape[0]
    if layer.shadow:
        offset = max(1, size // 90)
        there, here = _window(layer, size, offset, offset)
        canvas_HW3[there] *= 1 - np.float32(layer.shadow) * layer.rgba_hw4[here][..., 3:]
    there, here = _window(layer, size)
    part = layer.rgba_hw4[here]
    if not part.size:
        return
    alpha = part[..., 3:]
    beneath = canvas_HW3[there]
    colors = part[..., :3]
    if layer.tone:
        tone = np.float32(layer.tone)
        colors = colors * (1 - tone) + beneath[::4, ::4].mean((0, 1)) * alpha * tone
    canvas_HW3[there] = beneath * (1 - alpha) + colors
    owners_HW[there][alpha[..., 0] > SOLID] = number


def compose(ground_HW3: Floats, layers: list[Layer], finish: Finish) -> tuple[Image.Image, NDArray[np.int8]]:
    """The finished RGB image and the uppermost layer's number at each pixel. Later layers lie over earlier ones."""
    canvas = ground_HW3.copy()
    owners = np.full(canvas.shape[:2], -1, np.int8)
    for number, layer in enumerate(layers):
        paste(canvas, owners, layer, number)
    return finished(canvas, finish), owners


def finished(canvas_HW3: Floats, finish: Finish) -> Image.Image:
    """Contrast, brightness and noise in float, then 8 bits and blur."""
    levels = np.random.default_rng(finish.noise_seed).integers(-127, 128, canvas_HW3.shape[:2], np.int8)
    grain = levels * np.float32(np.sqrt(3) / 127)  # evenly distributed, variance 1
    center = np.float32(127.5)
    values = (canvas_HW3 - center) * np.float32(finish.contrast) + (center + np.float32(finish.brightness))
    values += (np.float32(finish.noise) * grain)[..., None]
    image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.BoxBlur(finish.blur)) if finish.blur else image
