"""Targets of the formats from other people's texts: what a rewriter is, and how AltText is woven in.

A rewriter is a module of `foveate.caption.targets.rewriters` with `open_rewriter(settings) -> Rewriter`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from foveate.caption.captioner import CaptionResponse
from foveate.caption.lengths import count_clip_tokens
from foveate.caption.targets.settings import TargetSettings
from foveate.core.plugins import load_module
from foveate.records.builtin.phrases import singular
from foveate.records.text import split_sentences, split_words

REWRITERS = "foveate.caption.targets.rewriters"
# Words that say how an image is laid out or joined, not what is in it: a rewriter may use them without a source.
FRAME_WORDS = frozenset(
    "a an the this that these those there it its one of and or but with without on in at by to from for into over "
    "under above below beside between behind near next inside outside around along as is are was were be been can "
    "has have not no nothing only also another other both each all some two three four five six picture image "
    "photograph photo drawing shot view scene square filled edge edges show shows shown seen left right upper "
    "lower middle centre center top bottom side part corner front back background foreground ground stand stands "
    "lie lies large small largest smallest size named thing things word words written writing text read say says "
    "about outline overlapping drawn plain pale colour color style group belong belongs alone draw photography".split()
)


# Formats that are rewritten; afc is made of dsc and the AltText.
REWRITTEN = ("ssc", "dsc", "dsc_plus")
Answers = dict[str, CaptionResponse]


class Rewriter(Protocol):
    """Writes targets, as a captioner answers: raw text that has yet to be read, or an error.

    `provenance` names it, its model and its prompts.
    """

    provenance: str

    def merge(self, materials: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Answers]:
        """For each image kind -> answer, from several short captions of it and text recognized in it (stage 1)."""
        ...

    def formats(self, descriptions: Sequence[str]) -> list[Answers]:
        """For each image kind -> answer, from one full description (stage 2)."""
        ...


def open_rewriter(settings: TargetSettings, *, folder: Path | None = None) -> Rewriter:
    """Open the rewriter that the recipe names.

    Args:
        folder: where answers that cost money are stored, so that a stopped run does not request them again.

    Raises:
        UserError: the rewriter is unknown; the error has the nearest match.
    """
    module = load_module(REWRITERS, settings.rewriter, label="field data.rewriter")
    return module.open_rewriter(settings, folder=folder)


@functools.lru_cache(maxsize=65_536)
def content_words(text: str) -> frozenset[str]:
    """Words (singular, lower case) that say what is in an image.

    >>> sorted(content_words("Two red apples are on the left."))
    ['apple', 'red']
    """
    words = {singular(word) for word in split_words(text) if word not in FRAME_WORDS}
    return frozenset(words - FRAME_WORDS)


def new_words(target: str, inputs: Iterable[str]) -> frozenset[str]:
    """Content words of a target that none of its inputs has: what a rewriter made up."""
    return content_words(target) - set[str]().union(*(content_words(text) for text in inputs))


def written_sentence(lines: Sequence[str]) -> str:
    """Recognized text as a sentence."""
    shown = " ".join(" ".join(lines).replace('"', "'").split())
    what = "word" if len(shown.split()) == 1 else "words"
    return f'The {what} "{shown}" {"is" if what == "word" else "are"} written in the picture.'


def fuse(dsc: str, facts: Sequence[str], *, alt: str, most: int) -> str:
    """A descriptive caption with facts of an AltText as further plain sentences, at most `most` CLIP tokens.

    Sentences that the AltText speaks of come right after the opening, those least related fall away where the facts
    need their room.
    """
    opening, *others = split_sentences(dsc)
    spoken = content_words(alt)
    others.sort(key=lambda sentence: not content_words(sentence) & spoken)
    added = [f"The picture is about {fact}." for fact in facts]
    while others and sum(map(count_clip_tokens, [opening, *others, *added])) > most:
        others.pop()
    return " ".join([opening, *others, *added])


_SEPARATORS = re.compile(r",|;|\||:| - | – | & |\band\b|[()\[\]]")


def names_in(alt: str, known: Iterable[str]) -> tuple[str, ...]:
    """Proper names and numbers of an AltText that the known texts do not say: facts that no image shows.

    A name is a run of capitalized words or numbers. AltTexts in title or upper case tell no names from words: of them
    nothing is taken but what has a digit.

    >>> names_in("the old market of Brennau, 1967", ["A market."]), names_in("Red Apple Tree", ["An apple."])
    (('Brennau', '1967'), ())
    """
    said = set[str]().union(*(content_words(text) for text in known))
    words = [word for word in alt.split() if word[:1].isalpha()]
    titled = sum(word[0].isupper() for word in words) > 0.6 * len(words) and len(words) > 1
    found: list[str] = []
    for number, piece in enumerate(_SEPARATORS.split(alt)):
        run: list[str] = []
        for place, word in enumerate([*piece.split(), ""]):
            bare = word.strip(".,!?\"'")
            capital = bare[:1].isupper() and not titled and (place > 0 or number > 0)
            digits = bare.isdigit() and 2 <= len(bare) <= 4
            if bare and (capital or digits) and not content_words(bare) <= said:
                run.append(bare)
            elif run:
                found.append(" ".join(run))
                run = []
    return tuple(dict.fromkeys(found))
