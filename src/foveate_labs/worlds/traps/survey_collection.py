"""Write a generated survey into a collection, or as the cards that an ecologist brings home."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from PIL import Image

from foveate.core.errors import UserError, choose
from foveate.core.files import write_bytes_atomically
from foveate.core.progress import track
from foveate.records import layout, tables
from foveate.records.record import Region
from foveate.records.writer import CollectionWriter
from foveate.survey.store import make_context, survey_rows, write_survey
from foveate.survey.types import Deployment, Medium, Observation
from foveate_labs.worlds.asked_images import draw_in_processes
from foveate_labs.worlds.builtin import jpeg
from foveate_labs.worlds.traps.image import TrapImage, render_frame
from foveate_labs.worlds.traps.world import SPLITS, Camera, Frame, TrapSettings, World, load_world

LICENSE = (
    "generated from Noto Emoji (Apache-2.0), Twemoji (CC-BY-4.0: Twitter, Inc. and other contributors) and samples of "
    "scikit-image (public domain)"
)
_PHOTOGRAPHS = "; photographs of tuxpaint-stamps-default (GPL-2)"
SOURCE = "traps"
UNSEEN_DRAWING, SEEN_DRAWING = "unseen drawing", "seen drawing"
_MAKE, _MODEL, _DATE_TIME, _EXIF, _DATE_TIME_ORIGINAL = 0x010F, 0x0110, 0x0132, 0x8769, 0x9003


@dataclass(frozen=True)
class TrapRow:
    """An encoded image with its rows, small enough to be sent between processes."""

    key: str
    data: bytes
    split: str
    medium: Medium
    deployment: Deployment
    regions: tuple[Region, ...]
    labels: Mapping[str, str]
    extra: Mapping[str, Sequence[Mapping[str, object]]]


def make_trap_key(*, seed: int, split: str, index: int) -> str:
    """Return the key of an image in a collection."""
    return f"trap-{split}-{seed}-{index:06d}"


def draw_trap_row(settings: TrapSettings, *, seed: int, split: str, index: int) -> TrapRow:
    """Draw an image and encode it as JPEG, with its media row, its observations and a row of the kind "traps".

    A row of "traps" is what is true about an image and what no survey knows: camera and true_time where they differ
    from the recorded ones, region, drawing, slice ("seen drawing", "unseen drawing", "" if empty), night, foggy,
    blurred, and visible (JSON: share of each animal).
    """
    world = load_world(settings, seed)
    frame = world.locate(split, index)
    drawn = render_frame(world, frame)
    key = make_trap_key(seed=seed, split=split, index=index)
    event, camera = frame.event, world.recorded_deployment(frame.event)
    time = world.recorded_time(frame)
    # A second card in the folder of a mis-filed camera: as on a computer, equal names do not meet.
    card = "100TRAPS" if camera is event.camera else "101TRAPS"
    # By the clock, since the order of files is that of time on a card: event numbers are not.
    file = f"{camera.name}/{card}/{time:%Y%m%d%H%M%S}-{event.number:05d}-{frame.position + 1}.JPG"
    medium = Medium(
        key,
        camera.name,
        sequence=f"{camera.name}-{card}-{event.number:05d}",
        frame_number=frame.position,
        time=time.isoformat(),
        file=file,
    )
    # By what is visible: an animal that is hidden or has left the view makes the image empty.
    species = event.kind if drawn.boxes else None
    observations = [
        Observation(
            id=f"{key}-{number}",
            deployment=camera.name,
            key=key,
            event=medium.sequence,
            kind="animal" if species else "blank",
            taxon=species.taxon if species else "",
            taxon_id=species.taxon_id if species else "",
            count=1 if species else None,
            box=box,
            method="human",
        )
        # An empty image has a row as well: without one it would be unlabeled.
        for number, box in enumerate(drawn.boxes or (None,))
    ]
    slice_name = UNSEEN_DRAWING if drawn.unseen else SEEN_DRAWING if species else ""
    regions = tuple(Region(box, species.name, label=species.taxon, slice=slice_name) for box in drawn.boxes if species)
    labels = {"source": SOURCE, "species": species.taxon if species else "blank"}
    extra = {**survey_rows(medium, observations), "traps": [_truth_row(drawn, slice_name)]}
    data = jpeg(drawn.image, exif=_make_exif(time))
    return TrapRow(key, data, split, medium, make_deployment(camera), regions, labels, extra)


def _truth_row(drawn: TrapImage, slice_name: str) -> dict[str, object]:
    camera = drawn.frame.event.camera
    return {
        "camera": camera.name,
        "region": camera.region,
        "true_time": drawn.frame.time.isoformat(),
        "drawing": drawn.drawing,
        "slice": slice_name,
        "night": drawn.night,
        "foggy": drawn.foggy,
        "blurred": drawn.blurred,
        "visible": json.dumps(drawn.visible),
    }


def make_deployment(camera: Camera) -> Deployment:
    """Return the deployment of a camera as its owner notes it, true even where the camera's clock is wrong."""
    return Deployment(
        camera.name,
        location=camera.name,
        latitude=camera.latitude,
        longitude=camera.longitude,
        start=camera.start.isoformat(),
        end=(camera.start + timedelta(days=camera.days)).isoformat(),
        habitat=camera.habitat,
    )


def _make_exif(time: datetime) -> bytes:
    exif = Image.Exif()
    exif[_MAKE], exif[_MODEL] = "Foveate", "generated"
    exif[_DATE_TIME] = exif.get_ifd(_EXIF)[_DATE_TIME_ORIGINAL] = time.strftime("%Y:%m:%d %H:%M:%S")
    return exif.tobytes()


def build_traps(
    target: Path,
    *,
    train: int,
    validation: int = 0,
    test: int = 0,
    seed: int = 0,
    settings: TrapSettings | None = None,
    workers: int = 1,
) -> None:
    """Write a generated survey into the collection at `target`; existing images are not drawn again.

    Splits have different cameras. Observations are human ones, with boxes; deployments, taxa and the settings are
    tables about the whole survey.

    Args:
        train, validation, test: number of images of each split.
        seed: seed of the world; other seeds have other regions, cameras and species in them.
        settings: by default those of `TrapSettings`.
        workers: processes that draw; the result does not depend on it.

    Raises:
        UserError: a number of images is negative, workers is below 1, or the collection has a survey of other settings.
    """
    counts = {"train": train, "validation": validation, "test": test}
    for name, count, minimum in [*((name, count, 0) for name, count in counts.items()), ("workers", workers, 1)]:
        if count < minimum:
            raise UserError(f"{SOURCE}: {name} must be at least {minimum} (got {count})")
    settings = settings or TrapSettings()
    world = load_world(settings, seed)
    descriptor = {"seed": seed, **settings.model_dump(mode="json")}
    license = LICENSE + (_PHOTOGRAPHS if settings.photographs else "")
    with CollectionWriter(target, license=license, source=SOURCE) as writer:
        # Under the writer's lock: no other process can begin a second world in between.
        _check_descriptor(target, descriptor)
        positions = [
            (split, index)
            for split, count in counts.items()
            for index in range(count)
            if writer.known_sha256(make_trap_key(seed=seed, split=split, index=index)) is None
        ]
        deployments = [make_deployment(camera) for camera in _list_cameras(world, counts)]
        write_survey(writer, deployments=deployments, format=SOURCE, descriptor=descriptor)
        writer.replace_dataset_rows("taxa", world.taxa.to_rows(), by="id")
        draw = functools.partial(_draw_position, settings=settings, seed=seed)
        rows = draw_in_processes(draw, positions, workers=workers)
        for row in track(rows, description=SOURCE, total=len(positions)):
            writer.add(
                row.key,
                row.data,
                regions=row.regions,
                labels=row.labels,
                group=row.deployment.camera,
                split=row.split,
                context=make_context(row.medium, row.deployment),
                extra=row.extra,
            )


def _list_cameras(world: World, counts: Mapping[str, int]) -> list[Camera]:
    """List the cameras that have one of the first `counts` images of each split, by name."""
    cameras: dict[str, Camera] = {}
    for split, count in counts.items():
        # A cycle has all cameras of its split.
        for index in range(min(count, world.cycle_length(split))):
            event = world.locate(split, index).event
            cameras |= {camera.name: camera for camera in (event.camera, world.recorded_deployment(event))}
    return [cameras[name] for name in sorted(cameras)]


def _draw_position(position: tuple[str, int], *, settings: TrapSettings, seed: int) -> TrapRow:
    return draw_trap_row(settings, seed=seed, split=position[0], index=position[1])


def _check_descriptor(target: Path, descriptor: Mapping[str, object]) -> None:
    """Raise UserError if the collection has another generated survey: their cameras and keys would be mixed up."""
    path = layout.dataset_table_path(target, "survey")
    rows = tables.read_table(path).to_pylist() if path.is_file() else []
    for row in rows:
        if row["format"] == SOURCE:
            # A survey from before a setting was there has its default.
            stored = {**TrapSettings().model_dump(mode="json"), **json.loads(row["descriptor"])}
            for name, value in json.loads(json.dumps(descriptor)).items():
                if stored.get(name) != value:
                    raise UserError(
                        f"{target}: has a survey with {name} = {stored.get(name)} (got {value}); choose a new folder"
                    )


def write_cards(
    folder: Path, *, count: int, seed: int = 0, split: str = "test", settings: TrapSettings | None = None
) -> None:
    """Write images as a folder per camera and `deployments.csv`, without labels: what `foveate collect` is given.

    Images of a camera are numbered by the time of its clock, which is in their EXIF data.

    Args:
        folder: new or empty.
        count: images of all cameras together.
        settings: by default those of `TrapSettings`.

    Raises:
        UserError: the folder is not empty, the split is unknown or the count is below 1.
    """
    choose(split, SPLITS, "split")
    if count < 1:
        raise UserError(f"count: below 1 (got {count})")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty; choose a new folder")
    world = load_world(settings or TrapSettings(), seed)
    frames: dict[str, list[Frame]] = defaultdict(list)
    for index in range(count):
        frame = world.locate(split, index)
        frames[world.recorded_deployment(frame.event).name].append(frame)
    for name, shots in sorted(frames.items()):
        # By the clock in the images: file numbers in another order would look like a clock that was set back.
        shots.sort(key=lambda frame: (world.recorded_time(frame), frame.event.id, frame.position))
        for path, frame in zip(_number_files(folder / name), shots, strict=False):
            data = jpeg(render_frame(world, frame).image, exif=_make_exif(world.recorded_time(frame)))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomically(path, data)
    write_bytes_atomically(folder / "deployments.csv", _format_deployments(world, sorted(frames)).encode())


def _number_files(folder: Path) -> Iterator[Path]:
    """Yield file names as cameras number them: 999 to a folder."""
    number = 0
    while True:
        yield folder / f"{100 + number // 999}TRAPS" / f"IMG_{number % 999 + 1:04d}.JPG"
        number += 1


def _format_deployments(world: World, names: Sequence[str]) -> str:
    columns = ("deploymentID", "locationName", "latitude", "longitude", "deploymentStart", "deploymentEnd", "habitat")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for name in names:
        deployment = make_deployment(world.find_camera(name))
        fields = ("id", "location", "latitude", "longitude", "start", "end", "habitat")
        writer.writerow([getattr(deployment, field) for field in fields])
    return text.getvalue()
