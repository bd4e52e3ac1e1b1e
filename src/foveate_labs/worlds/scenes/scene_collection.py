"""Write scenes into a collection, and build the collection of the tour."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.progress import track
from foveate.records.record import Caption, Region
from foveate.records.shapes import encode_mask
from foveate.records.writer import CollectionWriter
from foveate_labs.worlds.asked_images import draw_in_processes
from foveate_labs.worlds.builtin import build_clipart, build_emoji, jpeg
from foveate_labs.worlds.scenes.scene import Scene, draw_scene

LICENSE = (
    "generated from Open Clip Art (public domain), Noto Emoji (Apache-2.0), Twemoji (CC-BY-4.0), samples of "
    "scikit-image (public domain) and scikit-learn (CC-BY-2.0: danielbuechele, vultilion)"
)


@dataclass(frozen=True)
class SceneRow:
    """An encoded scene, small enough to be sent between processes."""

    key: str
    data: bytes
    captions: tuple[Caption, ...]
    regions: tuple[Region, ...]
    labels: dict[str, str]
    split: str
    extra: dict[str, list[dict[str, Any]]]


def make_scene_key(*, seed: int, split: str, index: int) -> str:
    """Return the key of a scene in a collection; equal keys mean equal scenes."""
    return f"scene-{split}-{seed}-{index:06d}"


def draw_scene_row(*, seed: int, split: str, index: int, size: int = 224) -> SceneRow:
    """Draw a scene and encode it: JPEG of quality 90, regions, and the annotation kinds "scenes" and "masks".

    A row of "scenes" has the columns ground, ground_kind, counts (JSON: phrase -> number), relations (JSON: list of
    [region position, relation, region position]) and objects (JSON: everything placed, labeled or not). A row of
    "masks" has region (position), phrase, visible, height, width and counts (JSON: COCO run lengths).
    """
    scene = draw_scene(seed=seed, split=split, index=index, size=size)
    return make_scene_row(scene, key=make_scene_key(seed=seed, split=split, index=index), split=split)


def make_scene_row(scene: Scene, *, key: str, split: str) -> SceneRow:
    """Encode a scene; see `draw_scene_row`."""
    regions = tuple(
        Region(placed.box, placed.phrase, label=placed.concept, slice=placed.slice)
        for placed in scene.regions
        # Always true, since a labeled object has visible pixels; it tells the type checker.
        if placed.box
    )
    labels = {"source": "scenes", "ground": scene.ground_kind, "ground_name": scene.ground}
    extra = {"scenes": [_scene_annotation(scene)], "masks": _mask_annotations(scene)}
    return SceneRow(key, jpeg(scene.image), scene.captions, regions, labels, split, extra)


def _scene_annotation(scene: Scene) -> dict[str, Any]:
    placed = [
        {
            "kind": thing.kind,
            "phrase": thing.phrase,
            "cutout": thing.cutout,
            "visible": round(thing.visible, 4),
            "labeled": thing.labeled,
            "box": [round(float(edge), 5) for edge in thing.box.to_array()] if thing.box else None,
        }
        for thing in scene.objects
    ]
    return {
        "ground": scene.ground,
        "ground_kind": scene.ground_kind,
        "counts": json.dumps(scene.counts),
        "relations": json.dumps([[r.first, r.name, r.second] for r in scene.relations]),
        "objects": json.dumps(placed),
    }


def _mask_annotations(scene: Scene) -> list[dict[str, Any]]:
    rows = []
    for position, placed in enumerate(scene.regions):
        encoded = encode_mask(placed.mask_HW)
        height, width = encoded["size"]
        row = {"region": position, "phrase": placed.phrase, "visible": round(placed.visible, 4)}
        rows.append({**row, "height": height, "width": width, "counts": json.dumps(encoded["counts"])})
    return rows


def build_scenes(
    target: Path,
    *,
    train: int,
    validation: int = 0,
    test: int = 0,
    seed: int = 0,
    size: int = 224,
    workers: int = 1,
) -> None:
    """Write scenes into the collection at `target`; existing ones are not drawn again.

    Args:
        train, validation, test: number of scenes of each split, which is stored with them.
        seed: seed of the series.
        size: side in pixels.
        workers: processes that draw; the result does not depend on it. With more than one, the calling module must be
            importable, as always with process pools of Python.

    Raises:
        UserError: a number of scenes is negative, or workers is below 1.
    """
    counts = {"train": train, "validation": validation, "test": test}
    # Workers minus one, so that below 0 is wrong for all four numbers.
    for name, count in {**counts, "workers": workers - 1}.items():
        if count < 0:
            minimum = 1 if name == "workers" else 0
            raise UserError(f"scenes: {name} must be at least {minimum}")
    with CollectionWriter(target, license=LICENSE, source="scenes") as writer:
        positions = [(split, index) for split, count in counts.items() for index in range(count)]
        positions = [
            (split, index)
            for split, index in positions
            if writer.known_sha256(make_scene_key(seed=seed, split=split, index=index)) is None
        ]
        for row in track(_draw_rows(positions, seed, size, workers), description="scenes", total=len(positions)):
            write_scene_row(writer, row)


def _draw_row(position: tuple[str, int], *, seed: int, size: int) -> SceneRow:
    return draw_scene_row(seed=seed, split=position[0], index=position[1], size=size)


def _draw_rows(positions: list[tuple[str, int]], seed: int, size: int, workers: int) -> Iterator[SceneRow]:
    # A partial, because a lambda could not be pickled for other processes.
    return draw_in_processes(functools.partial(_draw_row, seed=seed, size=size), positions, workers=workers)


def build_tour_collection(
    target: Path,
    *,
    train_scenes: int,
    validation_scenes: int,
    test_scenes: int,
    seed: int = 0,
    size: int = 224,
    workers: int = 1,
    singles: bool = True,
) -> None:
    """Build one collection of all built-in data: scenes, and single clip art and emoji.

    Label `source` is "scenes", "clipart" or "emoji". Scenes: training and validation on training grounds with seen
    concepts, test on held-out grounds with seen and unseen ones (see `builtin.concepts`). Singles:
    training or test (see `builtin.holdout`); no training text or image shows an unseen concept. Run again, it adds
    what is missing.
    """
    build_scenes(
        target,
        train=train_scenes,
        validation=validation_scenes,
        test=test_scenes,
        seed=seed,
        size=size,
        workers=workers,
    )
    if singles:
        build_clipart(target)
        build_emoji(target)


def write_scene_row(writer: CollectionWriter, row: SceneRow, **extra: Sequence[Mapping[str, Any]]) -> None:
    """Write a scene, with further rows of annotations by their kind."""
    writer.add(
        row.key,
        row.data,
        captions=row.captions,
        regions=row.regions,
        labels=row.labels,
        group=row.key,
        split=row.split,
        extra={**row.extra, **extra},
    )
