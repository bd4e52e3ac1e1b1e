"""Questions to multimodal models: their turn, and whether their regions lie in their images."""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.multimodal.reading import Reading, is_trained, read_question
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
    # The question brings its own article, as in training.
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
    # Reversed, so that a shape that occurs twice gets its first number.
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


# The forms of requests that a model was trained on or measured with.
#
# A small model answers any other one as if it were one of them.


REQUESTS = "requests.json"
_GROUP = re.compile(r"\(([^()]*)\)")
_FIELD = re.compile(r"\{(\w+)\}")
_REGION_NAME = re.compile(r"<\d{1,4}>")
# Fields such as {is_x} stand for a verb, others for any words.
_VERB = re.compile(r"(is|are)_", re.IGNORECASE)


@functools.cache
def expand(pattern: str) -> tuple[str, ...]:
    """Return all readings of a pattern; "(a|b|)" is a choice, which may be empty, and choices may be nested.

    >>> expand("(Find|Show( me)) it(!|.)")
    ('Find it!', 'Find it.', 'Show me it!', 'Show me it.')
    """
    match = _GROUP.search(pattern)
    if match is None:
        reading = " ".join(pattern.split())
        return (reading[0].upper() + reading[1:],)
    head, tail = pattern[: match.start()], pattern[match.end() :]
    # An inner group without a bar is a part of its outer one.
    readings = (expand(head + choice + tail) for choice in match[1].split("|"))
    return tuple(dict.fromkeys(itertools.chain.from_iterable(readings)))


class RequestForms(NamedTuple):
    """Forms of requests with fields, such as "Where is the {x}?".

    Attributes:
        forms: patterns in the grammar of `expand`. endings: what may stand behind them.
        kinds: the wordings that were trained of each form of `multimodal.reading`; none where it knows no such form.
    """

    forms: tuple[str, ...]
    endings: tuple[str, ...] = ()
    kinds: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def read(self, question: str, *, names: Collection[str] = (), num_images: int = 1) -> Reading | None:
        """Read a question that has none of the wordings of training; None where it has one, or is not understood."""
        text, ending = question.strip(), ""
        while text.startswith(IMAGE):
            text = text.removeprefix(IMAGE).lstrip()
        # A place, which `locate` asks for, may be described by words of other questions: "the dog left of the cat".
        is_place = bool(find_phrase(text)) and not re.search(r"[,:]| or ", text)
        # Where images stand within the text, words refer to their places.
        if not self.kinds or IMAGE in text or is_place:
            return None
        for end in self.endings:
            if text.casefold().endswith(f" {end.casefold()}"):
                text, ending = text[: -len(end)].rstrip(), f" {end}"
        if is_trained(text, self.kinds):
            return None
        reading = read_question(text, names=names, num_images=num_images, trained=self.kinds)
        if reading is None or reading.form not in self.kinds:
            return None
        return reading._replace(question=f"{reading.question}{ending}")

    def find_nearest(self, question: str) -> list[str]:
        """Return the forms nearest to a question, one without a field first; none if the question has one of them."""
        text = _normalize(question)
        for ending in map(_normalize, self.endings):
            if text.endswith(f" {ending}"):
                text = _normalize(text.removesuffix(ending))
        readings = [reading for form in self.forms for reading in expand(form)]
        if re.fullmatch("|".join(map(_to_pattern, readings)), text):
            return []
        num_regions = text.count(REGION)
        same = [reading for reading in readings if reading.count(REGION) == num_regions] or readings
        # Readings about the whole image come first: people ask them before they know what it shows.
        whole = [reading for reading in same if not num_regions and not _FIELD.search(reading)]
        nearest = [max(part, key=lambda form: _compare(form, text)) for part in (whole, same) if part]
        return list(dict.fromkeys(map(_display, nearest)))


def read_request_forms(folder: Path) -> RequestForms | None:
    """Read the forms of a model folder; None where it names none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / REQUESTS
    if not path.is_file():
        return None
    stored = read_json(path)
    try:
        kinds = {name: _check_texts(texts) for name, texts in stored.get("kinds", {}).items()}
        return RequestForms(_check_texts(stored["forms"]), _check_texts(stored["endings"]), kinds)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        got = str(stored)[:60]
        raise UserError(f"{path}: no forms of requests (got {got}); expected lists 'forms' and 'endings'") from error


def _check_texts(texts: object) -> tuple[str, ...]:
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError("not a list of texts")
    return tuple(texts)


def _normalize(text: str) -> str:
    plain = clean_text(_REGION_NAME.sub(REGION, text).replace(IMAGE, " ")).casefold()
    return " ".join(plain.split()).rstrip(" .?!")


def _to_pattern(form: str) -> str:
    """Return the regular expression of a form: a field stands for any words, or for a verb."""
    # Split at a group, every second part is the name of a field.
    parts = _FIELD.split(form.rstrip(".?!"))
    texts = [re.escape(part.casefold()) for part in parts[::2]]
    values = ["(is|are)" if _VERB.match(field) else ".+?" for field in parts[1::2]]
    return "".join(text + value for text, value in zip(texts, [*values, ""], strict=True))


def _compare(form: str, text: str) -> float:
    # A field counts as a word that does not match.
    parts = _normalize(_FIELD.sub("...", form)).split()
    return difflib.SequenceMatcher(None, parts, text.split()).ratio()


def _display(form: str) -> str:
    """Return a form as a person would write it: "{Is_x} the {x} red?" as "Is the ... red?"."""

    def replace(match: re.Match[str]) -> str:
        verb = _VERB.match(match[1])
        return verb[1] if verb else "..."

    for number in range(1, form.count(REGION) + 1):
        form = form.replace(REGION, f"<{number}>", 1)
    return _FIELD.sub(replace, form)
