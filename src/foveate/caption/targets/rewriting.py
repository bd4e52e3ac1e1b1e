"""Rewrite texts of people into targets of the caption formats, and add facts of an AltText.

A rewriter is a module of `foveate.caption.targets.rewriters` with `open_rewriter(settings, folder=...) -> Rewriter`.
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
from foveate.records.builtin.families import singular
from foveate.records.text import split_sentences, split_words

REWRITERS = "foveate.caption.targets.rewriters"
# Words of layout and grammar, not of content: a rewriter may use them although no input has them.
FRAME_WORDS = frozenset(
    "a an the this that these those there it its one of and or but with without on in at by to from for into over "
    "under above below beside between behind near next inside outside around along as is are was were be been can "
    "has have not no nothing only also another other both each all some two three four five six picture image "
    "photograph photo drawing shot view scene square filled edge edges show shows shown seen left right upper "
    "lower middle centre center top bottom side part corner front back background foreground ground stand stands "
    "lie lies large small largest smallest size named thing things word words written writing text read say says "
    "about outline overlapping drawn plain pale colour color style group belong belongs alone draw photography".split()
)


# Formats that are rewritten; afc is made from dsc and the AltText.
REWRITTEN = ("ssc", "dsc", "dsc_plus")
Rewrites = dict[str, CaptionResponse]


class Rewriter(Protocol):
    """Writes targets as captioners respond: raw text that has to be parsed, or an error.

    Attributes:
        provenance: name of the rewriter, its model and its prompts.
    """

    provenance: str

    def merge(self, materials: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Rewrites]:
        """Rewrite short captions and recognized text of each image into formats (stage 1)."""
        ...

    def formats(self, descriptions: Sequence[str]) -> list[Rewrites]:
        """Rewrite one full description of each image into formats (stage 2)."""
        ...


def open_rewriter(settings: TargetSettings, *, folder: Path | None = None) -> Rewriter:
    """Open the rewriter that the recipe names.

    Args:
        folder: where paid responses are stored, so that a stopped run does not request them again.

    Raises:
        UserError: the rewriter is unknown; the error has the nearest match.
    """
    module = load_module(REWRITERS, settings.rewriter, label="field rewriter")
    return module.open_rewriter(settings, folder=folder)


# Cached, because every rewrite is compared with all inputs of its image: the same texts come up repeatedly.
@functools.lru_cache(maxsize=65_536)
def content_words(text: str) -> frozenset[str]:
    """Return the words (singular, lower case) that name the contents of an image.

    >>> sorted(content_words("Two red apples are on the left."))
    ['apple', 'red']
    """
    singulars = {singular(word) for word in split_words(text) if word not in FRAME_WORDS}
    return frozenset(singulars - FRAME_WORDS)


def new_words(target: str, inputs: Iterable[str]) -> frozenset[str]:
    """Return content words of a target that none of its inputs has: inventions of the rewriter."""
    return content_words(target) - set[str]().union(*(content_words(text) for text in inputs))


def make_text_sentence(lines: Sequence[str]) -> str:
    """Put recognized text into a sentence."""
    # Double quotes mark the drawn words, so the text itself must not have any.
    text = " ".join(" ".join(lines).replace('"', "'").split())
    noun = "word" if len(text.split()) == 1 else "words"
    return f'The {noun} "{text}" {"is" if noun == "word" else "are"} written in the picture.'


def fuse(dsc: str, facts: Sequence[str], *, alt: str, max_tokens: int) -> str:
    """Append facts of an AltText to a descriptive caption as plain sentences.

    Sentences about what the AltText mentions come right after the opening; unrelated ones at the end are dropped until
    the text has at most `max_tokens` CLIP tokens.
    """
    opening, *others = split_sentences(dsc)
    alt_words = content_words(alt)
    others.sort(key=lambda sentence: not content_words(sentence) & alt_words)  # stable: the order is kept otherwise
    added = [f"The picture is about {fact}." for fact in facts]
    while others and sum(map(count_clip_tokens, [opening, *others, *added])) > max_tokens:
        others.pop()
    return " ".join([opening, *others, *added])


_SEPARATORS = re.compile(r",|;|\||:| - | – | & |\band\b|[()\[\]]")


def find_names(alt: str, known: Iterable[str]) -> tuple[str, ...]:
    """Find proper names and numbers of an AltText that no known text has: facts that the image does not show.

    A name is a run of capitalized words or numbers. In AltTexts in title or upper case names look like other words:
    only numbers are returned.

    >>> find_names("the old market of Brennau, 1967", ["A market."]), find_names("Red Apple Tree", ["An apple."])
    (('Brennau', '1967'), ())
    """
    known_words = set[str]().union(*(content_words(text) for text in known))
    tokens = [token for token in alt.split() if token[:1].isalpha()]
    # Title case: more than 60 % are capitalized, which sentences with names hardly reach.
    is_title = sum(token[0].isupper() for token in tokens) > 0.6 * len(tokens) and len(tokens) > 1
    names: list[str] = []
    for piece_index, piece in enumerate(_SEPARATORS.split(alt)):
        run: list[str] = []
        for index, token in enumerate([*piece.split(), ""]):  # "" ends the last run
            bare = token.strip(".,!?\"'")
            # The first word of a text is capitalized anyway.
            is_capital = bare[:1].isupper() and not is_title and (index > 0 or piece_index > 0)
            is_number = bare.isdigit() and 2 <= len(bare) <= 4  # years and counts; longer ones are ids
            if bare and (is_capital or is_number) and not content_words(bare) <= known_words:
                run.append(bare)
            elif run:
                names.append(" ".join(run))
                run = []
    return tuple(dict.fromkeys(names))
