"""Captions of all formats rendered from a scene's own truth, and known errors in them.

For tests and harness checks. A share of the claims may be replaced by false ones of the same kind; what was put in is
what the audit must find.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.metrics.captions import CONTRADICTED
from foveate_labs.captions.ground_truths.scenes import judge_assertion
from foveate_labs.captions.scene_claims import (
    Claim,
    describe_position,
    falsify,
    relation_claims,
    unique_things,
    write_claim,
)
from foveate_labs.captions.scene_truth import SceneTruth, split_name
from foveate_labs.worlds.scenes.language import add_article, join_phrases

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
