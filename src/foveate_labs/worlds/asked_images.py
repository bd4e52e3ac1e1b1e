"""Write generated images with their questions into a collection."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from foveate.core.errors import UserError
from foveate.core.progress import track
from foveate.records.conversations import KIND, Conversation, conversation_row
from foveate.records.record import Caption, Region
from foveate.records.writer import CollectionWriter
from foveate_labs.worlds.questions import Question, to_conversation

# Draw scenes in several processes, in order.


Item = TypeVar("Item")
Drawn = TypeVar("Drawn")


def draw_in_processes(draw: Callable[[Item], Drawn], positions: Sequence[Item], *, workers: int) -> Iterator[Drawn]:
    """Yield `draw(position)` in the order of `positions`, whichever process draws it."""
    # For a few scenes, starting the processes would take longer than the drawing.
    if workers == 1 or len(positions) < 64:
        yield from map(draw, positions)
        return
    # Spawn, not fork: a fork of a process with threads may deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=workers, mp_context=context) as pool:
        yield from pool.map(draw, positions, chunksize=16)


Position = tuple[str, int]  # split and number in it


@dataclass(frozen=True)
class AskedImage:
    """An encoded image with annotations and conversations, small enough to be sent between processes.

    Args:
        conversations: about it, and maybe about images that are written before it.
        group: images of one group stay in one split; by default the key.
    """

    key: str
    data: bytes
    captions: tuple[Caption, ...] = ()
    regions: tuple[Region, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    conversations: tuple[Conversation, ...] = ()
    group: str = ""


def make_conversations(questions: Sequence[Question], *, key: str, group: str, source: str) -> tuple[Conversation, ...]:
    """Make a conversation of each question on the image `key`; its source names the form of the question."""
    return tuple(
        to_conversation(question, id=f"{key}/{number}", images=(key,), group=group, source=f"{source}: {question.form}")
        for number, question in enumerate(questions)
    )


def write_asked_images(
    target: Path,
    draw: Callable[[Position], Sequence[AskedImage]],
    make_key: Callable[[Position], str],
    *,
    counts: Mapping[str, int],
    source: str,
    license: str,
    workers: int,
) -> None:
    """Write images with their conversations into the collection at `target`; existing ones are not drawn again.

    An image and its conversations are written together, so a stopped command that is repeated loses none.

    Args:
        draw: draws one image or several that belong together; sent to other processes, so a function of a module or a
            partial of one.
        make_key: returns the key of the last of these images without drawing it.
        counts: number of draws of each split.
        source: label `source` of the images.
        workers: processes that draw; the result does not depend on it.

    Raises:
        UserError: a number of images is negative, or workers is below 1.
    """
    for name, count, minimum in [*((name, count, 0) for name, count in counts.items()), ("workers", workers, 1)]:
        if count < minimum:
            raise UserError(f"{source}: {name} must be at least {minimum} (got {count})")
    positions = [(split, index) for split, count in counts.items() for index in range(count)]
    with CollectionWriter(target, license=license, source=source) as writer:
        # `make_key` names the last image of a draw, which is written last: if it is stored, so are the others.
        missing = [position for position in positions if writer.known_sha256(make_key(position)) is None]
        drawn = draw_in_processes(draw, missing, workers=workers)
        tracked = track(drawn, description=source, total=len(missing))
        for split, image in ((split, i) for (split, _), images in zip(missing, tracked, strict=True) for i in images):
            writer.add(
                image.key,
                image.data,
                captions=image.captions,
                regions=image.regions,
                labels={"source": source, **image.labels},
                group=image.group or image.key,
                split=split,
                extra={**image.extra, KIND: [conversation_row(each) for each in image.conversations]},
            )
