"""Draw images of a generated survey: animals in a landscape, by day, by infra-red night, in fog, with an info strip."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from foveate.core.seeds import generator, integer
from foveate.records.boxes import Box, PixelBox
from foveate.records.masks import mask_bounds
from foveate_labs.worlds.builtin.cutouts import Cutout
from foveate_labs.worlds.scenes.compose import Finish, Layer, apply_finish, make_layer, paste
from foveate_labs.worlds.scenes.drawn_grounds import smooth_noise
from foveate_labs.worlds.traps.kinds import load_drawings, shows_head
from foveate_labs.worlds.traps.landscape import Landscape, compute_depth, draw_landscape
from foveate_labs.worlds.traps.world import Frame, TrapSettings, World, is_night, load_world

Floats = NDArray[np.floating]

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
