"""Claims about a generated scene in words, and false ones of the same kind.

Each becomes exactly one assertion for the rule splitter, so that a share of false claims is a share of false
assertions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foveate.metrics.captions import CONTRADICTED
from foveate_labs.captions.ground_truths.scenes import judge_assertion
from foveate_labs.captions.scene_truth import SceneTruth, Thing, grounds, vocabulary
from foveate_labs.worlds.scenes.language import add_article, format_count, is_plural
from foveate_labs.worlds.scenes.relations import relate

_RELATION_TEXTS = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}
_RELATION_TEXTS |= {"inside": "inside the outline of", "overlapping": "overlapping"}
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_SIGN_WORDS = ("open", "sale", "hello", "exit", "stop", "coffee", "closed", "tickets")
_MAX_ATTEMPTS = 50  # a claim may have no false version: without a limit its loop would never end


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement.

    Attributes:
        kind: a key of `_TEMPLATES`.
        names: phrases in it.
        word: a relation, position, size, background or written word.
    """

    kind: str
    names: tuple[str, ...] = ()
    word: str = ""
    number: int = 1


def _is(phrase: str) -> str:
    return "are" if is_plural(phrase) else "is"


def _line(claim: Claim) -> str:
    first, *others = claim.names
    relation, ground = claim.word.split("|")
    text = add_article(first)
    if others:
        text += f" {_RELATION_TEXTS[relation]} {add_article(others[0])}"
    return f"{text[:1].upper()}{text[1:]}" + (f" on {ground}" if ground else "")


def _there_is(claim: Claim) -> str:
    phrase = claim.names[0]
    plural = claim.number > 1 or is_plural(phrase)
    return f"There {'are' if plural else 'is'} {format_count(phrase, claim.number)}"


_TEMPLATES: dict[str, Callable[[Claim], str]] = {
    "line": _line,
    "opening": lambda c: f"A picture of {format_count(c.names[0], c.number)}",
    "framing": lambda c: f"A square picture, filled to its edges, that shows {format_count(c.names[0], c.number)}",
    "there": _there_is,
    "relation": lambda c: f"The {c.names[0]} {_is(c.names[0])} {_RELATION_TEXTS[c.word]} the {c.names[1]}",
    "place": lambda c: f"The {c.names[0]} {_is(c.names[0])} {c.word} of the picture",
    "size": lambda c: f"The {c.names[0]} {_is(c.names[0])} the {c.word} named thing in the picture",
    "ground": lambda c: f"The background shows {c.word}",
    "ground kind": lambda c: f"The background is {'a photograph' if c.word == 'photo' else 'drawn'}",
    "written": lambda c: f'The word "{c.word}" is written in the picture',
    "no writing": lambda c: "There is no writing in the picture",
}


def write_claim(claim: Claim) -> str:
    """Write a claim in words, without a full stop."""
    return _TEMPLATES[claim.kind](claim)


def describe_position(thing: Thing) -> str:
    """Describe where the middle of a thing's box is, such as "in the upper left part"."""
    # Narrower than the middle of the judge (0.25 to 0.75): a rendered position never lies at its edge.
    x, y = thing.box.center
    across = "left" if x < 0.4 else "right" if x > 0.6 else ""
    down = "upper" if y < 0.4 else "lower" if y > 0.6 else ""
    if across and down:
        return f"in the {down} {across} part"
    return f"on the {across} side" if across else f"in the {down} part" if down else "in the middle"


def unique_things(truth: SceneTruth) -> list[Thing]:
    """List things whose name is unique in the scene ("the cat" is one cat), largest first."""
    unique = [thing for thing in truth.things if truth.count(thing.phrase) == 1]
    return sorted(unique, key=lambda thing: -thing.box.area)


def relation_claims(things: Sequence[Thing]) -> list[Claim]:
    """Claim the relations between things, those of large things first."""
    relations = relate([thing.box for thing in things])
    area = [thing.box.area for thing in things]
    ordered = sorted(relations, key=lambda r: -(area[r.first] + area[r.second]))
    return [Claim("relation", (things[r.first].phrase, things[r.second].phrase), r.name) for r in ordered]


def falsify(claim: Claim, truth: SceneTruth, rng: np.random.Generator) -> Claim:
    """Draw a claim of the same kind that the scene contradicts.

    The true one is returned if fifty draws give none.
    """
    for _ in range(_MAX_ATTEMPTS):
        # The judge decides, not the change: a drawn name may be that of another thing in the scene.
        wrong = _change(claim, truth, rng)
        if judge_assertion(write_claim(wrong), truth) == CONTRADICTED:
            return wrong
    return claim


def _draw(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _draw_name(rng: np.random.Generator) -> str:
    """Draw a name that keeps its sentence one assertion: no commas, no "and", an article."""
    while True:
        phrase = _draw(rng, vocabulary())
        if "," not in phrase and " and " not in phrase and add_article(phrase) != phrase:
            return phrase


def _change(claim: Claim, truth: SceneTruth, rng: np.random.Generator) -> Claim:
    if claim.kind == "no writing":
        return Claim("written", word=_draw(rng, _SIGN_WORDS))
    if claim.kind == "written":
        return replace(claim, word=_draw(rng, _SIGN_WORDS))
    if claim.kind == "ground":
        return replace(claim, word=_draw(rng, [phrase for phrase, _, _ in grounds().values()]))
    if claim.kind == "ground kind":
        return replace(claim, word="drawn" if claim.word == "photo" else "photo")
    if claim.kind == "size":
        return replace(claim, word="smallest" if claim.word == "largest" else "largest")
    if claim.kind == "place":
        # No "middle": the judge accepts it for any center in the middle half of both sides.
        far = ("left side", "right side", "upper part", "lower part", "upper right part", "lower left part")
        return replace(claim, word=f"{'on' if (area := _draw(rng, far)).endswith('side') else 'in'} the {area}")
    if claim.kind == "relation" and claim.word in _OPPOSITE and rng.random() < 0.5:
        return replace(claim, word=_OPPOSITE[claim.word])
    # A wrong number is one more: one less may leave a single thing, which is a claim of another form.
    if claim.number > 1 and rng.random() < 0.5:
        return replace(claim, number=claim.number + 1)
    replaced = int(rng.integers(len(claim.names)))
    return replace(
        claim, names=tuple(_draw_name(rng) if index == replaced else name for index, name in enumerate(claim.names))
    )
