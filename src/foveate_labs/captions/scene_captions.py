"""Captions of all formats rendered from a scene's own truth, and known errors in them.

For tests and harness checks. A share of the claims may be replaced by false ones of the same kind; what was put in is
what the audit must find.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foveate.metrics.captions import CONTRADICTED
from foveate_labs.captions.ground_truths.scenes import judge_assertion
from foveate_labs.captions.scene_truth import SceneTruth, Thing, grounds, split_name, vocabulary
from foveate_labs.worlds.scenes.language import add_article, format_count, is_plural, join_phrases, relate

# Claims about a generated scene in words, and false ones of the same kind.
#
# Each becomes exactly one assertion for the rule splitter, so that a share of false claims is a share of false
# assertions.


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


KINDS = ("ssc", "dsc", "dsc_plus", "afc")
# Longer pieces are sentences, which do not fit behind "The picture is about".
_MAX_FACT_WORDS = 6
_MAX_RELATIONS = 10
_FILE_NAME = re.compile(r"^\S+\.(png|jpe?g|gif|svg|bmp|tiff?)$|^(img|scan|picture|dsc)[_\- ]?\d+", re.IGNORECASE)
# Words of folders, batches and tools that alt-texts leak (`records.scenes.alt_text`): they say nothing about an image.
_EMPTY_WORDS = frozenset(
    "hash unsorted clipart color image cartoon symbol misc various cliparts untitled card pictures picture collection "
    "new drawing my scene part stock photo".split()
)


@dataclass(frozen=True, slots=True)
class RenderedCaption:
    """A rendered caption, the facts of the alt-text in it, and the number of its false claims."""

    text: str
    alt_facts: tuple[str, ...] = ()
    num_claims: int = 0
    num_false: int = 0


def plan_claims(kind: str, truth: SceneTruth, *, main: str = "") -> list[Claim]:
    """List the true claims of a format; none for a scene without a visible thing.

    Args:
        main: phrase of the thing that is named first; the largest one by default.
    """
    unique = unique_things(truth)
    counts = {thing.phrase: truth.count(thing.phrase) for thing in truth.things}
    if not counts:
        return []
    # The largest thing with a name of its own; without any, the one that was drawn first.
    main = main or (unique[0].phrase if unique else next(iter(counts)))
    others = {phrase: count for phrase, count in counts.items() if phrase != main}
    links = relation_claims(unique)
    ground = truth.ground or "a plain ground"
    if kind == "ssc":
        of_main = [link for link in links if main in link.names][:1]
        if of_main:
            return [Claim("line", of_main[0].names, f"{of_main[0].word}|{ground}")]
        return [Claim("line", (main,), f"|{ground}")]
    present = [Claim("there", (phrase,), number=count) for phrase, count in others.items()]
    written = [Claim("written", word=word) for word in truth.written]
    if kind in ("dsc", "afc"):
        opening = Claim("opening", (main,), number=counts[main])
        return [opening, *present, *links[:1], Claim("ground", word=ground), *written]
    sizes = list[Claim]()
    # With two cats of the same name "the largest thing" has no name of its own.
    if len(unique) > 1 and len(unique) == len(truth.things):
        sizes = [Claim("size", (unique[0].phrase,), "largest"), Claim("size", (unique[-1].phrase,), "smallest")]
    return [
        Claim("framing", (main,), number=counts[main]),
        *present,
        *(Claim("place", (thing.phrase,), describe_position(thing)) for thing in unique),
        *sizes,
        *links[:_MAX_RELATIONS],
        Claim("ground", word=ground),
        *([Claim("ground kind", word=truth.ground_kind)] if truth.ground_kind else []),
        *(written or [Claim("no writing")]),
    ]


def render(
    kind: str, truth: SceneTruth, *, alt: str, rng: np.random.Generator, hallucinations: float = 0.0
) -> RenderedCaption:
    """Render the caption of a format.

    Args:
        alt: the alt-text, for afc.
        hallucinations: share of the claims that are replaced by false ones.
    """
    planned = plan_claims(kind, truth)
    claims, num_false = [], 0
    for planned_claim in planned:
        claim = falsify(planned_claim, truth, rng) if rng.random() < hallucinations else planned_claim
        # `falsify` returns the true claim where it found no false one, and that is no error to find.
        num_false += claim != planned_claim
        claims.append(claim)
    sentences = write_sentences(claims)
    facts = extract_alt_facts(alt, " ".join(sentences), truth) if kind == "afc" else ()
    sentences += [f"The picture is {fact if fact.startswith('by ') else f'about {fact}'}." for fact in facts]
    return RenderedCaption(" ".join(sentences), facts, len(planned), num_false)


def write_sentences(claims: Sequence[Claim]) -> list[str]:
    """Write claims as sentences; single things that "there are" make one list."""
    sentences: list[str] = []
    listing = [
        c.names[0] for c in claims if c.kind == "there" and c.number == 1 and add_article(c.names[0]) != c.names[0]
    ]
    for claim in claims:
        if claim.kind == "there" and claim.names[0] in listing:
            if claim.names[0] == listing[0]:
                sentences.append(f"There is {join_phrases([add_article(name) for name in listing])}.")
            continue
        sentences.append(f"{write_claim(claim)}.")
    return sentences


def extract_alt_facts(alt: str, caption: str, truth: SceneTruth) -> tuple[str, ...]:
    """Extract what an alt-text adds to a caption.

    These are pieces that are no file names or words of folders, that the caption does not have already, and that the
    scene does not contradict.
    """
    if _FILE_NAME.match(alt.strip()):
        return ()
    known = set(split_name(caption))
    facts: list[str] = []
    for piece in re.split(r",| - | & |;|\band\b", alt.replace("_", " ")):
        tokens = [word for word in piece.split() if word.strip(".,!?()").lower() not in _EMPTY_WORDS]
        piece = " ".join(tokens).strip(" .,!?()-")
        named = set(split_name(piece))
        new = bool(named) and not named <= known
        if (
            new
            and len(tokens) <= _MAX_FACT_WORDS
            and piece not in facts
            and judge_assertion(f"The picture is about {piece}", truth) != CONTRADICTED
        ):
            facts.append(piece)
    return tuple(facts)
