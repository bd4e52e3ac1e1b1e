"""All runs of up to three words that neither begin nor end with a stop word: phrases without a tagger.

Open-vocabulary detectors train themselves on such n-grams of alt-texts (OWL-ST, arXiv 2306.09683, up to ten words
there); the paper compares its captions' phrases with them. Longer runs come first, so that what is left after the limit
covers the most words.
"""

from __future__ import annotations

from foveate.caption.vesl.phrases import (
    STOP_WORDS,
    ExtractedPhrases,
    PhraseSettings,
    filter_clean,
    filter_paper,
    remove_generic,
)
from foveate.records.text import split_sentences, split_words

MAX_LENGTH = 3


class NGrams:
    """N-grams of 1 to `MAX_LENGTH` words within each sentence."""

    name, version = "ngrams", f"2 up to {MAX_LENGTH}"

    def __init__(self, settings: PhraseSettings) -> None:
        self.settings = settings

    def __call__(self, text: str) -> ExtractedPhrases:
        runs = []
        for part in split_sentences(text.lower(), style="treebank"):
            tokens = remove_generic(split_words(part.replace("’", "'"), style="treebank"))
            for length in range(MAX_LENGTH, 0, -1):
                for start in range(len(tokens) - length + 1):
                    run = tokens[start : start + length]
                    edges_name = run[0] not in STOP_WORDS and run[-1] not in STOP_WORDS
                    # A token without a letter or digit is punctuation, which no phrase spans.
                    if edges_name and all(any(map(str.isalnum, token)) for token in run):
                        runs.append(run)
        keep = filter_clean if self.settings.recipe == "clean" else filter_paper
        return keep(runs, max_phrases=self.settings.max_phrases)


TAGGER = NGrams
