"""Noun phrases of a caption: step 2 of VESL (arXiv 2410.02746), and the recipe without its artifacts.

`paper` deletes generic words before the words are tagged, keeps duplicates and what the tagger misread; "The
background consists of ..." gives "the consists". `clean` tags whole sentences, takes generic words out of the phrases,
cuts verb forms off their ends and drops duplicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from foveate.caption.vesl.lexicon import VERB_FORMS
from foveate.caption.vesl.words import GENERIC_WORDS, STOP_WORDS
from foveate.core.recipes import Settings

MOST_PHRASES = 20
_ADJECTIVES = frozenset(("JJ", "JJR", "JJS"))
_NOUNS = frozenset(("NN", "NNS", "NNP", "NNPS"))
Recipe = Literal["paper", "clean"]


class PhraseSettings(Settings):
    """How a caption becomes phrases."""

    tagger: str = Field(
        "rules", description="a module of foveate.caption.vesl.taggers: rules, spacy, spacy_tags, nltk, ngrams"
    )
    recipe: Recipe = Field("clean", description="paper = as published, with its artifacts; clean = without them")
    tagger_data: str | None = Field(None, description="nltk: folder of its data averaged_perceptron_tagger_eng")
    most: int = Field(MOST_PHRASES, ge=1, description="phrases of a caption that are kept, the first ones")


class Phrases(NamedTuple):
    """The phrases of a caption that are kept, in order; those that were dropped; and how many there were in all."""

    kept: list[str]
    stop_words: list[str]
    found: int


def without_generic(tokens: Sequence[str]) -> list[str]:
    """The tokens that are no generic words."""
    return [token for token in tokens if token not in GENERIC_WORDS]


def chunks(tags: Sequence[str]) -> list[tuple[int, int]]:
    """Start and end of every noun phrase: DT? JJ* NN+, leftmost, longest, non-overlapping.

    >>> chunks(["DT", "JJ", "NN", "VBZ", "DT", "NN", "NNS"])
    [(0, 3), (4, 7)]
    """
    found, start = [], 0
    while start < len(tags):
        place = start + (tags[start] == "DT")
        while place < len(tags) and tags[place] in _ADJECTIVES:
            place += 1
        nouns = place
        while place < len(tags) and tags[place] in _NOUNS:
            place += 1
        if place > nouns:
            found.append((start, place))
            start = place
        else:
            start += 1
    return found


def paper_phrases(tokens: Sequence[str], tags: Sequence[str], *, most: int = MOST_PHRASES) -> Phrases:
    """The published recipe from tagged tokens without generic words: chunk, join, drop phrases of stop words only."""
    return untidied([tokens[start:end] for start, end in chunks(tags)], most=most)


def untidied(found: Sequence[Sequence[str]], *, most: int = MOST_PHRASES) -> Phrases:
    """Phrases (lists of words) as the paper keeps them: all but those of stop words only."""
    return _kept(found, most)


def clean_phrases(tokens: Sequence[str], tags: Sequence[str], *, most: int = MOST_PHRASES) -> Phrases:
    """The same from all tagged tokens, without generic words, verb forms at the end, and duplicates."""
    return tidied([list(tokens[start:end]) for start, end in chunks(tags)], most=most)


def tidied(found: Sequence[Sequence[str]], *, most: int = MOST_PHRASES) -> Phrases:
    """Phrases (lists of words) as the clean recipe keeps them.

    A phrase whose last word is generic names the medium ("a stock photo") and goes; generic words before it are taken
    out ("a vector horse" is "a horse").
    """
    kept: list[list[str]] = []
    for words in found:
        phrase = list(words)
        while len(phrase) > 1 and phrase[-1] in VERB_FORMS and _names_something(phrase[-2]):
            phrase.pop()
        if phrase[-1] in GENERIC_WORDS or (len(phrase) > 1 and phrase[-1] in VERB_FORMS):
            continue
        phrase = without_generic(phrase)
        if phrase not in kept:
            kept.append(phrase)
    return _kept(kept, most)


def _names_something(word: str) -> bool:
    return word not in STOP_WORDS and word not in GENERIC_WORDS


def _kept(found: Sequence[Sequence[str]], most: int) -> Phrases:
    useful = [" ".join(words) for words in found if not all(word in STOP_WORDS for word in words)]
    dropped = [" ".join(words) for words in found if all(word in STOP_WORDS for word in words)]
    return Phrases(useful[:most], dropped, len(useful))


def phrase_scores(found: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of phrases over captions; a phrase that comes twice counts twice."""
    right = sum(_common(ours, theirs) for ours, theirs in zip(found, truth, strict=True))
    ours, theirs = sum(map(len, found)), sum(map(len, truth))
    precision, recall = right / max(1, ours), right / max(1, theirs)
    return {"precision": precision, "recall": recall, "f1": 2 * right / max(1, ours + theirs)}


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    rest, count = list(second), 0
    for phrase in first:
        if phrase in rest:
            rest.remove(phrase)
            count += 1
    return count
