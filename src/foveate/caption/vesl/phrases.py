"""Noun phrases of a caption: step 2 of VESL (arXiv 2410.02746), and the recipe without its artifacts.

`paper` deletes generic words before the words are tagged, keeps duplicates and what the tagger misread; "The
background consists of ..." gives "the consists". `clean` tags whole sentences, takes generic words out of the phrases,
cuts verb forms off their ends and drops duplicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from foveate.caption.lexicon import VERB_FORMS
from foveate.core.recipes import Settings

# Words of advertisements, hosts and files, which name nothing that an image shows (paper, appendix on VESL).
GENERIC_WORDS = frozenset(
    """
    alibaba aliexpress amazon available background blog buy co com description diy download facebook free gif hd
    ideas illustration illustrations image images img instagram jpg online org original page pdf photo photography
    photos picclick picture pictures png porn premium resolution royalty sale sex shutterstock stock svg thumbnail
    tumblr tumgir twitter uk uploaded vector vectors video videos wallpaper wallpapers wholesale www xxx youtube
    """.split()
)

# English words that make no phrase by themselves (NLTK's stop words without contractions).
STOP_WORDS = frozenset(
    """
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
    it its itself they them their theirs themselves what which who whom this that these those am is are was were be
    been being have has had having do does did doing a an the and but if or because as until while of at by for with
    about against between into through during before after above below to from up down in out on off over under
    again further then once here there when where why how all any both each few more most other some such no nor not
    only own same so than too very s t can will just don should now
    """.split()
)

MAX_PHRASES = 20  # queries that an image gets; the paper keeps the first 20
_ADJECTIVES = frozenset(("JJ", "JJR", "JJS"))
_NOUNS = frozenset(("NN", "NNS", "NNP", "NNPS"))


class PhraseSettings(Settings):
    """Tagger, chunker and recipe that turn a caption into phrases.

    Example:
        >>> PhraseSettings(recipe="paper").max_phrases
        20
    """

    tagger: str = Field("rules", description="tagger of the words: rules, spacy, nltk or ngrams")
    chunker: Literal["auto", "tags", "parser"] = Field(
        "auto", description="tags = the published DT? JJ* NN+ over tags; parser = spaCy's noun chunks (auto with spacy)"
    )
    recipe: Literal["paper", "clean"] = Field(
        "clean", description="paper = as published, with its artifacts; clean = without them"
    )
    tagger_data: str | None = Field(None, description="nltk: folder of its data averaged_perceptron_tagger_eng")
    max_phrases: int = Field(MAX_PHRASES, ge=1, description="phrases of a caption that are kept, the first ones")


class ExtractedPhrases(NamedTuple):
    """Phrases of a caption.

    Attributes:
        phrases: at most `max_phrases`, in the order of the text.
        dropped: phrases of stop words only.
        total: number of usable phrases before the limit.
    """

    phrases: list[str]
    dropped: list[str]
    total: int


def remove_generic(tokens: Sequence[str]) -> list[str]:
    """Return the tokens without generic words."""
    return [token for token in tokens if token not in GENERIC_WORDS]


def find_chunks(tags: Sequence[str]) -> list[tuple[int, int]]:
    """Return start and end of every noun phrase: DT? JJ* NN+, leftmost, longest, non-overlapping.

    >>> find_chunks(["DT", "JJ", "NN", "VBZ", "DT", "NN", "NNS"])
    [(0, 3), (4, 7)]
    """
    chunks, start = [], 0
    # Greedy: a start without a noun gives way to the next token.
    while start < len(tags):
        end = start + (tags[start] == "DT")
        while end < len(tags) and tags[end] in _ADJECTIVES:
            end += 1
        first_noun = end
        while end < len(tags) and tags[end] in _NOUNS:
            end += 1
        if end > first_noun:
            chunks.append((start, end))
            start = end
        else:
            start += 1
    return chunks


def extract_paper_phrases(
    tokens: Sequence[str], tags: Sequence[str], *, max_phrases: int = MAX_PHRASES
) -> ExtractedPhrases:
    """Chunk tagged tokens as published: join each chunk, drop phrases of stop words only.

    Args:
        tokens: without generic words, which the published recipe removes before tagging.
    """
    return filter_paper([tokens[start:end] for start, end in find_chunks(tags)], max_phrases=max_phrases)


def filter_paper(chunks: Sequence[Sequence[str]], *, max_phrases: int = MAX_PHRASES) -> ExtractedPhrases:
    """Keep all chunks (lists of words) but those of stop words only, as the paper does."""
    return _join(chunks, max_phrases)


def extract_clean_phrases(
    tokens: Sequence[str], tags: Sequence[str], *, max_phrases: int = MAX_PHRASES
) -> ExtractedPhrases:
    """Chunk all tagged tokens; see `filter_clean` for what is removed."""
    return filter_clean([list(tokens[start:end]) for start, end in find_chunks(tags)], max_phrases=max_phrases)


def filter_clean(chunks: Sequence[Sequence[str]], *, max_phrases: int = MAX_PHRASES) -> ExtractedPhrases:
    """Remove generic words, verb forms at the end, and duplicates from chunks (lists of words).

    A chunk whose last word is generic names the medium ("a stock photo") and is dropped; generic words before it are
    removed ("a vector horse" becomes "a horse").
    """
    phrases: list[list[str]] = []
    for chunk in chunks:
        phrase = list(chunk)
        # "a dog runs": a tagger took the verb for a plural. Cut it only where a name is left before it.
        while len(phrase) > 1 and phrase[-1] in VERB_FORMS and _is_name(phrase[-2]):
            phrase.pop()
        if phrase[-1] in GENERIC_WORDS or (len(phrase) > 1 and phrase[-1] in VERB_FORMS):
            continue
        phrase = remove_generic(phrase)
        if phrase not in phrases:
            phrases.append(phrase)
    return _join(phrases, max_phrases)


def _is_name(word: str) -> bool:
    return word not in STOP_WORDS and word not in GENERIC_WORDS


def _join(chunks: Sequence[Sequence[str]], max_phrases: int) -> ExtractedPhrases:
    usable = [" ".join(chunk) for chunk in chunks if not all(word in STOP_WORDS for word in chunk)]
    dropped = [" ".join(chunk) for chunk in chunks if all(word in STOP_WORDS for word in chunk)]
    return ExtractedPhrases(usable[:max_phrases], dropped, len(usable))


def score_phrases(predicted: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute precision, recall and F1 of phrases over all captions; a phrase that occurs twice counts twice."""
    matches = sum(_count_common(ours, theirs) for ours, theirs in zip(predicted, truth, strict=True))
    num_predicted, num_true = sum(map(len, predicted)), sum(map(len, truth))
    precision, recall = matches / max(1, num_predicted), matches / max(1, num_true)
    return {"precision": precision, "recall": recall, "f1": 2 * matches / max(1, num_predicted + num_true)}


def _count_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Size of the intersection of two multisets."""
    rest, count = list(second), 0
    for phrase in first:
        if phrase in rest:
            rest.remove(phrase)
            count += 1
    return count
