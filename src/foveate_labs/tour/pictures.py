"""The tour's pictures: by a rule that was fixed before any was asked about, photographs first.

What the photographs show, and where, was drawn by hand before any model had answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from foveate.core.seeds import uniform
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.record import Caption, Region
from foveate.records.writer import CollectionWriter
from foveate_labs.worlds.builtin import Single, assign_split, jpeg, load_cutouts, load_single_objects
from foveate_labs.worlds.scenes.grounds import HELD_OUT_PHOTOGRAPHS, TRAINING_PHOTOGRAPHS, load
from foveate_labs.worlds.scenes.scene_collection import LICENSE, draw_scene_row, write_scene_row

RULE = (
    "All photographs in the public domain that ship, in their order; then {drawings} emoji and as many pieces of clip "
    "art, drawn by the seed from those that no training shows; then the first {scenes} test scenes."
)
NUM_DRAWINGS, NUM_SCENES = 40, 16


@dataclass(frozen=True)
class Photograph:
    """What a photograph shows.

    Attributes:
        name: of the file. query: as a person would ask for it. names: answers that count as right.
        box: of the thing; None where it fills the image, or is there many times.
    """

    name: str
    query: str
    names: tuple[str, ...]
    box: Box | None = None

    def encode(self) -> bytes:
        """Return it as a JPEG file."""
        return jpeg(load(next(p for p in (*TRAINING_PHOTOGRAPHS, *HELD_OUT_PHOTOGRAPHS) if p.name == self.name)))


PHOTOGRAPHS = (
    Photograph("astronaut", "astronaut", ("astronaut", "spacesuit", "woman", "person"), Box(0.05, 0.02, 0.74, 1.0)),
    Photograph("chelsea", "cat", ("cat", "tabby", "kitten")),
    Photograph("ihc", "tissue", ("tissue", "stain", "cells")),
    Photograph("retina", "eye", ("eye", "retina")),
    Photograph("hubble_deep_field", "galaxies", ("galaxies", "galaxy", "stars", "star", "sky", "space")),
    Photograph("brick", "bricks", ("bricks", "brick", "pavement", "wall")),
    Photograph("grass", "grass", ("grass", "lawn")),
    Photograph("camera", "man", ("man", "photographer", "person", "camera", "tripod"), Box(0.0, 0.12, 0.6, 1.0)),
    Photograph("coins", "coins", ("coins", "coin")),
    Photograph("coffee", "cup", ("cup", "coffee", "mug", "espresso"), Box(0.29, 0.04, 0.7, 0.77)),
    Photograph("rocket", "rocket", ("rocket", "missile"), Box(0.47, 0.29, 0.53, 0.96)),
    Photograph("gravel", "gravel", ("gravel", "stones", "stone", "rocks", "pebbles")),
    Photograph("clock_motion", "clock", ("clock", "watch"), Box(0.36, 0.31, 0.7, 0.71)),
    Photograph("cell", "cell", ("cell",), Box(0.66, 0.46, 0.91, 0.68)),
)


def other_query(number: int) -> str:
    """Return the query of the next photograph: what the photograph `number` does not show."""
    return PHOTOGRAPHS[(number + 1) % len(PHOTOGRAPHS)].query


def build_pictures(target: Path, *, seed: int, drawings: int = NUM_DRAWINGS, scenes: int = NUM_SCENES) -> Collection:
    """Write the pictures into the collection at `target`; existing ones are kept."""
    with CollectionWriter(target, license=LICENSE, source="tour") as writer:
        for photograph in PHOTOGRAPHS:
            regions = [Region(photograph.box, photograph.query)] if photograph.box else []
            captions = [Caption(photograph.query, "title"), Caption(", ".join(photograph.names), "keywords")]
            labels = {"source": "photographs", "subcategory": "photograph"}
            writer.add(photograph.name, photograph.encode(), captions=captions, regions=regions, labels=labels)
        for source in ("emoji", "clipart"):
            for single in _draw_singles(source, drawings, seed):
                labels = single.labels
                writer.add(single.key, single.data, captions=single.captions, labels=labels, split="test")
        for index in range(scenes):
            write_scene_row(writer, draw_scene_row(seed=seed, split="test", index=index))
    return Collection.open(target)


def _draw_singles(source: str, count: int, seed: int) -> Iterator[Single]:
    cutouts = [cutout for cutout in load_cutouts() if cutout.source == source and assign_split(cutout.id) == "test"]
    keys = {
        cutout.id for cutout in sorted(cutouts, key=lambda cutout: uniform("tour pictures", seed, cutout.id))[:count]
    }
    return load_single_objects(source, keys=keys)
