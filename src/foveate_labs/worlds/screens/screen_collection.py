"""Write screens with their widget trees and questions into a collection."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from foveate.core.seeds import generator
from foveate.records.boxes import Box
from foveate.records.record import Region
from foveate_labs.worlds.asked_images import AskedImage, Position, make_conversations, write_asked_images
from foveate_labs.worlds.builtin.single_objects import jpeg
from foveate_labs.worlds.documents.document_collection import word_row
from foveate_labs.worlds.screens.questions import ask_screen
from foveate_labs.worlds.screens.screen import draw_screen

LICENSE = (
    "generated from Open Clip Art (public domain), Noto Emoji (Apache-2.0) and Twemoji (CC-BY-4.0); letters of DejaVu "
    "(Bitstream Vera license) and Aileron (CC0)"
)


def build_screens(
    target: Path,
    *,
    train: int,
    validation: int = 0,
    test: int = 0,
    seed: int = 0,
    size: int = 448,
    workers: int = 1,
) -> None:
    """Write screens into the collection at `target`; existing ones are not drawn again.

    Each has its widgets as regions (label: type, phrase: type and text), and the annotation kinds "screens" (tree: JSON
    of `Widget.to_dict`), "words" and "conversations".

    Args:
        train, validation, test: number of screens of each split.
        seed: seed of the series.
        size: height in pixels.
        workers: processes that draw; the result does not depend on it.

    Raises:
        UserError: a number is out of range, or matplotlib's fonts are missing.
    """
    write_asked_images(
        target,
        functools.partial(draw_asked_screen, seed=seed, size=size),
        functools.partial(_make_key, seed=seed),
        counts={"train": train, "validation": validation, "test": test},
        source="screens",
        license=LICENSE,
        workers=workers,
    )


def _make_key(position: Position, *, seed: int) -> str:
    return f"screen-{position[0]}-{seed}-{position[1]:06d}"


def draw_asked_screen(position: Position, *, seed: int, size: int) -> list[AskedImage]:
    """Draw screen number `position[1]` of split `position[0]` and ask about it."""
    split, index = position
    screen = draw_screen(seed=seed, split=split, index=index, size=size)
    key = _make_key(position, seed=seed)
    # Questions draw from a random stream of their own, so changes to them leave the pixels alone.
    questions = ask_screen(screen, generator("screen questions", seed, split, index), split=split)
    regions = tuple(
        Region(
            Box.from_pixels(widget.box, *screen.image.size), f"{widget.type} {widget.text}".strip(), label=widget.type
        )
        for widget in screen.widgets
    )
    labels = {"screen": screen.kind, "layout": screen.layout, "font": screen.font}
    image = AskedImage(
        key,
        jpeg(screen.image),
        regions=regions,
        labels={**labels, "letter_height": str(screen.letter_height)},
        extra={
            "screens": [{"tree": json.dumps(screen.root.to_dict())}],
            "words": [word_row(word) for word in screen.word_boxes],
        },
        conversations=make_conversations(questions, key=key, group="text-rich", source="screens"),
    )
    return [image]
