"""Interfaces of taggers and phrase extractors.

A new tagger is one new module of `foveate.caption.vesl.taggers` with a `TAGGER`: PhraseSettings -> Extractor. Its name
is the module's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from foveate.caption.vesl.phrases import (
    ExtractedPhrases,
    PhraseSettings,
    extract_clean_phrases,
    extract_paper_phrases,
    remove_generic,
)
from foveate.core.errors import UserError
from foveate.core.plugins import load_plugin, module_names
from foveate.records.text import split_sentences

TAGGERS = "foveate.caption.vesl.taggers"


class Tagger(Protocol):
    """Part-of-speech tagger with Penn tags. `version` (of code or weights) goes into the recipe's hash."""

    name: str
    version: str

    def tokens(self, sentence: str) -> list[str]:
        """Split one lower-case sentence into tokens."""
        ...

    def tags(self, tokens: Sequence[str]) -> list[str]:
        """Return one tag per token."""
        ...


class Extractor(Protocol):
    """Extracts phrases from a caption."""

    name: str
    version: str

    def __call__(self, text: str) -> ExtractedPhrases: ...


class TaggerPhrases:
    """The chunker DT? JJ* NN+ over a tagger, with the recipe of `settings`."""

    def __init__(self, tagger: Tagger, settings: PhraseSettings) -> None:
        if settings.chunker == "parser":
            raise UserError(
                f"field 'chunker': tagger '{tagger.name}' has no parser (got 'parser'); expected tags or auto"
            )
        self.tagger, self.settings = tagger, settings
        self.name, self.version = tagger.name, tagger.version

    def __call__(self, text: str) -> ExtractedPhrases:
        # Lower case first: the published recipe tags lower-case text, which decides what is a proper noun.
        parts = split_sentences(text.lower(), style="treebank")
        tokens = [token for part in parts for token in self.tagger.tokens(part)]
        if self.settings.recipe == "paper":
            tokens = remove_generic(tokens)
            return extract_paper_phrases(tokens, self.tagger.tags(tokens), max_phrases=self.settings.max_phrases)
        return extract_clean_phrases(tokens, self.tagger.tags(tokens), max_phrases=self.settings.max_phrases)


def tagger_names() -> list[str]:
    """List all taggers without importing them."""
    return module_names(TAGGERS)


def open_extractor(settings: PhraseSettings) -> Extractor:
    """Open the extractor of a tagger.

    Raises:
        UserError: the tagger is unknown (the error has the nearest match), or a package that it needs is missing.
    """
    open_tagger: Callable[[PhraseSettings], Extractor] = load_plugin(TAGGERS, settings.tagger, "TAGGER", label="tagger")
    return open_tagger(settings)
