"""Conversations of clients as models are trained on them, and answers as far as they may be sent."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from foveate.core.errors import UserError
from foveate.multimodal.answers import Answer, write_corners
from foveate.multimodal.prepare import Dialog
from foveate.multimodal.questions import ask_turns
from foveate.records.boxes import PixelBox
from foveate.records.conversations import REGION, Turn, find_shape_problem, find_turn_problem
from foveate.records.region_prompts import mute_placeholders
from foveate.records.rows import clean_text
from foveate.serve.calls import ChatBox, ChatCall, ChatTurn, ServedImage

# From the first blank on: tried at each of them, a text of blanks alone would take the square of its length.
_CORNERS = re.compile(r"(?<!\s)\s*\[(\d+), (\d+), (\d+), (\d+)\]")


def cut_text(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return a text up to the first of the stop texts in it, and whether there is one.

    >>> cut_text("one two three", ("three", "two"))
    ('one ', True)
    """
    ends = [position for position in (text.find(each) for each in stop if each) if position >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def hold_back(text: str, stop: Sequence[str]) -> str:
    """Return a text without an end that may become a stop text.

    >>> hold_back("one th", ("three",))
    'one '
    """
    # Only proper prefixes of a stop text: at a whole one `cut_text` has cut already.
    sizes = ((each, size) for each in stop for size in range(1, min(len(each), len(text) + 1)))
    lengths = [size for each, size in sizes if text.endswith(each[:size])]
    return text[: len(text) - max(lengths, default=0)]


def read_dialog(call: ChatCall, images: Mapping[bytes, bytes] | None = None) -> Dialog:
    """Return the conversation of a call as models are trained on it: boxes in earlier answers are regions again.

    Args:
        images: bytes -> the object that stands for equal ones.

    Raises:
        UserError: turns do not alternate, a text is empty, or its placeholders do not fit.
    """
    turns: list[Turn] = []
    images_of_call = [image for turn in call.turns for image in turn.images]
    for turn in call.turns:
        if turn.role == "user":
            # `<1>` and `<2>` refer to the boxes of the last question only.
            regions = call.regions if turn is call.turns[-1] else ()
            turns += ask_turns(turn.text, regions, images=len(turn.images))
        elif turn.role == "system":
            turns.append(Turn("system", mute_placeholders(clean_text(turn.text))))
        else:
            turns.append(_read_answer(turn, images_of_call))
    finding = find_turn_problem(turns, answered=False)
    if finding is not None:
        raise UserError(f"messages: {finding.reason}: {finding.detail}")
    data = [(images or {}).get(image.data, image.data) for image in images_of_call]
    return Dialog(data, turns, call.regions)


def _read_answer(turn: ChatTurn, images: Sequence[ServedImage]) -> Turn:
    """Return an earlier answer with `<region>` for each box in pixels that lies in the one image."""
    text, regions = mute_placeholders(clean_text(turn.text)), list[PixelBox]()

    def replace(match: re.Match[str]) -> str:
        box = PixelBox(*(float(edge) for edge in match.groups()))
        # With several images nothing says which one the corners are in.
        if len(images) != 1 or find_shape_problem(box, width=images[0].width, height=images[0].height):
            return match[0]
        regions.append(box)
        return f" {REGION}"

    return Turn("assistant", _CORNERS.sub(replace, text).strip(), tuple(regions))


def list_boxes(answer: Answer, text: str, *, phrase: str = "") -> tuple[ChatBox, ...]:
    """Return the boxes of an answer whose corners stand in the text that is left of it.

    Args:
        phrase: of the question, for boxes that the answer has no phrase for.
    """
    boxes, start = list[ChatBox](), 0
    scores = answer.box_scores if len(answer.box_scores) == len(answer.boxes) else (None,) * len(answer.boxes)
    for box, image, name, score in zip(answer.boxes, answer.images, answer.phrases, scores, strict=True):
        position = text.find(write_corners(box), start)
        # The text was cut at a stop: of what follows nothing was sent.
        if position < 0:
            break
        boxes.append(ChatBox(box, image, name or phrase, score))
        start = position + 1
    return tuple(boxes)
