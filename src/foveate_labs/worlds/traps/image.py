"""Draw images of a generated survey: animals in a landscape, by day, by infra-red night, in fog, with an info strip."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from foveate.core.seeds import generator, integer
from foveate.records.boxes import Box, PixelBox
from foveate.records.shapes import mask_bounds
from foveate_labs.worlds.builtin import Cutout
from foveate_labs.worlds.scenes import grounds
from foveate_labs.worlds.scenes.compose import Finish, Layer, apply_finish, make_layer, paste
from foveate_labs.worlds.scenes.grounds import smooth_noise
from foveate_labs.worlds.traps.kinds import load_drawings, shows_head
from foveate_labs.worlds.traps.world import Camera, Frame, TrapSettings, World, is_night, load_world

# Draw what a camera looks at: ground, background, and things that an animal may pass behind.


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
class Scenery:
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
    things: tuple[Scenery, ...]
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
    entry = next(each for each in (*grounds.TRAINING_PHOTOGRAPHS, *grounds.HELD_OUT_PHOTOGRAPHS) if each.name == name)
    gray = np.asarray(grounds.load(entry).convert("L"), np.float32)[:_TEXTURE, :_TEXTURE]
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
) -> tuple[Scenery, ...]:
    things = []
    for name, (low, high) in _THINGS[habitat].items():
        for _ in range(rng.integers(low, high + 1)):
            # Squared: more of them far than near, as on a plane.
            nearness = float(0.04 + 0.8 * rng.random() ** 2)
            base = horizon + nearness * (height - horizon)
            things.append(Scenery(_draw_thing(rng, name, colors, base, nearness, width, height), base))
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


STRIP_SHARE = 0.075  # of the height
_MIN_VISIBLE = 0.25  # an animal that shows less of itself is left out, so that no image has an invisible one
_MIN_PIXELS = 0.001  # of the image
_LONGEST = (0.14, 0.56)  # of an animal, as a fraction of the height: emoji are 64 pixels wide
_COLORLESS, _FUR = 0.3, 0.2  # flat, pure colors would be told from any ground at once
_INFRARED = np.array([0.4, 0.45, 0.15], np.float32)


@dataclass(frozen=True)
class TrapImage:
    """An image of the survey with what is true about it.

    Args:
        boxes: of the visible pixels of each animal; without one the image is empty.
        visible: share of each animal that is not hidden, outside of the image, or where strips are.
        drawing: emoji or photograph of the animals; "" if empty. unseen: whether no training image has it.
        blurred: by motion.
    """

    image: Image.Image
    frame: Frame
    boxes: tuple[Box, ...]
    visible: tuple[float, ...]
    drawing: str
    unseen: bool
    night: bool
    foggy: bool
    blurred: bool


@dataclass(frozen=True)
class _Animal:
    layer: Layer
    feet: float


@dataclass(frozen=True)
class _Weather:
    """Light and air of an event: factors of the colors, contrast of sun flecks, density of fog."""

    night: bool
    light: Floats
    flecks: float
    fog: float

    @classmethod
    def draw(cls, rng: np.random.Generator, frame: Frame) -> _Weather:
        camera, hour = frame.event.camera, frame.event.time.hour
        night = is_night(frame.event.time, camera.latitude)
        # One number for each decision, drawn by night as by day, so that the light leaves the fog as it is.
        sunny, gain, fog_draw, fog = rng.random(4)
        early = 3 <= hour <= 9
        density = 0.4 + 0.4 * fog if fog_draw < camera.fogginess * (2 if early else 0.5) else 0.0
        if night:
            return cls(True, np.full(3, 0.75 + 0.55 * gain, np.float32), 0.0, density)
        low = hour in (5, 6, 7, 17, 18, 19)
        color = (1.12, 0.97, 0.8) if low else (1.02, 1.0, 0.95) if sunny < 0.5 else (0.95, 1.0, 1.04)
        light = np.array(color, np.float32) * np.float32((0.6 if low else 0.8) + 0.3 * gain)
        return cls(False, light, 0.7 if sunny < 0.5 and not low and not density else 0.0, density)


def draw_trap_image(settings: TrapSettings, *, seed: int, split: str, index: int) -> TrapImage:
    """Draw image number `index` of a split, a pure function of its arguments.

    Raises:
        UserError: the split is unknown or the index below 0.
    """
    world = load_world(settings, seed)
    return render_frame(world, world.locate(split, index))


def render_frame(world: World, frame: Frame) -> TrapImage:
    """Draw an image of a burst."""
    settings, event = world.settings, frame.event
    camera = event.camera
    view = draw_landscape(world.seed, camera, settings.width, settings.height)
    weather = _Weather.draw(generator("trap weather", world.seed, event.id), frame)
    look = generator("trap look", world.seed, event.id)
    blurred = bool(look.random() < (0.3 if weather.night else 0.12))
    drawings = load_drawings(world.settings.photographs)
    drawing = drawings[event.kind.taxon_id][event.drawing] if event.kind else None
    animals = list(_place_animals(world, frame, view, drawing, blurred)) if drawing else []
    rng = generator("trap frame", world.seed, event.id, frame.position)
    sway = int(rng.integers(-2, 3))
    # Leaving out an animal uncovers those behind it, so the image is composed again until all that remain are visible.
    while True:
        canvas_HW3 = view.pixels_HW3.astype(np.float32)
        owners_HW = _compose(canvas_HW3, view, animals, sway)
        visible_HW = owners_HW.copy()
        # Which animals are there does not depend on whether there are strips.
        visible_HW[_strip_rows(frame, settings.height)] = -1
        sizes = [int((visible_HW == number).sum()) for number in range(len(animals))]
        shares = [size / max(1, animal.layer.solid_hw.sum()) for size, animal in zip(sizes, animals, strict=True)]
        min_pixels = _MIN_PIXELS * owners_HW.size
        seen = [size >= min_pixels and share >= _MIN_VISIBLE for size, share in zip(sizes, shares, strict=True)]
        if all(seen):
            break
        animals = [animal for animal, keep in zip(animals, seen, strict=True) if keep]
    # A copy: the landscape is cached, and all images of its camera share it.
    depth_HW = view.depth_HW.copy() if animals else view.depth_HW
    for number, animal in enumerate(animals):
        near = compute_depth(animal.feet, view.horizon, settings.height)
        depth_HW[owners_HW == number] = near
    _light(canvas_HW3, view, weather, depth_HW, frame, world.seed)
    finish = Finish(
        blur=0.0,
        noise=camera.noise * (1.7 if weather.night else 1.0),
        brightness=float(rng.uniform(-4, 4)),
        contrast=camera.contrast,
        noise_seed=integer("trap noise", world.seed, event.id, frame.position),
    )
    image = apply_finish(canvas_HW3, finish)
    if settings.strips:
        strip = draw_strip(world, frame)
        image.paste(strip, (0, 0 if camera.strip == "top" else settings.height - strip.height))
        owners_HW = visible_HW
    bounds = [mask_bounds(owners_HW == number) for number in range(len(animals))]
    return TrapImage(
        image,
        frame,
        tuple(Box.from_pixels(PixelBox(*each), settings.width, settings.height) for each in bounds if each),
        tuple(round(share, 4) for share in shares),
        drawing.id if drawing and animals else "",
        unseen=bool(drawing and animals and event.drawing == 0),
        night=weather.night,
        foggy=weather.fog > 0,
        blurred=blurred and bool(animals),
    )


def _place_animals(world: World, frame: Frame, view: Landscape, drawing: Cutout, blurred: bool) -> Iterator[_Animal]:
    """Yield the animals of an image, from far to near; the same ones in all images of a burst, on their way."""
    event, height, width = frame.event, world.settings.height, world.settings.width
    if not event.present[0] <= frame.position < event.present[1]:
        return
    assert event.kind is not None
    herd = generator("trap animal", world.seed, event.id)
    head = shows_head(drawing)
    count = 1
    if event.kind.max_group > 1 and not head and herd.random() < 0.3:
        count = int(herd.integers(2, event.kind.max_group + 1))
    direction, speed = herd.choice((-1, 1)), float(herd.exponential(0.05)) * width
    x, nearness = float(herd.uniform(0.15, 0.85)) * width, float(herd.uniform(0.2, 0.95))
    animals = []
    for number in range(count):
        rng = generator("trap animal", world.seed, event.id, number)
        if head:
            longest = float(rng.uniform(0.3, 0.5)) * height * (1 if event.kind.length > 0.7 else 0.75)
            feet = height * (1 - STRIP_SHARE) + float(rng.uniform(-0.1, 0.2)) * longest
        else:
            near = min(max(nearness + (float(rng.normal(0, 0.08)) if number else 0), 0.15), 0.97)
            feet = view.horizon + near * (height * (1 - STRIP_SHARE) - view.horizon)
            # By the power .45 of their length: otherwise mice would be specks and elephants walls.
            longest = 0.75 * event.kind.length**0.45 * (feet - view.horizon) / event.camera.height**0.5
            low, high = (share * height for share in _LONGEST)
            longest = min(max(longest, low), high)
        shift = (frame.position - (event.camera.burst - 1) / 2) * speed * direction
        aside = float(rng.choice((-1, 1)) * rng.uniform(0.6, 1.1)) * longest if number else 0.0
        step = generator("trap step", world.seed, event.id, number, frame.position)
        turn = float(rng.normal(0, 4) + step.normal(0, 2))
        # A generator that is drawn anew for each image: coat and softness stay those of the first.
        coat = generator("trap coat", world.seed, event.id, number)
        layer = make_layer(coat, drawing.image(), longest=longest, flip=bool(direction > 0), turn=turn)
        layer = _color_coat(_trim(layer), generator("trap fur", world.seed, event.id, number))
        if blurred:
            layer = _blur_motion(layer, 2 + round(longest * float(coat.uniform(0.04, 0.14))))
        tall, wide = layer.rgba_hw4.shape[:2]
        animals.append(_Animal(layer.at(round(x + aside + shift - wide / 2), round(feet - tall)), feet))
    yield from sorted(animals, key=lambda animal: animal.feet)


def _trim(layer: Layer) -> Layer:
    """Cut off the transparent margin that turning leaves: feet stand on the lower edge."""
    x1, y1, x2, y2 = mask_bounds(layer.solid_hw) or (0, 0, 1, 1)
    return replace(layer, rgba_hw4=layer.rgba_hw4[y1:y2, x1:x2])


def _color_coat(layer: Layer, rng: np.random.Generator) -> Layer:
    """Fade the pure colors of a drawing and mottle them like fur."""
    colors_hw3, alpha_hw1 = layer.rgba_hw4[..., :3], layer.rgba_hw4[..., 3:]
    gray_hw1 = colors_hw3.mean(-1, keepdims=True)
    height, width = gray_hw1.shape[:2]
    side = max(height, width)
    fur = smooth_noise(rng, side, max(4, side // 4))[:height, :width, None]
    # Lit from above: the belly is darker than the back.
    fur = 0.95 - _FUR / 2 + _FUR * fur - 0.22 * np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None, None]
    colors_hw3 = (colors_hw3 * (1 - _COLORLESS) + gray_hw1 * _COLORLESS) * fur
    return replace(layer, rgba_hw4=np.concatenate([colors_hw3.clip(0, 255 * alpha_hw1), alpha_hw1], -1), shadow=0.0)


def _blur_motion(layer: Layer, reach: int) -> Layer:
    """Smear a layer over `reach` pixels from left to right."""
    height, width = layer.rgba_hw4.shape[:2]
    sums = np.zeros((height, width + 2 * reach, 4), np.float32)
    sums[:, reach : reach + width] = layer.rgba_hw4
    # As differences of running sums: a longer blur costs no more.
    sums = np.cumsum(sums, 1)
    return replace(layer, rgba_hw4=((sums[:, reach:] - sums[:, :-reach]) / reach).astype(np.float32))


def _compose(canvas_HW3: Floats, view: Landscape, animals: list[_Animal], sway: int) -> NDArray[np.int8]:
    """Paste animals, what they pass behind, and grass; return the number of the animal at each pixel, -1 for none."""
    owners_HW = np.full(canvas_HW3.shape[:2], -1, np.int8)
    for number, animal in enumerate(animals):
        _paste_shadow(canvas_HW3, animal)
        paste(canvas_HW3, owners_HW, animal.layer, number)
        nearest = animals[number + 1].feet if number + 1 < len(animals) else math.inf
        for thing in view.things:
            # Each thing once: in front of this animal and behind the next one.
            if animal.feet < thing.base <= nearest:
                paste(canvas_HW3, owners_HW, thing.layer, -1)
    paste(canvas_HW3, owners_HW, view.grass.at(view.grass.left + sway, view.grass.top), -1)
    return owners_HW


def _paste_shadow(canvas_HW3: Floats, animal: _Animal) -> None:
    """Darken the ground below an animal, in place."""
    height, width = canvas_HW3.shape[:2]
    wide = animal.layer.rgba_hw4.shape[1]
    tall = max(2, wide // 7)
    left, top = animal.layer.left, round(animal.feet - 0.6 * tall)
    x1, x2, y1, y2 = max(left, 0), min(left + wide, width), max(top, 0), min(top + tall, height)
    if x1 < x2 and y1 < y2:
        shade_hw = _ellipse(wide, tall)[y1 - top : y2 - top, x1 - left : x2 - left]
        canvas_HW3[y1:y2, x1:x2] *= 1 - np.float32(0.55) * shade_hw[..., None]


@functools.lru_cache(maxsize=512)
def _ellipse(width: int, height: int) -> Floats:
    across, down = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    return (1.1 - across**2 - down[:, None] ** 2).clip(0, 1)


def _light(canvas_HW3: Floats, view: Landscape, weather: _Weather, depth_HW: Floats, frame: Frame, seed: int) -> None:
    """Light the scene by the sun or by the camera's infra-red lamp, and fill the air with fog, in place."""
    camera = frame.event.camera
    if weather.night:
        lamp_HW = (1.25 - 1.1 * depth_HW * depth_HW) * view.lamp_HW * weather.light[0]
        canvas_HW3[:] = (canvas_HW3 @ _INFRARED * lamp_HW)[..., None]
    else:
        canvas_HW3 *= weather.light * np.array(camera.cast, np.float32)
        if weather.flecks:
            height, width = depth_HW.shape
            rng = generator("trap flecks", seed, frame.event.id)
            flecks = smooth_noise(rng, max(height, width), 9)[:height, :width]
            # Not on the sky, which is as deep as the horizon.
            canvas_HW3 *= (1 + np.float32(weather.flecks) * (flecks - 0.5) * (depth_HW < 1))[..., None]
    if weather.fog:
        fog_HW1 = (np.float32(weather.fog) * (0.3 + 0.7 * depth_HW))[..., None]
        canvas_HW3 *= 1 - fog_HW1
        canvas_HW3 += fog_HW1 * np.float32(95 if weather.night else 178)


def _strip_rows(frame: Frame, height: int) -> slice:
    """Return the rows of the info strip."""
    rows = round(STRIP_SHARE * height)
    return slice(0, rows) if frame.event.camera.strip == "top" else slice(height - rows, height)


@functools.lru_cache(maxsize=8)
def _load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def draw_strip(world: World, frame: Frame) -> Image.Image:
    """Draw date, time, position in the burst, temperature and name of the camera, as the camera's clock has them."""
    camera, settings = frame.event.camera, world.settings
    time = world.recorded_time(frame)
    rows = _strip_rows(frame, settings.height)
    strip = Image.new("RGB", (settings.width, rows.stop - rows.start), (8, 8, 8))
    pen = ImageDraw.Draw(strip)
    font = _load_font(max(8, round(0.68 * strip.height)))
    temperature = round(_compute_temperature(frame, world.seed))
    degrees = f"{round(temperature * 1.8 + 32)}°F" if camera.fahrenheit else f"{temperature}°C"
    day = time.strftime("%m-%d-%Y" if camera.fahrenheit else "%Y-%m-%d")
    middle = strip.height / 2
    burst = f"{frame.position + 1}/{camera.burst}"
    fields = (f"{day}  {time:%H:%M:%S}", burst, degrees, camera.name.upper())
    for text, position, anchor in zip(fields, (0.015, 0.5, 0.66, 0.985), ("lm", "mm", "mm", "rm"), strict=True):
        pen.text((position * settings.width, middle), text, font=font, fill=(235, 235, 235), anchor=anchor)
    return strip


def _compute_temperature(frame: Frame, seed: int) -> float:
    """Return the temperature of an event in degrees Celsius, by latitude and hour."""
    event = frame.event
    noise = generator("trap temperature", seed, event.id).normal(0, 3)
    return 30 - 0.42 * abs(event.camera.latitude) + 6 * math.sin((event.time.hour - 9) * math.pi / 12) + float(noise)
