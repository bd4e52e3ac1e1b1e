"""Judge assertions about a generated scene by its ground truth, without a model.

An assertion is parsed into claims (`foveate_labs.captions.ground_truths.scenes`), each of which gets a verdict:

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
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from foveate.metrics.captions import CONTRADICTED, SUPPORTED, UNVERIFIABLE
from foveate.records.boxes import Box
from foveate.records.builtin import families
from foveate.records.collection import Collection
from foveate.records.text import split_words
from foveate_labs.captions.scene_truth import SceneTruth, SceneTruths, Thing, grounds, split_name, vocabulary
from foveate_labs.worlds.scenes.language import shared_area

# Parse the claims of an assertion about a scene: names, numbers, relations, positions, backgrounds.
#
# A parser of fixed phrases from left to right, without a grammar: it reads the assertions that captions of scenes make,
# and leaves out what it does not know. Whether a claim is true is decided in `scene_judge`.


NUMBER_WORDS = {word: number for number, word in enumerate("zero one two three four five six seven eight nine".split())}
# Longest first: "to the left of" contains "left of". "?" marks relations that boxes do not decide: what is near or
# behind depends on depth and taste.
RELATIONS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("inside", "the", "outline", "of"), "inside"),
    (("to", "the", "left", "of"), "left of"),
    (("to", "the", "right", "of"), "right of"),
    (("on", "the", "left", "of"), "left of"),
    (("on", "the", "right", "of"), "right of"),
    (("in", "front", "of"), "?"),
    (("on", "top", "of"), "?"),
    (("left", "of"), "left of"),
    (("right", "of"), "right of"),
    (("next", "to"), "?"),
    (("close", "to"), "?"),
    (("above",), "above"),
    (("below",), "below"),
    (("under",), "below"),
    (("beneath",), "below"),
    (("underneath",), "below"),
    (("inside",), "inside"),
    (("overlapping",), "overlapping"),
    (("overlaps",), "overlapping"),
    (("overlap",), "overlapping"),
    (("beside",), "?"),
    (("near",), "?"),
    (("behind",), "?"),
    (("between",), "?"),
)
_SIDES = {"left": "left", "right": "right", "top": "top", "upper": "top", "bottom": "bottom", "lower": "bottom"}
_MIDDLE = frozenset({"middle", "centre", "center"})
_BEFORE_SIDE = frozenset("on in at near toward towards".split())
_AFTER_SIDE = frozenset("part side corner edge half area hand third end".split())
_WRITING = frozenset("writing text word words letter letters lettering".split())
# Between a number and the thing it counts: "two pictures of a dog".
_COUNT_FILLERS = frozenset("picture pictures copy copies a an of the".split())
_QUOTED = re.compile(r"[\"“]([^\"”]*)[\"”]|(?<!\w)'([^']+)'(?!\w)")
_GROUND_KIND = re.compile(r"ground is (?:an? )?(photograph|photo|drawn|drawing|pattern)\b")
_GROUND_KINDS = {"photograph": "photo", "photo": "photo", "drawn": "drawn", "drawing": "drawn", "pattern": "drawn"}
_DIGIT = re.compile(r"\b(\d)\b")


@dataclass(frozen=True, slots=True)
class Mention:
    """A thing that the assertion names.

    Attributes:
        phrase: a name of the vocabulary.
        number: how many there are, None if the assertion does not say.
    """

    phrase: str
    number: int | None = None


@dataclass
class Claims:
    """All claims of one assertion; indices point into `mentions`.

    Attributes:
        mentions: things that are named, in order.
        relations: (index of the first thing, relation, index of the second).
        positions: (index, sides of the image), such as {"top", "left"}.
        sizes: (index, "largest" or "smallest").
        grounds, ground_kinds: words of a background; "photo" or "drawn".
        written: quoted words.
        open_relations: number of relations that boxes do not decide.
        no_writing: the assertion says that there are no words in the image.
        negated: the assertion begins with "there is no".
        part_words: single words that are part of a name in the scene.
        leading_sides: of "on the right is a dog", until the dog is read.
        leading_relation: of "to the left of the key is a dog", until the dog is read.
    """

    mentions: list[Mention] = field(default_factory=list)
    relations: list[tuple[int, str, int]] = field(default_factory=list)
    positions: list[tuple[int, frozenset[str]]] = field(default_factory=list)
    sizes: list[tuple[int, str]] = field(default_factory=list)
    grounds: list[str] = field(default_factory=list)
    ground_kinds: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    open_relations: int = 0
    no_writing: bool = False
    negated: bool = False
    part_words: list[str] = field(default_factory=list)
    leading_sides: frozenset[str] = frozenset()
    leading_relation: str = ""


@functools.cache
def _known_names() -> Mapping[str, tuple[tuple[tuple[str, ...], str, bool], ...]]:
    """Map first words to (all words, the name, whether it is a background's), longest first."""
    entries: dict[str, list[tuple[tuple[str, ...], str, bool]]] = defaultdict(list)
    for phrase in vocabulary():
        tokens = split_name(phrase)
        entries[tokens[0]].append((tokens, phrase, False))
    for ground, _, _ in grounds().values():
        tokens = split_name(re.sub(r"^(an?|the) ", "", ground))
        entries[tokens[0]].append((tokens, ground, True))
    # Longest first: "fire engine" is not a fire. Of equally long ones the background comes first.
    return {
        first: tuple(sorted(group, key=lambda entry: (-len(entry[0]), not entry[2])))
        for first, group in entries.items()
    }


_LONGEST_NAME = 12  # words compared at once; the longest name of the vocabulary has 9


def parse_claims(assertion: str, scene_words: frozenset[str] = frozenset()) -> Claims:
    """Parse an assertion as far as it can be compared with a scene.

    Args:
        scene_words: words of names in the scene; one that stands alone names a part of a thing ("something smiling").
    """
    claims = Claims()
    claims.written = [double or single for double, single in _QUOTED.findall(assertion) if (double or single).strip()]
    # Quoted text is taken out first: a drawn word "dog" names no dog.
    # Digits become words, so that "3 dogs" and "three dogs" are one claim.
    plain = _DIGIT.sub(lambda match: list(NUMBER_WORDS)[int(match.group(1))], _QUOTED.sub(" ", assertion))
    tokens = split_words(plain, style="letters")
    claims.negated = len(tokens) > 2 and tokens[0] == "there" and tokens[2] == "no"
    claims.ground_kinds = [_GROUND_KINDS[kind] for kind in _GROUND_KIND.findall(plain.lower())]
    index, pending = 0, ""
    while index < len(tokens):
        index, pending = _parse_at(tokens, index, pending, claims, scene_words)
    if _WRITING & set(tokens) and claims.negated:
        claims.no_writing = True
    return claims


def _parse_at(
    tokens: Sequence[str], index: int, pending: str, claims: Claims, scene_words: frozenset[str]
) -> tuple[int, str]:
    """Parse what stands at `index`.

    Args:
        pending: relation whose second thing has not been read yet, "" for none.

    Returns:
        Where to go on, and the relation that is pending then.
    """
    singular = [families.singular(token) for token in tokens[index : index + _LONGEST_NAME]]
    for name_tokens, name, is_ground in _known_names().get(singular[0], ()):
        if tuple(singular[: len(name_tokens)]) == name_tokens:
            if is_ground:
                claims.grounds.append(name)
            else:
                _add_mention(tokens, index, name, pending, claims)
            return index + len(name_tokens), ""
    for pattern, relation in RELATIONS:
        if tuple(tokens[index : index + len(pattern)]) == pattern:
            if relation == "?":
                claims.open_relations += 1
            relation = "" if relation == "?" else relation
            if not claims.mentions:  # no first thing yet: "to the left of the key is a dog"
                claims.leading_relation = relation
                return index + len(pattern), ""
            return index + len(pattern), relation
    sides, after = _parse_sides(tokens, index)
    if sides:
        if claims.mentions:
            claims.positions.append((len(claims.mentions) - 1, sides))
        else:
            claims.leading_sides = sides
        return after, pending
    if tokens[index] in ("largest", "biggest", "smallest") and claims.mentions:
        size = "smallest" if tokens[index] == "smallest" else "largest"
        claims.sizes.append((len(claims.mentions) - 1, size))
        return index + 1, pending
    if singular[0] in scene_words:
        claims.part_words.append(singular[0])
    return index + 1, pending


def _add_mention(tokens: Sequence[str], index: int, name: str, pending: str, claims: Claims) -> None:
    """Add a thing with its number, and the relation or position that was waiting for it."""
    # Back over "pictures of a" to the number that counts the thing.
    before = index - 1
    while before >= 0 and tokens[before] in _COUNT_FILLERS:
        before -= 1
    number = NUMBER_WORDS.get(tokens[before]) if before >= 0 else None
    claims.mentions.append(Mention(name, number))
    last = len(claims.mentions) - 1
    if pending:
        claims.relations.append((last - 1, pending, last))
    elif claims.leading_relation and len(claims.mentions) == 2:
        claims.relations.append((1, claims.leading_relation, 0))
    if claims.leading_sides:
        claims.positions.append((last, claims.leading_sides))
        claims.leading_sides = frozenset()


def _parse_sides(tokens: Sequence[str], index: int) -> tuple[frozenset[str], int]:
    """Parse "in the upper left part of the image"; return its sides (none if it is no position) and its end."""
    if tokens[index] not in _BEFORE_SIDE:
        return frozenset(), index
    after = index + 1
    while after < len(tokens) and tokens[after] in ("the", "far", "very"):
        after += 1
    sides: set[str] = set()
    while after < len(tokens) and (tokens[after] in _SIDES or tokens[after] in _MIDDLE):
        sides.add(_SIDES.get(tokens[after], "middle"))
        after += 1
    while sides and after < len(tokens) and tokens[after] in _AFTER_SIDE:
        after += 1
    return frozenset(sides), after


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
_FUNCTION_WORDS = families.SPLITTERS | families.VARIANT_WORDS | {"a", "an", "the", "and"}


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
    head, name_words = families.head_noun(phrase), _name_words(phrase)
    return [
        thing
        for thing in truth.things
        if families.head_noun(thing.phrase) == head and name_words <= _name_words(thing.phrase)
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
