"""Draw what a camera looks at: ground, background, and things that an animal may pass behind."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from foveate.core.seeds import generator
from foveate_labs.worlds.scenes import photographs
from foveate_labs.worlds.scenes.compose import Layer, paste
from foveate_labs.worlds.scenes.drawn_grounds import smooth_noise
from foveate_labs.worlds.traps.world import Camera

Floats = NDArray[np.floating]

_TEXTURE = 256
# Dark and light color of the ground, of leaves, and of the distance, by habitat.
_COLORS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "forest": ((52, 44, 30), (112, 98, 64), (34, 52, 26), (92, 118, 60), (70, 92, 66)),
    "savanna": ((140, 112, 66), (204, 180, 122), (84, 92, 44), (150, 148, 82), (186, 180, 150)),
    "steppe": ((104, 100, 58), (172, 164, 104), (88, 94, 56), (148, 146, 92), (168, 176, 168)),
    "wetland": ((50, 62, 40), (108, 122, 76), (52, 78, 34), (122, 142, 68), (140, 160, 158)),
    "mountain": ((84, 84, 80), (146, 142, 132), (44, 62, 44), (98, 112, 76), (150, 162, 176)),
}
_SKY = (196, 210, 224)
# Least and most things of each sort that stand around, by habitat.
_THINGS: dict[str, dict[str, tuple[int, int]]] = {
    "forest": {"trunk": (6, 13), "bush": (2, 5), "rock": (0, 2)},
    "savanna": {"tree": (1, 4), "bush": (2, 5), "rock": (0, 2)},
    "steppe": {"bush": (3, 8), "rock": (0, 3)},
    "wetland": {"tree": (0, 2), "bush": (3, 7)},
    "mountain": {"conifer": (2, 7), "rock": (3, 7), "bush": (0, 3)},
}
_TUFTS = {"forest": 5, "savanna": 9, "steppe": 7, "wetland": 10, "mountain": 3}


@dataclass(frozen=True)
class Thing:
    """A trunk, bush or rock; animals whose feet are above `base` (in pixels from the upper edge) pass behind it."""

    layer: Layer
    base: float


@dataclass(frozen=True)
class Landscape:
    """The view of a camera by day.

    Args:
        pixels_HW3: uint8, with all things.
        horizon: its row.
        things: by base.
        grass: tufts in front of everything, apart from the ground since wind moves them.
        lamp_HW: brightness of infra-red light at equal distances; the middle is brighter than the edges.
        depth_HW: 0 (near) to 1 (the horizon and beyond).
    """

    pixels_HW3: NDArray[np.uint8]
    horizon: float
    things: tuple[Thing, ...]
    grass: Layer
    lamp_HW: Floats
    depth_HW: Floats


# All cameras of a large survey, 2 MB each: a split goes through its cameras in turn.
@functools.lru_cache(maxsize=128)
def draw_landscape(seed: int, camera: Camera, width: int, height: int) -> Landscape:
    """Draw the view of a camera, a pure function of the seed and the camera."""
    rng = generator("trap landscape", seed, camera.name)
    horizon = camera.tilt * height
    colors = np.array(_COLORS[camera.habitat], np.float32)
    # Each camera has a shade of its habitat of its own.
    colors = (colors * rng.uniform(0.93, 1.07, (1, 3)) * rng.uniform(0.8, 1.15)).astype(np.float32)
    canvas_HW3 = _draw_background(rng, colors, horizon, width, height)
    _draw_terrain(rng, camera.habitat, colors, horizon, canvas_HW3)
    things = _draw_things(rng, camera.habitat, colors, horizon, width, height)
    owners_HW = np.zeros((height, width), np.int8)
    rows_H1 = np.arange(height, dtype=np.float32)[:, None]
    depth_HW = np.repeat(compute_depth(rows_H1, horizon, height), width, 1)
    for thing in things:
        # What stands near is as near at its top as at its foot.
        owners_HW.fill(0)
        paste(canvas_HW3, owners_HW, thing.layer, 1)
        depth_HW[owners_HW == 1] = compute_depth(thing.base, horizon, height)
    lamp_HW = 1.1 - 0.5 * np.linspace(-1, 1, width, dtype=np.float32) ** 2 + 0.3 * (_noise(rng, width, height, 4) - 0.5)
    return Landscape(
        canvas_HW3.clip(0, 255).astype(np.uint8),
        horizon,
        things,
        _draw_grass(rng, colors, _TUFTS[camera.habitat], width, height),
        lamp_HW.astype(np.float32),
        depth_HW,
    )


def compute_depth(rows: Floats | float, horizon: float, height: int) -> Floats:
    """Return how far the ground at a row is: 0 at the lower edge to 1 at the horizon and above it."""
    return 1 - ((np.asarray(rows, np.float32) - np.float32(horizon)) / np.float32(height - horizon)).clip(0, 1)


def _noise(rng: np.random.Generator, width: int, height: int, cells: int) -> Floats:
    side = max(width, height)
    return smooth_noise(rng, side, cells)[:height, :width]


def _mix(weight: Floats, low: Floats, high: Floats) -> Floats:
    return low + weight[..., None] * (high - low)


def _draw_background(rng: np.random.Generator, colors: Floats, horizon: float, width: int, height: int) -> Floats:
    """Draw sky, and two ridges that fade with the distance."""
    rows_H = np.arange(height, dtype=np.float32)
    sky = np.array(_SKY, np.float32) * np.float32(rng.uniform(0.8, 1.1))
    canvas = _mix(np.broadcast_to((rows_H / max(horizon, 1)).clip(0, 1)[:, None], (height, width)), sky * 0.9, sky)
    clouds = _noise(rng, width, height, 5)
    canvas += 22 * (clouds[..., None] - 0.5)
    # The far ridge first: the near one covers its foot.
    for haze, reach in ((0.6, 0.55), (0.25, 0.3)):
        ridge_W = smooth_noise(rng, width, 6)[0] + 0.25 * smooth_noise(rng, width, 40)[0]
        top_W = horizon * (1 - reach * (0.4 + 0.6 * ridge_W))
        inside = rows_H[:, None] >= top_W
        texture = (0.75 + 0.5 * _noise(rng, width, height, 60))[..., None]
        canvas = np.where(inside[..., None], ((1 - haze) * colors[2] * 1.1 + haze * colors[4]) * texture, canvas)
    return canvas.astype(np.float32)


@functools.cache
def _load_detail(name: str) -> Floats:
    """Return the gray levels of a photograph of grass or gravel around 1, square."""
    entry = next(each for each in (*photographs.TRAINING, *photographs.HELD_OUT) if each.name == name)
    gray = np.asarray(photographs.load(entry).convert("L"), np.float32)[:_TEXTURE, :_TEXTURE]
    return gray / gray.mean()


def _draw_terrain(rng: np.random.Generator, habitat: str, colors: Floats, horizon: float, canvas_HW3: Floats) -> None:
    """Draw the ground in perspective, in place: a texture that is seen from the height of the camera."""
    height, width = canvas_HW3.shape[:2]
    patches = 0.5 * smooth_noise(rng, _TEXTURE, 5) + 0.5 * smooth_noise(rng, _TEXTURE, 24)
    detail = _load_detail("gravel" if habitat in ("mountain", "steppe") else "grass")
    detail = np.roll(detail, rng.integers(_TEXTURE, size=2), (0, 1))
    ground = _mix(patches, colors[0], colors[1])
    grown = ((smooth_noise(rng, _TEXTURE, 7) - rng.uniform(0.35, 0.7)) * 6).clip(0, 1)
    ground = _mix(grown, ground, _mix(smooth_noise(rng, _TEXTURE, 40), colors[2], colors[3]))
    fine = ground * (0.35 + 0.65 * detail)[..., None]
    if habitat == "wetland":
        water = ((smooth_noise(rng, _TEXTURE, 4) - 0.55) * 12).clip(0, 1)
        fine = _mix(water, fine, 0.75 * colors[4] + 12 * smooth_noise(rng, _TEXTURE, 30)[..., None])
        ground = _mix(water, ground, 0.75 * colors[4])
    first = int(np.ceil(horizon))
    rows = np.arange(first, height, dtype=np.float32)
    scale_R1 = ((height - horizon) / (rows - horizon + 3))[:, None]
    # From the middle of the texture: the line of its mirror image is seldom in the middle of the view.
    across = (np.arange(width, dtype=np.float32) - width / 2) * scale_R1 + _TEXTURE * np.float32(rng.uniform(0.4, 0.6))
    along = np.broadcast_to((height - horizon) * scale_R1, across.shape)
    u, v = (_mirror(values) for values in (across, along))
    # Far texels are smaller than a pixel: their mean color instead of a few of them.
    far_R1 = (1 - 1 / scale_R1**0.8)[..., None]
    pixels = fine[v, u] * (1 - far_R1) + (0.6 * ground[v, u] + 0.4 * ground.mean((0, 1))) * far_R1
    haze_R11 = (0.35 * ((scale_R1 - 3) / 20).clip(0, 1))[..., None]
    canvas_HW3[first:] = pixels * (1 - haze_R11) + colors[4] * haze_R11


def _mirror(positions: Floats) -> NDArray[np.int64]:
    """Return texels of positions; mirrored beyond the edges, where a repeated texture would have a seam."""
    period = 2 * _TEXTURE
    return np.minimum(np.abs((positions + _TEXTURE) % period - _TEXTURE), _TEXTURE - 1).astype(np.int64)


def _draw_things(
    rng: np.random.Generator, habitat: str, colors: Floats, horizon: float, width: int, height: int
) -> tuple[Thing, ...]:
    things = []
    for name, (low, high) in _THINGS[habitat].items():
        for _ in range(rng.integers(low, high + 1)):
            # Squared: more of them far than near, as on a plane.
            nearness = float(0.04 + 0.8 * rng.random() ** 2)
            base = horizon + nearness * (height - horizon)
            things.append(Thing(_draw_thing(rng, name, colors, base, nearness, width, height), base))
    return tuple(sorted(things, key=lambda thing: thing.base))


def _draw_thing(
    rng: np.random.Generator, name: str, colors: Floats, base: float, nearness: float, width: int, height: int
) -> Layer:
    """Draw a thing whose foot is at row `base`; its size follows from its nearness, 0 to 1."""
    mask = Image.new("L", (width, height))
    pen = ImageDraw.Draw(mask)
    unit = height * (0.06 + nearness)
    x = float(rng.uniform(-0.05, 1.05) * width)
    dark, light = colors[2] * 0.8, colors[3]
    if name == "trunk":
        half = max(1.5, 0.07 * unit * rng.uniform(0.6, 1.5))
        lean = float(rng.normal(0, 0.03) * height)
        pen.polygon([(x - half, base), (x - half * 0.7 + lean, -5), (x + half * 0.7 + lean, -5), (x + half, base)], 255)
        dark, light = colors[0] * 0.55, colors[1] * 0.8
    elif name == "rock":
        angles = np.linspace(0, 2 * np.pi, 11)[:-1]
        reach = 0.22 * unit * rng.uniform(0.6, 1.2, 10)
        corners = [
            (x + 1.5 * r * np.cos(a), base - 0.2 * unit + r * np.sin(a)) for r, a in zip(reach, angles, strict=True)
        ]
        pen.polygon([(float(u), float(v)) for u, v in corners], 255)
        dark, light = 35 + 0.35 * colors[0], 90 + 0.4 * colors[1]
    elif name == "conifer":
        tall, half = unit * rng.uniform(1.1, 1.8), unit * rng.uniform(0.22, 0.35)
        for level in range(5):
            top = base - tall * (1 - 0.17 * level)
            span = half * (0.35 + 0.16 * level)
            pen.polygon([(x - span, top + 0.34 * tall), (x, top), (x + span, top + 0.34 * tall)], 255)
        dark = colors[2] * 0.6
    else:
        radius = unit * (0.16 if name == "bush" else 0.3) * float(rng.uniform(0.8, 1.4))
        middle = base - (0.7 * radius if name == "bush" else unit * rng.uniform(0.9, 1.3))
        for dx, dy, share in zip(rng.normal(0, 0.9, 9), rng.normal(0, 0.3, 9), rng.uniform(0.3, 0.6, 9), strict=True):
            r, u = float(share * radius), float(x + dx * radius)
            v = float(min(middle + dy * radius, base - 0.3 * radius))
            pen.ellipse((u - r * 1.3, v - r, u + r * 1.3, v + r), 255)
        # A ragged outline: a smooth one looks like a balloon.
        ragged = _noise(rng, width, height, max(20, int(6 * height / max(radius, 4)))) > 0.35
        mask = Image.fromarray(np.asarray(mask) * ragged.astype(np.uint8))
        if name == "tree":
            half = 0.025 * unit
            ImageDraw.Draw(mask).rectangle((x - half, middle, x + half, base), 255)
    # Far things pale in the haze.
    haze = np.float32(0.45 * max(0.0, 1 - 4 * nearness))
    return _make_layer(rng, mask, dark * (1 - haze) + colors[4] * haze, light * (1 - haze) + colors[4] * haze)


def _make_layer(rng: np.random.Generator, mask: Image.Image, dark: Floats, light: Floats) -> Layer:
    """Fill a mask of the size of the image with a mottled color; return the part that it covers."""
    bounds = mask.getbbox() or (0, 0, 1, 1)
    left, top, right, bottom = max(bounds[0] - 1, 0), max(bounds[1] - 1, 0), bounds[2] + 1, bounds[3] + 1
    alpha_hw = np.asarray(mask.crop((left, top, right, bottom)).filter(ImageFilter.GaussianBlur(0.6)), np.float32) / 255
    height, width = alpha_hw.shape
    mottled = 0.55 * _noise(rng, width, height, 6) + 0.45 * _noise(rng, width, height, max(8, max(width, height) // 4))
    # Lit from above.
    mottled = (mottled + 0.25 * np.linspace(1, -1, height, dtype=np.float32)[:, None]).clip(0, 1)
    colors_hw3 = _mix(mottled, dark, light) * alpha_hw[..., None]
    return Layer(np.concatenate([colors_hw3, alpha_hw[..., None]], -1).astype(np.float32), left, top)


def _draw_grass(rng: np.random.Generator, colors: Floats, tufts: int, width: int, height: int) -> Layer:
    """Draw tufts at the lower edge, wider than the image by a few pixels on each side."""
    tall = round(0.3 * height)
    image = Image.new("RGBA", (width + 16, tall))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(tufts // 2, tufts + 1))):
        x, reach = float(rng.uniform(0, width + 16)), float(rng.uniform(0.25, 0.95) * tall)
        for _ in range(int(rng.integers(8, 22))):
            foot, lean = x + float(rng.normal(0, 0.02 * width)), float(rng.normal(0, 0.3))
            tip = reach * float(rng.uniform(0.4, 1))
            shade = colors[2] + (colors[3] - colors[2]) * np.float32(rng.uniform(0, 1.2))
            color = tuple(int(level) for level in (shade * 0.85).clip(0, 255))
            bend = (foot + lean * tip * 0.35, tall - tip * 0.6)
            pen.line([(foot, tall), bend, (foot + lean * tip, tall - tip)], fill=(*color, 255), width=2)
    rgba = np.asarray(image.convert("RGBa").filter(ImageFilter.BoxBlur(0.4)), np.float32)
    return Layer(np.concatenate([rgba[..., :3], rgba[..., 3:] / 255], -1), -8, height - tall)
