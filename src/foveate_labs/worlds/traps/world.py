"""Decide a generated survey: regions, cameras, which species pass them, and when.

Everything is a pure function of the settings, the seed and names; nothing is drawn here.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from foveate.core.errors import UserError, choose
from foveate.core.recipes import Settings
from foveate.core.seeds import generator
from foveate.survey.taxa import Taxa
from foveate_labs.worlds.traps.kinds import ACTIVITIES, HABITATS, KINDS, Kind, load_drawings, load_taxa

SPLITS = ("train", "validation", "test")
UNSEEN_DRAWING_SHARE = 0.25  # of the events of test cameras that have an animal
_OTHER_HABITAT = 0.15  # abundance of a species outside its habitats
_PATCHINESS = 0.6  # standard deviation of the logarithm of its abundance between cameras
_PARTLY = 0.35  # share of the bursts whose animal is missing from some images
_BURSTS = (1, 2, 3, 5)  # images of a burst, by camera
_EVENTS_A_CYCLE = (1, 2, 3, 4)  # cameras see unequal traffic
_FIRST_DAY = datetime(2024, 2, 1)
# Latitude and longitude of the middle of a region, in degrees.
_REGIONS = ((47.0, 9.0), (-2.5, 34.5), (44.5, -110.5), (23.5, 80.5), (-23.5, 133.5), (-12.0, -58.0), (62.0, 95.0))
_HOURS = np.arange(24) + 0.5


class TrapSettings(Settings):
    """Settings of a generated survey; those from `by_place` on make control worlds and planted faults."""

    width: int = Field(320, ge=160, le=1280, description="Width of an image, in pixels.")
    height: int = Field(240, ge=120, le=1280, description="Height of an image, in pixels.")
    train_cameras: int = Field(40, ge=1, le=500, description="Cameras of the training split.")
    validation_cameras: int = Field(8, ge=1, le=500, description="Cameras of the validation split.")
    test_cameras: int = Field(16, ge=1, le=500, description="Cameras of the test split.")
    regions: int = Field(4, ge=1, le=len(_REGIONS), description="Regions that the cameras stand in.")
    overlap: float = Field(0.1, ge=0, le=1, description="0: a species is in one region only. 1: in all alike.")
    tail: float = Field(1.0, ge=0, le=3, description="Abundance falls with this power of the rank. 0: all alike.")
    empty: float = Field(
        0.4,
        ge=0.2,
        le=0.95,
        description="Share of images without an animal, at least 0.2: bursts that an animal leaves have some.",
    )
    by_place: bool = Field(True, description="Whether species depend on the region, habitat and camera.")
    by_hour: bool = Field(True, description="Whether species have their hours.")
    shuffled_taxonomy: bool = Field(False, description="Whether species are permuted among the genera.")
    strips: bool = Field(True, description="Whether images have an info strip.")
    clock_faults: tuple[tuple[str, float], ...] = Field((), description="Cameras and the hours they are ahead.")
    misfiled: tuple[tuple[str, str], ...] = Field(
        (), description="Cameras and another one, of their split, in whose folder their later images lie."
    )

    photographs: str = Field(
        "", description="Folder `stamps` of tuxpaint-stamps-default: its photographs are further drawings."
    )

    @model_validator(mode="after")
    def _check_cameras(self) -> Self:
        cameras = [(split, number) for split in SPLITS for number in range(self.count_cameras(split))]
        splits = {make_camera_name(split, number): split for split, number in cameras}
        for camera in [name for name, _ in self.clock_faults] + [name for pair in self.misfiled for name in pair]:
            choose(camera, sorted(splits), "camera")
        for camera, other in self.misfiled:
            # Splits are by folder: images of a test camera would be training images.
            if splits[camera] != splits[other]:
                raise UserError(f"misfiled: {camera} and {other} are of two splits; expected cameras of one")
        return self

    def count_cameras(self, split: str) -> int:
        """Return the number of cameras of a split."""
        return {"train": self.train_cameras, "validation": self.validation_cameras, "test": self.test_cameras}[split]


@dataclass(frozen=True)
class Camera:
    """A camera for the whole survey.

    Args:
        height: above the ground, in meters. tilt: height of the horizon in the image, 0 (upper edge) to 1.
        cast: factors of red, green and blue. noise: in gray levels.
        burst: images of an event. weight: events in a cycle of the split (see `World.locate`).
        strip: "bottom" or "top". fahrenheit: of the temperature on it.
        start: of the deployment, local time. days: its length.
    """

    name: str
    split: str
    region: int
    habitat: str
    latitude: float
    longitude: float
    height: float
    tilt: float
    cast: tuple[float, float, float]
    noise: float
    contrast: float
    fogginess: float
    burst: int
    weight: int
    strip: str
    fahrenheit: bool
    start: datetime
    days: int


@dataclass(frozen=True)
class TrapEvent:
    """A burst of a camera.

    Args:
        kind: None if no animal passes.
        drawing: position among `load_drawings`; 0 is the held-out one.
        time: of the first image, true local time.
        present: first image with the animal, and the one after the last.
    """

    camera: Camera
    number: int
    kind: Kind | None
    drawing: int
    time: datetime
    present: tuple[int, int]

    @property
    def id(self) -> str:
        return f"{self.camera.name}-{self.number:05d}"


@dataclass(frozen=True)
class Frame:
    """An image of a burst: the event and the position in it, from 0."""

    event: TrapEvent
    position: int

    @property
    def time(self) -> datetime:
        """True local time, in whole seconds: a fast burst has several images in one."""
        return self.event.time + timedelta(seconds=self.position * 2 // 3)


def make_camera_name(split: str, number: int) -> str:
    """Return the name of a camera, such as "train-07"."""
    return f"{split}-{number:02d}"


class World:
    """A survey of one seed."""

    def __init__(self, settings: TrapSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        rng = generator("trap world", seed)
        # All draws of the world in this order: another one between them would change every survey of every seed.
        ranks_K = rng.permutation(len(KINDS)) + 1.0
        self.shares_K = _normalize(ranks_K**-settings.tail)
        self.homes_K = _assign_homes(rng, settings.regions)
        self.activity_KH = np.stack([_draw_activity(rng, kind.activity) for kind in KINDS])
        # Hours of a control world: averaged over all species, so that only their dependence on the species is lost.
        self.activity_H = self.shares_K @ self.activity_KH
        self.empty_H = _normalize(0.5 / 24 + 0.5 * _curve(12.5, 2.0))
        habitats = [rng.permutation(HABITATS)[:3].tolist() for _ in range(settings.regions)]
        self.cameras = {
            split: tuple(
                _draw_camera(generator("trap camera", seed, split, number), split, number, settings.regions, habitats)
                for number in range(settings.count_cameras(split))
            )
            for split in SPLITS
        }
        self._cycles = {split: self._plan_cycle(split) for split in SPLITS}
        self._shares = {camera.name: self._compute_shares(camera) for split in SPLITS for camera in self.cameras[split]}

    @functools.cached_property
    def taxa(self) -> Taxa:
        """Taxa of the survey; with a shuffled taxonomy species have each other's parents."""
        taxa = load_taxa()
        if not self.settings.shuffled_taxonomy:
            return taxa
        rows = taxa.to_rows()
        # Only parents move: names, ids and images are those of the same survey with the right taxonomy.
        species = [row for row in rows if row["rank"] == "species"]
        parents = generator("trap taxonomy", self.seed).permutation([row["parent"] for row in species]).tolist()
        for row, parent in zip(species, parents, strict=True):
            row["parent"] = parent
        return Taxa.from_rows(rows)

    def find_camera(self, name: str) -> Camera:
        """Return a camera by its name."""
        split, _, number = name.rpartition("-")
        return self.cameras[split][int(number)]

    def shares_at(self, camera: Camera) -> NDArray[np.float64]:
        """Return the share of each species among the events of a camera with an animal, (kinds,)."""
        return self._shares[camera.name]

    def _compute_shares(self, camera: Camera) -> NDArray[np.float64]:
        if not self.settings.by_place:
            return self.shares_K
        overlap, regions = self.settings.overlap, self.settings.regions
        # At an overlap of 1 each region has the same share, so the region tells nothing.
        present_K = (1 - overlap) * (self.homes_K == camera.region) + overlap / regions
        fits_K = np.array([1.0 if camera.habitat in kind.habitats else _OTHER_HABITAT for kind in KINDS])
        patches_K = np.exp(_PATCHINESS * generator("trap patches", self.seed, camera.name).normal(size=len(KINDS)))
        return _normalize(self.shares_K * present_K * fits_K * patches_K)

    def locate(self, split: str, index: int) -> Frame:
        """Return the event and the position in it of image number `index` of a split.

        Events of a split come in cycles, in which each camera has `weight` of them, in an order drawn for each split:
        so an image is found without those before it, and a few images are of many cameras.
        """
        choose(split, SPLITS, "split")
        if index < 0:
            raise UserError(f"index: below 0 (got {index})")
        cycle = self._cycles[split]
        turn, offset = divmod(index, self.cycle_length(split))
        slot = int(np.searchsorted(cycle.ends, offset, side="right"))
        camera = self.cameras[split][cycle.cameras[slot]]
        start = int(cycle.ends[slot]) - camera.burst
        return Frame(self.draw_event(camera, turn * camera.weight + cycle.turns[slot]), offset - start)

    def cycle_length(self, split: str) -> int:
        """Return the number of images of a cycle; see `locate`."""
        return int(self._cycles[split].ends[-1])

    def _plan_cycle(self, split: str) -> _Cycle:
        cameras = self.cameras[split]
        slots = [number for number, camera in enumerate(cameras) for _ in range(camera.weight)]
        order = generator("trap order", self.seed, split).permutation(slots).tolist()
        counts: Counter[int] = Counter()
        turns = []
        for number in order:
            turns.append(counts[number])
            counts[number] += 1
        return _Cycle(order, turns, np.cumsum([cameras[number].burst for number in order]))

    def draw_event(self, camera: Camera, number: int) -> TrapEvent:
        """Decide event `number` of a camera."""
        rng = generator("trap event", self.seed, camera.name, number)
        # One number for each decision, so that a switch of one leaves the others as they are.
        passes, which, hour_draw, minute, unseen, drawing_draw = rng.random(6)
        kind = None
        if passes >= self._empty_share:
            position = int(np.searchsorted(np.cumsum(self.shares_at(camera)), which, side="right"))
            # Rounding can leave the last sum a little below 1, and a draw above it.
            kind = KINDS[min(position, len(KINDS) - 1)]
        hours_H = self.activity_H
        if self.settings.by_hour:
            hours_H = self.empty_H if kind is None else self.activity_KH[KINDS.index(kind)]
        hour = min(int(np.searchsorted(np.cumsum(hours_H), hour_draw, side="right")), 23)
        # By the golden ratio: events of a camera fall on different days as long as there are days.
        day = int((number * 0.6180339887 + camera.longitude) % 1 * camera.days)
        time = camera.start + timedelta(days=day, hours=hour, seconds=int(minute * 3600))
        drawings = len(load_drawings(self.settings.photographs)[kind.taxon_id]) if kind else 2
        held_out = camera.split == "test" and unseen < UNSEEN_DRAWING_SHARE
        drawing = 0 if held_out else 1 + int(drawing_draw * (drawings - 1))
        return TrapEvent(camera, number, kind, drawing, time, _draw_presence(rng, camera.burst))

    @functools.cached_property
    def _empty_share(self) -> float:
        """Share of events without an animal; bursts that it leaves make up the rest of the empty images."""
        cameras = [camera for split in SPLITS for camera in self.cameras[split]]
        images = np.array([camera.weight * camera.burst for camera in cameras])
        # A partly empty burst misses its animal in half of its images on average: the length of its stay is uniform.
        missing = float(np.average([_PARTLY / 2 * (camera.burst > 1) for camera in cameras], weights=images))
        return max(0.0, (self.settings.empty - missing) / (1 - missing))

    def recorded_deployment(self, event: TrapEvent) -> Camera:
        """Return the camera in whose folder the images of an event lie."""
        other = dict(self.settings.misfiled).get(event.camera.name)
        late = event.time >= event.camera.start + timedelta(days=event.camera.days / 2)
        return self.find_camera(other) if other and late else event.camera

    def recorded_time(self, frame: Frame) -> datetime:
        """Return the time that the camera's clock has at an image."""
        return frame.time + timedelta(hours=dict(self.settings.clock_faults).get(frame.event.camera.name, 0))


@dataclass(frozen=True)
class _Cycle:
    """Events of a cycle in order: their cameras, their number among those of the camera, and where their images end."""

    cameras: list[int]
    turns: list[int]
    ends: NDArray[np.int64]


@functools.lru_cache(maxsize=8)
def load_world(settings: TrapSettings, seed: int) -> World:
    """Return a world, decided once per process."""
    return World(settings, seed)


def is_night(time: datetime, latitude: float) -> bool:
    """Whether the sun is below the horizon at a local time.

    Source: Cooper, Solar Energy 12, 1969, equation of the declination; the sunrise equation without refraction.
    """
    declination = math.radians(23.45) * math.sin(2 * math.pi * (284 + time.timetuple().tm_yday) / 365)
    cosine = -math.tan(math.radians(latitude)) * math.tan(declination)
    # Beyond the polar circles the cosine can leave [-1, 1]: the sun is up all day, or not at all.
    half_day = math.degrees(math.acos(min(1.0, max(-1.0, cosine)))) / 15
    return abs(time.hour + time.minute / 60 - 12) > half_day


def _normalize(values: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(values / values.sum(), np.float64)


def _curve(center: float, concentration: float) -> NDArray[np.float64]:
    """Return a von Mises curve over the 24 hours that sums to 1."""
    return _normalize(np.exp(concentration * np.cos((_HOURS - center) * 2 * np.pi / 24)))


def _draw_activity(rng: np.random.Generator, activity: str) -> NDArray[np.float64]:
    shift = rng.normal(0, 0.8)
    curves = {
        "day": _curve(12 + shift, 3.0),
        "night": _curve(0.5 + shift, 3.0),
        "twilight": (_curve(5.5 + shift / 2, 9.0) + _curve(19.5 + shift / 2, 9.0)) / 2,
        "any": np.full(24, 1 / 24),
    }
    # A twentieth at any hour: no hour excludes a species.
    return _normalize(curves[choose(activity, ACTIVITIES, "activity")] + 0.05 / 24)


def _assign_homes(rng: np.random.Generator, regions: int) -> NDArray[np.int64]:
    """Return the home region of each species: relatives in turn, so that few of a family share one."""
    homes_K, counts = np.zeros(len(KINDS), np.int64), np.zeros(regions)
    taxa = load_taxa()
    families_K = [taxa.at_rank(taxa.index(kind.taxon_id), "family") for kind in KINDS]
    for family in dict.fromkeys(families_K):
        members = [position for position, other in enumerate(families_K) if other == family]
        # The emptiest regions first, so that all have about as many species.
        order = np.argsort(counts + 0.9 * rng.random(regions))
        for turn, position in enumerate(members):
            homes_K[position] = order[turn % regions]
            counts[homes_K[position]] += 1
    return homes_K


def _draw_camera(rng: np.random.Generator, split: str, number: int, regions: int, habitats: list[list[str]]) -> Camera:
    region = number % regions
    latitude, longitude = np.array(_REGIONS[region]) + rng.normal(0, 1.2, 2)
    height = float(rng.uniform(0.4, 1.1))
    red, green, blue = rng.normal(1, 0.05, 3).tolist()
    return Camera(
        name=make_camera_name(split, number),
        split=split,
        region=region,
        habitat=habitats[region][rng.integers(3)],
        latitude=round(float(latitude), 5),
        longitude=round(float(longitude), 5),
        height=height,
        # Cameras that hang high look down.
        tilt=float(rng.uniform(0.3, 0.42) - 0.2 * (height - 0.4)),
        cast=(red, green, blue),
        noise=float(rng.uniform(2, 7)),
        contrast=float(rng.uniform(0.85, 1.1)),
        fogginess=float(rng.choice([0.02, 0.06, 0.25], p=[0.4, 0.4, 0.2])),
        burst=int(rng.choice(_BURSTS, p=[0.15, 0.15, 0.5, 0.2])),
        weight=int(rng.choice(_EVENTS_A_CYCLE)),
        strip="bottom" if rng.random() < 0.75 else "top",
        fahrenheit=bool(rng.random() < 0.3),
        start=_FIRST_DAY + timedelta(days=int(rng.integers(120))),
        days=int(rng.integers(60, 150)),
    )


def _draw_presence(rng: np.random.Generator, burst: int) -> tuple[int, int]:
    """Return the images of a burst with the animal: all, or the first or last few of them."""
    partly, from_start = rng.random(2)
    if burst == 1 or partly >= _PARTLY:
        return 0, burst
    length = int(rng.integers(1, burst))
    return (0, length) if from_start < 0.5 else (burst - length, burst)
