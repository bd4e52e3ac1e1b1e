"""Ground truth of a generated scene: its things with boxes, its drawn words, and its background."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass

from foveate.core.errors import UserError
from foveate.records.boxes import Box
from foveate.records.builtin import families
from foveate.records.collection import Collection
from foveate.records.text import split_words
from foveate_labs.worlds.scenes import grounds as drawn_grounds
from foveate_labs.worlds.scenes import grounds as photographs
from foveate_labs.worlds.scenes.scene import VISIBLE

KIND = "scenes"  # the annotation table that a scene's truth is read from


@dataclass(frozen=True, slots=True)
class Thing:
    """A named thing in a scene.

    Attributes:
        phrase: its name.
        box: of its visible pixels.
        visible: share of its pixels that nothing covers.
    """

    phrase: str
    box: Box
    visible: float


@dataclass(frozen=True, slots=True)
class SceneTruth:
    """Ground truth of one image.

    Attributes:
        things: at least half visible, in the order in which they were drawn.
        hidden: phrases of things that are less visible.
        written: words drawn into the image.
        ground: words of the background ("a brick wall"), "" if unknown.
        ground_kind: "photo" or "drawn".
        shows: words for what else may be seen on the background.
    """

    things: tuple[Thing, ...]
    hidden: frozenset[str]
    written: tuple[str, ...]
    ground: str
    ground_kind: str
    shows: frozenset[str]

    def count(self, phrase: str) -> int:
        """Count the things with exactly this name."""
        return sum(thing.phrase == phrase for thing in self.things)


@functools.cache
def grounds() -> Mapping[str, tuple[str, str, frozenset[str]]]:
    """Map the name of each background to its words, its kind, and what it shows."""
    photos = (*photographs.TRAINING_PHOTOGRAPHS, *photographs.HELD_OUT_PHOTOGRAPHS)
    styles = {**drawn_grounds.TRAINING, **drawn_grounds.HELD_OUT}
    patterns = {name: (phrase, "drawn", frozenset[str]()) for name, (_, phrase) in styles.items()}
    return {**patterns, **{photo.name: (photo.description, "photo", photo.shows) for photo in photos}}


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """List all names that a thing in a scene may have."""
    return families.load_concepts()


def parse_scene_truth(row: Mapping[str, object]) -> SceneTruth:
    """Parse a row of the annotation table `scenes`.

    Raises:
        UserError: the columns are not those of generated scenes.
    """
    try:
        objects = json.loads(str(row["objects"]))
        ground = str(row["ground"])
        things = [
            Thing(str(item["phrase"]), Box(*item["box"]), float(item["visible"]))
            for item in objects
            if item["kind"] == "thing" and item["box"] and item["visible"] >= VISIBLE
        ]
        # A name is hidden only if no thing of it can be seen: of two dogs one may be covered.
        seen = {thing.phrase for thing in things}
        hidden = {str(item["phrase"]) for item in objects if item["kind"] == "thing"} - seen
        written = tuple(str(item["phrase"]) for item in objects if item["kind"] == "text" and item["visible"] > 0)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"annotation table 'scenes', image {row.get('key')!r}: not the ground truth of a generated scene"
        ) from error
    phrase, kind, shows = grounds().get(ground, ("", "", frozenset()))
    return SceneTruth(tuple(things), frozenset(hidden), written, phrase, kind, shows)


class SceneTruths:
    """Ground truth of a collection's scenes by row; real images have none."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        try:
            table = collection.grouped(KIND)
        except UserError:  # the collection has no generated scenes
            table = None
        self._table = table

    def __len__(self) -> int:
        return 0 if self._table is None else self._table.table.num_rows

    def __contains__(self, row: int) -> bool:
        if self._table is None:
            return False
        start, end = self._table.bounds(row)
        return end > start

    def get(self, row: int) -> SceneTruth | None:
        """Return the ground truth of a row of the collection, None for an image that is no generated scene."""
        if self._table is None:
            return None
        start, end = self._table.bounds(row)
        # The last row: annotations are only ever added, so a scene that was written again has two.
        return parse_scene_truth(self._table.table.slice(end - 1, 1).to_pylist()[0]) if end > start else None


def split_name(text: str) -> tuple[str, ...]:
    """Split a name into words as they are compared: lower case, singular, hyphens apart.

    >>> split_name("Heart-shaped boxes")
    ('heart', 'shaped', 'box')
    """
    return tuple(families.singular(word) for word in split_words(text, style="letters"))
