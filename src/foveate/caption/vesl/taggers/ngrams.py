"""All runs of up to three words of a text that neither begin nor end with a stop word: labels without a tagger.

The open-vocabulary detectors' own self-training takes such n-grams of alt-texts as queries (OWL-ST, arXiv 2306.09683,
there up to ten words); the paper compares its captions' phrases with them. Longer runs come first: the sum of words of
what is kept is then largest.
"""

from __future__ import annotations

from foveate.caption.vesl.phrases import Phrases, PhraseSettings, tidied, untidied
from foveate.caption.vesl.words import GENERIC_WORDS, STOP_WORDS
from foveate.records.text import split_sentences, split_words

LONGEST = 3


class NGrams:
    """See the module's text."""

    name, version = "ngrams", f"1 up to {LONGEST}"

    def __init__(self, settings: PhraseSettings) -> None:
        self.settings = settings

    def __call__(self, text: str) -> Phrases:
        found = []
        for part in split_sentences(text.lower(), style="treebank"):
            words = [word for word in split_words(part, style="treebank") if word not in GENERIC_WORDS]
            for length in range(LONGEST, 0, -1):
                for start in range(len(words) - length + 1):
                    run = words[start : start + length]
                    if _names(run[0]) and _names(run[-1]) and all(any(map(str.isalnum, word)) for word in run):
                        found.append(run)
        tidy = tidied if self.settings.recipe == "clean" else untidied
        return tidy(found, most=self.settings.most)


def _names(word: str) -> bool:
    return word not in STOP_WORDS


TAGGER = NGrams
