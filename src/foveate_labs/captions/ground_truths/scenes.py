"""Judge assertions about a generated scene by its ground truth, without a model.

An assertion is parsed into claims (`foveate_labs.captions.claims`), each of which gets a verdict:

- a name of the vocabulary is supported when a thing of that name is at least half visible, or one whose name has the
  same head noun and all its words ("apple" for a red apple). It is unverifiable when the thing is mostly hidden, when
  the background may show it, or when a thing of another name is a variant of it or shares its words; else contradicted;
- a number is supported when so many things of the name are visible; left of, right of, above and below compare centers
  of boxes (unverifiable within 2 % of the image); inside needs 95 % of the first box in the second (unverifiable from
  50 %), overlapping any shared area; "on the left" and the like need the center of the box on that side, "in the
  middle" within the middle half; largest and smallest compare areas of boxes;
- backgrounds, drawn words in quotation marks, and "there is no ..." are compared with what was drawn.

One contradicted claim: contradicted. Else at least one supported and none unverifiable: supported. Else, or if nothing
was understood (colors, actions, words outside the vocabulary): unverifiable.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from foveate.metrics.captions import CONTRADICTED, SUPPORTED, UNVERIFIABLE
from foveate.records.boxes import Box
from foveate.records.builtin import families, phrases
from foveate.records.collection import Collection
from foveate_labs.captions.claims import Claims, Mention, parse_claims
from foveate_labs.captions.scene_truth import SceneTruth, SceneTruths, Thing, split_name
from foveate_labs.worlds.scenes.relations import shared_area

NAME = "scene truth"
DEFINITION = (
    "An assertion about a generated scene is contradicted when a name, number, relation, place, ground or drawn word "
    "in it is not that of the scene; supported when all that could be compared is right; else unverifiable."
)
# Distance of centers, in shares of the image, below which people disagree on left and right.
_SAME_POSITION = 0.02
# Detectors and people draw a box a few pixels off: a thing is inside although 5 % of its box are not.
_INSIDE, _PERHAPS_INSIDE = 0.95, 0.5
# Two areas that differ by less count as equally large.
_SAME_AREA = 0.05
# Words that say too little to name a part of a thing.
_FUNCTION_WORDS = phrases.SPLITTERS | families.VARIANT_WORDS | {"a", "an", "the", "and"}


def judge_assertion(assertion: str, truth: SceneTruth) -> str:
    """Return "supported", "contradicted" or "unverifiable" by the rules in the module's docstring."""
    scene_words = frozenset(word for thing in truth.things for word in split_name(thing.phrase)) - _FUNCTION_WORDS
    return _combine(_judge_claims(parse_claims(assertion, scene_words), truth))


def judge_assertions(assertions: Iterable[str], truth: SceneTruth) -> list[str]:
    """Judge several assertions about one scene."""
    return [judge_assertion(assertion, truth) for assertion in assertions]


class SceneJudge:
    """The ground truth of a collection's generated scenes, as `foveate audit` and `captioner evaluate` ask for it."""

    definition = DEFINITION

    def __init__(self, truths: SceneTruths) -> None:
        self._truths = truths

    def __contains__(self, row: int) -> bool:
        return row in self._truths

    def judge(self, row: int, assertions: Sequence[str]) -> list[str]:
        """Judge assertions about the scene of a row of the collection."""
        truth = self._truths.get(row)
        assert truth is not None
        return judge_assertions(assertions, truth)


def open_ground_truth(collection: Collection) -> SceneJudge | None:
    """Return the judge of a collection's scenes; None where it has none."""
    truths = SceneTruths(collection)
    return SceneJudge(truths) if len(truths) else None


def _combine(verdicts: Sequence[str]) -> str:
    if CONTRADICTED in verdicts:
        return CONTRADICTED
    return SUPPORTED if SUPPORTED in verdicts and UNVERIFIABLE not in verdicts else UNVERIFIABLE


def _judge_claims(claims: Claims, truth: SceneTruth) -> list[str]:
    """Return one verdict per claim of an assertion."""
    if claims.negated:
        return _judge_negated(claims, truth)
    verdicts = [judge_presence(mention, truth) for mention in claims.mentions]
    verdicts += [_judge_number(mention, truth) for mention in claims.mentions if mention.number is not None]
    things = [_matching_things(mention.phrase, truth) for mention in claims.mentions]
    verdicts += [_judge_relation(things[first], name, things[second]) for first, name, second in claims.relations]
    verdicts += [_judge_position(things[index], sides) for index, sides in claims.positions]
    verdicts += [_judge_size(things[index], size, truth) for index, size in claims.sizes]
    verdicts += [UNVERIFIABLE] * claims.open_relations
    verdicts += [_judge_ground(ground, truth) for ground in claims.grounds]
    if truth.ground_kind:
        verdicts += [SUPPORTED if kind == truth.ground_kind else CONTRADICTED for kind in claims.ground_kinds]
    written = {text.casefold() for text in truth.written}
    for text in claims.written:
        verdicts.append(SUPPORTED if " ".join(text.casefold().split()) in written else CONTRADICTED)
    # A word of a thing's name counts only where nothing is named in full, and once: "something smiling".
    if claims.part_words and not claims.mentions and not claims.grounds:
        verdicts.append(SUPPORTED)
    return verdicts


def _judge_negated(claims: Claims, truth: SceneTruth) -> list[str]:
    if claims.no_writing:
        return [CONTRADICTED if truth.written else SUPPORTED]
    opposite = {SUPPORTED: CONTRADICTED, CONTRADICTED: SUPPORTED, UNVERIFIABLE: UNVERIFIABLE}
    return [opposite[judge_presence(mention, truth)] for mention in claims.mentions]


@functools.lru_cache(maxsize=4096)
def _name_words(phrase: str) -> frozenset[str]:
    return frozenset(split_name(phrase))


def _matching_things(phrase: str, truth: SceneTruth) -> list[Thing]:
    """Things of exactly this name, else those whose name has the same head noun and all its words."""
    exact = [thing for thing in truth.things if thing.phrase == phrase]
    if exact:
        return exact
    head, name_words = phrases.head_noun(phrase), _name_words(phrase)
    return [
        thing
        for thing in truth.things
        if phrases.head_noun(thing.phrase) == head and name_words <= _name_words(thing.phrase)
    ]


def judge_presence(mention: Mention, truth: SceneTruth) -> str:
    """Judge whether a thing of this name is in the scene."""
    if _matching_things(mention.phrase, truth):
        return SUPPORTED
    in_scene = {thing.phrase for thing in truth.things} | truth.hidden
    variants = families.load_things()
    variant_of, name_words = variants.get(mention.phrase), _name_words(mention.phrase)
    for phrase in in_scene:
        # "green apple" where a red one lies, "eyes" where a face with eyes is: not named so, yet not false either.
        is_variant = phrase == mention.phrase or variants.get(phrase) == variant_of
        if is_variant or name_words <= _name_words(phrase) or _name_words(phrase) <= name_words:
            return UNVERIFIABLE
    if name_words & (truth.shows | _name_words(truth.ground or "a")):  # a photograph in the background shows more
        return UNVERIFIABLE
    return CONTRADICTED


def _judge_number(mention: Mention, truth: SceneTruth) -> str:
    things = _matching_things(mention.phrase, truth)
    if not things:
        return UNVERIFIABLE if judge_presence(mention, truth) == UNVERIFIABLE else CONTRADICTED
    return SUPPORTED if len(things) == mention.number else CONTRADICTED


def _judge_relation(first: Sequence[Thing], name: str, second: Sequence[Thing]) -> str:
    """Return the best verdict of all pairs; unverifiable if one of both is not in the scene.

    Of two dogs the assertion may mean either. That a thing is missing is said by its name's verdict already.
    """
    verdicts = {_compare_boxes(a.box, name, b.box) for a in first for b in second if a is not b}
    ranking = (SUPPORTED, UNVERIFIABLE, CONTRADICTED)
    return next((verdict for verdict in ranking if verdict in verdicts), UNVERIFIABLE)


def _compare_boxes(a: Box, name: str, b: Box) -> str:
    if name in ("left of", "right of", "above", "below"):
        horizontal = name in ("left of", "right of")
        distance = (b.x1 + b.x2 - a.x1 - a.x2) / 2 if horizontal else (b.y1 + b.y2 - a.y1 - a.y2) / 2
        distance = distance if name in ("left of", "above") else -distance
        if abs(distance) <= _SAME_POSITION:
            return UNVERIFIABLE
        return SUPPORTED if distance > 0 else CONTRADICTED
    shared = shared_area(a, b)
    if name == "overlapping":
        return SUPPORTED if shared > 0 else CONTRADICTED
    inside = shared / a.area if a.area else 0.0
    if inside >= _INSIDE:
        return SUPPORTED
    return UNVERIFIABLE if inside >= _PERHAPS_INSIDE else CONTRADICTED


def _judge_position(things: Sequence[Thing], sides: frozenset[str]) -> str:
    lies_there = [_lies_at(thing.box, sides) for thing in things]
    if not lies_there:
        return UNVERIFIABLE
    return SUPPORTED if any(lies_there) else CONTRADICTED


def _lies_at(box: Box, sides: frozenset[str]) -> bool:
    x, y = (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2
    on_side = {"left": x < 0.5, "right": x > 0.5, "top": y < 0.5, "bottom": y > 0.5}
    middle = 0.25 <= x <= 0.75 and 0.25 <= y <= 0.75
    if "middle" in sides and len(sides) > 1:  # "the upper middle": in the middle of the other axis only
        other = x if sides & {"top", "bottom"} else y
        middle = 0.25 <= other <= 0.75
    return all(middle if side == "middle" else on_side[side] for side in sides)


def _judge_size(things: Sequence[Thing], size: str, truth: SceneTruth) -> str:
    if not things:
        return UNVERIFIABLE
    areas = [thing.box.area for thing in truth.things]
    extreme = max(areas) if size == "largest" else min(areas)
    is_extreme = any(abs(thing.box.area - extreme) <= _SAME_AREA * extreme for thing in things)
    return SUPPORTED if is_extreme else CONTRADICTED


def _judge_ground(ground: str, truth: SceneTruth) -> str:
    if not truth.ground:
        return UNVERIFIABLE
    return SUPPORTED if ground == truth.ground else CONTRADICTED
