"""From the words of an assertion to what it says about a scene: names, numbers, relations, places, grounds."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from foveate.caption.assertions.scene_truth import grounds, names, vocabulary
from foveate.records.builtin import phrases
from foveate.records.text import split_words

NUMBERS = {word: number for number, word in enumerate("zero one two three four five six seven eight nine".split())}
# Longest first: "to the left of" holds "left of".
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
_BEFORE_PLACE = frozenset("on in at near toward towards".split())
_AFTER_PLACE = frozenset("part side corner edge half area hand third end".split())
_WRITING = frozenset("writing text word words letter letters lettering".split())
_COPIES = frozenset("picture pictures copy copies a an of the".split())
_QUOTED = re.compile(r"[\"“]([^\"”]*)[\"”]|(?<!\w)'([^']+)'(?!\w)")
_GROUND_KIND = re.compile(r"ground is (?:an? )?(photograph|photo|drawn|drawing|pattern)\b")
_GROUND_KINDS = {"photograph": "photo", "photo": "photo", "drawn": "drawn", "drawing": "drawn", "pattern": "drawn"}
_DIGIT = re.compile(r"\b(\d)\b")


@dataclass(frozen=True, slots=True)
class Mention:
    """A thing that is named: a name of the vocabulary, or single words. number: how many, None where not said."""

    phrase: str
    number: int | None = None
    known: bool = True


@dataclass
class Reading:
    """All that an assertion says. links: (position in mentions of the one before, relation, of the one after)."""

    mentions: list[Mention] = field(default_factory=list)
    links: list[tuple[int, str, int]] = field(default_factory=list)
    places: list[tuple[int, frozenset[str]]] = field(default_factory=list)
    sizes: list[tuple[int, str]] = field(default_factory=list)
    grounds: list[str] = field(default_factory=list)
    ground_kinds: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    open_relations: int = 0
    no_writing: bool = False
    negated: bool = False
    loose: list[str] = field(default_factory=list)
    early_sides: frozenset[str] = frozenset()  # "on the right is a dog"
    early_relation: str = ""  # "to the left of the key is a dog"


@functools.cache
def _names() -> Mapping[str, tuple[tuple[tuple[str, ...], str, bool], ...]]:
    """First word -> (all words, what they name, whether that is a ground), longest first."""
    found: dict[str, list[tuple[tuple[str, ...], str, bool]]] = defaultdict(list)
    for phrase in vocabulary():
        words = names(phrase)
        found[words[0]].append((words, phrase, False))
    for said, _, _ in grounds().values():
        words = names(re.sub(r"^(an?|the) ", "", said))
        found[words[0]].append((words, said, True))
    return {first: tuple(sorted(many, key=lambda one: (-len(one[0]), not one[2]))) for first, many in found.items()}


def read(assertion: str, scene_words: frozenset[str] = frozenset()) -> Reading:
    """What an assertion says, as far as it can be compared with a scene.

    Args:
        scene_words: words of names in the scene; single ones that stand alone count as naming a part of it.
    """
    reading = Reading()
    reading.written = [first or second for first, second in _QUOTED.findall(assertion) if (first or second).strip()]
    plain = _DIGIT.sub(lambda found: list(NUMBERS)[int(found.group(1))], _QUOTED.sub(" ", assertion))
    words = split_words(plain, style="letters")
    reading.negated = len(words) > 2 and words[0] == "there" and words[2] == "no"
    reading.ground_kinds = [_GROUND_KINDS[kind] for kind in _GROUND_KIND.findall(plain.lower())]
    place, waiting = 0, ""
    while place < len(words):
        place, waiting = _read_at(words, place, waiting, reading, scene_words)
    if _WRITING & set(words) and reading.negated:
        reading.no_writing = True
    return reading


def _read_at(
    words: Sequence[str], place: int, waiting: str, reading: Reading, scene_words: frozenset[str]
) -> tuple[int, str]:
    """Takes in what stands at `place`; returns where to go on, and the relation that waits for its second thing."""
    singular = [phrases.singular(word) for word in words[place : place + 12]]
    for named, said, is_ground in _names().get(singular[0], ()):
        if tuple(singular[: len(named)]) == named:
            if is_ground:
                reading.grounds.append(said)
                return place + len(named), ""
            return place + len(named), _mention(words, place, said, waiting, reading)
    for pattern, name in RELATIONS:
        if tuple(words[place : place + len(pattern)]) == pattern:
            if name == "?":
                reading.open_relations += 1
            if not reading.mentions:
                reading.early_relation = "" if name == "?" else name
                return place + len(pattern), ""
            return place + len(pattern), "" if name == "?" else name
    sides, after = _sides(words, place)
    if sides:
        if reading.mentions:
            reading.places.append((len(reading.mentions) - 1, sides))
        else:
            reading.early_sides = sides
        return after, waiting
    if words[place] in ("largest", "biggest", "smallest") and reading.mentions:
        size = "smallest" if words[place] == "smallest" else "largest"
        reading.sizes.append((len(reading.mentions) - 1, size))
        return place + 1, waiting
    if singular[0] in scene_words:
        reading.loose.append(singular[0])
    return place + 1, waiting


def _mention(words: Sequence[str], place: int, said: str, waiting: str, reading: Reading) -> str:
    before = place - 1
    while before >= 0 and words[before] in _COPIES:
        before -= 1
    number = NUMBERS.get(words[before]) if before >= 0 else None
    reading.mentions.append(Mention(said, number))
    if waiting:
        reading.links.append((len(reading.mentions) - 2, waiting, len(reading.mentions) - 1))
    elif reading.early_relation and len(reading.mentions) == 2:
        reading.links.append((1, reading.early_relation, 0))
    if reading.early_sides:
        reading.places.append((len(reading.mentions) - 1, reading.early_sides))
        reading.early_sides = frozenset()
    return ""


def _sides(words: Sequence[str], place: int) -> tuple[frozenset[str], int]:
    """The sides in "in the upper left part of the image", and where it ends; none where no place is said."""
    if words[place] not in _BEFORE_PLACE:
        return frozenset(), place
    after = place + 1
    while after < len(words) and words[after] in ("the", "far", "very"):
        after += 1
    sides: set[str] = set()
    while after < len(words) and (words[after] in _SIDES or words[after] in _MIDDLE):
        sides.add(_SIDES.get(words[after], "middle"))
        after += 1
    while sides and after < len(words) and words[after] in _AFTER_PLACE:
        after += 1
    return frozenset(sides), after
