"""The forms of requests that a model was trained on or measured with.

A small model answers any other one as if it were one of them.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from pathlib import Path
from typing import NamedTuple

from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.records.conversations import IMAGE, REGION
from foveate.records.rows import clean_text

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
    """

    forms: tuple[str, ...]
    endings: tuple[str, ...] = ()

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
        # Of the image as a whole: what somebody asks who does not know yet what it shows.
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
        return RequestForms(*(_check_texts(stored[name]) for name in RequestForms._fields))
    except (KeyError, TypeError, IndexError) as error:
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
