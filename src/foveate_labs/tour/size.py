"""Pick the largest tour that fits the time budget on this machine, by its measured speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from foveate.core.devices import autocast_dtype, choose_device, usable_cores
from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.core.progress import duration, say
from foveate.core.recipes import validate
from foveate.core.runs import RunFolder
from foveate.vision.lite0 import Lite0Encoder
from foveate_labs.studies.settings import TourSettings, TourSize
from foveate_labs.worlds.scenes.scene_collection import draw_scene_row

FILE = "size.json"
MAX_SECONDS = 415.0  # the tour may take 480; one took an eighth longer than estimated, and its start is not counted
FULL = TourSize()
# Pixels go first: fewer of them shorten features and steps alike. 500 steps at 128 pixels got .24 of the names of boxes
# right, 350 steps at 160 pixels, in little less time, .17.
SIZES = (
    FULL,
    TourSize(image_size=192, scenes=8000, steps=600, by_speed=True),
    TourSize(image_size=160, scenes=7000, steps=550, by_speed=True),
    TourSize(image_size=128, scenes=6000, steps=500, by_speed=True),
    TourSize(image_size=128, scenes=5000, steps=350, by_speed=True),
    TourSize(image_size=128, scenes=4000, steps=300, by_speed=True),
)
_SIZE_FIELDS = ("image_size", "scenes", "steps")  # parts of the size that settings can name
_SIZE_OPTIONS = "--image-size, --scenes and --steps"
_SCENES = 12  # that the measurement draws
_OTHER_IMAGES = 6164  # drawings of one thing, and held-out scenes


@dataclass(frozen=True)
class Speed:
    """Measured seconds of the three kinds of work that a tour consists of.

    Attributes:
        scene: drawing one scene in one of two processes.
        image: computing the frozen features of one image of 224 pixels.
        step: forward and backward of the image encoder's trained part on 192 images of 224 pixels.
    """

    scene: float
    image: float
    step: float


def read_stored_size(run_path: Path, settings: TourSettings) -> TourSize | None:
    """Return the size of the tour that a run folder holds, None if it holds none. Writes nothing.

    Raises:
        UserError: the tour is of another size than the settings name, or of a version that had no sizes; or the
            settings ask for the full size and name a part of it.
    """
    path, requested = run_path / FILE, _requested_size(settings)
    if not path.is_file():
        if (run_path / "collection").exists():
            raise UserError(f"{run_path}: holds a tour of an earlier version; choose another --out")
        return None
    stored = validate(TourSize, read_json(path), where=str(path))
    # If no size is named, a repeated command goes on with what the machine chose, or with the full size.
    if requested == stored or (requested is None and (stored.by_speed or stored == FULL)):
        return stored
    origin, advice = "", "repeat its options"
    if stored.by_speed:
        origin, advice = ", chosen by speed", f"leave out --full, --seeds, {_SIZE_OPTIONS}"
    elif stored == FULL:
        advice = f"leave out {_SIZE_OPTIONS}"
    request = requested.describe() if requested else "no size"
    raise UserError(
        f"{run_path}: holds a tour of {stored.describe()}{origin} (this command asks for {request}); "
        f"{advice}, or choose another --out"
    )


def choose_tour_size(run: RunFolder, settings: TourSettings, *, device: str | None = None) -> TourSize:
    """Return the size of a tour: as the run folder or the settings have it, else what this machine can do in time.

    It is stored once, so that a run that is stopped goes on with the same.

    Raises:
        UserError: see `read_stored_size`.
    """
    size = read_stored_size(run.path, settings)
    if size is None:
        size = _requested_size(settings) or _choose_by_speed(measure_speed(device))
        run.write_result(size.model_dump(), FILE)
    return size


def _requested_size(settings: TourSettings) -> TourSize | None:
    overrides = {name: value for name in _SIZE_FIELDS if (value := getattr(settings, name)) is not None}
    if settings.full and overrides:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in overrides)
        raise UserError(f"--full already sets {options}: leave out one or the other")
    # Whoever names a part of the size, or measures over seeds, wants the rest at full size.
    if not overrides and not settings.full and settings.seeds == 1:
        return None
    return FULL.model_copy(update={**overrides, "short": settings.steps is not None})


def _choose_by_speed(speed: Speed) -> TourSize:
    size = choose_size(speed)
    if size != FULL:
        full, smaller = (duration(estimate_seconds(speed, candidate)) for candidate in (FULL, size))
        say(
            f"the full tour would take about {full} on this machine; a smaller one of about {smaller} follows: "
            f"{size.describe()}. For the full size: foveate tour --full --out runs/tour-full"
        )
    return size


def choose_size(speed: Speed, *, max_seconds: float = MAX_SECONDS) -> TourSize:
    """Return the first of `SIZES` whose estimate is within `max_seconds`; the last one if none is."""
    return next((size for size in SIZES if estimate_seconds(speed, size) <= max_seconds), SIZES[-1])


def estimate_seconds(speed: Speed, size: TourSize) -> float:
    """Estimate the seconds of a tour; the factors are those of the parts on two cores (docs/studies/tour.md)."""
    pixels = (size.image_size / FULL.image_size) ** 2
    images = size.scenes + _OTHER_IMAGES
    collection = (0.7 * size.scenes + 1500) * speed.scene
    # Half of the time goes to what fewer pixels do not shorten: decoding, and sentences.
    features = images * speed.image * (0.77 * pixels + 0.78)
    # Steps of CLIP and CLOC: texts, regions and losses are half of one.
    training = 5.7 * size.steps * speed.step * (0.5 * pixels + 0.5)
    # Questions, evaluations and seven later parts.
    rest = 7000 * (speed.scene + speed.image) * (0.75 + 0.25 * pixels)
    return collection + features + training + rest


def measure_speed(device: str | None = None) -> Speed:
    """Measure the machine in a few seconds: the fastest of several calls, as other processes can only slow one down."""
    torch_device = choose_device(device or "auto")
    encoder = Lite0Encoder().train().to(torch_device)
    pixels_B3HW = torch.zeros((8, 3, 224, 224), dtype=torch.uint8, device=torch_device)
    features_BF = torch.zeros((192, *encoder.feature_shape), dtype=encoder.feature_dtype, device=torch_device)
    dtype = autocast_dtype("auto", torch_device)

    def draw() -> None:
        for index in range(_SCENES):
            draw_scene_row(seed=0, split="train", index=index)

    # `encode` and `step` return a number, which waits for a GPU to finish.
    def encode() -> float:
        return encoder.frozen_features(pixels_B3HW)[0, 0].item()

    def step() -> float:
        encoder.zero_grad(set_to_none=True)
        with torch.autocast(torch_device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            outputs = encoder(features_BF)
            (outputs.tokens.float().sum() + outputs.pooled.float().sum()).backward()
        assert encoder.proj.weight.grad is not None
        return encoder.proj.weight.grad.sum().item()

    return Speed(
        # The collection is drawn by two processes, which share the core if there is one.
        scene=_best_seconds(draw, calls=4) / _SCENES * (2 if usable_cores() == 1 else 1),
        image=_best_seconds(encode, calls=12) / len(pixels_B3HW),
        step=_best_seconds(step, calls=6),
    )


def _best_seconds(work: Callable[[], object], *, calls: int) -> float:
    """Return the seconds of the fastest call; the first one loads what each process loads once."""
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
