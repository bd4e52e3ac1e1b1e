"""Whether an assertion about a generated scene holds, from the scene's own truth and without a model.

The verdict of an assertion is made of what it says, piece by piece:

- a name of the shipped vocabulary is right when a thing of that name is at least half visible, or one whose name has
  the same head noun and all its words ("apple" for a red apple). It is open when the thing is mostly hidden, when the
  ground may show it, or when a thing of another name is a variant of it or has its words; else it is wrong;
- a number is right when so many things of the name are visible; left of, right of, above and below compare the middles
  of boxes (open within 2 % of the image); inside wants 95 % of the first box in the second (open from 50 %),
  overlapping any shared area; "on the left" and the like want the middle of the box on that side, "in the middle"
  within the middle half; largest and smallest compare areas of boxes;
- grounds, drawn words in quotation marks, and "there is no ..." are compared with what was drawn.

One wrong piece: contradicted. Else one that is right and none that is open: supported. Else, or where nothing was
understood (colors, actions, words outside the vocabulary): unverifiable.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from foveate.caption.assertions.claims import Mention, Reading, read
from foveate.caption.assertions.scene_truth import SceneTruth, Thing, names
from foveate.metrics.captions import CONTRADICTED, SUPPORTED, UNVERIFIABLE
from foveate.records.boxes import Box
from foveate.records.builtin import families, phrases
from foveate.records.scenes.relations import shared_area

NAME = "scene truth"
DEFINITION = (
    "An assertion about a generated scene is contradicted when a name, number, relation, place, ground or drawn word "
    "in it is not that of the scene; supported when all that could be compared is right; else unverifiable."
)
_CLEAR = 0.02
_LITTLE = phrases.SPLITTERS | families.VARIANT_WORDS | {"a", "an", "the", "and"}
RIGHT, WRONG, OPEN = SUPPORTED, CONTRADICTED, UNVERIFIABLE


def judge(assertion: str, truth: SceneTruth) -> str:
    """ "supported", "contradicted" or "unverifiable"; see the head of this module."""
    words = frozenset(word for thing in truth.things for word in names(thing.phrase)) - _LITTLE
    return _verdict(_pieces(read(assertion, words), truth))


def judge_all(assertions: Iterable[str], truth: SceneTruth) -> list[str]:
    """The verdicts of several assertions about one scene."""
    return [judge(assertion, truth) for assertion in assertions]


def _verdict(pieces: Sequence[str]) -> str:
    if WRONG in pieces:
        return CONTRADICTED
    return SUPPORTED if RIGHT in pieces and OPEN not in pieces else UNVERIFIABLE


def _pieces(said: Reading, truth: SceneTruth) -> list[str]:
    if said.negated:
        return _negated(said, truth)
    found = [presence(mention, truth) for mention in said.mentions]
    found += [_number(mention, truth) for mention in said.mentions if mention.number is not None]
    boxes = [_things(mention.phrase, truth) for mention in said.mentions]
    found += [_relation(boxes[first], name, boxes[second]) for first, name, second in said.links]
    found += [_place(boxes[one], sides) for one, sides in said.places]
    found += [_size(boxes[one], size, truth) for one, size in said.sizes]
    found += [OPEN] * said.open_relations
    found += [_ground(ground, truth) for ground in said.grounds]
    found += [RIGHT if kind == truth.ground_kind else WRONG for kind in said.ground_kinds if truth.ground_kind]
    written = {word.casefold() for word in truth.written}
    found += [RIGHT if " ".join(word.casefold().split()) in written else WRONG for word in said.written]
    found += [RIGHT for _ in said.loose[:1]] if not said.mentions and not said.grounds else []
    return found


def _negated(said: Reading, truth: SceneTruth) -> list[str]:
    if said.no_writing:
        return [WRONG if truth.written else RIGHT]
    opposite = {RIGHT: WRONG, WRONG: RIGHT, OPEN: OPEN}
    return [opposite[presence(mention, truth)] for mention in said.mentions]


@functools.lru_cache(maxsize=4096)
def _words(phrase: str) -> frozenset[str]:
    return frozenset(names(phrase))


def _things(phrase: str, truth: SceneTruth) -> list[Thing]:
    """Things that the phrase names: exactly, else by a name with the same head and all its words."""
    exact = [thing for thing in truth.things if thing.phrase == phrase]
    if exact:
        return exact
    head = phrases.head_noun(phrase)
    return [t for t in truth.things if phrases.head_noun(t.phrase) == head and _words(phrase) <= _words(t.phrase)]


def presence(mention: Mention, truth: SceneTruth) -> str:
    """Whether a thing of this name is in the scene."""
    if _things(mention.phrase, truth):
        return RIGHT
    there = {thing.phrase for thing in truth.things} | truth.hidden
    variants = families.things()
    own = variants.get(mention.phrase)
    words = _words(mention.phrase)
    for phrase in there:
        if (
            phrase == mention.phrase
            or variants.get(phrase) == own
            or words <= _words(phrase)
            or _words(phrase) <= words
        ):
            return OPEN
    if words & (truth.shows | _words(truth.ground or "a")):
        return OPEN
    return WRONG


def _number(mention: Mention, truth: SceneTruth) -> str:
    things = _things(mention.phrase, truth)
    if not things:
        return OPEN if presence(mention, truth) == OPEN else WRONG
    return RIGHT if len(things) == mention.number else WRONG


def _relation(first: Sequence[Thing], name: str, second: Sequence[Thing]) -> str:
    """The best that any pair gives; open where one of both is not in the scene (its name says that already)."""
    found = {_relates(a.box, name, b.box) for a in first for b in second if a is not b}
    return next((verdict for verdict in (RIGHT, OPEN, WRONG) if verdict in found), OPEN)


def _relates(a: Box, name: str, b: Box) -> str:
    if name in ("left of", "right of", "above", "below"):
        across = name in ("left of", "right of")
        distance = (b.x1 + b.x2 - a.x1 - a.x2) / 2 if across else (b.y1 + b.y2 - a.y1 - a.y2) / 2
        distance = distance if name in ("left of", "above") else -distance
        return OPEN if abs(distance) <= _CLEAR else RIGHT if distance > 0 else WRONG
    shared = shared_area(a, b)
    if name == "overlapping":
        return RIGHT if shared > 0 else WRONG
    inside = shared / a.area if a.area else 0.0
    return RIGHT if inside >= 0.95 else OPEN if inside >= 0.5 else WRONG


def _place(things: Sequence[Thing], sides: frozenset[str]) -> str:
    found = {_lies(thing.box, sides) for thing in things}
    return RIGHT if True in found else WRONG if found else OPEN


def _lies(box: Box, sides: frozenset[str]) -> bool:
    x, y = (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2
    held = {"left": x < 0.5, "right": x > 0.5, "top": y < 0.5, "bottom": y > 0.5}
    middle = 0.25 <= x <= 0.75 and 0.25 <= y <= 0.75
    if "middle" in sides and len(sides) > 1:  # "the upper middle"
        other = x if sides & {"top", "bottom"} else y
        middle = 0.25 <= other <= 0.75
    return all(middle if side == "middle" else held[side] for side in sides)


def _size(things: Sequence[Thing], size: str, truth: SceneTruth) -> str:
    if not things:
        return OPEN
    areas = [thing.box.area for thing in truth.things]
    edge = max(areas) if size == "largest" else min(areas)
    near = any(abs(thing.box.area - edge) <= 0.05 * edge for thing in things)
    return RIGHT if near else WRONG


def _ground(said: str, truth: SceneTruth) -> str:
    if not truth.ground:
        return OPEN
    return RIGHT if said == truth.ground else WRONG
