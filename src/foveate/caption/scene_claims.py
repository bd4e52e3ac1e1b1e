"""Single statements about a generated scene, in words, and false ones of the same kind.

Each becomes exactly one assertion for the rule splitter, so that a share of false statements is a share of false
assertions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foveate.caption.assertions.scene_judge import judge_assertion
from foveate.caption.assertions.scene_truth import SceneTruth, Thing, grounds, vocabulary
from foveate.metrics.captions import CONTRADICTED
from foveate.records.scenes.language import add_article, format_count, is_plural
from foveate.records.scenes.relations import relate

_SAID = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}
_SAID |= {"inside": "inside the outline of", "overlapping": "overlapping"}
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_SIGN_WORDS = ("open", "sale", "hello", "exit", "stop", "coffee", "closed", "tickets")
_ATTEMPTS = 50


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement. kind: a key of `_SAY`; names: phrases in it; word: a relation, place, size, ground, drawn word."""

    kind: str
    names: tuple[str, ...] = ()
    word: str = ""
    number: int = 1


def _is(phrase: str) -> str:
    return "are" if is_plural(phrase) else "is"


def _line(claim: Claim) -> str:
    first, *others = claim.names
    relation, ground = claim.word.split("|")
    said = add_article(first)
    if others:
        said += f" {_SAID[relation]} {add_article(others[0])}"
    return f"{said[:1].upper()}{said[1:]}" + (f" on {ground}" if ground else "")


def _there_is(claim: Claim) -> str:
    phrase = claim.names[0]
    plural = claim.number > 1 or is_plural(phrase)
    return f"There {'are' if plural else 'is'} {format_count(phrase, claim.number)}"


_SAY: dict[str, Callable[[Claim], str]] = {
    "line": _line,
    "opening": lambda c: f"A picture of {format_count(c.names[0], c.number)}",
    "framing": lambda c: f"A square picture, filled to its edges, that shows {format_count(c.names[0], c.number)}",
    "there": _there_is,
    "relation": lambda c: f"The {c.names[0]} {_is(c.names[0])} {_SAID[c.word]} the {c.names[1]}",
    "place": lambda c: f"The {c.names[0]} {_is(c.names[0])} {c.word} of the picture",
    "size": lambda c: f"The {c.names[0]} {_is(c.names[0])} the {c.word} named thing in the picture",
    "ground": lambda c: f"The background shows {c.word}",
    "ground kind": lambda c: f"The background is {'a photograph' if c.word == 'photo' else 'drawn'}",
    "written": lambda c: f'The word "{c.word}" is written in the picture',
    "no writing": lambda c: "There is no writing in the picture",
}


def say(claim: Claim) -> str:
    """The statement in words, without a full stop."""
    return _SAY[claim.kind](claim)


def place_of(thing: Thing) -> str:
    """ "in the upper left part", by the middle of the thing's box."""
    x, y = thing.box.center
    across = "left" if x < 0.4 else "right" if x > 0.6 else ""
    down = "upper" if y < 0.4 else "lower" if y > 0.6 else ""
    if across and down:
        return f"in the {down} {across} part"
    return f"on the {across} side" if across else f"in the {down} part" if down else "in the middle"


def once(truth: SceneTruth) -> list[Thing]:
    """The things whose name nothing else in the scene has, largest first: "the cat" is one cat."""
    single = [thing for thing in truth.things if truth.count(thing.phrase) == 1]
    return sorted(single, key=lambda thing: -thing.box.area)


def relations(things: Sequence[Thing]) -> list[Claim]:
    """What `records.scenes.relations` says of these things, those of large ones first."""
    found = relate([thing.box for thing in things])
    area = [thing.box.area for thing in things]
    ordered = sorted(found, key=lambda r: -(area[r.first] + area[r.second]))
    return [Claim("relation", (things[r.first].phrase, things[r.second].phrase), r.name) for r in ordered]


def falsified(claim: Claim, truth: SceneTruth, rng: np.random.Generator) -> Claim:
    """A statement of the same kind that the scene contradicts; the true one where fifty draws gave none."""
    for _ in range(_ATTEMPTS):
        wrong = _changed(claim, truth, rng)
        if judge_assertion(say(wrong), truth) == CONTRADICTED:
            return wrong
    return claim


def _one_of(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _stranger(rng: np.random.Generator) -> str:
    """A name that is split nowhere and takes an article, so that the sentence stays one assertion."""
    while True:
        phrase = _one_of(rng, vocabulary())
        if "," not in phrase and " and " not in phrase and add_article(phrase) != phrase:
            return phrase


def _changed(claim: Claim, truth: SceneTruth, rng: np.random.Generator) -> Claim:
    if claim.kind == "no writing":
        return Claim("written", word=_one_of(rng, _SIGN_WORDS))
    if claim.kind == "written":
        return replace(claim, word=_one_of(rng, _SIGN_WORDS))
    if claim.kind == "ground":
        return replace(claim, word=_one_of(rng, [words for words, _, _ in grounds().values()]))
    if claim.kind == "ground kind":
        return replace(claim, word="drawn" if claim.word == "photo" else "photo")
    if claim.kind == "size":
        return replace(claim, word="smallest" if claim.word == "largest" else "largest")
    if claim.kind == "place":
        far = ("left side", "right side", "upper part", "lower part", "upper right part", "lower left part")
        return replace(claim, word=f"{'on' if (place := _one_of(rng, far)).endswith('side') else 'in'} the {place}")
    if claim.kind == "relation" and claim.word in _OPPOSITE and rng.random() < 0.5:
        return replace(claim, word=_OPPOSITE[claim.word])
    if claim.number > 1 and rng.random() < 0.5:
        return replace(claim, number=claim.number + 1)
    replaced = int(rng.integers(len(claim.names)))
    return replace(
        claim, names=tuple(_stranger(rng) if place == replaced else name for place, name in enumerate(claim.names))
    )
