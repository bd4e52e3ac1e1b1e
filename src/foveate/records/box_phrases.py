"""Match phrases and boxes of answers, and find those without a partner.

`parse_boxes` reads one answer and reports everything; `parse_answers` reads many at once, for metrics. The parser
"official" does what Ferret's evaluation does (see `box_text.parse_streaming`), "robust" loses nothing that is clear.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError
from foveate.records.box_text import (
    NUM_BINS,
    OFFICIAL_STOPS,
    ParsedText,
    find_phrase,
    fold_phrase,
    parse_regions,
    parse_streaming,
    strip_phrase,
)
from foveate.records.boxes import PixelBox

Parser = Literal["robust", "official"]


@dataclass(frozen=True, slots=True)
class PhraseBoxes:
    """A phrase as it is first written, and the boxes of all its mentions in pixels."""

    phrase: str
    boxes: tuple[PixelBox, ...]


@dataclass(frozen=True, slots=True)
class ParsedBoxes:
    """Result of `parse_boxes`.

    Args:
        boxes: all, in the order of the text, in pixels.
        phrases: phrases with boxes; equal ones are merged (see `is_same_phrase`).
        unnamed: boxes without a phrase.
        unboxed: pieces of text that no box follows, then requested phrases without a box.
        problems: a sentence about each list of numbers that is no box.
    """

    boxes: tuple[PixelBox, ...] = ()
    phrases: tuple[PhraseBoxes, ...] = ()
    unnamed: tuple[PixelBox, ...] = ()
    unboxed: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


# Four fields, not all of them numbers: lists of numbers are judged by `parse_regions`.
_NO_NUMBERS = re.compile(r"\[(?![\s\d,.+-]*\])[^\[\],]*,[^\[\],]*,[^\[\],]*,[^\[\],]*\]")
_PIECE = re.compile(r"\[[^\[\]]*\]|[.;!?\n\[\]]|[^.;!?\n\[\]]+")


def parse_boxes(
    text: str, size: tuple[int, int], *, parser: Parser = "robust", requested: Sequence[str] = ()
) -> ParsedBoxes:
    """Parse the phrases and boxes of an answer whose coordinates are 0..999; never raises for a text.

    Args:
        text: such as "a man [0, 0, 499, 999] and a dog [500, 500, 999, 999]".
        size: width and height of the image in pixels.
        parser: "official" decodes to whole pixels and loses all boxes of an answer with one bad list.
        requested: phrases that should have a box.

    Raises:
        UserError: the size is not positive.

    >>> parsed = parse_boxes("A man [0, 0, 499, 999] and a man [500, 0, 999, 999]. A dog.", (100, 100))
    >>> [(entry.phrase, len(entry.boxes)) for entry in parsed.phrases], parsed.unboxed
    ([('A man', 2)], ('A dog',))
    """
    if min(size) < 1:
        raise UserError(f"size {size[0]} x {size[1]}: both sides must be at least 1 pixel")
    parsed = parse_regions(text, width=size[0], height=size[1])
    pairs, problems = _pair(text, size, parsed, parser)
    merged: dict[str, tuple[str, list[PixelBox]]] = {}
    for phrase, box in pairs:
        merged.setdefault(fold_phrase(phrase), (phrase, []))[1].append(box)
    # A phrase that is empty or only punctuation folds to "".
    unnamed = merged.pop("", ("", []))[1]
    missing = [phrase for phrase in requested if fold_phrase(phrase) not in merged]
    return ParsedBoxes(
        boxes=tuple(box for _, box in pairs),
        phrases=tuple(PhraseBoxes(phrase, tuple(boxes)) for phrase, boxes in merged.values()),
        unnamed=tuple(unnamed),
        unboxed=(*_find_unboxed(text, parsed), *missing),
        problems=problems,
    )


def _pair(
    text: str, size: tuple[int, int], parsed: ParsedText, parser: Parser
) -> tuple[list[tuple[str, PixelBox]], tuple[str, ...]]:
    """Return each box with its phrase, and a sentence about each list of numbers that is no box."""
    problems = list(parsed.problems)
    pairs = []
    for entry in parsed.regions:
        if isinstance(entry.region, PixelBox):
            pairs.append((entry.phrase, entry.region))
        else:
            problems.append(f"{text[entry.start : entry.end]}: a point; expected a box")
    # Letters in a list of four are most often a model's unfilled template.
    problems += [f"{match[0][:60]}: not integers" for match in _NO_NUMBERS.finditer(text)]
    if parser == "official":
        try:
            pairs = parse_streaming(text, width=size[0], height=size[1])
        except (ValueError, IndexError, OverflowError) as error:
            pairs = []
            problems.append(f"{type(error).__name__} of the official parser")
    return pairs, tuple(problems)


def _find_unboxed(text: str, parsed: ParsedText) -> list[str]:
    """Return the pieces of a text, between boxes and ends of sentences, that no box follows."""
    boxes = {entry.start for entry in parsed.regions if isinstance(entry.region, PixelBox)}
    unboxed, pending = [], ""
    for match in _PIECE.finditer(text):
        if match.start() in boxes:
            pending = ""
        elif match[0][0] in ".;!?\n[]":
            unboxed.append(pending)
            pending = ""
        else:
            pending = strip_phrase(match[0])
    return [piece for piece in (*unboxed, pending) if fold_phrase(piece)]


@dataclass(frozen=True)
class AnswerBoxes:
    """The boxes of N answers, in the order of answers and texts.

    Args:
        rows_B: number of the answer of each box, ascending.
        boxes_B4: corners in pixels.
        phrases: of each box, empty where it has none; () if they were not asked for.
        counts_N: boxes of each answer.
        problems: number of an answer -> why lists of numbers in it are no boxes.
    """

    rows_B: NDArray[np.int64]
    boxes_B4: NDArray[np.float64]
    phrases: tuple[str, ...]
    counts_N: NDArray[np.int64]
    problems: dict[int, tuple[str, ...]]


# Match at most three digits: larger numbers are left to the parsers, which differ on them.
_SIDE = r"\s*([0-9]{1,3})\s*"
_PLAIN_BOX = re.compile(rf"\[{_SIDE},{_SIDE},{_SIDE},{_SIDE}\]")
# Without groups, which `split` would return between the pieces.
_PLAIN_SPLIT = re.compile(_PLAIN_BOX.pattern.replace("(", "").replace(")", ""))
_AFTER_STOP = re.compile(f"[{OFFICIAL_STOPS}](.*)", re.DOTALL)


def parse_answers(
    texts: Sequence[str], sizes_N2: ArrayLike, *, parser: Parser = "robust", phrases: bool = True
) -> AnswerBoxes:
    """Parse the boxes of many answers with coordinates of 0..999; equal to `parse_boxes` of each.

    Args:
        sizes_N2: width and height of the image of each answer in pixels.
        phrases: whether to read the phrases, which takes as long as the boxes.

    Raises:
        UserError: the numbers of texts and sizes differ, or a size is not positive.
    """
    sizes = np.asarray(sizes_N2, dtype=np.int64).reshape(-1, 2)
    if len(sizes) != len(texts) or (sizes < 1).any():
        raise UserError(f"sizes: {len(sizes)} for {len(texts)} answers; expected one of at least 1 x 1 pixel for each")
    plain_counts = np.zeros(len(texts), np.int64)
    plain: list[tuple[str, ...]] = []
    names: list[str] = []
    other: list[tuple[int, str, PixelBox]] = []
    problems: dict[int, tuple[str, ...]] = {}
    # Almost all answers hold only brackets with four integers, which both parsers read alike; the search for these and
    # one conversion of all together is ten times as fast as a parser that looks at each character.
    for row, text in enumerate(texts):
        bins = _PLAIN_BOX.findall(text)
        # Equal counts mean that every bracket belongs to a plain box.
        if text.count("[") == text.count("]") == len(bins):
            plain_counts[row] = len(bins)
            plain += bins
            if phrases and bins:
                names += _split_phrases(text, parser)
            continue
        width, height = sizes[row].tolist()
        pairs, reasons = _pair(text, (width, height), parse_regions(text, width=width, height=height), parser)
        other += [(row, phrase, box) for phrase, box in pairs]
        if reasons:
            problems[row] = reasons
    bins_B4 = np.array([int(number) for four in plain for number in four], dtype=np.int64).reshape(-1, 4)
    rows_B = np.repeat(np.arange(len(texts)), plain_counts)
    boxes_B4 = _decode(bins_B4, sizes[rows_B], parser)
    if other:
        rows_B = np.concatenate((rows_B, [row for row, _, _ in other]))
        corners = [[box.x1, box.y1, box.x2, box.y2] for _, _, box in other]
        boxes_B4 = np.concatenate((boxes_B4, np.array(corners, dtype=np.float64).reshape(-1, 4)))
        names += [phrase for _, phrase, _ in other] if phrases else []
        # Stable, so that boxes of one answer stay in the order of its text.
        order = np.argsort(rows_B, kind="stable")
        rows_B, boxes_B4 = rows_B[order], boxes_B4[order]
        names = [names[index] for index in order] if phrases else []
    counts_N = np.bincount(rows_B, minlength=len(texts))
    return AnswerBoxes(rows_B, boxes_B4, tuple(names), counts_N, problems)


def _split_phrases(text: str, parser: Parser) -> list[str]:
    """Return the phrase of each box of a text whose brackets are all plain boxes."""
    pieces = _PLAIN_SPLIT.split(text)[:-1]
    if parser == "official":
        rest = [_AFTER_STOP.search(piece) for piece in pieces[1:]]
        return [pieces[0].strip(), *(match[1].strip() if match else "" for match in rest)]
    phrases: list[str] = []
    for piece in pieces:
        phrases.append(find_phrase(piece, phrases[-1] if phrases else None))
    return phrases


def _decode(bins_B4: NDArray[np.int64], sizes_B2: NDArray[np.int64], parser: Parser) -> NDArray[np.float64]:
    """Decode as `decode_coordinate` does, in the same order of operations."""
    sides_B4 = np.tile(sizes_B2, 2)
    if parser == "official":
        return np.trunc(bins_B4 * (sides_B4 / NUM_BINS))
    low, high = np.minimum(bins_B4[:, :2], bins_B4[:, 2:]), np.maximum(bins_B4[:, :2], bins_B4[:, 2:])
    return (np.concatenate((low, high), axis=1) + 0.5) * sides_B4 / NUM_BINS
