"""The formats rendered from a scene's own truth: what a captioner that errs in nothing would say, and known errors.

For tests and harness checks. A share of the statements may be replaced by false ones of the same kind; what was put in
is what the audit must find.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.caption.assertions.scene_judge import judge_assertion
from foveate.caption.assertions.scene_truth import SceneTruth, split_name
from foveate.caption.scene_claims import Claim, falsified, once, place_of, relations, say
from foveate.metrics.captions import CONTRADICTED
from foveate.records.scenes.language import add_article, join_phrases

KINDS = ("ssc", "dsc", "dsc_plus", "afc")
_MOST_RELATIONS = 10
_FILE_NAME = re.compile(r"^\S+\.(png|jpe?g|gif|svg|bmp|tiff?)$|^(img|scan|picture|dsc)[_\- ]?\d+", re.IGNORECASE)
# Words of folders, batches and tools that alt-texts leak (`records.scenes.alt_text`): they say nothing of an image.
_NOTHING = frozenset(
    "hash unsorted clipart color image cartoon symbol misc various cliparts untitled card pictures picture collection "
    "new drawing my scene part stock photo".split()
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A caption, the facts of the alt-text that it took up, and how many of its statements are false on purpose."""

    text: str
    alt_facts: tuple[str, ...] = ()
    statements: int = 0
    false: int = 0


def claims(kind: str, truth: SceneTruth, *, main: str = "") -> list[Claim]:
    """The statements of a format, before any of them is falsified; none for a scene without a visible thing.

    main: phrase of the thing that is named first; the largest one by default.
    """
    single = once(truth)
    counts = {thing.phrase: truth.count(thing.phrase) for thing in truth.things}
    if not counts:
        return []
    main = main or (single[0].phrase if single else next(iter(counts)))
    others = {phrase: count for phrase, count in counts.items() if phrase != main}
    links = relations(single)
    ground = truth.ground or "a plain ground"
    if kind == "ssc":
        of_main = [link for link in links if main in link.names][:1]
        if of_main:
            return [Claim("line", of_main[0].names, f"{of_main[0].word}|{ground}")]
        return [Claim("line", (main,), f"|{ground}")]
    there = [Claim("there", (phrase,), number=count) for phrase, count in others.items()]
    written = [Claim("written", word=word) for word in truth.written]
    if kind in ("dsc", "afc"):
        opening = Claim("opening", (main,), number=counts[main])
        return [opening, *there, *links[:1], Claim("ground", word=ground), *written]
    sizes = [Claim("size", (single[0].phrase,), "largest"), Claim("size", (single[-1].phrase,), "smallest")]
    extreme = len(single) > 1 and len(single) == len(truth.things)
    return [
        Claim("framing", (main,), number=counts[main]),
        *there,
        *(Claim("place", (thing.phrase,), place_of(thing)) for thing in single),
        *(sizes if extreme else []),
        *links[:_MOST_RELATIONS],
        Claim("ground", word=ground),
        *([Claim("ground kind", word=truth.ground_kind)] if truth.ground_kind else []),
        *(written or [Claim("no writing")]),
    ]


def render(
    kind: str, truth: SceneTruth, *, alt: str, rng: np.random.Generator, hallucinations: float = 0.0
) -> Rendered:
    """A caption of a format.

    Args:
        alt: the alt-text, for afc. hallucinations: share of the statements that are replaced by false ones.
    """
    planned = claims(kind, truth)
    said, false = [], 0
    for claim in planned:
        wrong = falsified(claim, truth, rng) if rng.random() < hallucinations else claim
        false += wrong != claim
        said.append(wrong)
    sentences = worded(said)
    facts = alt_facts(alt, " ".join(sentences), truth) if kind == "afc" else ()
    sentences += [f"The picture is {fact if fact.startswith('by ') else f'about {fact}'}." for fact in facts]
    return Rendered(" ".join(sentences), facts, len(planned), false)


def worded(said: Sequence[Claim]) -> list[str]:
    """Statements as sentences; those of single things that "there is" are one list."""
    sentences: list[str] = []
    listing = [
        c.names[0] for c in said if c.kind == "there" and c.number == 1 and add_article(c.names[0]) != c.names[0]
    ]
    for claim in said:
        if claim.kind == "there" and claim.names[0] in listing:
            if claim.names[0] == listing[0]:
                sentences.append(f"There is {join_phrases([add_article(name) for name in listing])}.")
            continue
        sentences.append(f"{say(claim)}.")
    return sentences


def alt_facts(alt: str, said: str, truth: SceneTruth) -> tuple[str, ...]:
    """What an alt-text adds to a caption: pieces that are no file names or words of folders, that the caption does not
    say already, and that the scene does not contradict."""
    if _FILE_NAME.match(alt.strip()):
        return ()
    known = set(split_name(said))
    found = []
    for piece in re.split(r",| - | & |;|\band\b", alt.replace("_", " ")):
        words = [word for word in piece.split() if word.strip(".,!?()").lower() not in _NOTHING]
        piece = " ".join(words).strip(" .,!?()-")
        own = set(split_name(piece))
        new = bool(own) and not own <= known
        if (
            new
            and len(words) <= 6
            and piece not in found
            and judge_assertion(f"The picture is about {piece}", truth) != CONTRADICTED
        ):
            found.append(piece)
    return tuple(found)
