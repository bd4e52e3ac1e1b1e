"""What is known of a generated scene: the things in it with their boxes, drawn words, and the ground it stands on."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass

from foveate.core.errors import UserError
from foveate.records.boxes import Box
from foveate.records.builtin import families, phrases
from foveate.records.collection import Collection
from foveate.records.scenes import drawn_grounds, photographs
from foveate.records.scenes.scene import VISIBLE
from foveate.records.text import split_words

KIND = "scenes"  # the annotation table that a scene's truth is read from


@dataclass(frozen=True, slots=True)
class Thing:
    """A named thing in a scene. box: of its visible pixels. visible: their share of all its pixels."""

    phrase: str
    box: Box
    visible: float


@dataclass(frozen=True, slots=True)
class SceneTruth:
    """things: those that are at least half visible, lowest first; `hidden`: phrases of those that are less.

    written: words drawn into the image. ground: its words ("a brick wall"), "" where unknown; ground_kind: "photo"
    or "drawn"; shows: what else may be seen on the ground.
    """

    things: tuple[Thing, ...]
    hidden: frozenset[str]
    written: tuple[str, ...]
    ground: str
    ground_kind: str
    shows: frozenset[str]

    def count(self, phrase: str) -> int:
        """How many things have exactly this name."""
        return sum(thing.phrase == phrase for thing in self.things)


@functools.cache
def grounds() -> Mapping[str, tuple[str, str, frozenset[str]]]:
    """Name of a ground -> its words, its kind, and what it shows."""
    photos = (*photographs.TRAINING, *photographs.HELD_OUT)
    styles = {**drawn_grounds.TRAINING, **drawn_grounds.HELD_OUT}
    found = {name: (words, "drawn", frozenset[str]()) for name, (_, words) in styles.items()}
    return {**found, **{one.name: (one.words, "photo", one.shows) for one in photos}}


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """All names that a thing in a scene may have."""
    return families.concepts()


def truth_of_row(row: Mapping[str, object]) -> SceneTruth:
    """The truth in a row of the annotation table `scenes`.

    Raises:
        UserError: when its columns are not those of generated scenes.
    """
    try:
        placed = json.loads(str(row["objects"]))
        ground = str(row["ground"])
        things = [
            Thing(str(one["phrase"]), Box(*one["box"]), float(one["visible"]))
            for one in placed
            if one["kind"] == "thing" and one["box"] and one["visible"] >= VISIBLE
        ]
        seen = {thing.phrase for thing in things}
        hidden = {str(one["phrase"]) for one in placed if one["kind"] == "thing"} - seen
        written = tuple(str(one["phrase"]) for one in placed if one["kind"] == "text" and one["visible"] > 0)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"annotation table 'scenes', image {row.get('key')!r}: not the truth of a scene") from error
    words, kind, shows = grounds().get(ground, ("", "", frozenset()))
    return SceneTruth(tuple(things), frozenset(hidden), written, words, kind, shows)


class SceneTruths:
    """The truth of a collection's scenes by row; real images have none."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        try:
            table = collection.grouped(KIND)
        except UserError:  # nobody added scenes
            table = None
        self._table = table

    def __len__(self) -> int:
        return 0 if self._table is None else self._table.table.num_rows

    def of(self, row: int) -> SceneTruth | None:
        """The truth of a row of the collection, None for an image that is no generated scene."""
        if self._table is None:
            return None
        start, end = self._table.bounds(row)
        return truth_of_row(self._table.table.slice(end - 1, 1).to_pylist()[0]) if end > start else None


def names(text: str) -> tuple[str, ...]:
    """The words of a name as they are compared: lower case, singular, hyphens apart.

    >>> names("Heart-shaped boxes")
    ('heart', 'shaped', 'box')
    """
    return tuple(phrases.singular(word) for word in split_words(text, style="letters"))
