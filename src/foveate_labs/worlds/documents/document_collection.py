"""Write documents with their words and questions into a collection."""

from __future__ import annotations

import functools
from pathlib import Path

from foveate.core.seeds import generator
from foveate.records.record import Caption
from foveate_labs.worlds.asked_images import AskedImage, Position, make_conversations, write_asked_images
from foveate_labs.worlds.builtin.single_objects import jpeg
from foveate_labs.worlds.documents.document import draw_document
from foveate_labs.worlds.documents.questions import ask_document
from foveate_labs.worlds.sheets import Word

LICENSE = "generated; letters of DejaVu (Bitstream Vera license) and Aileron (CC0)"


def build_documents(
    target: Path,
    *,
    train: int,
    validation: int = 0,
    test: int = 0,
    seed: int = 0,
    size: int = 448,
    workers: int = 1,
) -> None:
    """Write documents into the collection at `target`; existing ones are not drawn again.

    Each has a caption of kind "text" (all that is written), the annotation kinds "words" (text, pixel edges x1, y1, x2,
    y2, letter_height and line of each word) and "conversations", and the labels document, layout, font and
    letter_height.

    Args:
        train, validation, test: number of documents of each split.
        seed: seed of the series.
        size: the longer side in pixels.
        workers: processes that draw; the result does not depend on it.

    Raises:
        UserError: a number is out of range, or matplotlib's fonts are missing.
    """
    write_asked_images(
        target,
        functools.partial(draw_asked_document, seed=seed, size=size),
        functools.partial(_make_key, seed=seed),
        counts={"train": train, "validation": validation, "test": test},
        source="documents",
        license=LICENSE,
        workers=workers,
    )


def _make_key(position: Position, *, seed: int) -> str:
    return f"document-{position[0]}-{seed}-{position[1]:06d}"


def draw_asked_document(position: Position, *, seed: int, size: int) -> list[AskedImage]:
    """Draw document number `position[1]` of split `position[0]` and ask about it."""
    split, index = position
    document = draw_document(seed=seed, split=split, index=index, size=size)
    key = _make_key(position, seed=seed)
    # Questions draw from a random stream of their own, so changes to them leave the pixels alone.
    questions = ask_document(document, generator("document questions", seed, split, index), split=split)
    labels = {"document": document.kind, "layout": document.layout, "font": document.font}
    image = AskedImage(
        key,
        jpeg(document.image),
        captions=(Caption(document.transcript, "text", "documents"),),
        labels={**labels, "letter_height": str(document.letter_height)},
        extra={"words": [word_row(word) for word in document.word_boxes]},
        conversations=make_conversations(questions, key=key, group="text-rich", source="documents"),
    )
    return [image]


def word_row(word: Word) -> dict[str, object]:
    """Return the row of a word in the annotation kind "words"."""
    edges = {"x1": word.box.x1, "y1": word.box.y1, "x2": word.box.x2, "y2": word.box.y2}
    return {"text": word.text, **edges, "letter_height": word.letter_height, "line": word.line}
