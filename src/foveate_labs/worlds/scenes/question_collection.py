"""Write scenes of several kinds with their questions into a collection."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from foveate.core.progress import track
from foveate.core.seeds import generator
from foveate.records import layout
from foveate.records.collection import Collection
from foveate.records.conversations import (
    KIND,
    Conversation,
    Conversations,
    add_conversations,
    conversation_row,
)
from foveate.records.record import Region
from foveate.records.writer import CollectionWriter
from foveate_labs.worlds.asked_images import draw_in_processes
from foveate_labs.worlds.builtin import SEEN
from foveate_labs.worlds.questions import PEOPLE, to_conversation
from foveate_labs.worlds.scenes.counting import draw_counting_scene
from foveate_labs.worlds.scenes.questions import ask_scene
from foveate_labs.worlds.scenes.region_questions import ask_regions
from foveate_labs.worlds.scenes.scene import VISIBLE, Scene, draw_scene
from foveate_labs.worlds.scenes.scene_collection import LICENSE, SceneRow, make_scene_row, write_scene_row

_SOURCE = "scenes: "
COUNTING_SHARE = 0.25
KINDS = {"scene": 1 - COUNTING_SHARE, "counting": COUNTING_SHARE}
# Half of the scenes have mostly small things, which only tiles show.
REGION_KINDS = {"regions": 0.5, "small-regions": 0.5}


class AskedScene(NamedTuple):
    """An encoded scene with its questions."""

    row: SceneRow
    conversations: tuple[Conversation, ...]


def draw_asked_scene(
    *, kind: str, seed: int, split: str, index: int, size: int = 224, people: float = 0.0
) -> AskedScene:
    """Draw a scene of `kind`, one of KINDS or REGION_KINDS, and ask all about it that has a certain answer.

    Args:
        people: share of questions of a scene of KINDS that are worded like people's.
    """
    if kind == "counting":
        scene = draw_counting_scene(seed=seed, split=split, index=index, size=size)
    else:
        scene = draw_scene(seed=seed, split=split, index=index, size=size, small=kind == "small-regions")
    key = _key(kind, split, seed, index)
    row = make_scene_row(scene, key=key, split=split)
    if kind == "counting":
        # Copies of one thing have no phrase that tells them apart, but each of them shows what the phrase names.
        row = replace(row, regions=_all_regions(scene))
    rng = generator("questions", kind, seed, split, index)
    if kind in REGION_KINDS:
        questions = ask_regions(scene, rng, split=split)
    else:
        questions = ask_scene(scene, rng, split=split, people=people)
    unseen = {placed.phrase for placed in scene.objects if placed.slice not in ("", SEEN)}
    conversations = []
    for number, question in enumerate(questions):
        # Evaluations report kinds of questions, and names that no training scene has, by themselves.
        names = "unseen" if any(name in f"{question.prompt} {question.answer}" for name in unseen) else "seen"
        if question.kind == "name" and question.short in unseen:
            names = "unseen"
        way = "two answers" if question.choices and len(question.choices) == 2 else "open"
        worded = f"/{PEOPLE}" if people == 1 else ""
        id = f"{question.kind}/{way}/{names}{worded}/{key}/{number}"
        conversations.append(to_conversation(question, id=id, images=(key,), source=f"{_SOURCE}{question.form}"))
    return AskedScene(row, tuple(conversations))


def _all_regions(scene: Scene) -> tuple[Region, ...]:
    return tuple(
        Region(placed.box, placed.phrase, label=placed.concept, slice=placed.slice)
        for placed in scene.objects
        if placed.kind == "thing" and placed.box and placed.visible >= VISIBLE
    )


def build_questions(
    target: Path,
    *,
    train: int,
    validation: int = 0,
    test: int = 0,
    seed: int = 0,
    size: int = 224,
    workers: int = 1,
    kinds: Mapping[str, float] = MappingProxyType(KINDS),
    people: float = 0.0,
) -> None:
    """Write scenes with questions into the collection at `target`; existing ones are not drawn again.

    Args:
        train, validation, test: number of images of each split.
        seed: seed of the series.
        size: side in pixels.
        workers: processes that draw; the result does not depend on it.
        kinds: share of each kind of scene.
        people: share of the questions of training and validation that are worded like people's; all of a test are, if
            it is not 0, in wordings that no training question has.
    """
    positions = [
        (kind, split, index)
        for split, count in (("train", train), ("validation", validation), ("test", test))
        for kind, share in kinds.items()
        for index in range(round(count * share))
    ]
    done = _asked_keys(target)
    positions = [(kind, split, index) for kind, split, index in positions if _key(kind, split, seed, index) not in done]
    conversations: list[Conversation] = []
    with CollectionWriter(target, license=LICENSE, source="scenes") as writer:
        for drawn in track(_draw(positions, seed, size, workers, people), description="scenes", total=len(positions)):
            row = drawn.row
            # Scenes that were collected without questions have the same keys and get theirs afterwards.
            if writer.known_sha256(row.key) is not None:
                conversations += drawn.conversations
                continue
            # With its image: of what a stopped command has written, none is without its questions.
            rows = [conversation_row(conversation) for conversation in drawn.conversations]
            write_scene_row(writer, row, **{KIND: rows})
    add_conversations(target, conversations)


def build_region_questions(
    target: Path,
    *,
    train: int,
    validation: int = 0,
    test: int = 0,
    seed: int = 0,
    size: int = 448,
    workers: int = 1,
) -> None:
    """Write scenes with questions about their regions; half of them have mostly small things. See `build_questions`.

    Args:
        size: side in pixels, at least 448; 672 has more to see in tiles.
    """
    build_questions(
        target,
        train=train,
        validation=validation,
        test=test,
        seed=seed,
        size=size,
        workers=workers,
        kinds=REGION_KINDS,
    )


def _key(kind: str, split: str, seed: int, index: int) -> str:
    return f"{kind}-{split}-{seed}-{index:06d}"


def _asked_keys(target: Path) -> frozenset[str]:
    """Return the keys of images that have these questions already; conversations of other sources do not count."""
    # A first run that was killed may leave its lock alone, and the writer goes on there.
    if not (target / layout.DESCRIPTION).is_file():
        return frozenset()
    with Collection.open(target) as collection:
        return frozenset(
            key
            for conversation in Conversations(collection)
            if conversation.source.startswith(_SOURCE)
            for key in conversation.images
        )


def _draw_position(position: tuple[str, str, int], *, seed: int, size: int, people: float) -> AskedScene:
    kind, split, index = position
    share = float(people > 0) if split == "test" else people
    return draw_asked_scene(kind=kind, seed=seed, split=split, index=index, size=size, people=share)


def _draw(
    positions: list[tuple[str, str, int]], seed: int, size: int, workers: int, people: float
) -> Iterator[AskedScene]:
    draw = functools.partial(_draw_position, seed=seed, size=size, people=people)
    return draw_in_processes(draw, positions, workers=workers)
