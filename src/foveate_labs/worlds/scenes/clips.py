"""Generated clips: scenes whose things move, appear, disappear and flash, with exact masks, boxes and events.

`draw_clip` is a pure function of (world, seed, split, index, size, num_frames). It decides everything; frames are
composed when they are read, one at a time, so that a long clip needs no more memory than a short one.
"""

from __future__ import annotations

import functools
import itertools
import math
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from foveate.core.errors import UserError, choose
from foveate.core.files import atomic_file, commit_atomically
from foveate.core.seeds import generator, integer
from foveate.records.boxes import PixelBox
from foveate.records.shapes import mask_bounds
from foveate_labs.worlds.builtin import Cutout
from foveate_labs.worlds.scenes import pools
from foveate_labs.worlds.scenes.compose import Finish, Layer, apply_finish, paste
from foveate_labs.worlds.scenes.counting import draw_shape, draw_things
from foveate_labs.worlds.scenes.grounds import Ground, draw_ground
from foveate_labs.worlds.scenes.scene import make_cutout_layer
from foveate_labs.worlds.scenes.shapes import COLORS

# Write frames as animated GIF or WebP, as a video file, or as a folder of images.


# Encoder, pixel format and its options; FFV1 keeps every pixel, H.264 is what players open.
_ENCODERS = {
    ".mp4": ("mp4", "libx264", "yuv420p", {"crf": "18"}),
    ".mkv": ("matroska", "ffv1", "bgr0", {}),
}
SUFFIXES = (".gif", ".webp", *_ENCODERS, "")


def write_frames(frames: Iterable[NDArray[np.uint8]], path: str | Path, *, frame_rate: float = 8.0) -> None:
    """Write frames (height, width, 3) to a file by its suffix, or to a new folder if it has none.

    `.mp4` is H.264 and loses details; `.mkv` (FFV1), `.webp` and a folder of PNG keep every pixel; `.gif` keeps 256
    colors a frame and hundredths of a second. GIF and WebP merge equal frames into one that lasts longer, and are
    written from memory; the others take one frame at a time.

    Args:
        frames: of one size, an even one for `.mp4`.

    Raises:
        UserError: an unknown suffix, no frames, frames of two shapes, a folder that exists, odd sides for `.mp4`, a
            frame rate that is not above 0, or PyAV is missing.
    """
    path = Path(path)
    suffix = choose(path.suffix.lower(), SUFFIXES, "suffix of a clip")
    check_frame_rate(frame_rate)
    iterator = iter(frames)
    # The first frame is drawn before any file is opened, so that its errors leave no file behind.
    first = next(iterator, None)
    if first is None:
        raise UserError(f"{path}: no frames; expected at least one")
    frames = _check_shapes(itertools.chain([first], iterator), path, first.shape)
    if not suffix:
        _write_folder(frames, path)
        return
    if suffix == ".mp4" and (first.shape[0] % 2 or first.shape[1] % 2):
        raise UserError(f"{path}: odd sides for H.264 (got {first.shape[1]} x {first.shape[0]}); expected even ones")
    with atomic_file(path) as handle:
        if suffix in _ENCODERS:
            _encode(frames, handle, suffix, frame_rate)
        else:
            images = (Image.fromarray(pixels_HW3) for pixels_HW3 in frames)
            options = {"lossless": True} if suffix == ".webp" else {}
            next(images).save(
                *(handle, suffix[1:]),
                save_all=True,
                append_images=images,
                duration=round(1000 / frame_rate),
                loop=0,
                **options,
            )


def check_frame_rate(frame_rate: float) -> None:
    """Raise UserError unless a frame rate is above 0 and finite."""
    if not 0 < frame_rate < math.inf:
        raise UserError(f"frame_rate: not above 0 (got {frame_rate}); expected frames in a second")


def _check_shapes(
    frames: Iterable[NDArray[np.uint8]], path: Path, shape: tuple[int, ...]
) -> Iterator[NDArray[np.uint8]]:
    # Encoders would scale other frames silently.
    for index, pixels_HW3 in enumerate(frames):
        if pixels_HW3.shape != shape:
            raise UserError(f"{path}: frame {index} has another shape (got {pixels_HW3.shape}); expected {shape}")
        yield pixels_HW3


def _write_folder(frames: Iterator[NDArray[np.uint8]], path: Path) -> None:
    if path.exists():
        raise UserError(f"{path}: exists; expected a new folder")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        for index, pixels_HW3 in enumerate(frames):
            Image.fromarray(pixels_HW3).save(temporary / f"{index:06d}.png")
        commit_atomically(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _encode(frames: Iterator[NDArray[np.uint8]], handle: BinaryIO, suffix: str, frame_rate: float) -> None:
    try:
        import av
    except ImportError:
        raise UserError(f"{suffix} needs PyAV: run `pip install 'foveate[video]'`, or write .gif or .webp") from None
    container_format, encoder, pixel_format, options = _ENCODERS[suffix]
    with av.open(handle, "w", format=container_format) as container:
        stream = container.add_stream(encoder, Fraction(frame_rate).limit_denominator(1000), options)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt = pixel_format
        for index, pixels_HW3 in enumerate(frames):
            if not index:
                stream.height, stream.width = pixels_HW3.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels_HW3, format="rgb24")))
        # Encoders hold frames back until they are flushed with None.
        container.mux(stream.encode(None))


WORLDS = ("busy", "still", "order", "counting", "direction")
MIN_FRAMES = 17  # eight appearances of two frames, and a first frame without
GRID = 8  # cells a side; a plate fills one, which is a patch of 8 pixels at 64
PLATE_COLORS = ("red", "orange", "green", "blue", "purple", "black")
FLASH_COLORS = ("red", "yellow", "green", "blue", "white", "black")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MAX_APPEARANCES = 4
_GRAY_PLATES = 6
_CUTS_PER_FRAME, _FRAMES_PER_MOVE = 10 / 32, 3
_FLASH_SIDE = 0.6  # diameter, as a fraction of the frame
_DIM = np.float32(0.75)
_GRAIN = 1.0  # gray levels; without it equal frames would be merged in GIF and WebP files
# Three by five pixels a digit, a row per group of three.
_DIGITS = (
    "111101101101111 010110010010111 111001111100111 111001011001111 101101111001001 "
    "111100111001111 111100111101111 111001001001001 111101111101111 111101111001111"
).split()

ThingKind = Literal["mixed", "shapes", "seen"]


# No generated equality: comparing arrays gives an array, which has no truth value.
@dataclass(frozen=True, eq=False)
class Track:
    """A thing over time; later tracks of a clip lie on top.

    Args:
        kind: "plate", "flash" or "thing".
        name: such as "red plate", "blue flash", "green star".
        text: the digit on a plate.
        slice: of a thing: seen, unseen or unseen kind.
        corners_T2: left and top edge of the layer in each frame, in pixels.
        visible_T: whether it is in the frame.
    """

    kind: str
    name: str
    layer: Layer
    corners_T2: NDArray[np.int64]
    visible_T: NDArray[np.bool_]
    text: str = ""
    slice: str = ""


@dataclass(frozen=True, order=True)
class ClipEvent:
    """Something that happens in the frames from `start` to before `stop`.

    Args:
        kind: "appear" (in sight only in these frames), "disappear" (out of sight only in these), "move", "flash" or
            "cut" (`start` is the first frame on another ground).
        track: position among the tracks; -1 for a cut.
        direction: of a move: left, right, up or down.
    """

    start: int
    stop: int
    kind: str
    track: int = -1
    direction: str = ""


@dataclass(frozen=True, eq=False)
class SceneFrame:
    """A composed frame.

    Args:
        seconds: its time in the clip.
        pixels_HW3: uint8.
        owners_HW: position of the uppermost track at each pixel; -1 is the ground.
    """

    index: int
    seconds: float
    pixels_HW3: NDArray[np.uint8]
    owners_HW: NDArray[np.int8]

    def mask(self, track: int) -> NDArray[np.bool_]:
        """Return the visible pixels of a track."""
        return self.owners_HW == track

    def box(self, track: int) -> PixelBox | None:
        """Return the bounds of the visible pixels of a track, or None if there are none."""
        bounds = mask_bounds(self.mask(track))
        return PixelBox(*bounds) if bounds else None


@dataclass(frozen=True, eq=False)
class SceneClip:
    """A clip that is decided and not yet drawn; iterate over it for its frames.

    Args:
        events: by start.
        grounds_T: number of the ground in each frame; grows by one at a cut.
    """

    world: str
    seed: int
    split: str
    index: int
    size: int
    frame_rate: float
    tracks: tuple[Track, ...]
    events: tuple[ClipEvent, ...]
    grounds_T: NDArray[np.int64]

    @property
    def key(self) -> str:
        """Return the name of the clip; size, length and `things` are not part of it."""
        return f"clip-{self.world}-{self.split}-{self.seed}-{self.index:06d}"

    def __len__(self) -> int:
        return len(self.grounds_T)

    def __iter__(self) -> Iterator[SceneFrame]:
        return (self.frame(index) for index in range(len(self)))

    def frame(self, index: int) -> SceneFrame:
        """Compose one frame; frames may be read in any order.

        Raises:
            UserError: the clip has no such frame.
        """
        if not 0 <= index < len(self):
            raise UserError(f"frame: not in {self.key} (got {index}); expected 0 to {len(self) - 1}")
        ground = _draw_clip_ground(self.stream, self.size, int(self.grounds_T[index]))
        canvas_HW3 = ground.pixels_HW3.astype(np.float32)
        owners_HW = self._paste_tracks(canvas_HW3, index)
        # The grain depends on the frame's number, so frames read in any order have the same pixels.
        finish = Finish(0.0, _GRAIN, 0.0, 1.0, integer("clip grain", *self.stream, index))
        # A copy: the array of an image is read-only, which PyTorch warns of.
        pixels_HW3 = np.array(apply_finish(canvas_HW3, finish))
        return SceneFrame(index, index / self.frame_rate, pixels_HW3, owners_HW)

    def draw_owners(self, index: int) -> NDArray[np.int8]:
        """Return `owners_HW` of a frame without drawing its ground."""
        return self._paste_tracks(np.zeros((self.size, self.size, 3), np.float32), index)

    def _paste_tracks(self, canvas_HW3: NDArray[np.floating], index: int) -> NDArray[np.int8]:
        # int8 is enough for the thirteen tracks of the fullest clip: twelve plates and a flash.
        owners_HW = np.full(canvas_HW3.shape[:2], -1, np.int8)
        for position, track in enumerate(self.tracks):
            if track.visible_T[index]:
                left, top = track.corners_T2[index].tolist()
                paste(canvas_HW3, owners_HW, track.layer.at(left, top), position)
        return owners_HW

    @property
    def stream(self) -> tuple[object, ...]:
        """Return the name of this clip's random numbers; "busy" and "still" share it, so that their plates agree."""
        return _name_stream(self.world, self.seed, self.split, self.index)


def draw_clip(
    world: str,
    *,
    seed: int,
    split: str,
    index: int,
    size: int = 64,
    num_frames: int = 32,
    frame_rate: float = 8.0,
    things: ThingKind = "mixed",
) -> SceneClip:
    """Draw clip number `index` of a split.

    Worlds: "still", twelve plates with digits and one flash of a single frame; "busy", the same plates and flash, but
    every plate moves a cell every three frames and the ground is cut ten times in 32 frames; "order", three things
    appear one after another, or three disappear for a while; "counting", two things appear one to four times each;
    "direction", two things cross the frame one after another.

    Args:
        split: "train", "validation" or "test"; test clips have grounds, and things, that no training clip has.
        size: side in pixels, a multiple of 64.
        num_frames: at least 17.
        frame_rate: frames in a second; changes nothing but times.
        things: "mixed" cut-outs and colored shapes, "shapes" alone, or "seen", cut-outs of training scenes in any
            split; plates do not depend on it.

    Raises:
        UserError: the world, the split or `things` is unknown, or a number is out of range.
    """
    choose(world, WORLDS, "world")
    choose(split, pools.SPLITS, "split")
    choose(things, get_args(ThingKind), "things")
    # A plate is an eighth of the side, and its 8 x 8 pixels are repeated whole times.
    if size < 64 or size % 64:
        raise UserError(f"size: no multiple of 64 pixels (got {size}); expected 64, 128, ...")
    if num_frames < MIN_FRAMES:
        raise UserError(f"num_frames: too few for the events of a clip (got {num_frames}); expected {MIN_FRAMES}")
    check_frame_rate(frame_rate)
    stream = _name_stream(world, seed, split, index)
    drawer = _Drawer(stream, split, size, num_frames, things)
    getattr(drawer, f"draw_{world}")()
    return SceneClip(
        world,
        seed,
        split,
        index,
        size,
        frame_rate,
        tuple(drawer.tracks),
        tuple(sorted(drawer.events)),
        drawer.grounds_T,
    )


def _name_stream(world: str, seed: int, split: str, index: int) -> tuple[object, ...]:
    return ("plates" if world in ("busy", "still") else world, seed, split, index)


# Two: at a cut, and for a reader that goes back and forth. More would hold every ground of a long clip.
@functools.lru_cache(maxsize=2)
def _draw_clip_ground(stream: tuple[object, ...], size: int, number: int) -> Ground:
    ground = draw_ground(generator("clip ground", *stream, number), size=size, held_out=stream[2] == "test")
    # Dimmed behind plates: the maximum of a plate and a bright ground hides its digit, and the crowd would not matter.
    return replace(ground, pixels_HW3=ground.pixels_HW3 * _DIM) if stream[0] == "plates" else ground


class _Drawer:
    """Decides tracks, events and cuts; each `draw_` method is a world."""

    def __init__(self, stream: tuple[object, ...], split: str, size: int, num_frames: int, things: ThingKind) -> None:
        self.stream, self.split, self.size, self.num_frames, self.things = stream, split, size, num_frames, things
        self.rng = generator("clip", *stream)
        self.tracks: list[Track] = []
        self.events: list[ClipEvent] = []
        self.grounds_T = np.zeros(num_frames, np.int64)

    def draw_still(self) -> None:
        self.draw_plates(moving=False)

    def draw_busy(self) -> None:
        self.draw_plates(moving=True)
        # Streams of their own: plates and flash stay those of the still world.
        rng = generator("clip cuts", *self.stream)
        cuts = 1 + rng.permutation(self.num_frames - 1)[: round(_CUTS_PER_FRAME * self.num_frames)]
        self.grounds_T[cuts] = 1
        self.grounds_T = self.grounds_T.cumsum()
        self.events += [ClipEvent(int(cut), int(cut) + 1, "cut") for cut in cuts]

    def draw_plates(self, *, moving: bool) -> None:
        colors = [*PLATE_COLORS, *["gray"] * _GRAY_PLATES]
        cells_P = self.rng.permutation(GRID * GRID)[: len(colors)]
        digits = self.rng.integers(10, size=len(colors)).tolist()
        cells_TP = np.repeat(cells_P[None], self.num_frames, 0)
        if moving:
            self.move_plates(cells_TP)
        side = self.size // GRID
        for position, (color, digit) in enumerate(zip(colors, digits, strict=True)):
            corners_T2 = np.stack([cells_TP[:, position] % GRID, cells_TP[:, position] // GRID], -1) * side
            layer = draw_plate(color, digit, side)
            visible_T = np.ones(self.num_frames, bool)
            self.tracks.append(Track("plate", f"{color} plate", layer, corners_T2, visible_T, text=str(digit)))
        self.draw_flash()

    def move_plates(self, cells_TP: NDArray[np.int64]) -> None:
        """Move every plate to a free cell next to it every three frames, in place."""
        rng = generator("clip moves", *self.stream)
        for start in range(_FRAMES_PER_MOVE, self.num_frames, _FRAMES_PER_MOVE):
            # One list that changes with each move: a plate may enter a cell that another has left, never a taken one.
            cells = cells_TP[start - 1].tolist()
            for position in rng.permutation(len(cells)).tolist():
                across, down = cells[position] % GRID, cells[position] // GRID
                for name in rng.permutation(list(DIRECTIONS)).tolist():
                    column, row = across + DIRECTIONS[name][0], down + DIRECTIONS[name][1]
                    if 0 <= column < GRID and 0 <= row < GRID and row * GRID + column not in cells:
                        cells[position] = row * GRID + column
                        self.events.append(ClipEvent(start, start + 1, "move", position, name))
                        break
            cells_TP[start:] = cells

    def draw_flash(self) -> None:
        color = FLASH_COLORS[self.rng.integers(len(FLASH_COLORS))]
        side = round(self.size * _FLASH_SIDE)
        # Drawn four times as large and averaged, because Pillow draws ellipses without smooth edges.
        image = Image.new("RGBA", (side, side), COLORS[color])
        outline = Image.new("L", (4 * side, 4 * side))
        ImageDraw.Draw(outline).ellipse((0, 0, 4 * side - 1, 4 * side - 1), fill=255)
        image.putalpha(outline.resize((side, side), Image.Resampling.BOX))
        start = int(self.rng.integers(self.num_frames))
        corner = self.rng.integers(self.size - side + 1, size=2)
        self.add_track("flash", f"{color} flash", _make_layer(image), corner, [(start, start + 1)], "flash")

    def add_track(
        self,
        kind: str,
        name: str,
        layer: Layer,
        corners: NDArray[np.int64],
        windows: list[tuple[int, int]],
        event: str,
        *,
        direction: str = "",
        slice_name: str = "",
    ) -> None:
        """Add a thing with an event in each of its windows (start, stop).

        Args:
            corners: one (left, top), or one for each frame.
        """
        # Without a window the thing stays in sight, as the fourth one of the world "order" does.
        visible_T = np.full(self.num_frames, event == "disappear" or not windows)
        for start, stop in windows:
            visible_T[start:stop] = event != "disappear"
            self.events.append(ClipEvent(start, stop, event, len(self.tracks), direction))
        corners_T2 = np.broadcast_to(corners, (self.num_frames, 2))
        self.tracks.append(Track(kind, name, layer, corners_T2, visible_T, slice=slice_name))

    def choose_things(self, count: int) -> list[Cutout]:
        if self.things != "shapes":
            ground = _draw_clip_ground(self.stream, self.size, 0)
            if self.things == "seen":
                return draw_things(self.rng, "train", ground, count=count, shape_share=0)
            return draw_things(self.rng, self.split, ground, count=count)
        shapes: list[Cutout] = []
        while len(shapes) < count:
            shape = draw_shape(self.rng, self.split)
            # Names that share a word would make a question about either depend on reading both words.
            if not any(set(shape.name.split()) & set(other.name.split()) for other in shapes):
                shapes.append(shape)
        return shapes

    def put_in_cell(self, layer: Layer, cell: int, cells: int) -> NDArray[np.int64]:
        """Return a random corner inside a cell of a grid of `cells` a side."""
        sides = np.array(layer.rgba_hw4.shape[1::-1])
        room, low = self.size / cells, np.array([cell % cells, cell // cells]) * self.size / cells
        # A turned thing may be wider than its cell, by transparent corners.
        corner = low + self.rng.random(2) * np.maximum(room - sides, 0)
        return np.minimum(corner, np.maximum(self.size - sides, 0)).astype(np.int64)

    def make_layer(self, cutout: Cutout, longest: tuple[float, float]) -> Layer:
        return make_cutout_layer(self.rng, cutout, self.size, longest=longest)

    def draw_windows(self, slots: int, length: int) -> list[tuple[int, int]]:
        """Draw one window in each of equal parts of the clip; frame 0 and a frame between two belong to none."""
        edges = np.linspace(1, self.num_frames, slots + 1).astype(int).tolist()
        starts = [int(self.rng.integers(low, high - length)) for low, high in zip(edges, edges[1:], strict=False)]
        return [(start, start + length) for start in starts]

    def draw_order(self) -> None:
        things = self.choose_things(4)
        windows = self.draw_windows(3, max(1, self.num_frames // 8))
        event = "appear" if self.rng.random() < 0.5 else "disappear"
        for position, (thing, cell) in enumerate(zip(things, self.rng.permutation(4).tolist(), strict=True)):
            layer = self.make_layer(thing, (0.26, 0.38))
            corner = self.put_in_cell(layer, cell, 2)
            # The fourth stays in sight: a wrong answer that is no less present than the right one.
            self.add_track("thing", thing.name, layer, corner, windows[position:][:1], event, slice_name=thing.slice)

    def draw_counting(self) -> None:
        things = self.choose_things(2)
        windows = self.draw_windows(2 * MAX_APPEARANCES, max(1, self.num_frames // (4 * MAX_APPEARANCES)))
        order = self.rng.permutation(len(windows)).tolist()
        for thing in things:
            layer = self.make_layer(thing, (0.2, 0.28))
            count = int(self.rng.integers(1, MAX_APPEARANCES + 1))
            mine, order = sorted(order[:count]), order[count:]
            corners_T2 = np.zeros((self.num_frames, 2), np.int64)
            # Each time elsewhere: otherwise two appearances look like one in frames that leave out what is between.
            for slot, cell in zip(mine, self.rng.permutation(9).tolist(), strict=False):
                corners_T2[slice(*windows[slot])] = self.put_in_cell(layer, cell, 3)
            spans = [windows[slot] for slot in mine]
            self.add_track("thing", thing.name, layer, corners_T2, spans, "appear", slice_name=thing.slice)

    def draw_direction(self) -> None:
        things = self.choose_things(2)
        for thing, window in zip(things, self.draw_windows(2, 3 * self.num_frames // 8), strict=True):
            layer = self.make_layer(thing, (0.24, 0.36))
            direction = list(DIRECTIONS)[self.rng.integers(len(DIRECTIONS))]
            free = np.maximum(self.size - np.array(layer.rgba_hw4.shape[1::-1]), 0)
            corner = (self.rng.random(2) * (free + 1)).astype(int)
            axis = int(direction in ("up", "down"))
            corners_T2 = np.repeat(corner[None], self.num_frames, 0)
            path = np.linspace(0, free[axis], window[1] - window[0]).round().astype(int)
            # The sum of a direction is 1 or -1: the path forwards or backwards.
            corners_T2[slice(*window), axis] = path[:: sum(DIRECTIONS[direction])]
            self.add_track(
                *("thing", thing.name, layer, corners_T2, [window], "move"),
                direction=direction,
                slice_name=thing.slice,
            )


@functools.cache
def draw_plate(color: str, digit: int, side: int) -> Layer:
    """Draw a square plate of a color of `shapes.COLORS` with a white digit, `side` pixels wide, a multiple of 8."""
    pixels_HW3 = np.full((GRID, GRID, 3), COLORS[color], np.float32)
    rows_53 = np.array(list(_DIGITS[digit]), int).reshape(5, 3) > 0
    pixels_HW3[1:6, 3:6][rows_53] = COLORS["white"]
    opaque_HW4 = np.concatenate([pixels_HW3, np.ones((GRID, GRID, 1), np.float32)], -1)
    return Layer(opaque_HW4.repeat(side // GRID, 0).repeat(side // GRID, 1), 0, 0)


def _make_layer(image: Image.Image) -> Layer:
    rgba = np.asarray(image.convert("RGBa"), np.float32)
    return Layer(np.concatenate([rgba[..., :3], rgba[..., 3:] / 255], -1), 0, 0)
