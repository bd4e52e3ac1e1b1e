"""Parse the claims of an assertion about a scene: names, numbers, relations, positions, backgrounds.

A parser of fixed phrases from left to right, without a grammar: it reads the assertions that captions of scenes make,
and leaves out what it does not know. Whether a claim is true is decided in `scene_judge`.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from foveate.records.builtin import phrases
from foveate.records.text import split_words
from foveate_labs.captions.scene_truth import grounds, split_name, vocabulary

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
    singular = [phrases.singular(token) for token in tokens[index : index + _LONGEST_NAME]]
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
