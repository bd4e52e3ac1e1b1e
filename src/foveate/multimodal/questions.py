"""Questions to multimodal models: their turn, and whether their regions lie in their images."""

from __future__ import annotations

import re
from collections.abc import Sequence

from foveate.core.errors import UserError
from foveate.records.conversations import IMAGE, REGION, Conversation, Turn, find_shape_problem, locate_regions
from foveate.records.region_prompts import name_regions
from foveate.records.rows import clean_text
from foveate.records.shapes import Shape, describe_shape

_WHERE = re.compile(r"where (?:is|are) (?:the |an? )?([^?]+)\??", re.IGNORECASE)


def ask_where(phrase: str) -> str:
    """Return the question for the place of a thing, as training words it; raise UserError for an empty phrase."""
    parts = clean_text(phrase).rstrip(" .?!").split()
    if not parts:
        raise UserError("phrase: the text is empty; expected words such as 'a red boat'")
    if parts[0].casefold() in ("a", "an", "the") and len(parts) > 1:
        parts = parts[1:]
    return f"Where is the {' '.join(parts)}?"


def find_phrase(question: str) -> str:
    """Return the phrase of a question as `ask_where` writes it, "" for any other.

    >>> find_phrase("Where is the red boat?")
    'red boat'
    """
    match = _WHERE.fullmatch(clean_text(question.replace(IMAGE, "")).strip())
    return match[1].rstrip() if match else ""


def ask_turns(question: str, regions: Sequence[Shape], *, images: int) -> list[Turn]:
    """Return the turn of a question, with a placeholder for each image in front where it has none.

    Args:
        question: names the regions `<1>`, `<2>`, or has a `<region>` for each.

    Raises:
        UserError: the question is empty, its placeholders do not fit images and regions, or a region is no shape.
    """
    _check_shapes(regions)
    text, regions = name_regions(clean_text(question), regions)
    if not text:
        raise UserError("question: it is empty")
    # In front, as in most of the training data; a region then lies in the last image.
    if IMAGE not in text:
        text = IMAGE * images + ("\n" if images else "") + text
    for name, placeholder, count in (("images", IMAGE, images), ("regions", REGION, len(regions))):
        if text.count(placeholder) != count:
            raise UserError(
                f"question: has {text.count(placeholder)} {placeholder} (got {count} {name}); expected one for each"
            )
    return [Turn("user", text, tuple(regions))]


def _check_shapes(regions: Sequence[Shape]) -> None:
    """Raise UserError for regions that are no list, or a region that is no shape, such as four bare numbers."""
    if not isinstance(regions, Sequence):
        raise UserError(f"regions: not a list (got {type(regions).__name__}); expected one of shapes")
    for number, shape in enumerate(regions, 1):
        if not isinstance(shape, Shape):
            # Bare numbers could be x, y, width and height, a Box fractions.
            raise UserError(
                f"region {number}: not a shape in pixels (got {' '.join(repr(shape).split())[:80]}); expected "
                "PixelBox, Point, Stroke or Mask"
            )


def check_regions(conversation: Conversation, sizes: Sequence[tuple[int, int]], numbered: Sequence[Shape] = ()) -> None:
    """Raise UserError for a region without an image, or one that does not lie in its image.

    Args:
        sizes: width and height in pixels of the images, in order.
        numbered: the regions in the order of their numbers; by default that of the conversation.
    """
    numbered = numbered or [shape for turn in conversation.turns for shape in turn.regions]
    # By identity: equal shapes may have different numbers.
    numbers = {id(shape): number for number, shape in reversed([*enumerate(numbered, 1)])}
    for turn, images in zip(conversation.turns, locate_regions(conversation), strict=True):
        for shape, image in zip(turn.regions, images, strict=True):
            # A box of an earlier answer has no number.
            name = f"region {numbers[id(shape)]}" if id(shape) in numbers else "region of an earlier answer"
            if not sizes:
                raise UserError(f"{name}: it has no image (got 0 images)")
            width, height = sizes[image]
            problem = find_shape_problem(shape, width=width, height=height)
            if problem:
                raise UserError(
                    f"{name}: {problem} (got {describe_shape(shape)}); expected pixels of an image of "
                    f"{width} x {height}"
                )
