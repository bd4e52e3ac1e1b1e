"""How questions about regions are worded: a small grammar instead of lists.

A pattern such as "(What|Which thing) is (at|in) <region>?" stands for all its readings. A model that has met a name at
every place of a question, behind many beginnings, reads new wordings of the same words; from short lists it does not.
A fifth of the readings, chosen by their hash, are held out for tests; no training question has one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from foveate.core.seeds import uniform
from foveate.multimodal.questions import expand
from foveate_labs.worlds.questions import Form

HELD_OUT_SHARE = 0.2


def make_form(name: str, patterns: Iterable[str], sentence: str | Mapping[str, str]) -> Form:
    """Split the readings of patterns into prompts for training and held-out ones; every pattern is trained on."""
    sources = {reading: pattern for pattern in patterns for reading in expand(pattern)}
    # By a hash, so that neither the machine nor the order of patterns decides what is held out.
    ranked = sorted(sources, key=lambda reading: uniform("region wording", name, reading))
    remaining = Counter(sources.values())
    held_out: list[str] = []
    for reading in ranked:
        # The last reading of a pattern stays in training: its words must be known when tests combine them anew.
        if len(held_out) < HELD_OUT_SHARE * len(ranked) and remaining[sources[reading]] > 1:
            held_out.append(reading)
            remaining[sources[reading]] -= 1
    return Form(tuple(reading for reading in ranked if reading not in held_out), tuple(held_out), sentence)


_SEE = "(can you see|do you see|is there|is it)"
_AT = "(at|in|inside)"
_NAME_IT = "(Name|Say|Tell me|Write)"
_PATTERNS: dict[str, tuple[tuple[str, ...], str | Mapping[str, str]]] = {
    "refer": (
        (
            f"(What|Which thing) (is|{_SEE}) {_AT} <region>( in the image|)?",
            f"(In the image, |)(what|which thing) (is|{_SEE}) {_AT} <region>?",
            "<region>(:| in the image:) (what|which thing) (is it|is this|do you see|can you see)?",
            f"{_NAME_IT} (what is|the thing that is) {_AT} <region>( in the image|).",
            f"{_AT} <region>, (what|which thing) {_SEE}?",
            "(What|Which thing) does <region>( in the image|) show?",
        ),
        "It is {a_x}.",
    ),
    "refer: which": (
        (
            "Is (the thing at |the thing in |)<region>( in the image|) {first} or {second}?",
            "<region>: is (it|this) {first} or {second}?",
            "{first} or {second}: which (of them |)is (at|in) <region>?",
            "(Which is|What is|What do you see|What can you see) (at|in) <region>, {first} or {second}?",
            "(In the image, |)does <region> show {first} or {second}?",
        ),
        "It is {a_x}.",
    ),
    "refer: yes or no": (
        (
            "Is (the thing at |the thing in |)<region>( in the image|) {stated}?",
            "<region>: is (it|this) {stated}?",
            "{stated}: (is it|is that|do you see it|can you see it) (at|in) <region>?",
            "(In the image, |)(is there|do you see|can you see) {stated} (at|in) <region>?",
            "(In the image, |)does <region> show {stated}?",
        ),
        {"yes": "Yes, it is {a_x}.", "no": "No, it is {a_x}."},
    ),
    "refer: first or second": (
        (
            "(Which|Which region) shows the {x}, <region> or <region>?",
            "Is the {x} (at|in) <region> or (at|in) <region>?",
            "<region> or <region>: (which|where) is the {x}?",
            "(In the image, |)is it <region> or <region> that shows the {x}?",
            "The {x}: (is it|do you see it|can you see it) (at|in) <region> or <region>?",
            "Where is the {x}, (at|in) <region> or (at|in) <region>?",
        ),
        "The {x} is at the {answer}.",
    ),
    "relation": (
        (
            "(How is|Where is) <region> placed(, seen| as seen|) from <region>?",
            "Where is <region>, seen from <region>?",
            "(Where is|How is) the thing (at|in) <region> placed, seen from <region>?",
            "(Seen|) from <region>, where (is|do you see|can you see) <region>?",
            "<region> and <region>: where is the first, seen from the second?",
            f"{_NAME_IT} where <region> is, seen from <region>.",
        ),
        "The {x} is {answer} the {y}.",
    ),
    "relation: yes or no": (
        (
            "Is <region> {stated} <region>( in the image|)?",
            "(In the image, |)is <region> {stated} <region>?",
            "<region>: is it {stated} <region>?",
            "(Do you see|Can you see) <region> {stated} <region>?",
            "Is the thing (at|in) <region> {stated} the thing (at|in) <region>?",
            "<region> and <region>: is the first {stated} the second( in the image|)?",
        ),
        {"yes": "Yes, the {x} is {relation} the {y}.", "no": "No, the {x} is {relation} the {y}."},
    ),
    "ground": (
        (
            "(In the image, |)(where {is_x}|where do you see|where can you see) the {x}?",
            "The {x}: where (is it|do you see it|can you see it)( in the image|)?",
            "(Find|Show|Point at|Box) the {x}( in the image|).",
            "(Find|Show|Point at|Box) (in the image |)the {x}.",
            "Where in the image {is_x} the {x}?",
            "Where {is_x} the {x}( in the image|)?",
            f"{_NAME_IT} where the {{x}} {{is_x}}( in the image|).",
            "{x}(: where|, where is it|: the box)?",
        ),
        "The {x} {is_x} at <region>.",
    ),
    # Asks whether and where at once: the sentence of a "no" has a box too, that of the near miss.
    "ground: yes or no": (
        (
            "(In the image, |)(do you see|can you see) {stated}? (Where|If so, where|Show it).",
            "(In the image, {is_stated}|{Is_stated}) there {stated}? (Where|If so, where|Show it).",
            "{stated}: (is there one|do you see one|can you see one)( in the image|)? (Where|Show it).",
            "{Is_stated} {stated} in the image? (Where|If so, where|Show it).",
            "(Show|Find|Box) {stated}, if there is one( in the image|).",
        ),
        {"yes": "Yes, {stated} {is_near} at <region>.", "no": "No, but there {is_near} {near} at <region>."},
    ),
    "ground all": (
        (
            "(Box|Find|Show|Point at) (all things|each thing) of this text( in the image|): {caption}",
            "{caption} (Box|Find|Show|Point at) (all things|each thing) that (the text|this) names.",
            "Where (is each thing|are all things) of this text( in the image|)? {caption}",
            "{caption} Where (is each thing|are all things)( in the image|)?",
        ),
        "{grounded}",
    ),
    "detect": (
        (
            "(Find|Box|Show|Name and box) (all things|each thing)( in the image|)( in order|, row by row|).",
            "(What|Which things) (is there|can you see|do you see)( in the image|)? (Box|Show) (all|each)( in order|).",
            "(In the image, |)(which things|what) (can you see|do you see), and where?",
        ),
        "{listed}",
    ),
}
FORMS = {name: make_form(name, patterns, sentence) for name, (patterns, sentence) in _PATTERNS.items()}


def list_patterns() -> list[str]:
    """List the patterns of all questions about regions; see `expand`."""
    return [pattern for patterns, _ in _PATTERNS.values() for pattern in patterns]
