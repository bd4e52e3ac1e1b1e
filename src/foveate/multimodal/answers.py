"""Answers of multimodal models: their text, the boxes in it, and the phrases that belong to them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageDraw

from foveate.language.decoding import TokenScore
from foveate.multimodal.frames import CoordinateFrame
from foveate.records.box_text import parse_boxes, parse_regions
from foveate.records.boxes import Box, PixelBox
from foveate.records.conversations import REGION
from foveate.records.images import ImageInput
from foveate.records.shapes import Point, Shape

NOT_FOUND = "not found"
LANGUAGE_MODEL = "language model"
CHARACTER_HEAD = "character head"
_SENTENCE_END = re.compile(r"[.!?](?=\s)")
_YES = re.compile(r"\W*yes\b", re.IGNORECASE)
# The word boundary keeps "north" and "nothing" from counting as "no".
_NO = re.compile(r"\W*no\b", re.IGNORECASE)
# Digits that a limit cuts, or that a stream has read in part, have no bracket at the end.
_DIGITS = re.compile(r"\s*\[[^\[\]]*(?:\]|$)")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered.

    Attributes:
        text: the answer; a box in it is written as its pixels, "[x1, y1, x2, y2]".
        boxes: of the answer in order, in pixels of the original image.
        images: the number of the image that each box lies in, from 0.
        phrases: what each box is said to show; "" where no text belongs to it.
        unboxed: what the answer mentions without a box, where boxes were asked for.
        tokens: generated tokens.
        finished: False if the answer was cut at `max_tokens`.
        num_prompt_tokens: positions that were read: images and question.
        box_scores: how well each box matches its phrase, of models with a box head; else none.
        rejected: scores of what the answer points at and the image does not show by the model's `min_box_score`: "not
            found" stands in the text instead of a box, or is the whole text.
        digits: what the digits behind each box say, of models that write both; None where there are none.
        score: mean log-probability of the generated tokens.
        source: what answered: the "language model", "recognition" for pictures unlike the scenes of its training, or
            the "character head" for written words.
        read_as: the question in a wording of training, where it was asked so and not as it was worded; else "".
        points: of the answer in order, in pixels of the original image, of families that point.
        token_scores: of the generated tokens, where `top_logprobs` of the generation asks for them.

    Example:
        >>> answer = open_mllm("mini").ask(image_file, "Where is the red disc?")
        >>> len(answer.boxes) == len(answer.images)
        True
    """

    text: str
    boxes: tuple[PixelBox, ...] = ()
    images: tuple[int, ...] = ()
    phrases: tuple[str, ...] = ()
    unboxed: tuple[str, ...] = ()
    tokens: int = 0
    finished: bool = True
    num_prompt_tokens: int = 0
    digits: tuple[PixelBox | None, ...] = ()
    box_scores: tuple[float, ...] = field(default=(), compare=False)
    rejected: tuple[float, ...] = field(default=(), compare=False)
    # The last bits of a logit depend on the padding of the batch.
    score: float = field(default=0.0, compare=False)
    source: str = LANGUAGE_MODEL
    read_as: str = ""
    points: tuple[Point, ...] = ()
    token_scores: tuple[TokenScore, ...] = field(default=(), compare=False)

    @property
    def reason(self) -> str:
        """Say why the answer to "Where is the X?" counts as not found; "" where it has a box.

        >>> Answer("no").reason
        "the model answered 'no' and gave no box"
        """
        if self.boxes:
            return ""
        if self.rejected:
            return f"its best match scores {max(self.rejected):.2f}"
        # A model of transformers may have written a paragraph.
        text = shorten(" ".join(self.text.split()), 80, placeholder=" ...")
        return f"the model answered {text!r} and gave no box" if text else "the model answered nothing and gave no box"


class AnswerObserver(Protocol):
    """Who watches answers while they are written together."""

    def step(self, number: int, read: Callable[[], Answer]) -> bool:
        """Note that an answer has a token more; return whether it may go on.

        Args:
            read: returns the answer as it is now; what `certain_text` leaves of its text will not change.
        """
        ...

    def end(self, number: int, answer: Answer) -> None:
        """Take an answer as soon as it has ended, before the others have."""
        ...


def open_box(corners: Sequence[float]) -> list[float]:
    """Return a box of a hundredth of the input at least; without area, or beyond the far edge, it covers no patch."""
    x1, y1, x2, y2 = corners
    x1, y1 = min(x1, 0.99), min(y1, 0.99)
    return [x1, y1, max(x2, x1 + 0.01), max(y2, y1 + 0.01)]


def to_pixels(corners: Sequence[float], frame: CoordinateFrame) -> PixelBox:
    """Map a box of the model input to pixels of its image."""
    placement = frame.placement
    low_2, high_2 = np.split(placement.to_original(np.array([corners]))[0], 2)
    # A box on the padding is empty and at the edge of the image: a pixel of it at least.
    pixel_2 = 1 / np.array([placement.width, placement.height])
    low_2 = np.minimum(low_2, 1 - pixel_2)
    box = Box.from_array(np.concatenate([low_2, np.maximum(high_2, low_2 + pixel_2)]), clipped=True)
    return box.to_pixels(placement.width, placement.height)


def find_runs(ids: Sequence[int], names: Collection[int]) -> list[tuple[int, int]]:
    """Return start and end of each run of tokens that are names: "red" and "disc" are one phrase."""
    runs: list[tuple[int, int]] = []
    for position, id in enumerate(ids):
        if id in names and runs and runs[-1][1] == position:
            runs[-1] = (runs[-1][0], position + 1)
        elif id in names:
            runs.append((position, position + 1))
    return runs


def find_sequences(ids: Sequence[int], sequences: Collection[tuple[int, ...]]) -> list[tuple[int, int]]:
    """Return start and end of the longest of several sequences at each position, from the left, without overlap.

    >>> find_sequences([5, 1, 2, 3, 1], {(1,), (1, 2)})
    [(1, 3), (4, 5)]
    """
    matches: list[tuple[int, int]] = []
    longest = max(map(len, sequences), default=0)
    for start in range(len(ids)):
        if matches and start < matches[-1][1]:
            continue
        ends = range(min(len(ids), start + longest), start, -1)
        end = next((end for end in ends if tuple(ids[start:end]) in sequences), None)
        if end is not None:
            matches.append((start, end))
    return matches


def join_text(pieces: Sequence[str | PixelBox], write: Callable[[PixelBox], str]) -> str:
    """Join the pieces of an answer, a blank in front of each box."""
    return "".join(piece if isinstance(piece, str) else f" {write(piece)}" for piece in pieces).strip()


def reject_boxes(pieces: Sequence[str | PixelBox], visible: Sequence[bool]) -> list[str | PixelBox]:
    """Write "not found" in place of the boxes of an answer, every second of its pieces, that are not visible."""
    texts = list(pieces)
    for number, is_visible in enumerate(visible):
        if not is_visible:
            # By the text in front alone, so that a stream writes the same.
            is_behind = bool(join_text(texts[: 2 * number + 1], write_corners))
            texts[2 * number + 1] = f" ({NOT_FOUND})" if is_behind else NOT_FOUND
    return texts


def says_no(text: str) -> bool:
    """Return whether an answer begins with no: that what was asked for is not there stays true, whatever follows."""
    return _NO.match(text) is not None


def says_yes(text: str) -> bool:
    """Return whether an answer begins with yes: which is false where what it then points at is not found."""
    return _YES.match(text) is not None


def shorten_no(text: str) -> str:
    """Return an answer that begins with no without the place of something else that is not found.

    >>> shorten_no("No, but there is a goat at (not found).")
    'No.'
    """
    first = re.split(r"(?<=[.!?])(?=\s)", text, maxsplit=1)
    no = _NO.match(text)
    if no is None or f"({NOT_FOUND})" not in first[0]:
        return text
    return "".join([f"{no[0]}.", *first[1:]])


def is_settled(text: str) -> bool:
    """Return whether what follows a text cannot take it back any more.

    The first sentence says what the image shows; a "yes" says it together with the next one. Where its boxes are not
    found, "Yes, a deer is at" says something else than the image does, and "not found" is the whole answer.

    >>> is_settled("Yes, it does. A deer is at"), is_settled("A deer. It")
    (False, True)
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return bool(ends) and (len(ends) > 1 or not says_yes(text))


def split_digits(
    pieces: Sequence[str | PixelBox], frames: Sequence[CoordinateFrame]
) -> tuple[list[str | PixelBox], tuple[PixelBox | None, ...]]:
    """Take the digits behind each box of an answer out of its pieces; return both.

    Args:
        pieces: texts and boxes of an answer. frames: of the image of each box.
    """
    texts, digits = list(pieces), []
    positions = [position for position, piece in enumerate(pieces) if not isinstance(piece, str)]
    for position, frame in zip(positions, frames, strict=True):
        text, placement = texts[position + 1], frame.placement
        assert isinstance(text, str), "a text follows each box"
        match = _DIGITS.match(text)
        parsed = parse_regions(match[0], width=placement.width, height=placement.height).regions if match else ()
        box = parsed[0].region if parsed else None
        digits.append(frame.to_image(box) if isinstance(box, PixelBox) else None)
        texts[position + 1] = text[match.end() :] if match else text
    return texts, tuple(digits)


def pair_phrases(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the phrase of each box of a text in 0..999, and the phrases that no box follows."""
    phrases = tuple(
        parsed.phrase
        for parsed in parse_regions(text, width=1000, height=1000).regions
        if isinstance(parsed.region, PixelBox)
    )
    unboxed = parse_boxes(text, (1000, 1000)).unboxed
    # Yes and no are answers, not things.
    return phrases, tuple(phrase for phrase in unboxed if phrase.casefold() not in ("yes", "no"))


def read_coordinates(text: str, frame: CoordinateFrame) -> tuple[str, list[PixelBox]]:
    """Return an answer with its boxes of 0..999 written in pixels of the image, and these boxes."""
    placement = frame.placement
    pieces, start, boxes = [], 0, []
    for parsed in parse_regions(text, width=placement.width, height=placement.height).regions:
        if isinstance(parsed.region, PixelBox):
            boxes.append(frame.to_image(parsed.region))
            pieces += [text[start : parsed.start], write_corners(boxes[-1])]
            start = parsed.end
    return "".join([*pieces, text[start:]]), boxes


def write_corners(box: PixelBox) -> str:
    """Write a box as its whole pixels, "[x1, y1, x2, y2]"."""
    return f"[{', '.join(str(round(edge)) for edge in (box.x1, box.y1, box.x2, box.y2))}]"


def certain_text(text: str) -> str:
    """Return what a text that is being written will keep: nothing of a box or of a character that it ends within.

    >>> certain_text("The cat [12, 4")
    'The cat'
    """
    opened = text.rfind("[")
    # Behind its end a box of 0..999 is written anew, in pixels.
    text = text[:opened] if opened > text.rfind("]") else text
    # Byte tokens decode to replacement characters until the last byte of a character has arrived.
    return text.rstrip("\N{REPLACEMENT CHARACTER}").rstrip()


def with_placeholders(answer: Answer) -> str:
    """Return the text of an answer with `<region>` for each box, as a conversation stores it."""
    text = answer.text
    for box in answer.boxes:
        # One occurrence per box: two boxes with the same corners are two regions.
        text = text.replace(write_corners(box), REGION, 1)
    return text


# What every model that answers questions about images can do, whoever built it. No torch.


Request = tuple[Sequence[ImageInput] | ImageInput, str, Sequence[Shape]]
"""Images, a question, and the regions of its `<region>` placeholders in pixels."""


class ModelAnswer(Protocol):
    """Answer of a model: its text, the boxes in it in pixels of the original image, and whether it came to an end."""

    @property
    def text(self) -> str: ...

    @property
    def boxes(self) -> Sequence[PixelBox]: ...

    @property
    def finished(self) -> bool: ...


class AskableModel(Protocol):
    """Model that a suite asks."""

    def ask_all(self, questions: Sequence[Request], *, max_tokens: int) -> Sequence[ModelAnswer]:
        """Answer questions in their order."""
        ...

    def choose_all(self, questions: Sequence[Request], options: Sequence[Sequence[str]]) -> Sequence[Sequence[float]]:
        """Return the probability of each of the options of each question."""
        ...


@runtime_checkable
class WordLimitedModel(AskableModel, Protocol):
    """Model that keeps words which were invented for its training out of its answers."""

    @property
    def training_words(self) -> Sequence[str]: ...

    def allow_training_words(self) -> AskableModel:
        """Return the same model whose answers may have these words."""
        ...


# Draw the boxes of an answer on its images.


_LINE, _HALO = (255, 92, 53), (52, 40, 34)


def draw_boxes(image: Image.Image, boxes: Sequence[PixelBox]) -> Image.Image:
    """Return a copy of an image with boxes, in pixels; a dark halo keeps them visible on any ground."""
    drawn = image.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    line = max(2, round(max(drawn.size) / 160))
    for box in boxes:
        for grow, color, width in ((line // 2, _HALO, 2 * line), (0, _LINE, line)):
            edges = (box.x1 - grow, box.y1 - grow, box.x2 + grow, box.y2 + grow)
            pen.rectangle(edges, outline=color, width=width)
    return drawn
